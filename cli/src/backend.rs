//! From a backend's name to a device.

use vaecf_core::{Error, Result, device::Device};
use vaecf_cpu::Cpu;

use crate::{
    options::{Global, Precision},
    output::Ui,
};

/// Why a backend that people may ask for is not in this build.
pub(crate) const ABSENT: [(&str, &str); 3] = [
    ("cuda", "this build has no CUDA backend"),
    ("wgpu", "this build has no wgpu backend"),
    ("plugins", "this build cannot load backends from shared libraries"),
];

/// Opens the device that was asked for, and says which one where the choice was left open.
pub(crate) fn open(global: &Global, ui: &Ui) -> Result<Device> {
    let device = match global.backend.as_str() {
        "auto" | "cpu" => cpu(global)?,
        name => return Err(Error::usage(refusal(name))),
    };
    let info = device.info();
    let found = format!("backend: {} ({}, {})", info.name, info.device, info.precision);
    match global.backend.as_str() {
        "auto" => ui.note(format_args!("{found}, chosen automatically, the only one in this build")),
        _ => ui.detail(found),
    }
    Ok(device)
}

/// Refuses what [`open`] would refuse.
pub(crate) fn check(global: &Global) -> Result<()> {
    match global.backend.as_str() {
        "auto" | "cpu" => cpu(global).map(drop),
        name => Err(Error::usage(refusal(name))),
    }
}

fn cpu(global: &Global) -> Result<Device> {
    if global.device > 0 {
        return Err(Error::usage(format!("--device {}: the cpu backend has one device, 0", global.device)));
    }
    Ok(Device::new(match global.precision {
        Precision::Auto | Precision::F32 => Box::new(Cpu::<f32>::new(global.threads)?),
        Precision::F64 => Box::new(Cpu::<f64>::new(global.threads)?),
        Precision::F16 | Precision::Bf16 => {
            return Err(Error::usage(
                "the cpu backend computes in f32, or in f64 as the reference; choose one of these",
            ));
        }
    }))
}

fn refusal(name: &str) -> String {
    let is_file =
        name.contains(['/', '\\']) || name.ends_with(".so") || name.ends_with(".dylib") || name.ends_with(".dll");
    let key = if is_file { "plugins" } else { name };
    match ABSENT.iter().find(|(absent, _)| *absent == key) {
        Some((_, why)) => format!("--backend {name}: {why}; choose auto or cpu"),
        None => format!("--backend {name}: there is no such backend; choose auto or cpu"),
    }
}
