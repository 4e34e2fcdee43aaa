//! The suite on every backend at hand, one named trial per case and backend.
//!
//! `cargo test -p vaecf-tests --test conformance -- 'agrees linear '` runs a part of it. Random cases are drawn
//! from the number in `VAECF_SEED`, 1 unless given; `VAECF_TRIAL` is the line of one trial to run instead of
//! them all. What is not here, or not implemented, or known to fail is shown as ignored with the reason.

mod built;
mod cuda;
mod subjects;
mod wgpu;

use std::{path::Path, process::ExitCode};

use subjects::{Opener, Subject};
use vaecf_core::plugin::{Request, load};
use vaecf_cpu::Cpu;
use vaecf_cuda::{Cuda, Precision};
use vaecf_tests::{Narrow, Recorded, Summed};
use vaecf_wgpu::{Lowered, Wgpu};
use wgpu::PIECES;

fn plugin(name: &'static str, full: bool, path: &Path) -> Subject {
    Subject::new(name, full, load(path, &Request::default()))
}

/// A shared library that nobody here has seen.
fn named() -> Subject {
    let name = "plugin of VAECF_PLUGIN";
    match std::env::var_os("VAECF_PLUGIN") {
        Some(path) => plugin(name, true, Path::new(&path)),
        None => {
            let backend = Err("VAECF_PLUGIN names no shared library".into());
            Subject { name, backend, full: true, runs: true, beyond: Vec::new(), open: None }
        }
    }
}

fn device(name: &'static str, precision: Precision) -> Subject {
    let open = move |device| Cuda::open(&vaecf_cuda::Options { device, precision, ..Default::default() });
    let members: Opener = Box::new(move |rank| Ok(Box::new(open(rank)?)));
    Subject { beyond: cuda::beyond(), open: Some(members), ..Subject::new(name, true, open(0)) }
}

/// The WGPU backend on a driver in software.
fn software(name: &'static str, driver: &str, precision: vaecf_wgpu::Precision, lowered: Lowered) -> Subject {
    // What is large, and whole runs, take minutes in software, so one row has them. In pieces it would be thousands.
    let whole = (driver, precision, lowered) == ("llvmpipe", vaecf_wgpu::Precision::F32, Lowered::default());
    let opened = Wgpu::open(&wgpu::software(driver, precision, lowered));
    Subject { runs: whole, beyond: wgpu::beyond(lowered), ..Subject::new(name, whole, opened) }
}

/// The same of a size at which most is cut and the suite is soon done.
const LARGER: Lowered = Lowered { piece: Some(1024), ..PIECES };

fn main() -> ExitCode {
    use vaecf_wgpu::Precision::{F16, F32};
    let single = || Cpu::<f32>::new(Some(2));
    let subjects = vec![
        Subject::new("cpu f32", true, single()),
        Subject::new("cpu f64", true, Cpu::<f64>::new(Some(2))),
        Subject {
            open: Some(Box::new(move |_| Ok(Box::new(Recorded::new(Summed::new(Narrow::f16(single()?))))))),
            ..Subject::new("narrow f16", true, single().map(|cpu| Recorded::new(Narrow::f16(cpu))))
        },
        Subject::new("narrow bf16", false, single().map(Narrow::bf16)),
        plugin("plugin in C", true, built::plugin_c()),
        plugin("plugin in Rust", false, built::plugin_rust()),
        named(),
        device("cuda f32", Precision::F32),
        device("cuda tf32", Precision::Tf32),
        device("cuda f16", Precision::F16),
        device("cuda bf16", Precision::Bf16),
        software("wgpu f32", "llvmpipe", F32, Lowered::default()),
        software("wgpu f16", "llvmpipe", F16, Lowered::default()),
        software("wgpu f32 in pieces", "llvmpipe", F32, LARGER),
        software("wgpu f16 in pieces", "llvmpipe", F16, LARGER),
        software("wgpu f32 on SwiftShader", "SwiftShader", F32, Lowered::default()),
        software("wgpu f16 on SwiftShader", "SwiftShader", F16, Lowered::default()),
    ];
    subjects::run("conformance", subjects)
}
