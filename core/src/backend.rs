//! The contract between the model and a device.
//!
//! A backend is one in-order queue on one device, with about a dozen fused, model-level operations
//! on buffers it owns. [`crate::model`] is written against this alone; [`crate::device`] owns
//! a backend, checks every shape once, and is the only caller.
//!
//! # What a backend may rely on
//! - **Order.** Calls take effect in call order. A call may return before its work is done; only
//!   [`Backend::download`], [`Backend::sync`] and [`Backend::seconds`] wait. An upload may be carried out on a
//!   second queue, beside the work that was called before it, as long as it takes effect in call order.
//! - **Arguments are valid.** Ranges lie inside their buffers, shapes agree,
//!   item indices are below the item count, indices ascend within a row, and outputs do not overlap
//!   inputs unless an operation says "in place". A matrix takes up all from its first element to its
//!   last, so an output never lies between the columns of another argument. [`crate::device`] has
//!   checked all of it. Any number of rows may be zero: sums over no rows are zeros.
//!   A step and a scale buffer are always there where an operation takes one, in inference, too.
//! - **Addresses are fixed.** Nothing is allocated or freed between the first and the last step of
//!   a run, and each step issues the same calls with the same arguments; what changes from step to
//!   step is in the step buffer ([`StepParams`]). So a step can be captured once and replayed.
//!
//! # What a backend promises
//! - **Errors.** An operation returns only what the caller could not foresee: memory, a lost device,
//!   a kernel that does not compile. A fault while running comes out of the next `download` or
//!   `sync`. An error leaves buffers with unspecified contents but never touches memory outside them.
//! - **Handles** are checked: one that was freed, never given out, or of another kind (floats, indices,
//!   step, scale) is a [`Fault`], never a crash, so that a mistake in a program that embeds this cannot
//!   corrupt it. Handles are not given out twice.
//! - **Precision.** Sums accumulate in f32 or better, whatever the storage. [`Role::Weight`] may be
//!   stored as an f32 master and a half copy; only `upload`, `adam` and `broadcast` write it.
//! - **Padding.** A matrix of `cols` columns may have a longer `stride`. An operation leaves the cells
//!   between as zero as they were allocated, and writes nowhere but in its outputs. The input of
//!   `linear` and of the output layer may be a few columns of a wider matrix: what lies beyond them is
//!   then some other number, which may be read and must not count.
//! - **Noise** is drawn from [`crate::random`], identically everywhere: counter (update, user,
//!   element), key (seed, stream). Masks agree bit for bit, normals to rounding. Nothing is stored:
//!   the backward pass draws the same noise again.
//! - **Determinism.** Where [`Info::deterministic`] is true, the same calls give the same bits.
//! - **Gradients are sums over the batch**, times [`ScaleState::scale`] on backends that scale
//!   the loss. 1/batch, 1/loss scale and l2 are applied once, in f32, by [`Backend::adam`].
//!
//! # Rows of a batch
//! A batch is a window on a list of user indices that lies on the device ([`Rows`]). Row `r` is user
//! `users[first + r]` of the matrix, where `first = rows.first + step.first` in operations that take
//! the step buffer and `rows.first` in those that do not. Per-user outputs (`loss`, `kl`) are written
//! at row `first + r` of their matrix, so an epoch's losses are read back once, at its end.

use std::sync::atomic::AtomicU32;

/// A handle to device memory. Zero is no buffer.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Buf(pub u32);

impl Buf {
    /// No buffer: an absent optional argument.
    pub const NONE: Self = Self(0);

    /// Whether this names no buffer.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// What a buffer is for; it decides the element type and where it is stored.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Parameters: a master of at least f32, and a half copy where the backend computes in half.
    Weight = 0,
    /// The gradient arena, f32 or better.
    Grad = 1,
    /// Adam's moments, f32 or better.
    Moment = 2,
    /// Activations, logits and their gradients: the backend's working precision.
    Act = 3,
    /// Per-user losses and scores that are read back: f32 or better.
    Value = 4,
    /// `u32`: row starts, item indices, user lists, ranked items.
    Index = 5,
    /// Exactly one [`StepParams`], in whatever form the device likes.
    Step = 6,
    /// Exactly one [`ScaleState`].
    Scale = 7,
}

/// A row-major matrix: element (r, c) is `buf[offset + r * stride + c]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mat {
    /// The buffer.
    pub buf: Buf,
    /// Rows.
    pub rows: u32,
    /// Columns that count.
    pub cols: u32,
    /// Elements from one row to the next, at least `cols`.
    pub stride: u32,
    /// First element.
    pub offset: u64,
}

