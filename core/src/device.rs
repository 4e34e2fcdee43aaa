//! The safe owner of a backend: buffers that free themselves, and every shape checked once, here.
//!
//! A wrong shape in this module is a bug of the caller, and says so; it never reaches a backend.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    backend::{
        Backend, Buf, Curve, Decode, Fault, Graph, Host, HostMut, Info, Invitation, Likelihood, Master, Mat, Noise,
        Role, Rows, ScaleState, Seat, StepParams,
    },
    error::{Error, Kind, Result},
    group::{Element, Group},
    matrix::Matrix,
};

/// A device, shared by everything that lies on it. Cloning is cheap; calls are serialised.
#[derive(Clone)]
pub struct Device {
    state: Arc<Mutex<State>>,
    info: Arc<Info>,
    group: Group,
    exchange: Exchange,
}

/// How the sums of a group are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// There is nothing to add up.
    None,
    /// By the devices themselves.
    Devices,
    /// Through the hosts, and why, in words.
    Hosts(String),
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

/// Device memory, freed when dropped.
pub struct Buffer {
    device: Device,
    buf: Buf,
    len: u64,
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
    indptr: Buffer,
    indices: Buffer,
    values: Option<Buffer>,
    users: u32,
    items: u32,
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
pub struct UserList(Buffer, u32);

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

    /// Takes over a backend as the device of a member of a group. All members call this together, and from then on do
    /// the same: train, evaluate and recommend as one. Where all backends have collectives of their own, these make
    /// the sums, in half precision if `half` is set and they can; else the hosts do.
    ///
    /// # Errors
    /// Where backends are not of one kind and precision, one cannot join, or the group fails.
    pub fn in_group(backend: Box<dyn Backend>, group: Group, half: bool) -> Result<Self> {
        let mut device = Self::new(backend);
        if group.world() > 1 {
            device.exchange = device.meet(&group, half)?;
        }
        Ok(Self { group, ..device })
    }

    /// The same for a group of one that is joined all the same, to see what that costs.
    ///
    /// # Errors
    /// Where the backend has no collectives of its own, or cannot join.
    pub fn alone_in_group(mut backend: Box<dyn Backend>) -> Result<Self> {
        let (group, invitation) = (Group::default(), backend.invite(0)?);
        backend.join(Self::seat(&group, invitation, false))?;
        Ok(Self { exchange: Exchange::Devices, ..Self::new(backend) })
    }

    fn seat(group: &Group, invitation: Invitation, half: bool) -> Seat {
        let (limit, alarm) = (group.limit().as_secs_f64(), group.alarm().flag());
        Seat { rank: group.rank(), world: group.world(), invitation, half, limit, alarm }
    }

    /// Joins the devices of the other members, where all of them can.
    fn meet(&self, group: &Group, half: bool) -> Result<Exchange> {
        let Info { name, precision, master, align, .. } = &*self.info;
        group.agree(
            "backend, precision and half sums",
            format!("{name} {precision} {master:?} {align} {half}").as_bytes(),
        )?;
        let mut state = self.lock();
        let (invitation, why) = match state.backend.invite(group.rank()) {
            Ok(invitation) => (Ok(Some(invitation)), String::new()),
            Err(fault @ Fault::Unsupported(_)) => (Ok(None), format!("{name}: {fault}")),
            Err(fault) => (Err(fault.into()), String::new()),
        };
        let invitation = group.all_well(invitation)?;
        let given = group.all_gather(invitation.as_ref().map_or(&[][..], |invitation| &invitation.bytes))?;
        if let Some(rank) = given.iter().position(Vec::is_empty) {
            let other = || format!("{} has none", group.member(rank as u32));
            return Ok(Exchange::Hosts(if why.is_empty() { other() } else { why }));
        }
        let first = <[u8; 128]>::try_from(&given[0][..]).map_err(|_| bug("an invitation of another length".into()))?;
        // The others are waiting in there: a member's error is told at once, by its caller.
        state.backend.join(Self::seat(group, Invitation { bytes: first }, half))?;
        drop(state);
        group.barrier()?;
        Ok(Exchange::Devices)
    }

    /// The group that this device is a member's of.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// How the sums of the group are made.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Whether a step can be captured as a whole, sums over the group included.
    pub(crate) fn captures_steps(&self) -> bool {
        self.info.capture && !matches!(self.exchange, Exchange::Hosts(_))
    }

