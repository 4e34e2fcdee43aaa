//! Adapters, a device, and everything that may go wrong with it, as values.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use vaecf_core::{
    Error, Kind,
    backend::{Fault, Result},
};
use wgpu::{DeviceType, Features, Limits};

use crate::{Choice, Options};

/// An adapter that is there.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number.
    pub number: u32,
    /// Its maker's name for it.
    pub name: String,
    /// What it is reached through: Vulkan, Metal, DX12.
    pub through: String,
    /// The driver, with its version.
    pub driver: String,
    /// Whether it is a program on the CPU.
    pub software: bool,
    /// Whether its memory is the host's own.
    pub host_memory: bool,
    /// Bytes of memory, where the driver tells.
    pub memory: Option<u64>,
    /// Bytes of the largest buffer, and of what a shader may see of one.
    pub buffer: u64,
    /// See `buffer`.
    pub binding: u64,
    /// Bytes that the threads of a workgroup share.
    pub workgroup_memory: u32,
    /// Whether it says when its work was done.
    pub timestamps: bool,
    /// Whether its shaders have numbers of 16 bits.
    pub shader_f16: bool,
    /// Sizes of matrices that it multiplies by itself, in words.
    pub cooperative_matrices: Vec<String>,
}

impl Found {
    fn new(number: usize, adapter: &wgpu::Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let matrices = adapter.cooperative_matrix_properties();
        Self {
            number: number as u32,
            through: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            software: is_software(&info),
            host_memory: is_software(&info) || info.device_type == DeviceType::IntegratedGpu,
            memory: memory_of(adapter),
            name: info.name,
            buffer: limits.max_buffer_size,
            binding: limits.max_storage_buffer_binding_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            timestamps: features.contains(TIMESTAMPS),
            shader_f16: features.contains(Features::SHADER_F16),
            cooperative_matrices: matrices
                .iter()
                .map(|m| format!("{}x{}x{} {:?} to {:?}", m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type))
                .collect(),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({}, {})", self.number, self.name, self.through, self.driver)
    }
}

/// Bytes of an adapter's own memory. The library does not tell, but Vulkan does.
#[cfg(not(any(target_vendor = "apple", target_arch = "wasm32")))]
fn memory_of(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: nothing is changed or given back that belongs to the library.
    let heaps = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    let own = heaps.iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    own.map(|heap| heap.size).reduce(|all, heap| all + heap)
}

/// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
#[cfg(not(any(target_vendor = "apple", target_arch = "wasm32")))]
const DEVICE_LOCAL: u32 = 1;

#[cfg(any(target_vendor = "apple", target_arch = "wasm32"))]
fn memory_of(_: &wgpu::Adapter) -> Option<u64> {
    None
}

fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
}

const TIMESTAMPS: Features = Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// The adapters of this machine, real ones before software.
async fn adapters() -> Vec<wgpu::Adapter> {
    let backends =
        wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        // Drivers that say how much is taken refuse before the machine starts to swap.
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
            for_resource_creation: Some(95),
            for_device_loss: None,
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = instance.enumerate_adapters(backends).await;
    // On Windows a device may be there twice, and is taken through Vulkan.
    let through: Vec<_> = adapters.iter().map(|adapter| adapter.get_info()).collect();
    let same = |a: &wgpu::AdapterInfo, b: &wgpu::AdapterInfo| (a.vendor, a.device) == (b.vendor, b.device);
    let vulkan = |info: &wgpu::AdapterInfo| info.backend == wgpu::Backend::Vulkan;
    adapters.retain(|adapter| {
        let info = adapter.get_info();
        vulkan(&info) || !through.iter().any(|other| vulkan(other) && same(other, &info))
    });
    // The order of a kind is the driver's own.
    adapters.sort_by_key(|adapter| is_software(&adapter.get_info()));
    adapters
}

/// Looks for adapters.
#[cfg(not(target_arch = "wasm32"))]
pub fn survey() -> Vec<Found> {
    pollster::block_on(survey_async())
}