impl Mat {
    /// The columns `from..from + cols`, as a matrix of their own.
    #[must_use]
    pub fn columns(self, from: u32, cols: u32) -> Self {
        Self { offset: self.offset + u64::from(from), cols, ..self }
    }

    /// The first `rows` rows.
    #[must_use]
    pub fn top(self, rows: u32) -> Self {
        Self { rows, ..self }
    }
}

/// A window of rows of a sparse matrix (CSR) that lies on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// `u32[n_rows + 1]`: where each row starts; [`Buf::NONE`] stands for a matrix without events.
    pub indptr: Buf,
    /// `u32[events]`: item indices, ascending within a row.
    pub indices: Buf,
    /// Weights `[events]` of role [`Role::Value`]; [`Buf::NONE`] means all ones.
    pub values: Buf,
    /// `u32`: the matrix row of each batch row; [`Buf::NONE`] means row `first + r` itself.
    pub users: Buf,
    /// Position of the window's first row in `users`; [`StepParams::first`] is added where there is one.
    pub first: u32,
    /// Rows in the window.
    pub count: u32,
}

/// The noise of one operation. See [`crate::random`] for the draw itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// [`crate::random::stream`]: dropout and latent noise never share a stream.
    pub stream: u32,
    /// Dropout: the probability to keep an element; 1 keeps all and draws nothing.
    /// Latent noise: 1 draws, 0 leaves the mean.
    pub keep: f32,
}

/// A hidden layer's curve, by its output.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// y = a.
    Identity = 0,
    /// y = tanh(a), y' = 1 - y^2.
    Tanh = 1,
    /// y = max(a, 0), y' = 1 where y > 0.
    Relu = 2,
}

/// How the output layer is compared with the history: which likelihood, and its constants.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Which one.
    pub kind: LikelihoodKind,
    /// Confidence of seen items (Gaussian only).
    pub seen: f32,
    /// Confidence of unseen items (Gaussian only).
    pub unseen: f32,
}

/// The three likelihoods of the family (Liang et al. 2018, section 2.2).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LikelihoodKind {
    /// loss = -sum x log softmax(f), df = (sum x) softmax(f) - x.
    Multinomial = 0,
    /// loss = sum c/2 (x - f)^2, df = c (f - x), with c = `seen` where the item is in the row, else `unseen`.
    Gaussian = 1,
    /// loss = sum log(1 + e^f) - x f, df = sigmoid(f) - x.
    Logistic = 2,
}

/// Everything that changes from one update to the next: one small buffer, uploaded before each step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepParams {
    /// Number of this update, from 1: Adam's t, and the noise counter.
    pub update: u32,
    /// Added to [`Rows::first`].
    pub first: u32,
    /// Learning rate.
    pub lr: f64,
    /// Weight of the KL term in this update.
    pub beta: f64,
    /// 1 / (users of the whole batch): turns summed gradients into means.
    pub grad_factor: f64,
    /// The l2 coefficient: adds `l2 * w` to the gradient of every decayed weight.
    pub l2: f64,
    /// Adam: decay of the first moment.
    pub beta1: f64,
    /// Adam: decay of the second moment.
    pub beta2: f64,
    /// Adam: added to the root of the second moment.
    pub eps: f64,
    /// Adam: 1 - beta1^update.
    pub correction1: f64,
    /// Adam: 1 - beta2^update.
    pub correction2: f64,
}

/// The dynamic loss scale (Micikevicius et al. 2018, section 3.2), kept by the device: `adam` reads and
/// writes it, nothing else does. A backend that scales starts at [`Info::loss_scale`], halves the scale
/// with every update that is skipped, and doubles it when its number of finite updates in a row is
/// reached; both set `good` to zero. The whole state is in the run's checkpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable, serde::Serialize, serde::Deserialize)]
pub struct ScaleState {
    /// Factor on the loss's gradient; 1 where the backend does not scale.
    pub scale: f32,
    /// Finite updates since the scale last changed.
    pub good: u32,
    /// Updates skipped because a gradient was not finite.
    pub skipped: u32,
    /// Whether the last update was finite (1) or skipped (0).
    pub finite: u32,
}

impl Default for ScaleState {
    fn default() -> Self {
        Self { scale: 1.0, good: 0, skipped: 0, finite: 1 }
    }
}

