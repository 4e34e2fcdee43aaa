//! The driver's interface, in terms of owned values and faults in words.
//!
//! All that is `unsafe` about the device is here and in [`crate::products`]. Each value belongs to one
//! [`Context`], which it keeps alive; work is queued in streams and carried out later, so memory is only given
//! back to the driver by functions that wait for the work before (`cuMemFree` does).

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
    rc::{Rc, Weak},
};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use vaecf_core::backend::{Fault, Result};

use crate::{group::Member, libraries};

/// The oldest driver that runs the kernels: 525, which speaks CUDA 12.0.
const OLDEST: i32 = 12_000;

/// What to do where the driver is there and no device is.
const NO_DEVICE: &str = "the NVIDIA driver finds no device: see whether nvidia-smi lists one, and whether \
                         CUDA_VISIBLE_DEVICES hides it";

/// Functions of the driver that are called. cudarc panics where one is missing, so all are looked up first.
const SYMBOLS: [&str; 42] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamQuery",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
];

/// Why there is no CUDA here, in a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent(pub(crate) String);

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The driver, opened.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    /// The newest CUDA that it speaks, 1000 times the major and 10 times the minor number.
    pub(crate) version: i32,
    pub(crate) devices: u32,
    /// Where it was found.
    pub(crate) found_at: PathBuf,
}

impl Driver {
    /// Opens the driver's library, asks what it is, and counts the devices.
    pub(crate) fn open(folder: Option<&Path>) -> std::result::Result<Self, Absent> {
        let absent = |why: String| Err(Absent(why));
        let found = libraries::find_driver(folder);
        // SAFETY: looks for the library that `find_driver` opened, or others of its name, and opens it.
        let (Some(library), true) = (found, unsafe { sys::is_culib_present() }) else {
            return absent(
                "no NVIDIA driver is installed (libcuda.so.1 was not found): install the driver, version 525 or \
                 later, or choose --backend cpu"
                    .into(),
            );
        };
        for name in SYMBOLS.into_iter().chain(["cuLaunchKernel"]) {
            // SAFETY: the symbol is only looked up, not called, and its type has the size of a pointer.
            let symbol = unsafe { sys::culib().get::<*const c_void>(name.as_bytes()) };
            let Ok(symbol) = symbol else {
                return absent(format!(
                    "the NVIDIA driver is too old: {} has no {name}; install version 525 or later",
                    library.path.display()
                ));
            };
            if name == "cuInit" && !library.has(*symbol) {
                return absent(format!(
                    "there are two NVIDIA drivers: {} and another libcuda.so; take the folder of one of them out of \
                     LD_LIBRARY_PATH",
                    library.path.display()
                ));
            }
        }
        let mut version = 0;
        // SAFETY: writes one integer; may be called before everything else.
        check(unsafe { sys::cuDriverGetVersion(&raw mut version) }).map_err(|e| Absent(e.0))?;
        if version < OLDEST {
            return absent(format!(
                "the NVIDIA driver is too old: it speaks CUDA {}, and 12.0 is needed; install version 525 or later",
                Version(version)
            ));
        }
        // SAFETY: has no preconditions.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NO_DEVICE => return absent(NO_DEVICE.into()),
            CUresult::CUDA_ERROR_STUB_LIBRARY => {
                return absent(format!(
                    "{} is the toolkit's stub and not the driver: install the driver, or take the folder of stubs \
                     out of LD_LIBRARY_PATH",
                    library.path.display()
                ));
            }
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
                return absent("the NVIDIA driver's library and its kernel module differ in version: restart".into());
            }
            other => {
                return absent(format!("the NVIDIA driver does not start: {}; see what nvidia-smi says", Told(other)));
            }
        }
        let mut count = 0;
        // SAFETY: writes one integer; the driver is initialised.
        check(unsafe { sys::cuDeviceGetCount(&raw mut count) }).map_err(|e| Absent(e.0))?;
        if count < 1 {
            return absent(NO_DEVICE.into());
        }
        Ok(Self { version, devices: count as u32, found_at: library.path })
    }
}

/// A version as its maker writes it.
pub(crate) struct Version(pub(crate) i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// An error of the driver with the driver's own words for it.
struct Told(CUresult);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        type Ask = unsafe fn(CUresult, *mut *const c_char) -> CUresult;
        let words = |ask: Ask| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a constant of its own, or leaves null.
            let code = unsafe { ask(self.0, &raw mut text) };
            // SAFETY: where it succeeded the text is a C string that lives as long as the library.
            (code == CUresult::CUDA_SUCCESS && !text.is_null())
                .then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        match (words(sys::cuGetErrorName), words(sys::cuGetErrorString)) {
            (Some(name), Some(said)) => write!(f, "{said} ({name})"),
            (Some(name), None) => write!(f, "{name}"),
            _ => write!(f, "error {}", self.0 as u32),
        }
    }
}