/// The same, for where waiting is not possible: in a browser.
pub async fn survey_async() -> Vec<Found> {
    let adapters = adapters().await;
    adapters.iter().enumerate().map(|(number, adapter)| Found::new(number, adapter)).collect()
}

/// The adapter that was asked for.
async fn choose(choice: &Choice) -> vaecf_core::Result<(wgpu::Adapter, Found)> {
    let all = adapters().await;
    let found: Vec<_> = all.iter().enumerate().map(|(number, adapter)| Found::new(number, adapter)).collect();
    if found.is_empty() {
        let why = "no adapter was found through Vulkan, Metal or DX12; install the driver of the graphics device (on \
                   Debian, mesa-vulkan-drivers has those of AMD and Intel, and one in software)";
        return Err(Error::new(Kind::Device, why));
    }
    let list = || found.iter().map(Found::to_string).collect::<Vec<_>>().join("; ");
    let index = match choice {
        Choice::Any => 0,
        Choice::Number(number) if (*number as usize) < all.len() => *number as usize,
        Choice::Number(number) => return Err(Error::usage(format!("--device {number}: the adapters are {}", list()))),
        Choice::Name(name) => {
            let fits = |found: &&Found| found.name.to_lowercase().contains(&name.to_lowercase());
            let mut fitting = found.iter().filter(fits);
            match (fitting.next(), fitting.next()) {
                (Some(one), None) => one.number as usize,
                (None, _) => {
                    return Err(Error::usage(format!(
                        "--device {name}: no adapter is called so; there are {}",
                        list()
                    )));
                }
                (Some(_), Some(_)) => {
                    return Err(Error::usage(format!(
                        "--device {name}: more than one adapter is called so; choose by number among {}",
                        list()
                    )));
                }
            }
        }
    };
    all.into_iter().zip(found).nth(index).ok_or_else(|| Error::failure("an adapter went away"))
}

type Polled = std::result::Result<wgpu::PollStatus, wgpu::PollError>;

/// What has gone wrong where nobody was asking.
#[derive(Debug, Default)]
struct Trouble {
    lost: Option<String>,
    /// The first error that no scope took.
    other: Option<Fault>,
}

/// A device, and the adapter it was made from.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) found: Found,
    pub(crate) limits: Limits,
    trouble: Arc<Mutex<Trouble>>,
}

impl Context {
    /// Opens the adapter that was asked for.
    pub(crate) async fn open(options: &Options) -> vaecf_core::Result<Self> {
        let (adapter, found) = choose(&options.adapter).await?;
        let mut limits = adapter.limits();
        if let Some(binding) = options.lowered.binding {
            limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(binding);
        }
        if let Some(buffer) = options.lowered.buffer {
            limits.max_buffer_size = limits.max_buffer_size.min(buffer);
        }
        if let Some(groups) = options.lowered.groups {
            limits.max_compute_workgroups_per_dimension = limits.max_compute_workgroups_per_dimension.min(groups);
        }
        Ok(Self::on(adapter, found, limits).await?)
    }

    /// Another device on the same adapter, to try things on that may lose it.
    pub(crate) async fn another(&self) -> Result<Self> {
        Self::on(self.adapter.clone(), self.found.clone(), self.limits.clone()).await
    }