/// Host memory to read from.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    /// Single precision, converted to the buffer's element type.
    F32(&'a [f32]),
    /// Double precision, converted to the buffer's element type.
    F64(&'a [f64]),
    /// Indices.
    U32(&'a [u32]),
    /// The step buffer.
    Step(&'a StepParams),
    /// The loss scale.
    Scale(&'a ScaleState),
}

/// Host memory to write to.
#[derive(Debug)]
pub enum HostMut<'a> {
    /// Converted to single precision.
    F32(&'a mut [f32]),
    /// Converted to double precision.
    F64(&'a mut [f64]),
    /// Indices.
    U32(&'a mut [u32]),
    /// The loss scale.
    Scale(&'a mut ScaleState),
}

/// The element type of masters, moments and gradients.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master {
    /// Single precision.
    F32 = 0,
    /// Double precision: the reference.
    F64 = 1,
}

impl Master {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// What a backend is and what it promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Short name: `cpu`, `cuda`, `wgpu`.
    pub name: String,
    /// The device as its maker calls it, with driver or thread count.
    pub device: String,
    /// The working precision: `f64`, `f32`, `tf32` (f32 storage, products of operands rounded to 11
    /// bits), `f16` or `bf16`. It says how far results may be off.
    pub precision: String,
    /// Element type of masters and moments; checkpoints are written in it.
    pub master: Master,
    /// Bytes that can still be allocated, where known.
    pub memory: Option<u64>,
    /// That memory is the host's own, so what the host keeps counts against it, too.
    pub host_memory: bool,
    /// Bytes per element of role [`Role::Act`].
    pub act_bytes: u32,
    /// Bytes per element of role [`Role::Weight`], half copy included.
    pub weight_bytes: u32,
    /// Rows of weights, gradients and activations begin at multiples of this many elements: so do offsets and
    /// strides, those of a view of a few columns too.
    pub align: u32,
    /// The loss scale that a new run starts with; 1 where this backend does not scale.
    pub loss_scale: f32,
    /// The same calls give the same bits.
    pub deterministic: bool,
    /// [`Backend::capture_begin`], [`Backend::capture_end`] and [`Backend::replay`] work.
    pub capture: bool,
}

/// Why a device could not do it. Everything the caller could have foreseen is a bug instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An allocation that did not fit.
    #[error("{device} is out of memory: {wanted} bytes more were needed; use a smaller batch or model")]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The device is gone; nothing on it can be used again.
    #[error("the device was lost: {0}; a run can go on from its last checkpoint, once the device is back")]
    Lost(String),
    /// The operation does not exist here.
    #[error("{0} is not supported by this backend")]
    Unsupported(&'static str),
    /// A wait for other members of a group has ended because [`Seat::alarm`] was raised.
    #[error("stopped, because another member of the group has failed")]
    Alarm,
    /// A wait for other members of a group has come to nothing, and the device cannot tell whose fault it is.
    #[error("{0}")]
    Waited(String),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// The result of a backend call.
pub type Result<T = ()> = std::result::Result<T, Fault>;

/// A captured list of calls.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub u32);

/// What rank 0 of a group gives out, so that the others find it: see [`Backend::invite`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// To be passed on as they are.
    pub bytes: [u8; 128],
}

/// A member's place in a group of devices: see [`Backend::join`].
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// Which member this is, from 0.
    pub rank: u32,
    /// How many members there are.
    pub world: u32,
    /// What rank 0's [`Backend::invite`] gave.
    pub invitation: Invitation,
    /// Sums may travel in half precision: a backend that can sends half the bytes, and adds up what was rounded.
    pub half: bool,
    /// Seconds that a wait for other members may last.
    pub limit: f64,
    /// Not zero any more when another member has failed: no use waiting for it.
    pub alarm: &'static AtomicU32,
}

/// A moment in the queue: see [`Backend::mark`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// The most recent marks that a backend keeps.
pub const MARKS: usize = 4096;

/// What a device does at best, measured on it: the limits that a bench puts its figures beside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Bytes per second, read and written together, of a copy within the device's memory, or a pass over it in
    /// place, that is far larger than its caches.
    pub copy: f64,
    /// FLOP per second of a large matrix product in the working precision.
    pub products: f64,
}

/// The operands of the output layer and everything derived from it: see [`Backend::decode_loss_grad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decode {
    /// Input of the output layer `[B, H]`, the output of `curve`.
    pub g: Mat,
    /// Weights `[H, I]`.
    pub w: Mat,
    /// Bias `[1, I]`.
    pub b: Mat,
    /// The curve whose output `g` is.
    pub curve: Curve,
    /// Scratch for logits `[>= Backend::logits_rows(B), I]`; contents are unspecified afterwards.
    pub logits: Mat,
}

/// One in-order queue on one device. See the module's text for the rules that hold for all methods.
///
/// `B` is the number of rows in the batch, `I` the number of items; all matrices are row-major.
pub trait Backend: Send {
    /// What this backend is. Cheap, and constant but for [`Info::memory`].
    fn info(&self) -> Info;

    /// `len` elements, zeroed. The element type follows from the role.
    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf>;

    /// Gives a buffer back, once the queue has passed this point. Freeing [`Buf::NONE`] does nothing.
    fn free(&mut self, buf: Buf);

    /// Copies host elements to `dst[at..]`. The host memory may be reused on return.
    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result;

    /// Copies `src[at..]` to host memory; waits for everything before it that wrote there.
    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result;

    /// Waits until all work is done, and returns the first fault of it.
    fn sync(&mut self) -> Result;

    /// First layer, `y[B, H] = curve(d W + b)`, a gather over sparse rows.
    ///
    /// `n = x / |x|_2` over the whole row (an empty row stays zero); `d = n * m / keep`, with `m` one
    /// Bernoulli(keep) draw per (update, user, item). `w` is `[I, H]`, `b` is `[1, H]`.
    /// Liang et al. 2018, eq. 2 with the input dropout of section 2.4.
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result;

    /// Gradient of the first layer: `dw[I, H] = d^T dy`, `db[1, H] = colsum(dy)`, every cell written
    /// (zero for items outside the batch). The mask is drawn again.
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result;

    /// `y[B, N] = curve(x[B, M] w[M, N] + b[1, N])`.
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result;

    /// `dw[M, N] = x[B, M]^T dy[B, N]`, `db[1, N] = colsum(dy)`.
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result;

    /// `dx[B, M] = (dy[B, N] w[M, N]^T) * curve'(x)`, where `x[B, M]` is the output of `curve`.
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result;

    /// `stats[B, 2K] = [mu | logvar]`; `z[B, K] = mu + exp(logvar / 2) eps`, one normal draw per
    /// (update, user, k); `kl[first + r] = 1/2 sum (exp(logvar) + mu^2 - 1 - logvar)`.
    /// Liang et al. 2018, eq. 5 and 6. Of `x` only the users count.
    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result;

    /// `dmu = dz + beta mu`, `dlogvar = 1/2 dz eps exp(logvar / 2) + beta / 2 (exp(logvar) - 1)`,
    /// written to `dstats[B, 2K]`; `beta` is that of the step, times the loss scale.
    fn sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        noise: Noise,
        step: Buf,
        scale: Buf,
        dstats: Mat,
    ) -> Result;

    /// The loss of each row against the FULL history, and its gradient in place.
    ///
    /// `loss[first + r]` as in [`LikelihoodKind`]; `logits[B, I]` becomes its gradient, times the loss
    /// scale. The softmax is computed from differences to the row's maximum.
    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result;

    /// One Adam update (Kingma and Ba 2015, algorithm 1) over the whole arena of `len` elements.
    ///
    /// `g = dw * grad_factor / scale`, plus `l2 * w` for the first `decayed` elements (weights; biases
    /// come after); `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, and
    /// `w -= lr (m / correction1) / (sqrt(v / correction2) + eps)`. Where any gradient is not finite nothing
    /// but `scale` changes: `skipped` grows, and `finite` is 0; otherwise `good` grows, and `finite` is 1.
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result;

    /// The `k` best items of each row of `scores[B, I]`, best first, to `items[r * k..]` and
    /// `values[r * k..]`.
    ///
    /// Items of `seen` are left out; ties go to the smaller index; NaN ranks below everything. Where
    /// fewer than `k` items are left the rest is `u32::MAX` with the value -inf.
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result;

    // ---- provided: the default IS the definition; an override must agree with it ----

    /// Rows of logits that [`Backend::decode_loss_grad`] and [`Backend::recommend`] want as scratch
    /// for a batch, given the number of items; never falling as the batch grows. A backend that works
    /// in blocks asks for one block.
    fn logits_rows(&self, batch: u32, _items: u32) -> u32 {
        batch
    }

    /// Bytes of device memory that operations on a batch take beside the buffers they are given, for a plan of the
    /// memory a run needs: at the most, over `items` items and layers of up to `units` units. It is part of no
    /// plugin's table: those count as none.
    fn scratch(&self, _batch: u32, _items: u32, _units: u32) -> u64 {
        0
    }

    /// Elements that one buffer of role [`Role::Index`] or [`Role::Value`] holds at the most, on devices that take a
    /// list only as a whole; a longer one is never asked for. It is part of no plugin's table: those hold any.
    fn longest_list(&self) -> u64 {
        u64::MAX
    }

    /// Output layer, likelihood and their gradients: `loss`, `dw[H, I]`, `db[1, I]`, and
    /// `dg[B, H]`, the gradient before `decode.curve`.
    fn decode_loss_grad(
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
    ) -> Result {
        let Decode { g, w, b, curve, logits } = decode;
        let logits = logits.top(g.rows);
        self.linear(g, w, b, Curve::Identity, logits)?;
        self.likelihood(x, kind, logits, step, scale, loss)?;
        self.linear_grad_weight(g, logits, dw, db)?;
        self.linear_grad_input(logits, w, g, curve, dg)
    }

    /// Output layer and [`Backend::top_k`].
    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let Decode { g, w, b, logits, .. } = decode;
        let logits = logits.top(g.rows);
        self.linear(g, w, b, Curve::Identity, logits)?;
        self.top_k(logits, seen, k, items, values)
    }

    /// Calls from here to [`Backend::capture_end`] are recorded, not run. The trainer captures a step
    /// for each size of batch, and set of buffers where data are streamed, the second time it comes, and replays it from
    /// then on: what a device prepares with a first call is prepared by then. A graph
    /// lives as long as the backend. Legal inside: every operation; not legal: `alloc`, `free`, `upload`,
    /// `download`, `sync`, `mark`, `seconds`, `ceilings`, `join`, `broadcast`.
    fn capture_begin(&mut self) -> Result {
        Err(Fault::Unsupported("capture"))
    }

    /// Ends the recording.
    fn capture_end(&mut self) -> Result<Graph> {
        Err(Fault::Unsupported("capture"))
    }

    /// Runs the recorded calls again, with the step buffer as it is now.
    fn replay(&mut self, _graph: Graph) -> Result {
        Err(Fault::Unsupported("replay"))
    }

    /// A moment in the queue: when the device has done all that was called before it. Legal everywhere but inside
    /// a capture. The latest 4,096 marks can be asked about; older ones are forgotten, so that none has to be given
    /// back.
    fn mark(&mut self) -> Result<Mark> {
        Err(Fault::Unsupported("mark"))
    }

    /// Seconds by the device's clock from one mark to another, negative where `to` came first. Waits for both.
    /// A mark that is forgotten or was never given is a [`Fault`].
    fn seconds(&mut self, _from: Mark, _to: Mark) -> Result<f64> {
        Err(Fault::Unsupported("seconds"))
    }

    /// What this very device does at best, measured now, which takes some seconds at most and memory that is given
    /// back. Not legal inside a capture.
    fn ceilings(&mut self) -> Result<Ceilings> {
        Err(Fault::Unsupported("ceilings"))
    }

    /// What the others of a group need to [`Backend::join`] rank 0, which is what rank 0 makes here; other ranks only
    /// say whether they could join. A backend without collectives of its own, or without what these need, says so by
    /// [`Fault::Unsupported`], and sums pass through the host's memory.
    fn invite(&mut self, _rank: u32) -> Result<Invitation> {
        Err(Fault::Unsupported("adding up on the devices"))
    }

    /// Joins a group of devices, and returns when all of it have. What follows waits for other members no longer than
    /// the limit of `seat`, nor after its alarm; then, in this call or in the next that waits, there is a
    /// fault, which after the alarm is [`Fault::Alarm`]. A world of one is a group, too. Not legal inside a capture.
    fn join(&mut self, _seat: Seat) -> Result {
        Err(Fault::Unsupported("a group of several devices"))
    }

    /// `buf[at..at + len]`, of role [`Role::Grad`], becomes its sum over the group, the same bits on every member.
    /// All of them make this call with the same arguments but for the handle. It may be carried out beside the work
    /// called after it, as long as it takes effect in call order. Legal inside a capture, if every member's is
    /// inside one.
    fn all_reduce(&mut self, _buf: Buf, _at: u64, _len: u64) -> Result {
        Err(Fault::Unsupported("all_reduce"))
    }

    /// `buf[..len]`, of role [`Role::Weight`], [`Role::Grad`] or [`Role::Moment`], becomes that of rank `root`, a half
    /// copy included. Not legal inside a capture.
    fn broadcast(&mut self, _buf: Buf, _len: u64, _root: u32) -> Result {
        Err(Fault::Unsupported("broadcast"))
    }

    /// The elements themselves of a buffer of role [`Role::Grad`], on devices that compute in the host's memory: sums
    /// that pass through the host are then made in place. It is part of no plugin's table: those have none.
    fn lend(&mut self, _buf: Buf, _at: u64, _len: u64) -> Option<HostMut<'_>> {
        None
    }
}
