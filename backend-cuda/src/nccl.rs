//! NCCL, NVIDIA's library of sums over several devices, as far as a group needs it: opened at run time, every function
//! looked up before the first is called.
//!
//! Communicators are made not to block: what takes its time says so and is asked again, so that no wait is longer
//! than the caller wants it to be. That and the structure below are those of version 2.14, which later ones take as
//! they are.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::Path,
    ptr,
};

use libloading::Library;
use vaecf_core::backend::{Fault, Result};

use crate::libraries;

/// A call that was carried out, and one that goes on after it has returned.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclRemoteError`.
const REMOTE: c_int = 6;

/// The oldest version that makes communicators which do not block, and as it writes itself.
const OLDEST: c_int = 21_400;

/// What is sent.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bytes = 0,
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}

/// `ncclSum`.
const SUM: c_int = 0;

/// What rank 0 gives out: `ncclUniqueId`, which goes by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclConfig_t` as it was in 2.14. A later library takes the rest from its own defaults: it goes by the size, and
/// by the version where the padding would cover one of its fields.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    _padding: c_int,
}

/// `ncclComm_t`; null is none.
type Comm = *mut c_void;
type Stream = *mut c_void;

macro_rules! functions {
    ($($name:ident $symbol:literal ($($argument:ty),*) -> $result:ty;)+) => {
        /// Functions of the library.
        #[derive(Clone, Copy, Debug)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)+
        }

        impl Functions {
            /// All of them, or the name of the first that is missing.
            fn find(library: &Library) -> std::result::Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        type Function = unsafe extern "C" fn($($argument),*) -> $result;
                        // SAFETY: the symbol is only looked up here, and has this type in `nccl.h`.
                        *unsafe { library.get::<Function>($symbol.as_bytes()) }.map_err(|_| $symbol)?
                    },)+
                })
            }
        }
    };
}
functions! {
    version "ncclGetVersion"(*mut c_int) -> c_int;
    error_string "ncclGetErrorString"(c_int) -> *const c_char;
    last_error "ncclGetLastError"(Comm) -> *const c_char;
    unique_id "ncclGetUniqueId"(*mut UniqueId) -> c_int;
    init "ncclCommInitRankConfig"(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
    async_error "ncclCommGetAsyncError"(Comm, *mut c_int) -> c_int;
    finalize "ncclCommFinalize"(Comm) -> c_int;
    destroy "ncclCommDestroy"(Comm) -> c_int;
    abort "ncclCommAbort"(Comm) -> c_int;
    all_reduce "ncclAllReduce"(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    broadcast "ncclBroadcast"(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
}

/// The library, opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nccl {
    functions: Functions,
    version: c_int,
}

/// A call that was not carried out, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(c_int);

impl Refused {
    /// Whether it is another member's end or its network, as far as the library can tell.
    pub(crate) fn is_remote(self) -> bool {
        self.0 == REMOTE
    }
}

/// Whether a call that was carried out has ended.
fn ended(code: c_int) -> std::result::Result<bool, Refused> {
    match code {
        SUCCESS => Ok(true),
        IN_PROGRESS => Ok(false),
        other => Err(Refused(other)),
    }
}

impl Nccl {
    /// Opens the library; `major` is the newest CUDA that the driver speaks.
    pub(crate) fn open(folder: Option<&Path>, major: u32) -> Result<Self> {
        let found = libraries::find_collectives(folder).ok_or(Fault::Unsupported(if major < 13 {
            "a group of devices without NCCL, which is not installed (pip install nvidia-nccl-cu12 brings it),"
        } else {
            "a group of devices without NCCL, which is not installed (pip install nvidia-nccl-cu13 brings it),"
        }))?;
        let path = found.path.display();
        // SAFETY: the same library again, which is open for good.
        let library = unsafe { Library::new(&found.path) }.map_err(|e| Fault::Other(format!("{path}: {e}")))?;
        let old = |why: String| Fault::Other(format!("NCCL is too old: {why}; install version 2.14 or later"));
        let functions = Functions::find(&library).map_err(|name| old(format!("{path} has no {name}")))?;
        // Its functions are called as long as the process lives.
        std::mem::forget(library);
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (functions.version)(&raw mut version) };
        let nccl = Self { functions, version };
        match ended(code) {
            Err(refused) => Err(nccl.told(refused, None)),
            Ok(_) if version < OLDEST => Err(old(format!("{path} is version {}", nccl.version()))),
            Ok(_) => Ok(nccl),
        }
    }

    /// Its version as it is written.
    pub(crate) fn version(&self) -> String {
        // Up to 2.8 the minor number had one digit.
        let (major, rest) = if self.version < 10_000 { (1_000, 100) } else { (10_000, 100) };
        format!("{}.{}.{}", self.version / major, self.version % major / rest, self.version % rest)
    }

    /// A call that was not carried out, in the library's own words.
    fn told(&self, Refused(code): Refused, comm: Option<Comm>) -> Fault {
        let words = |text: *const c_char| {
            // SAFETY: the library gives C strings of its own that live as long as it.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned());
            text.filter(|text| !text.is_empty())
        };
        // SAFETY: takes any number.
        let what = words(unsafe { (self.functions.error_string)(code) }).unwrap_or_else(|| format!("error {code}"));
        // SAFETY: of no communicator, or a live one, it gives the last message of all.
        let last = words(unsafe { (self.functions.last_error)(comm.unwrap_or(ptr::null_mut())) });
        Fault::Other(match last {
            Some(last) => format!("NCCL reports: {what}: {last}"),
            None => format!("NCCL reports: {what}"),
        })
    }

    /// What the other members of a group need to find this one.
    pub(crate) fn invitation(&self) -> Result<[u8; 128]> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: writes as many bytes.
        let code = unsafe { (self.functions.unique_id)(&raw mut id) };
        ended(code).map(|_| id.0).map_err(|refused| self.told(refused, None))
    }

    /// Begins to join a group, on the device whose context is the calling thread's.
    pub(crate) fn join(&self, rank: u32, world: u32, invitation: [u8; 128]) -> Result<Communicator> {
        let size = size_of::<Config>();
        let mut config = Config { size, magic: 0xcafe_beef, version: OLDEST as c_uint, blocking: 0, _padding: 0 };
        let (rank, world) = (rank as c_int, world as c_int);
        let mut comm = ptr::null_mut();
        // SAFETY: the structures are as `nccl.h` has them; writes one handle, which `end` gives back.
        let code = unsafe { (self.functions.init)(&raw mut comm, world, UniqueId(invitation), rank, &raw mut config) };
        match ended(code) {
            Ok(_) if !comm.is_null() => Ok(Communicator { nccl: *self, comm }),
            Ok(_) => Err(Fault::Other("NCCL gave no communicator".into())),
            Err(refused) => {
                let fault = self.told(refused, None);
                if !comm.is_null() {
                    Communicator { nccl: *self, comm }.abort();
                }
                Err(fault)
            }
        }
    }
}