/// A call that failed: its sentence and, where nothing on the device can be used again, that it is lost.
struct Failed(String, bool);

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed(why, true) => Self::Lost(why),
            Failed(why, false) => Self::Other(format!("the CUDA driver reports: {why}")),
        }
    }
}

fn check(code: CUresult) -> std::result::Result<(), Failed> {
    use CUresult as C;
    if code == C::CUDA_SUCCESS {
        return Ok(());
    }
    let lost = matches!(
        code,
        C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_LAUNCH_FAILED
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_ECC_UNCORRECTABLE
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | C::CUDA_ERROR_DEVICE_UNAVAILABLE
            | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | C::CUDA_ERROR_CONTAINED
            | C::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | C::CUDA_ERROR_DEINITIALIZED
            | C::CUDA_ERROR_UNKNOWN
    );
    Err(Failed(Told(code).to_string(), lost))
}

/// Whether what was asked for is done.
fn passed(code: CUresult) -> Result<bool> {
    match code {
        CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        code => Ok(check(code).map(|()| true)?),
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) name: String,
    /// Compute capability.
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) processors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub(crate) shared: u32,
    pub(crate) memory: u64,
}

/// A device, and its primary context.
#[derive(Debug)]
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(crate) properties: Properties,
    /// Who ends a wait for other members of a group, where there is one.
    group: RefCell<Weak<Member>>,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything made in it is gone, since it holds an `Rc` of this.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Context {
    /// What device `ordinal` is, without opening it.
    pub(crate) fn look(ordinal: u32) -> Result<Properties> {
        let device = Self::device(ordinal)?;
        let attribute = |which| -> Result<u32> {
            let mut value: c_int = 0;
            // SAFETY: writes one integer; the device is one that the driver gave out.
            check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) })?;
            Ok(value as u32)
        };
        let mut name = [0 as c_char; 256];
        // SAFETY: the length is that of the array, whose last byte stays zero.
        check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) })?;
        // SAFETY: the text ends with a zero within the array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory = 0;
        // SAFETY: writes one integer.
        check(unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) })?;
        Ok(Properties {
            name,
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            memory: memory as u64,
        })
    }

    fn device(ordinal: u32) -> Result<sys::CUdevice> {
        let mut device = 0;
        // SAFETY: writes one handle; the driver checks the number.
        check(unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) })?;
        Ok(device)
    }

    pub(crate) fn open(ordinal: u32) -> Result<Rc<Self>> {
        let (device, properties) = (Self::device(ordinal)?, Self::look(ordinal)?);
        let mut context = ptr::null_mut();
        // SAFETY: writes one handle, which `drop` releases.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        let opened = Rc::new(Self { device, context, properties, group: RefCell::default() });
        opened.enter()?;
        Ok(opened)
    }

    /// From here on the host waits for the device no longer than this member waits for others.
    pub(crate) fn wait_as(&self, member: &Weak<Member>) {
        self.group.replace(Weak::clone(member));
    }

    /// Waits for what the device has yet to do: `query` asks for it, `block` comes back when it is done.
    fn wait(&self, query: impl Fn() -> CUresult, block: impl FnOnce() -> CUresult) -> Result {
        let member = self.group.borrow().upgrade();
        match member {
            Some(member) => member.wait(|| passed(query())),
            None => Ok(check(block())?),
        }
    }

    /// Waits for sums over the group, as long as that makes sense: before calls of the driver that may wait for all work,
    /// for ever, and with it keep other threads from what they are waited for.
    fn finish_sums(&self) -> Result {
        let member = self.group.borrow().upgrade();
        member.map_or(Ok(()), |member| member.finish())
    }

    /// Makes this the context of the calling thread: calls may come from any thread, one at a time.
    pub(crate) fn enter(&self) -> Result {
        // SAFETY: the context lives as long as `self`.
        Ok(check(unsafe { sys::cuCtxSetCurrent(self.context) })?)
    }

    /// Bytes that are free.
    pub(crate) fn free_memory(&self) -> Result<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        check(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(free as u64)
    }

    /// Bytes of the device, with unspecified contents.
    pub(crate) fn alloc(self: &Rc<Self>, bytes: u64) -> Result<Memory> {
        self.finish_sums()?;
        let full = || Fault::OutOfMemory { device: self.properties.name.clone(), wanted: bytes };
        let mut at = 0;
        // SAFETY: writes one address, which `drop` of the memory gives back.
        let code = unsafe { sys::cuMemAlloc_v2(&raw mut at, usize::try_from(bytes).map_err(|_| full())?) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(full());
        }
        check(code)?;
        Ok(Memory { context: Rc::clone(self), at, bytes })
    }

    /// Memory of the host that the device copies from and to by itself.
    pub(crate) fn alloc_pinned(self: &Rc<Self>, bytes: usize) -> Result<Pinned> {
        self.finish_sums()?;
        let mut at = ptr::null_mut();
        // SAFETY: writes one address, which `drop` gives back.
        check(unsafe { sys::cuMemHostAlloc(&raw mut at, bytes, 0) })?;
        // SAFETY: the driver gave as many bytes; from here on they have been written.
        unsafe { ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Pinned { context: Rc::clone(self), at: at.cast(), bytes })
    }

    pub(crate) fn stream(self: &Rc<Self>) -> Result<Stream> {
        let mut stream = ptr::null_mut();
        // SAFETY: writes one handle, which `drop` gives back.
        check(unsafe {
            sys::cuStreamCreate(&raw mut stream, 1 /* not in step with the default stream */)
        })?;
        Ok(Stream { context: Rc::clone(self), stream })
    }

    /// A mark in a stream; `timed` ones know when they were passed.
    pub(crate) fn event(self: &Rc<Self>, timed: bool) -> Result<Event> {
        let mut event = ptr::null_mut();
        // SAFETY: writes one handle, which `drop` gives back.
        check(unsafe { sys::cuEventCreate(&raw mut event, if timed { 0 } else { 2 }) })?;
        Ok(Event { context: Rc::clone(self), event })
    }

    /// Compiled kernels: a cubin, or PTX, which ends with a zero.
    pub(crate) fn module(self: &Rc<Self>, image: &[u8]) -> Result<Module> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is whole (it was checked when it was read); the driver copies what it keeps.
        check(unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) })?;
        Ok(Module { context: Rc::clone(self), module })
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(crate) struct Memory {
    context: Rc<Context>,
    at: u64,
    pub(crate) bytes: u64,
}

