//! What there is of CUDA on a machine, before any of it is opened.

use std::path::PathBuf;

use crate::{
    driver::{Absent, Context, Driver, Properties, Version},
    nccl::Nccl,
};

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub device: u32,
    /// Its maker's name for it.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Why the kernels do not run on it, where they do not.
    pub refused: Option<String>,
}

/// What there is of CUDA on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The newest CUDA that the driver speaks.
    pub driver: String,
    /// The driver's library.
    pub found_at: PathBuf,
    /// The devices.
    pub devices: Vec<Found>,
}

/// Looks for a driver and devices.
///
/// # Errors
/// Why there is no CUDA here.
pub fn survey() -> std::result::Result<Survey, Absent> {
    let driver = Driver::open(None)?;
    let look = |device| {
        let properties = Context::look(device).map_err(|fault| Absent(fault.to_string()))?;
        let capability = (properties.major, properties.minor);
        let refused = too_old(&properties);
        Ok(Found { device, name: properties.name, capability, memory: properties.memory, refused })
    };
    let devices = (0..driver.devices).map(look).collect::<std::result::Result<_, Absent>>()?;
    Ok(Survey { driver: Version(driver.version).to_string(), found_at: driver.found_at, devices })
}

/// What would make sums over several devices, with its version.
///
/// # Errors
/// Why there is nothing, in words: several devices work together all the same, by way of the hosts, unless it is too old.
pub fn sums() -> std::result::Result<String, Absent> {
    let driver = Driver::open(None)?;
    let nccl = Nccl::open(None, driver.version as u32 / 1000).map_err(|fault| Absent(fault.to_string()))?;
    Ok(format!("NCCL {}", nccl.version()))
}

/// Why the kernels do not run on a device.
pub(crate) fn too_old(properties: &Properties) -> Option<String> {
    let Properties { name, major, minor, .. } = properties;
    ((*major, *minor) < (7, 5)).then(|| {
        format!("{name} has compute capability {major}.{minor}, and 7.5 (Turing) is the oldest that the kernels run on")
    })
}