/// A member's place in a group, as the library has it. It is given back by [`Communicator::abort`] or
/// [`Communicator::destroy`], and not where it is dropped, because that may wait for other members.
#[derive(Debug)]
pub(crate) struct Communicator {
    nccl: Nccl,
    comm: Comm,
}

impl Communicator {
    /// Whether the last call has ended: not before, another may be made.
    pub(crate) fn ended(&self) -> std::result::Result<bool, Refused> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is live; writes one integer.
        let code = unsafe { (self.nccl.functions.async_error)(self.comm, &raw mut state) };
        ended(code).and_then(|_| ended(state))
    }

    /// Why a call was not carried out, in words.
    pub(crate) fn told(&self, refused: Refused) -> Fault {
        self.nccl.told(refused, Some(self.comm))
    }

    /// Queues a sum in place; whether that has ended.
    pub(crate) fn all_reduce(
        &self,
        at: u64,
        len: u64,
        kind: Kind,
        stream: Stream,
    ) -> std::result::Result<bool, Refused> {
        let at = at as *mut c_void;
        // SAFETY: the caller has found the range to be in one allocation; the stream is live.
        ended(unsafe { (self.nccl.functions.all_reduce)(at, at, len as usize, kind as c_int, SUM, self.comm, stream) })
    }

    /// Queues that what lies there becomes that of `root`; whether that has ended.
    pub(crate) fn broadcast(
        &self,
        at: u64,
        len: u64,
        kind: Kind,
        root: u32,
        stream: Stream,
    ) -> std::result::Result<bool, Refused> {
        let at = at as *mut c_void;
        // SAFETY: the caller has found the range to be in one allocation; the stream is live.
        ended(unsafe {
            (self.nccl.functions.broadcast)(at, at, len as usize, kind as c_int, root as c_int, self.comm, stream)
        })
    }

    /// Begins to leave in peace; whether that has ended.
    pub(crate) fn finalize(&self) -> std::result::Result<bool, Refused> {
        // SAFETY: the communicator is live, and all that was queued in it is done.
        ended(unsafe { (self.nccl.functions.finalize)(self.comm) })
    }

    /// Gives it back once it was left in peace.
    pub(crate) fn destroy(self) {
        // SAFETY: the communicator is live and not used again.
        let _ = unsafe { (self.nccl.functions.destroy)(self.comm) };
    }

    /// Gives it back whatever it is at: what waits on the device for other members ends.
    pub(crate) fn abort(self) {
        // SAFETY: the communicator is live and not used again.
        let _ = unsafe { (self.nccl.functions.abort)(self.comm) };
    }
}