impl Memory {
    /// Address on the device.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated once in `alloc`; the driver waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Memory of the host, locked in place.
#[derive(Debug)]
pub(crate) struct Pinned {
    context: Rc<Context>,
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Its bytes. Whoever has the device copy from or to it waits before they are touched again.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes were allocated and initialised, and `self` is exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated once in `alloc_pinned`; its owner waits for copies before it is dropped.
        let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}

/// A queue of the device.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Rc<Context>,
    stream: sys::CUstream,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: created once in `stream`; work under way is finished by the driver first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

impl Stream {
    pub(crate) fn raw(&self) -> sys::CUstream {
        self.stream
    }

    pub(crate) fn sync(&self) -> Result {
        // SAFETY: the stream is live.
        self.context
            .wait(|| unsafe { sys::cuStreamQuery(self.stream) }, || unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// What is queued from here on waits for the event.
    pub(crate) fn wait(&self, event: &Event) -> Result {
        // SAFETY: both are live.
        Ok(check(unsafe { sys::cuStreamWaitEvent(self.stream, event.event, 0) })?)
    }

    pub(crate) fn record(&self, event: &Event) -> Result {
        // SAFETY: both are live.
        Ok(check(unsafe { sys::cuEventRecord(event.event, self.stream) })?)
    }

    /// `bytes` times `value` from `at` on, which the caller has found to be in one allocation.
    pub(crate) fn fill(&self, at: u64, value: u8, bytes: u64) -> Result {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: addresses come from live `Memory`, ranges were checked; the driver refuses what is not.
        Ok(check(unsafe { sys::cuMemsetD8Async(at, value, bytes as usize, self.stream) })?)
    }

    /// Pinned memory to the device. It is read when the stream gets there.
    pub(crate) fn send(&self, from: &Pinned, to: u64, bytes: usize) -> Result {
        debug_assert!(bytes <= from.bytes, "more bytes than are pinned");
        // SAFETY: the source has as many bytes and lives until its owner has waited; the target was checked.
        Ok(check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.at.cast(), bytes, self.stream) })?)
    }

