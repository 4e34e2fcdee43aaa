//! The CUDA backend, kernels and host code, on a machine without a GPU: the suite on stand-ins for NVIDIA's
//! libraries that run the kernels' own sources on the CPU (`tests/emulator`).
//!
//! A program of its own, because a process has one driver.

mod built;
mod subjects;

use std::process::ExitCode;

use subjects::Subject;
use vaecf_cuda::{Cuda, Options, Precision};

fn main() -> ExitCode {
    let cuda = |name, precision, own_products| {
        let libraries = Some(built::emulator().to_owned());
        Subject::new(name, false, Cuda::open(&Options { precision, libraries, own_products, device: 0 }))
    };
    let subjects = vec![
        cuda("emulated f32", Precision::F32, true),
        cuda("emulated f16", Precision::F16, true),
        cuda("emulated bf16", Precision::Bf16, true),
        cuda("emulated tf32", Precision::Tf32, true),
        cuda("emulated f32 with cuBLASLt", Precision::F32, false),
        cuda("emulated f16 with cuBLASLt", Precision::F16, false),
    ];
    subjects::run("emulator", subjects)
}
