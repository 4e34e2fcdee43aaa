//! From a backend's name to a device.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use vaecf_core::{
    Error, Kind, Result,
    backend::Backend,
    device::{Device, Exchange},
    plugin::{self, Request},
};
use vaecf_cpu::Cpu;
use vaecf_cuda::Cuda;
use vaecf_wgpu::{Choice, Found, Wgpu};

use crate::{
    commands::Context,
    options::{Global, Pick, Place, Precision},
    output::{Ui, bytes},
};

/// A backend that people may ask for by name.
pub(crate) struct Row {
    /// What is typed.
    pub(crate) name: &'static str,
    /// Opens the device that was asked for, whatever backend was.
    pub(crate) open: fn(&Global, &Ui) -> Result<Box<dyn Backend>>,
    /// What `vaecf doctor` says of it beside the device, by name.
    pub(crate) details: fn() -> Vec<(String, String)>,
}

/// All of them, in the order in which `auto` tries them.
pub(crate) const ALL: [Row; 3] = [
    Row { name: "cuda", open: cuda, details: cuda_details },
    Row { name: "wgpu", open: wgpu, details: wgpu_details },
    Row { name: "cpu", open: cpu, details: Vec::new },
];

/// Opens the device that was asked for, as that of a member of the group. What the root has chosen automatically is
/// what the others take.
pub(crate) fn open(context: &Context) -> Result<Device> {
    let Context { global, ui, group, half_sums, .. } = context;
    if group.world() == 1 {
        return choose(global, ui).map(Device::new);
    }
    let mut chosen = None;
    let name = group.from_root(|| match global.backend.as_str() {
        "auto" => Ok(chosen.insert(choose(global, ui)?).info().name),
        name => Ok(name.to_owned()),
    })?;
    let own = || choose(&Global { backend: name, ..global.clone() }, ui);
    let device = Device::in_group(group.all_well(chosen.map_or_else(own, Ok))?, group.clone(), *half_sums)?;
    if let (true, Exchange::Hosts(why)) = (*half_sums, device.exchange()) {
        return Err(Error::usage(format!(
            "--half-sums: sums are made on the hosts, in full precision ({why}); leave it out"
        )));
    }
    let how = match device.exchange() {
        Exchange::None => "nothing to add up".to_owned(),
        Exchange::Devices => "the devices add up gradients themselves".to_owned(),
        Exchange::Hosts(why) => format!("gradients are added up on the hosts ({why})"),
    };
    let (world, carrier) = (group.world(), group.carrier().unwrap_or_default());
    ui.note(format_args!("group: {world} members, over {carrier}; {how}"));
    Ok(device)
}

/// Makes the backend that was asked for, and says which one where the choice was left open.
pub(crate) fn choose(global: &Global, ui: &Ui) -> Result<Box<dyn Backend>> {
    let (backend, passed_over) = match global.backend.as_str() {
        "auto" => first_that_opens(global, ui)?,
        name if is_plugin(name) => (plugin(name, global)?, Vec::new()),
        name => (named(name, global, ui)?, Vec::new()),
    };
    let info = backend.info();
    let found = format!("backend: {} ({}, {})", info.name, info.device, info.precision);
    match global.backend.as_str() {
        "auto" if passed_over.is_empty() => ui.note(format_args!("{found}, chosen automatically")),
        "auto" => ui.note(format_args!("{found}, chosen automatically: {}", passed_over.join("; "))),
        _ => ui.detail(found),
    }
    Ok(backend)
}

/// Makes the backend of a member of a group like this one: on the device so many after the one that was asked for.
pub(crate) fn member(global: &Global, of: &str, rank: u32, ui: &Ui) -> Result<Box<dyn Backend>> {
    let device = match global.device() {
        Pick::Number(first) => Pick::Number(first.saturating_add(rank)),
        name if rank == 0 => name,
        name => return Err(Error::usage(format!("--device {name}: one device is called so"))),
    };
    let backend = if global.backend == "auto" { of.to_owned() } else { global.backend.clone() };
    choose(&Global { backend, device: Some(device), ..global.clone() }, ui)
}