    /// A few bytes of any memory to the device: the driver takes them before it returns.
    pub(crate) fn send_few(&self, from: &[u8], to: u64) -> Result {
        debug_assert!(from.len() <= FEW, "more than a few bytes");
        // SAFETY: pageable memory of up to 64 KiB is staged by the driver before the call returns.
        Ok(check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream) })?)
    }

    /// From the device to pinned memory, which is written when the stream gets there.
    pub(crate) fn fetch(&self, from: u64, to: &mut Pinned, bytes: usize) -> Result {
        debug_assert!(bytes <= to.bytes, "more bytes than are pinned");
        // SAFETY: the target has as many bytes and lives until its owner has waited; the source was checked.
        Ok(check(unsafe { sys::cuMemcpyDtoHAsync_v2(to.at.cast(), from, bytes, self.stream) })?)
    }

    /// From one place of the device to another that does not overlap it.
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: u64) -> Result {
        // SAFETY: both ranges were checked by the caller.
        Ok(check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.stream) })?)
    }

    /// Queues a kernel: blocks of `threads` threads in a grid, with so many bytes of shared memory.
    ///
    /// # Safety
    /// `arguments` are pointers to values of the types of the kernel's parameters, in order, and what they point to
    /// on the device is as large as the kernel takes it to be.
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &mut [*mut c_void],
    ) -> Result {
        let [x, y, z] = grid;
        // SAFETY: what the caller promises; the driver checks sizes and copies the arguments.
        let code = unsafe {
            let (list, none) = (arguments.as_mut_ptr(), ptr::null_mut());
            sys::cuLaunchKernel(kernel.0, x, y, z, threads, 1, 1, shared, self.stream, list, none)
        };
        Ok(check(code)?)
    }

    /// From here on work is recorded instead of queued.
    pub(crate) fn begin_capture(&self) -> Result {
        // Relaxed: memory that is allocated meanwhile is no part of the recording.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is live.
        Ok(check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?)
    }

    pub(crate) fn end_capture(&self) -> Result<Recording> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is live; writes one handle, which is destroyed below.
        check(unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) })?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is live; writes one handle, which `drop` gives back.
        let made = check(unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) });
        // SAFETY: made above; what was instantiated of it lives on its own.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made?;
        Ok(Recording { context: Rc::clone(&self.context), exec })
    }

    pub(crate) fn replay(&self, recording: &Recording) -> Result {
        // SAFETY: both are live, and so is what the recorded kernels use, by the contract and `crate::Scratch`.
        Ok(check(unsafe { sys::cuGraphLaunch(recording.exec, self.stream) })?)
    }
}

/// Bytes that the driver takes at once from any memory.
pub(crate) const FEW: usize = 1 << 16;

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Rc<Context>,
    event: sys::CUevent,
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: created once in `event`; the driver keeps it until work that names it is done.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

impl Event {
    /// Whether the stream has passed it.
    pub(crate) fn passed(&self) -> Result<bool> {
        // SAFETY: the event is live.
        passed(unsafe { sys::cuEventQuery(self.event) })
    }

    pub(crate) fn sync(&self) -> Result {
        // SAFETY: the event is live.
        self.context
            .wait(|| unsafe { sys::cuEventQuery(self.event) }, || unsafe { sys::cuEventSynchronize(self.event) })
    }

    /// Seconds from `earlier` to this; both are timed and passed.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;
        let mut milliseconds = 0.0;
        // SAFETY: looked up when the driver was opened. cudarc has its successor, which drivers before 570 lack.
        let elapsed = unsafe { sys::culib().get::<Elapsed>(b"cuEventElapsedTime") };
        let elapsed = elapsed.map_err(|e| Fault::Other(e.to_string()))?;
        // SAFETY: both events are live.
        check(unsafe { elapsed(&raw mut milliseconds, earlier.event, self.event) })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

/// Loaded kernels.
#[derive(Debug)]
pub(crate) struct Module {
    context: Rc<Context>,
    module: sys::CUmodule,
}

/// A kernel of a module that is kept as long as the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel(sys::CUfunction);

impl Module {
    /// A kernel by its name, allowed as much shared memory as the device gives a block.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        let c_name = CString::new(name).map_err(|e| Fault::Other(e.to_string()))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is live and the name ends with a zero; writes one handle.
        check(unsafe { sys::cuModuleGetFunction(&raw mut function, self.module, c_name.as_ptr()) })
            .map_err(|e| Fault::Other(format!("the kernel {name} is not in this build: {}", e.0)))?;
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // Kernels with shared memory of their own may ask for less; none of ours has.
        let shared = self.context.properties.shared as c_int;
        // SAFETY: the function is live.
        check(unsafe { sys::cuFuncSetAttribute(function, most, shared) })?;
        Ok(Kernel(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: loaded once in `module`.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Work that was recorded, ready to be queued again.
#[derive(Debug)]
pub(crate) struct Recording {
    context: Rc<Context>,
    exec: sys::CUgraphExec,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: instantiated once in `end_capture`.
        let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}
