//! `cargo bench --bench border`: what a call through the border of plugins costs. The operation does nothing,
//! so the time is that of the call: in this program, through the table with the functions linked in, and
//! from a shared library in C.

use std::{env, hint::black_box, path::Path, process::Command, time::Instant};

use vaecf_core::{
    Error, Result,
    backend::{self, Backend, Buf, Curve, Mat},
    forward_backend,
    plugin::{self, Request, abi, export},
};
use vaecf_cpu::Cpu;

/// Calls in one measurement.
const CALLS: u32 = 1_000_000;

/// Measurements of each, in turns.
const ROUNDS: usize = 31;

const NOTHING: Mat = Mat { buf: Buf(1), rows: 0, cols: 0, stride: 0, offset: 0 };

/// A backend whose `linear` does nothing.
struct Idle {
    inner: Cpu<f32>,
    calls: u64,
}

impl Idle {
    fn new() -> Result<Self> {
        Ok(Self { inner: Cpu::new(Some(1))?, calls: 0 })
    }
}

impl Backend for Idle {
    forward_backend! { self, self.inner;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    fn linear(&mut self, x: Mat, _: Mat, _: Mat, _: Curve, _: Mat) -> backend::Result {
        self.calls += u64::from(x.rows) + 1;
        Ok(())
    }
}

unsafe extern "C" fn idle(version: u32, out: *mut abi::VTableV1) -> i32 {
    // SAFETY: what `link` promises an entry point.
    unsafe { export::fill(version, out, |_| Idle::new()) }
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::failure(format!("no temporary folder: {e}")))?;
    let library = folder.path().join("libidle.so");
    build(&library)?;
    let request = Request::default();
    let mut backends: [(&str, Box<dyn Backend>); 3] = [
        ("in this program", Box::new(Idle::new()?)),
        // SAFETY: the entry point is made by `export::fill`.
        ("Rust through the table", unsafe { plugin::link(idle, "idle", &request) }?),
        ("C from a shared library", plugin::load(&library, &request)?),
    ];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, backend), times) in backends.iter_mut().zip(&mut times) {
            times.push(nanoseconds(&mut **backend)?);
        }
    }
    for ((name, _), times) in backends.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("{name:<28} {:>8.1} ns a call, at most {:.1}", times[ROUNDS / 2], times[ROUNDS - 1]);
    }
    Ok(())
}

/// Of one call, over many.
fn nanoseconds(backend: &mut dyn Backend) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(&mut *backend).linear(NOTHING, NOTHING, NOTHING, Curve::Tanh, NOTHING)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS))
}

/// A small backend of the tests, which answers without doing anything.
fn build(library: &Path) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let built = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=c99", "-O2", "-shared", "-fPIC", "-I"])
        .arg(root.join("core/include"))
        .arg("-o")
        .arg(library)
        .arg(root.join("tests/tests/built/faulty.c"))
        .status();
    match built {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::failure(format!("the C compiler ended with {status}"))),
        Err(e) => Err(Error::failure(format!("the C compiler did not start: {e}; name one in CC"))),
    }
}