/// The first backend that opens, and why those before it do not.
fn first_that_opens(global: &Global, ui: &Ui) -> Result<(Box<dyn Backend>, Vec<String>)> {
    let (mut passed_over, mut kind) = (Vec::new(), Kind::Usage);
    for row in &ALL {
        match (row.open)(global, ui) {
            Ok(backend) => return Ok((backend, passed_over)),
            Err(why) => {
                kind = why.kind();
                passed_over.push(why.to_string());
            }
        }
    }
    Err(Error::new(kind, format!("no backend does what is asked: {}", passed_over.join("; "))))
}

fn named(name: &str, global: &Global, ui: &Ui) -> Result<Box<dyn Backend>> {
    match ALL.iter().find(|row| row.name == name) {
        Some(row) => (row.open)(global, ui),
        None => {
            let choices = ALL.map(|row| row.name).join(", ");
            Err(Error::usage(format!(
                "--backend {name}: there is no such backend; choose auto, {choices}, or the path of a shared library"
            )))
        }
    }
}

fn cpu(global: &Global, _: &Ui) -> Result<Box<dyn Backend>> {
    // Members on one host need not be told apart, and divide the cores that they share.
    let Place { world, sharing, .. } = global.place;
    match global.device() {
        Pick::Number(0) => {}
        Pick::Number(_) if world > 1 => {}
        other => return Err(Error::usage(format!("--device {other}: the cpu backend has one device, 0"))),
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match sharing {
        1 => global.threads,
        sharing => Some(global.threads.unwrap_or_else(|| (cores() / sharing as usize).max(1))),
    };
    Ok(match global.precision {
        Precision::Auto | Precision::F32 => Box::new(Cpu::<f32>::new(threads)?),
        Precision::F64 => Box::new(Cpu::<f64>::new(threads)?),
        Precision::Tf32 | Precision::F16 | Precision::Bf16 => {
            return Err(Error::usage(
                "the cpu backend computes in f32, or in f64 as the reference; choose one of these with --precision",
            ));
        }
    })
}

fn cuda(global: &Global, _: &Ui) -> Result<Box<dyn Backend>> {
    let precision = match global.precision {
        Precision::Auto | Precision::F16 => vaecf_cuda::Precision::F16,
        Precision::F32 => vaecf_cuda::Precision::F32,
        Precision::Tf32 => vaecf_cuda::Precision::Tf32,
        Precision::Bf16 => vaecf_cuda::Precision::Bf16,
        Precision::F64 => {
            return Err(Error::usage(
                "the cuda backend computes in f16, bf16, tf32 or f32; choose one of these with --precision",
            ));
        }
    };
    let device = match global.device() {
        // Some launchers show each process its own device only.
        Pick::Number(_) if global.device.is_none() && sees_one_device() => 0,
        Pick::Number(number) => number,
        Pick::Name(name) => cuda_device(&name)?,
    };
    let options = vaecf_cuda::Options { device, precision, ..Default::default() };
    Ok(Box::new(Cuda::open(&options)?))
}

fn sees_one_device() -> bool {
    vaecf_cuda::survey().is_ok_and(|survey| survey.devices.len() == 1)
}

/// The number of the device that has this in its name.
fn cuda_device(name: &str) -> Result<u32> {
    let all = vaecf_cuda::survey().map_err(|absent| Error::new(Kind::Device, absent.to_string()))?.devices;
    let wanted = name.to_lowercase();
    let fitting: Vec<_> = all.iter().filter(|found| found.name.to_lowercase().contains(&wanted)).collect();
    let why = match fitting[..] {
        [one] => return Ok(one.device),
        [] => "no device is called so",
        _ => "more than one device is called so",
    };
    let list: Vec<_> = all.iter().map(|found| format!("{} ({})", found.device, found.name)).collect();
    Err(Error::usage(format!("--device {name}: {why}; choose among {}", list.join(", "))))
}

/// The driver and the devices there are; nothing where there is no driver, which opening one says.
fn cuda_details() -> Vec<(String, String)> {
    let Ok(survey) = vaecf_cuda::survey() else { return Vec::new() };
    let found_at = survey.found_at.display();
    let sums = vaecf_cuda::sums().unwrap_or_else(|absent| absent.to_string());
    let driver = ("driver".to_owned(), format!("CUDA {}, {found_at}", survey.driver));
    let mut details = vec![driver, ("several devices".to_owned(), sums)];
    for found in survey.devices {
        let (major, minor) = found.capability;
        let about = format!("{}, compute capability {major}.{minor}, {}", found.name, bytes(found.memory));
        let refused = found.refused.map(|why| format!("; {why}")).unwrap_or_default();
        details.push((format!("device {}", found.device), about + &refused));
    }
    details
}

fn wgpu(global: &Global, ui: &Ui) -> Result<Box<dyn Backend>> {
    let precision = match global.precision {
        Precision::Auto | Precision::F32 => vaecf_wgpu::Precision::F32,
        Precision::F16 => vaecf_wgpu::Precision::F16,
        Precision::Tf32 | Precision::Bf16 | Precision::F64 => {
            return Err(Error::usage("the wgpu backend computes in f32 or f16; choose one of these with --precision"));
        }
    };
    let adapter = match global.device() {
        Pick::Number(0) if global.place.world == 1 => Choice::Any,
        Pick::Number(number) => Choice::Number(number),
        Pick::Name(name) => Choice::Name(name),
    };
    let options = vaecf_wgpu::Options { adapter, precision, tuning: wgpu_tuning(), ..Default::default() };
    let backend = Wgpu::open(&options)?;
    let found = backend.adapter();
    if found.software {
        let only = if options.adapter == Choice::Any { "no graphics device was found, and " } else { "" };
        let what = format!("{only}{} computes in software: the cpu backend is faster", found.name);
        if global.backend == "auto" && options.adapter == Choice::Any {
            return Err(Error::new(Kind::Device, format!("{what}; --backend wgpu takes it all the same")));
        }
        ui.note(what);
    }
    Ok(Box::new(backend))
}

/// Where it is kept which kernels are the fastest on a device: among the user's caches.
fn wgpu_tuning() -> Option<PathBuf> {
    let folders = etcetera::choose_base_strategy().ok()?;
    Some(folders.cache_dir().join("vaecf").join("wgpu.json"))
}

/// The adapters, which may be none: opening one says so.
fn wgpu_details() -> Vec<(String, String)> {
    let about = |found: Found| {
        let mut about = format!("{}, {}, {}", found.name, found.through, found.driver);
        if found.software {
            about += ", in software";
        }
        about += &found.memory.map(|memory| format!("; {} of memory", bytes(memory))).unwrap_or_default();
        about += &format!(
            "; buffers of {}, {} of one in a shader, {} in a workgroup",
            bytes(found.buffer),
            bytes(found.binding),
            bytes(found.workgroup_memory.into())
        );
        let features = [("f16", found.shader_f16), ("timestamps", found.timestamps)];
        let mut features: Vec<_> =
            features.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()).collect();
        if !found.cooperative_matrices.is_empty() {
            features.push(format!("cooperative matrices ({})", found.cooperative_matrices.join(", ")));
        }
        if !features.is_empty() {
            about += &format!("; {}", features.join(", "));
        }
        (format!("device {}", found.number), about)
    };
    vaecf_wgpu::survey().into_iter().map(about).collect()
}

/// Whether a backend's name is the path of a shared library.
fn is_plugin(name: &str) -> bool {
    name.contains(['/', '\\']) || [".so", ".dylib", ".dll"].iter().any(|end| name.ends_with(end))
}

fn plugin(name: &str, global: &Global) -> Result<Box<dyn Backend>> {
    let wanted = global.precision.name();
    let Pick::Number(device) = global.device() else {
        return Err(Error::usage(format!("--device {}: {name} takes a device by its number, from 0", global.device())));
    };
    let request = Request { device, threads: global.threads, precision: wanted.into() };
    let backend = plugin::load(Path::new(name), &request)?;
    let precision = backend.info().precision;
    if global.precision != Precision::Auto && precision != wanted {
        return Err(Error::usage(format!(
            "--precision {wanted}: {name} computes in {precision}; leave it out, or ask for {precision}"
        )));
    }
    Ok(backend)
}
