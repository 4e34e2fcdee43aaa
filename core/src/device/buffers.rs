//! What lies on a device: buffers that free themselves, sparse matrices, lists of users.

use super::{Device, bug};
use crate::{
    backend::{Buf, Host, HostMut, Rows},
    error::Result,
};

/// Device memory, freed when dropped.
pub struct Buffer {
    pub(super) device: Device,
    pub(super) buf: Buf,
    pub(super) len: u64,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.device.lock();
        state.live.remove(&self.buf);
        state.backend.free(self.buf);
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]", self.buf, self.len)
    }
}

impl Buffer {
    /// The handle, for arguments of operations.
    pub fn buf(&self) -> Buf {
        self.buf
    }

    /// Elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies host elements to `self[at..]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn upload(&self, at: u64, src: Host<'_>) -> Result<()> {
        let len = match src {
            Host::F32(s) => s.len(),
            Host::F64(s) => s.len(),
            Host::U32(s) => s.len(),
            Host::Step(_) | Host::Scale(_) => 1,
        };
        let mut state = self.device.lock();
        self.check(at, len, "an upload")?;
        if let (Host::Step(step), Some(known)) = (src, state.live.get_mut(&self.buf)) {
            known.first = step.first;
        }
        Ok(state.backend.upload(self.buf, at, src)?)
    }

    /// Copies `self[at..]` to host memory; waits for the work before it.
    ///
    /// # Errors
    /// What the device reports, faults of earlier work included.
    pub fn download(&self, at: u64, dst: HostMut<'_>) -> Result<()> {
        let len = match &dst {
            HostMut::F32(d) => d.len(),
            HostMut::F64(d) => d.len(),
            HostMut::U32(d) => d.len(),
            HostMut::Scale(_) => 1,
        };
        let mut state = self.device.lock();
        self.check(at, len, "a download")?;
        Ok(state.backend.download(self.buf, at, dst)?)
    }

    /// `len` elements from `at`, in double precision.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self, at: u64, len: usize) -> Result<Vec<f64>> {
        let mut values = vec![0.0; len];
        self.download(at, HostMut::F64(&mut values))?;
        Ok(values)
    }

    /// `len` indices from `at`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read_indices(&self, at: u64, len: usize) -> Result<Vec<u32>> {
        let mut values = vec![0; len];
        self.download(at, HostMut::U32(&mut values))?;
        Ok(values)
    }

    fn check(&self, at: u64, len: usize, what: &str) -> Result<()> {
        if at.checked_add(len as u64).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(bug(format!("{what} of {len} elements at {at} of a buffer of {}", self.len)))
    }
}

/// A sparse matrix that lies on the device.
#[derive(Debug)]
pub struct DeviceMatrix {
    pub(super) indptr: Buffer,
    pub(super) indices: Buffer,
    pub(super) values: Option<Buffer>,
    pub(super) users: u32,
    pub(super) items: u32,
}

impl DeviceMatrix {
    /// Rows.
    pub fn users(&self) -> u32 {
        self.users
    }

    /// Columns.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// Replaces row starts and events: those of a matrix that was checked, in which some rows may be without events.
    pub(crate) fn write(&self, indptr: &[u32], indices: &[u32], values: Option<&[f32]>) -> Result<()> {
        self.indptr.upload(0, Host::U32(indptr))?;
        self.indices.upload(0, Host::U32(indices))?;
        match (&self.values, values) {
            (Some(room), Some(values)) => room.upload(0, Host::F32(values)),
            _ => Ok(()),
        }
    }

    /// Events, or how many there is room for.
    pub fn events(&self) -> u64 {
        self.indices.len
    }

    /// The rows `first..first + count`.
    pub fn window(&self, first: u32, count: u32) -> Rows {
        Rows {
            indptr: self.indptr.buf,
            indices: self.indices.buf,
            values: self.values.as_ref().map_or(Buf::NONE, |v| v.buf),
            users: Buf::NONE,
            first,
            count,
        }
    }

    /// `count` rows named by a list on the device, from position `first` of it.
    pub fn listed(&self, users: &UserList, first: u32, count: u32) -> Rows {
        Rows { users: users.0.buf, ..self.window(first, count) }
    }
}

/// A list of user indices that lies on the device; every entry is below the user count it was made for.
#[derive(Debug)]
pub struct UserList(pub(super) Buffer, pub(super) u32);

impl UserList {
    /// Writes `users` from position `at` on.
    ///
    /// # Errors
    /// What the device reports.
    pub fn write(&self, at: u32, users: &[u32]) -> Result<()> {
        if users.iter().any(|&u| u >= self.1) {
            return Err(bug(format!("a user list names a user beyond the {} there are", self.1)));
        }
        self.0.upload(u64::from(at), Host::U32(users))
    }
}
