//! The CUDA backend, kernels and host code, on a machine without a GPU: the suite on stand-ins for NVIDIA's
//! libraries that run the kernels' own sources on the CPU (`tests/emulator`).
//!
//! A program of its own, because a process has one driver.

mod built;
mod cuda;
mod subjects;

use std::process::ExitCode;

use subjects::Subject;
use vaecf_cuda::Precision;

fn main() -> ExitCode {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the emulator is built on Linux only");
        return ExitCode::SUCCESS;
    }
    // SAFETY: no other thread has begun.
    cuda::DEVICE.iter().for_each(|(name, value)| unsafe { std::env::set_var(name, value) });
    let subject = |name, precision, own_products| {
        let cuda = cuda::open(built::emulator(), precision, own_products);
        Subject {
            // Whole runs take a minute, so one subject has them.
            runs: precision == Precision::F16 && own_products,
            beyond: cuda::beyond(),
            open: Some(Box::new(move |rank| {
                Ok(Box::new(cuda::open_device(built::emulator(), precision, own_products, rank)?))
            })),
            ..Subject::new(name, false, cuda)
        }
    };
    let subjects = vec![
        subject("emulated f32", Precision::F32, true),
        subject("emulated tf32", Precision::Tf32, true),
        subject("emulated f16", Precision::F16, true),
        subject("emulated bf16", Precision::Bf16, true),
        subject("emulated f32 with cuBLASLt", Precision::F32, false),
        subject("emulated f16 with cuBLASLt", Precision::F16, false),
    ];
    subjects::run("emulator", subjects)
}
