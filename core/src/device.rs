//! The safe owner of a backend: buffers that free themselves, and every shape checked once, here.
//!
//! A wrong shape in this module is a bug of the caller, and says so; it never reaches a backend.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    backend::{Backend, Buf, Host, Info, Mat, Role, ScaleState, StepParams},
    error::{Error, Kind, Result},
    group::Group,
    matrix::Matrix,
};

mod buffers;
mod exchange;
mod queue;

pub use buffers::{Buffer, DeviceMatrix, UserList};
pub use exchange::Exchange;
pub use queue::Queue;

/// A device, shared by everything that lies on it. Cloning is cheap; calls are serialised.
#[derive(Clone)]
pub struct Device {
    state: Arc<Mutex<State>>,
    info: Arc<Info>,
    group: Group,
    exchange: Exchange,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({} on {})", self.info.name, self.info.device)
    }
}

struct State {
    backend: Box<dyn Backend>,
    /// [`Info::align`].
    align: u32,
    /// What is known of each live buffer.
    live: HashMap<Buf, Known>,
}

#[derive(Clone, Copy)]
struct Known {
    role: Role,
    len: u64,
    /// Step buffers: `first` as last uploaded.
    first: u32,
}

fn bug(what: String) -> Error {
    Error::failure(format!("a bug in vaecf, please report it: {what}"))
}

impl Device {
    /// Takes over a backend.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        let info = Arc::new(backend.info());
        let state = State { backend, align: info.align.max(1), live: HashMap::new() };
        Self { state: Arc::new(Mutex::new(state)), info, group: Group::default(), exchange: Exchange::None }
    }

    /// What the backend was when it was taken over.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Bytes that can be allocated now, where known.
    pub fn memory(&self) -> Option<u64> {
        self.lock().backend.info().memory
    }

    /// `len` zeroed elements.
    ///
    /// # Errors
    /// Where the memory is not there, or a list is longer than [`Device::longest_list`].
    pub fn alloc(&self, role: Role, len: u64) -> Result<Buffer> {
        let mut state = self.lock();
        let longest = state.backend.longest_list();
        if matches!(role, Role::Index | Role::Value) && len > longest {
            return Err(self.too_long(&format!("{len} numbers"), longest));
        }
        let buf = state.backend.alloc(role, len)?;
        state.live.insert(buf, Known { role, len, first: 0 });
        Ok(Buffer { device: self.clone(), buf, len })
    }

    /// A buffer that holds `src`.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn upload(&self, role: Role, src: Host<'_>) -> Result<Buffer> {
        let len = match src {
            Host::F32(s) => s.len(),
            Host::F64(s) => s.len(),
            Host::U32(s) => s.len(),
            Host::Step(_) | Host::Scale(_) => 1,
        };
        let buffer = self.alloc(role, len as u64)?;
        buffer.upload(0, src)?;
        Ok(buffer)
    }

    /// A zeroed `rows x cols` matrix of activations, and its buffer.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn activations(&self, rows: u32, cols: u32) -> Result<(Buffer, Mat)> {
        let stride = crate::layout::padded(cols, self.info.align);
        let buffer = self.alloc(Role::Act, u64::from(rows) * u64::from(stride))?;
        let mat = Mat { buf: buffer.buf, rows, cols, stride, offset: 0 };
        Ok((buffer, mat))
    }

    /// Copies a sparse matrix to the device, checking every event on the way.
    ///
    /// # Errors
    /// Where the matrix breaks an invariant, or the memory is not there.
    pub fn matrix(&self, matrix: &Matrix) -> Result<DeviceMatrix> {
        matrix.check()?;
        let start = |&at: &u64| u32::try_from(at);
        let indptr: Vec<u32> =
            matrix.indptr().iter().map(start).collect::<std::result::Result<_, _>>().map_err(|_| {
                Error::data(format!("{} events in one matrix; the limit is 4,294,967,295", matrix.events()))
            })?;
        let on_device = self.matrix_room(matrix, matrix.events())?;
        on_device.write(&indptr, matrix.indices(), matrix.values())?;
        Ok(on_device)
    }

    /// Room for `events` of the events of a matrix, and no events yet.
    pub(crate) fn matrix_room(&self, matrix: &Matrix, events: u64) -> Result<DeviceMatrix> {
        let longest = self.longest_list();
        if events > longest {
            return Err(self.too_long(&format!("a matrix of {events} events"), longest));
        }
        Ok(DeviceMatrix {
            indptr: self.alloc(Role::Index, u64::from(matrix.users()) + 1)?,
            indices: self.alloc(Role::Index, events)?,
            values: matrix.values().map(|_| self.alloc(Role::Value, events)).transpose()?,
            users: matrix.users(),
            items: matrix.items(),
        })
    }

    /// Room for `len` indices of the users of a matrix.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn user_list(&self, len: u32, matrix: &DeviceMatrix) -> Result<UserList> {
        Ok(UserList(self.alloc(Role::Index, u64::from(len))?, matrix.users))
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// The first fault of it.
    pub fn sync(&self) -> Result<()> {
        Ok(self.lock().backend.sync()?)
    }

    /// Rows of logits wanted as scratch for a batch over a catalogue.
    pub fn logits_rows(&self, batch: u32, items: u32) -> u32 {
        self.lock().backend.logits_rows(batch, items).clamp(1, batch.max(1))
    }

    /// Bytes that operations on a batch take beside the buffers they are given.
    pub fn scratch(&self, batch: u32, items: u32, units: u32) -> u64 {
        self.lock().backend.scratch(batch, items, units)
    }

    /// Elements that one list on the device holds at the most: row starts, events, users, losses, rankings.
    pub fn longest_list(&self) -> u64 {
        self.lock().backend.longest_list()
    }

    fn too_long(&self, what: &str, longest: u64) -> Error {
        Error::new(
            Kind::Device,
            format!(
                "{what} in one list, and {} holds {longest} in one: take fewer users at once, or another backend",
                self.info.device
            ),
        )
    }

    /// The calls for one batch, checked and issued. Holds the device until it is dropped.
    pub fn queue(&self) -> Queue<'_> {
        Queue { state: self.lock(), device: self }
    }

    /// A panic in a backend leaves nothing half-changed in the table, so the lock stays usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The step buffer of a run.
pub(crate) fn step_buffer(device: &Device, params: &StepParams) -> Result<Buffer> {
    device.upload(Role::Step, Host::Step(params))
}

/// The loss scale of a run.
pub(crate) fn scale_buffer(device: &Device, state: &ScaleState) -> Result<Buffer> {
    device.upload(Role::Scale, Host::Scale(state))
}
