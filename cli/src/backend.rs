//! From a backend's name to a device.

use std::path::Path;

use vaecf_core::{
    Error, Result,
    backend::Backend,
    device::Device,
    plugin::{self, Request},
};
use vaecf_cpu::Cpu;

use crate::{
    options::{Global, Precision},
    output::Ui,
};

/// Why a backend that people may ask for is not in this build.
pub(crate) const ABSENT: [(&str, &str); 2] =
    [("cuda", "this build has no CUDA backend"), ("wgpu", "this build has no wgpu backend")];

/// Opens the device that was asked for.
pub(crate) fn open(global: &Global, ui: &Ui) -> Result<Device> {
    choose(global, ui).map(Device::new)
}

/// Makes the backend that was asked for, and says which one where the choice was left open.
pub(crate) fn choose(global: &Global, ui: &Ui) -> Result<Box<dyn Backend>> {
    let backend = match global.backend.as_str() {
        "auto" | "cpu" => cpu(global)?,
        name if is_plugin(name) => plugin(name, global)?,
        name => return Err(Error::usage(refusal(name))),
    };
    let info = backend.info();
    let found = format!("backend: {} ({}, {})", info.name, info.device, info.precision);
    match global.backend.as_str() {
        "auto" => ui.note(format_args!("{found}, chosen automatically, the only one in this build")),
        _ => ui.detail(found),
    }
    Ok(backend)
}

fn cpu(global: &Global) -> Result<Box<dyn Backend>> {
    if global.device > 0 {
        return Err(Error::usage(format!("--device {}: the cpu backend has one device, 0", global.device)));
    }
    Ok(match global.precision {
        Precision::Auto | Precision::F32 => Box::new(Cpu::<f32>::new(global.threads)?),
        Precision::F64 => Box::new(Cpu::<f64>::new(global.threads)?),
        Precision::F16 | Precision::Bf16 => {
            return Err(Error::usage(
                "the cpu backend computes in f32, or in f64 as the reference; choose one of these",
            ));
        }
    })
}

/// Whether a backend's name is the path of a shared library.
fn is_plugin(name: &str) -> bool {
    name.contains(['/', '\\']) || [".so", ".dylib", ".dll"].iter().any(|end| name.ends_with(end))
}

fn plugin(name: &str, global: &Global) -> Result<Box<dyn Backend>> {
    let wanted = global.precision.name();
    let request = Request { device: global.device, threads: global.threads, precision: wanted.into() };
    let backend = plugin::load(Path::new(name), &request)?;
    let precision = backend.info().precision;
    if global.precision != Precision::Auto && precision != wanted {
        return Err(Error::usage(format!(
            "--precision {wanted}: {name} computes in {precision}; leave it out, or ask for {precision}"
        )));
    }
    Ok(backend)
}

fn refusal(name: &str) -> String {
    let choices = "choose auto, cpu, or the path of a shared library";
    match ABSENT.iter().find(|(absent, _)| *absent == name) {
        Some((_, why)) => format!("--backend {name}: {why}; {choices}"),
        None => format!("--backend {name}: there is no such backend; {choices}"),
    }
}
