//! Kernels with one fault each, on the emulator: the proof that the emulated suite can fail.
//!
//! Each fault is a text in a kernel's source and what becomes of it. A process has one driver, so the kernels of each
//! lie in a folder of their own.

#[path = "../built/mod.rs"]
mod built;
#[path = "../cuda/mod.rs"]
mod cuda;
mod faults;
#[path = "../hunts/mod.rs"]
mod hunts;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use faults::{faults, in_source, kernel};
use hunts::{Caught, Fault, Told};
use libtest_mimic::Failed;
use vaecf_core::backend::Backend;
use vaecf_cuda::Precision;

/// What a child is told: the folder of its driver, and the precision.
const FOLDER: &str = "VAECF_MUTANT_FOLDER";
const PRECISION: &str = "VAECF_MUTANT_PRECISION";

fn main() -> ExitCode {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the emulator is built on Linux only");
        return ExitCode::SUCCESS;
    }
    if hunts::is_child() {
        let told = |name| env::var(name).expect("a child is told what to open");
        let precision = Precision::ALL.into_iter().find(|p| p.name() == told(PRECISION)).expect("a precision");
        let folder = PathBuf::from(told(FOLDER));
        let open = |device| cuda::open_device(&folder, precision, true, device);
        let members = |rank| -> vaecf_core::Result<Box<dyn Backend>> { Ok(Box::new(open(rank)?)) };
        return hunts::hunt(&mut open(0).expect("the stand-ins"), Some(&members), cuda::beyond());
    }
    hunts::run(faults(), Vec::new(), is_caught)
}

fn is_caught(fault: &Fault<Precision>, number: usize) -> Result<Caught, Failed> {
    let mutant = build(fault, number)?;
    let told = |folder: &Path| -> Told {
        let device = cuda::DEVICE.map(|(name, value)| (name, value.into()));
        device.into_iter().chain([(FOLDER, folder.into()), (PRECISION, fault.on.name().into())]).collect()
    };
    let caught = hunts::catch(fault.op, &told(&mutant), &told(built::emulator()))?;
    fs::remove_dir_all(&mutant)?;
    // What the emulator says of a fault comes first.
    let what = caught.complained.lines().next().map_or(caught.what, str::to_owned);
    Ok(Caught { what, ..caught })
}

/// The stand-ins with a fault in the kernels.
fn build(fault: &Fault<Precision>, number: usize) -> Result<PathBuf, Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-mutant-{number}"));
    let kernels = folder.join("kernels");
    fs::create_dir_all(&kernels)?;
    // The headers, and of the kernels those with the fault; the others are there, compiled.
    for entry in fs::read_dir(built::kernels())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.extension().is_some_and(|e| e == "cuh") || path.file_stem().is_some_and(|stem| stem == kernel(fault)) {
            let source = fs::read_to_string(&path)?;
            let source = if name == fault.place { in_source(fault, &source)? } else { source };
            fs::write(kernels.join(name), source)?;
        }
    }
    built::emulator_from(&folder, &kernels, built::emulator());
    Ok(folder)
}