    async fn on(adapter: wgpu::Adapter, found: Found, limits: Limits) -> Result<Self> {
        let wanted = TIMESTAMPS | Features::SHADER_F16;
        let matrices = Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let mut features = adapter.features() & wanted;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if !found.cooperative_matrices.is_empty() && adapter.features().contains(matrices) {
            features |= matrices | (adapter.features() & Features::SUBGROUP);
            // SAFETY: what is experimental about the feature is whether it gives right results, or a device at
            // all; it is used after a test on a device of its own (`products::coop`).
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Fault::Other(format!("{} gives no device: {error}", found.name)))?;
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let seen = Arc::clone(&trouble);
        let name = found.name.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut trouble = seen.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.other.get_or_insert(fault_of(error, &name, 0));
        }));
        let seen = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, message| {
            let mut trouble = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let why = format!("{reason:?} {message}").trim().to_lowercase();
            // Where the library has no other answer to it, the device goes with the memory.
            let memory = why.contains("out of memory");
            trouble.lost.get_or_insert(if memory {
                "it ran out of memory; use a smaller batch or model".into()
            } else {
                why
            });
        });
        Ok(Self { adapter, device, queue, found, limits, trouble })
    }

    /// The first thing that has gone wrong and was not told yet. A loss is told again and again.
    pub(crate) fn check(&self) -> Result {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &trouble.lost {
            return Err(Fault::Lost(format!("{}: {why}", self.found.name)));
        }
        trouble.other.take().map_or(Ok(()), Err)
    }

    /// Does something of which errors are told at once: an allocation of so many bytes, a kernel.
    pub(crate) async fn scoped<T>(&self, bytes: u64, make: impl FnOnce() -> T) -> Result<T> {
        self.check()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        // All are popped before the first is waited for, because they belong to this thread.
        let pops = (validation.pop(), internal.pop(), memory.pop());
        let (validation, internal, memory) = (pops.0.await, pops.1.await, pops.2.await);
        if let Some(error) = memory.or(internal).or(validation) {
            return Err(fault_of(error, &self.found.name, bytes));
        }
        // A lost device raises no error in a scope.
        self.check()?;
        Ok(made)
    }

    /// The same, where the caller cannot wait for a future. In a browser nobody can, and what went wrong comes out of
    /// the next call that does wait.
    pub(crate) fn now<T>(&self, bytes: u64, make: impl FnOnce() -> T) -> Result<T> {
        if cfg!(target_arch = "wasm32") {
            self.check()?;
            return Ok(make());
        }
        pollster::block_on(self.scoped(bytes, make))
    }

    /// A buffer of so many bytes, zeroed.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        self.buffer_for(
            bytes,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        )
    }

    pub(crate) fn buffer_for(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let size = bytes.max(16).next_multiple_of(16);
        if size > self.limits.max_buffer_size {
            return Err(Fault::OutOfMemory { device: self.found.name.clone(), wanted: size });
        }
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.now(size, || self.device.create_buffer(&descriptor))
    }

    /// Bytes that can still be allocated, as far as it is known what others have.
    pub(crate) fn memory(&self) -> Option<u64> {
        let taken = self.device.generate_allocator_report()?.total_reserved_bytes;
        Some(self.found.memory?.saturating_sub(taken))
    }

    /// Waits until all that was submitted is done.
    pub(crate) fn wait(&self) -> Result {
        self.waited(|| self.device.poll(wgpu::PollType::wait_indefinitely()))
    }

    /// What comes of waiting. Some errors of a device are panics there.
    pub(crate) fn waited(&self, poll: impl FnOnce() -> Polled) -> Result {
        let polled = catch_unwind(AssertUnwindSafe(poll));
        self.check()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Fault::Other(format!("{} does not answer: {error}", self.found.name))),
            Err(_) => Err(Fault::Lost(format!("{}: waiting for it failed", self.found.name))),
        }
    }
}

/// An error of the library, as the contract has it.
fn fault_of(error: wgpu::Error, device: &str, wanted: u64) -> Fault {
    match error {
        wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory { device: device.to_owned(), wanted },
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
            Fault::Other(format!("{device} refused it: {description}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(message: &str) -> wgpu::Error {
        let source = Box::new(std::io::Error::other("below"));
        wgpu::Error::Validation { source, description: message.to_owned() }
    }

    #[test]
    fn errors_of_the_library_are_faults_in_one_line() {
        let out = wgpu::Error::OutOfMemory { source: Box::new(std::io::Error::other("below")) };
        assert_eq!(fault_of(out, "a device", 7), Fault::OutOfMemory { device: "a device".into(), wanted: 7 });
        let Fault::Other(why) = fault_of(error("one\n   two"), "a device", 0) else { panic!("another fault") };
        assert_eq!(why, "a device refused it: one two");
    }
}