    /// `buffer`, one of weights, gradients or moments, becomes that of the group's root.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn broadcast(&self, buffer: &Buffer) -> Result<()> {
        match self.exchange {
            Exchange::None => return Ok(()),
            Exchange::Devices => return Ok(self.lock().backend.broadcast(buffer.buf, buffer.len, 0)?),
            Exchange::Hosts(_) => {}
        }
        let (mut at, mut values) = (0, Vec::new());
        while at < buffer.len {
            values.resize(PIECE.min(buffer.len - at) as usize, 0.0_f64);
            if self.group.is_root() {
                buffer.download(at, HostMut::F64(&mut values))?;
            }
            let said = self.group.broadcast(bytemuck::cast_slice(&values))?;
            if !self.group.is_root() {
                values.copy_from_slice(&bytemuck::pod_collect_to_vec(&said));
                buffer.upload(at, Host::F64(&values))?;
            }
            at += values.len() as u64;
        }
        Ok(())
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

/// The operations of [`Backend`] with their arguments checked.
pub struct Queue<'a> {
    state: MutexGuard<'a, State>,
    device: &'a Device,
}

/// What one operation needs to be true, gathered and then told at once.
struct Check<'a> {
    state: &'a State,
    op: &'static str,
    fault: Option<String>,
}

impl<'a> Check<'a> {
    fn need(mut self, holds: bool, what: impl FnOnce() -> String) -> Self {
        if !holds && self.fault.is_none() {
            self.fault = Some(what());
        }
        self
    }

    fn known(&self, buf: Buf) -> Option<&'a Known> {
        self.state.live.get(&buf)
    }

    /// A live buffer of the role with at least `len` elements.
    fn buffer(self, buf: Buf, roles: &[Role], len: u64) -> Self {
        let known = self.known(buf);
        let fits = known.is_some_and(|k| roles.contains(&k.role) && len <= k.len);
        let have = known.map_or("no live buffer".to_owned(), |k| format!("{:?}[{}]", k.role, k.len));
        self.need(fits, || format!("wanted {roles:?}[{len}], got {have}"))
    }

    /// A matrix of a shape, inside its buffer.
    fn mat(self, m: Mat, roles: &[Role], rows: u32, cols: u32) -> Self {
        let shape = m.rows == rows && m.cols == cols && m.stride >= m.cols;
        let last = u64::from(m.rows).saturating_sub(1).saturating_mul(u64::from(m.stride));
        let end = if m.rows == 0 { m.offset } else { m.offset.saturating_add(last).saturating_add(u64::from(m.cols)) };
        let align = self.state.align;
        // Per-user outputs have rows of one number.
        let aligned = roles == [Role::Value]
            || m.offset.is_multiple_of(align.into()) && (m.rows < 2 || m.stride.is_multiple_of(align));
        self.need(shape, || format!("wanted a matrix {rows} x {cols}, got {m:?}"))
            .need(aligned, || format!("rows that begin at multiples of {align}, got {m:?}"))
            .buffer(m.buf, roles, end)
    }

    /// A window of rows inside its user list or matrix.
    fn rows(self, x: Rows, step: Option<Buf>) -> Self {
        let first = step.and_then(|s| self.known(s)).map_or(0, |k| k.first);
        let end = u64::from(x.first) + u64::from(first) + u64::from(x.count);
        let index = &[Role::Index];
        let this = if x.users.is_none() {
            self.buffer(x.indptr, index, end + 1)
        } else {
            self.buffer(x.users, index, end).buffer(x.indptr, index, 1)
        };
        let this = this.buffer(x.indices, index, 0);
        if x.values.is_none() { this } else { this.buffer(x.values, &[Role::Value], 0) }
    }

    /// Step and scale buffers.
    fn step(self, step: Buf) -> Self {
        self.buffer(step, &[Role::Step], 1)
    }

    fn scale(self, scale: Buf) -> Self {
        self.buffer(scale, &[Role::Scale], 1)
    }

    /// A per-user output: rows up to the end of the window.
    fn per_user(self, out: Mat, x: Rows, step: Buf) -> Self {
        let first = self.known(step).map_or(0, |k| k.first);
        let end = u64::from(x.first) + u64::from(first) + u64::from(x.count);
        self.need(u64::from(out.rows) >= end, || format!("{end} users, room for {}", out.rows)).mat(
            out,
            &[Role::Value],
            out.rows,
            1,
        )
    }

    fn done(self) -> Result<()> {
        match self.fault {
            None => Ok(()),
            Some(fault) => Err(bug(format!("{}: {fault}", self.op))),
        }
    }
}

const WEIGHT: &[Role] = &[Role::Weight];
const GRAD: &[Role] = &[Role::Grad];
const ACT: &[Role] = &[Role::Act];

/// Each method is the operation of the same name in [`Backend`], where it is described.
///
/// # Errors
/// A wrong shape is reported as a bug; otherwise what the backend reports.
#[allow(missing_docs, clippy::missing_errors_doc, reason = "described in Backend")]
impl Queue<'_> {
    fn check(&self, op: &'static str) -> Check<'_> {
        Check { state: &self.state, op, fault: None }
    }

    pub fn encode_sparse(
        &mut self,
        x: Rows,
        w: Mat,
        b: Mat,
        curve: Curve,
        noise: Noise,
        step: Buf,
        y: Mat,
    ) -> Result<()> {
        self.check("encode_sparse")
            .step(step)
            .rows(x, Some(step))
            .mat(w, WEIGHT, w.rows, y.cols)
            .mat(b, WEIGHT, 1, y.cols)
            .mat(y, ACT, x.count, y.cols)
            .done()?;
        Ok(self.state.backend.encode_sparse(x, w, b, curve, noise, step, y)?)
    }

    pub fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result<()> {
        self.check("encode_sparse_grad")
            .step(step)
            .rows(x, Some(step))
            .mat(dy, ACT, x.count, dy.cols)
            .mat(dw, GRAD, dw.rows, dy.cols)
            .mat(db, GRAD, 1, dy.cols)
            .done()?;
        Ok(self.state.backend.encode_sparse_grad(x, dy, noise, step, dw, db)?)
    }

    pub fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result<()> {
        self.check("linear")
            .mat(x, ACT, y.rows, w.rows)
            .mat(w, WEIGHT, w.rows, y.cols)
            .mat(b, WEIGHT, 1, y.cols)
            .mat(y, ACT, y.rows, y.cols)
            .done()?;
        Ok(self.state.backend.linear(x, w, b, curve, y)?)
    }

    pub fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result<()> {
        self.check("linear_grad_weight")
            .mat(x, ACT, dy.rows, dw.rows)
            .mat(dy, ACT, dy.rows, dw.cols)
            .mat(dw, GRAD, dw.rows, dw.cols)
            .mat(db, GRAD, 1, dw.cols)
            .done()?;
        Ok(self.state.backend.linear_grad_weight(x, dy, dw, db)?)
    }

    pub fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result<()> {
        self.check("linear_grad_input")
            .mat(dy, ACT, dx.rows, w.cols)
            .mat(w, WEIGHT, dx.cols, w.cols)
            .mat(x, ACT, dx.rows, dx.cols)
            .mat(dx, ACT, dx.rows, dx.cols)
            .done()?;
        Ok(self.state.backend.linear_grad_input(dy, w, x, curve, dx)?)
    }

    pub fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result<()> {
        self.check("sample_latent")
            .step(step)
            .rows(x, Some(step))
            .mat(stats, ACT, x.count, 2 * z.cols)
            .mat(z, ACT, x.count, z.cols)
            .per_user(kl, x, step)
            .done()?;
        Ok(self.state.backend.sample_latent(x, stats, noise, step, z, kl)?)
    }

    pub fn sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        noise: Noise,
        step: Buf,
        scale: Buf,
        dstats: Mat,
    ) -> Result<()> {
        self.check("sample_latent_grad")
            .step(step)
            .scale(scale)
            .rows(x, Some(step))
            .mat(stats, ACT, x.count, 2 * dz.cols)
            .mat(dz, ACT, x.count, dz.cols)
            .mat(dstats, ACT, x.count, 2 * dz.cols)
            .done()?;
        Ok(self.state.backend.sample_latent_grad(x, stats, dz, noise, step, scale, dstats)?)
    }

    pub fn adam(
        &mut self,
        w: Buf,
        dw: Buf,
        m: Buf,
        v: Buf,
        len: u64,
        decayed: u64,
        step: Buf,
        scale: Buf,
    ) -> Result<()> {
        self.check("adam")
            .buffer(w, WEIGHT, len)
            .buffer(dw, GRAD, len)
            .buffer(m, &[Role::Moment], len)
            .buffer(v, &[Role::Moment], len)
            .need(decayed <= len, || format!("{decayed} of {len} elements decay"))
            .step(step)
            .scale(scale)
            .done()?;
        Ok(self.state.backend.adam(w, dw, m, v, len, decayed, step, scale)?)
    }

    pub fn decode_loss_grad(
        &mut self,
        x: Rows,
        decode: Decode,
        kind: Likelihood,
        step: Buf,
        scale: Buf,
        loss: Mat,
        dw: Mat,
        db: Mat,
        dg: Mat,
    ) -> Result<()> {
        let Decode { g, w, .. } = decode;
        self.decode("decode_loss_grad", x.count, decode)
            .step(step)
            .scale(scale)
            .rows(x, Some(step))
            .per_user(loss, x, step)
            .mat(dw, GRAD, w.rows, w.cols)
            .mat(db, GRAD, 1, w.cols)
            .mat(dg, ACT, g.rows, g.cols)
            .done()?;
        Ok(self.state.backend.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg)?)
    }

    pub fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result<()> {
        let room = u64::from(decode.g.rows) * u64::from(k);
        let check = self.decode("recommend", decode.g.rows, decode).buffer(items, &[Role::Index], room).buffer(
            values,
            &[Role::Value],
            room,
        );
        let check = if seen.indptr.is_none() { check } else { check.rows(seen, None) };
        check.need(seen.count == decode.g.rows, || format!("{} rows of seen items", seen.count)).done()?;
        Ok(self.state.backend.recommend(decode, seen, k, items, values)?)
    }

    fn decode(&self, op: &'static str, batch: u32, decode: Decode) -> Check<'_> {
        let Decode { g, w, b, logits, .. } = decode;
        let rows = self.state.backend.logits_rows(batch, w.cols).clamp(1, batch.max(1));
        self.check(op)
            .mat(g, ACT, batch, w.rows)
            .mat(w, WEIGHT, w.rows, w.cols)
            .mat(b, WEIGHT, 1, w.cols)
            .mat(logits, ACT, logits.rows, w.cols)
            .need(logits.rows >= rows.min(batch), || format!("{} rows of logits, wanted {rows}", logits.rows))
    }

    /// Sums over the group; of a world of one, nothing at all.
    pub fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result<()> {
        self.check("all_reduce").buffer(buf, GRAD, at.saturating_add(len)).done()?;
        match self.device.exchange {
            Exchange::None => Ok(()),
            Exchange::Devices => Ok(self.state.backend.all_reduce(buf, at, len)?),
            Exchange::Hosts(_) => self.sum_on_hosts(buf, at, len),
        }
    }

    /// In place where the device computes in the host's memory, else a piece at a time.
    fn sum_on_hosts(&mut self, buf: Buf, at: u64, len: u64) -> Result<()> {
        let (group, backend) = (&self.device.group, &mut self.state.backend);
        match backend.lend(buf, at, len) {
            Some(HostMut::F32(values)) => return group.sum(values),
            Some(HostMut::F64(values)) => return group.sum(values),
            _ => {}
        }
        match self.device.info.master {
            Master::F32 => sum_copies::<f32>(&mut **backend, group, buf, at..at + len),
            Master::F64 => sum_copies::<f64>(&mut **backend, group, buf, at..at + len),
        }
    }

    pub fn capture_begin(&mut self) -> Result<()> {
        Ok(self.state.backend.capture_begin()?)
    }

    pub fn capture_end(&mut self) -> Result<Graph> {
        Ok(self.state.backend.capture_end()?)
    }

    pub fn replay(&mut self, graph: Graph) -> Result<()> {
        Ok(self.state.backend.replay(graph)?)
    }
}

/// Elements that pass through the host at once.
const PIECE: u64 = 1 << 22;

/// Elements of a buffer become their sums over the group, by way of copies on the host.
fn sum_copies<T: Element>(backend: &mut dyn Backend, group: &Group, buf: Buf, range: Range<u64>) -> Result<()> {
    let mut values = Vec::new();
    for at in range.clone().step_by(PIECE as usize) {
        values.resize(PIECE.min(range.end - at) as usize, T::zeroed());
        backend.download(buf, at, T::filled(&mut values))?;
        group.sum(&mut values)?;
        backend.upload(buf, at, T::read(&values))?;
    }
    Ok(())
}

/// The step buffer of a run.
pub(crate) fn step_buffer(device: &Device, params: &StepParams) -> Result<Buffer> {
    device.upload(Role::Step, Host::Step(params))
}

/// The loss scale of a run.
pub(crate) fn scale_buffer(device: &Device, state: &ScaleState) -> Result<Buffer> {
    device.upload(Role::Scale, Host::Scale(state))
}
