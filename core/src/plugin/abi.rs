//! This is the border between vaecf and a backend in a shared library, version 1.
//!
//! A backend exports one function, [`vaecf_backend_v1`](VTableV1), which fills a table of pointers.
//! The host keeps the table as long as it runs, and never unloads the library.
//!
//! # Versions
//! The host sets `size` to the bytes that it has room for and `version` to its own, zeroes all else
//! and fills in the inputs. The plugin looks at these two first. Where its version differs it sets
//! `version` to its own, returns [`Code::Unsupported`] and touches nothing else. Otherwise it sets `size`
//! to the bytes that it fills: at most those that the host has room for, and at least those up to `top_k`, such as
//! `out->size = offsetof(vaecf_backend, logits_rows)`. The host's version comes as an argument, too, so that
//! nothing of the table has to be read to tell that it is another one.
//! Within a version, fields are only ever appended to [`VTableV1`] and to [`InfoV1`], and a field that is
//! not there counts as null or zero. Everything else never changes.
//!
//! # Null
//! `alloc`, `free`, `upload`, `download` and `info` must be there. Of the rest, an operation up to
//! `top_k` that is null is reported as unsupported when it is called; one that comes after `top_k`
//! is then made of the others, but for captures, marks and ceilings, which are then not used. A null `sync` means
//! that there is never anything to wait for.
//!
//! # Errors
//! Functions that return `int32_t` return a [`Code`]. After any but [`Code::Ok`] the host asks `last_error`
//! for a text. A function must not throw, unwind or jump across the border.
//!
//! # Threads
//! The host makes one call at a time on a `ctx`, but calls may come from different threads in turn.
//! Two contexts may be in use at once, on two threads.
//!
//! # Pointers
//! Arguments behind pointers are the host's and valid until the function returns; none is null unless
//! its description says so. They hold handles, not addresses: device memory is the plugin's own
//! affair. Values for which there is an enumeration come as `uint32_t`, and one that is not in it is
//! an error ([`Code::Other`]).
//!
//! # Noise, to the bit
//! `philox(c[4], k[2])`, ten rounds, all in `uint32_t` but the two products, which take 64 bits:
//!
//! ```text
//! for round in 0..10:
//!     if round > 0: k[0] += 0x9E3779B9; k[1] += 0xBB67AE85
//!     a = c[0] * 0xD2511F53 (64 bits); b = c[2] * 0xCD9E8D57 (64 bits)
//!     c = { high(b) ^ c[1] ^ k[0], low(b), high(a) ^ c[3] ^ k[1], low(a) }
//! block(n) = philox({ update, user, n, high(seed) }, { low(seed), stream })
//! ```
//!
//! `update` is that of the step buffer, `user` the row of the matrix (not the position in the batch).
//! Dropout keeps item `i` where `block(i / 4)[i % 4] < (uint64_t)((double)keep * 4294967296.0)`, and
//! keeps everything where `keep >= 1`. Latent noise of units `4 n .. 4 n + 3` is, with `w = block(n)`:
//!
//! ```text
//! for half in { 0, 2 }:
//!     radius = sqrt(-2 log(((w[half] >> 8) + 1) / 2^24)); angle = 2 pi (w[half + 1] >> 8) / 2^24
//!     eps[4 n + half] = radius cos(angle); eps[4 n + half + 1] = radius sin(angle)
//! ```

use std::{
    ffi::{c_char, c_void},
    sync::atomic::AtomicU32,
};

use crate::backend::{
    self, Buf, Ceilings, Curve, Fault, Graph, Invitation, LikelihoodKind, Mark, Mat, Noise, Result, Role, Rows,
};

/// The version of the border that this is.
pub const VERSION: u32 = 1;

/// What a function returns.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Done, or under way.
    Ok = 0,
    /// An allocation did not fit.
    OutOfMemory = 1,
    /// The device is gone; nothing on it can be used again.
    Lost = 2,
    /// The operation does not exist here.
    Unsupported = 3,
    /// Anything else; the text of `last_error` says what.
    Other = 4,
}

/// What lies in host memory that is copied from or to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostType {
    /// `float`, converted from or to the buffer's element type.
    F32 = 0,
    /// `double`, converted from or to the buffer's element type.
    F64 = 1,
    /// `uint32_t`, of buffers of role [`Role::Index`].
    U32 = 2,
    /// [`StepParams`](backend::StepParams); `upload` only.
    Step = 3,
    /// [`ScaleState`](backend::ScaleState).
    Scale = 4,
}

/// How the output layer is compared with the history.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LikelihoodV1 {
    /// A [`LikelihoodKind`].
    pub kind: u32,
    /// Confidence of seen items (Gaussian only).
    pub seen: f32,
    /// Confidence of unseen items (Gaussian only).
    pub unseen: f32,
}

/// The operands of the output layer and everything derived from it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeV1 {
    /// Input of the output layer `[B, H]`, the output of `curve`.
    pub g: Mat,
    /// Weights `[H, I]`.
    pub w: Mat,
    /// Bias `[1, I]`.
    pub b: Mat,
    /// The [`Curve`] whose output `g` is.
    pub curve: u32,
    /// Scratch for logits `[>= logits_rows(B), I]`; contents are unspecified afterwards.
    pub logits: Mat,
}

/// A member's place in a group of devices: see [`Backend::join`](backend::Backend::join).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SeatV1 {
    /// Which member this is, from 0.
    pub rank: u32,
    /// How many members there are.
    pub world: u32,
    /// What rank 0's [`Backend::invite`](backend::Backend::invite) gave.
    pub invitation: Invitation,
    /// Whether sums may travel in half precision: 0 or 1.
    pub half: u32,
    /// Seconds that a wait for other members may last.
    pub limit: f64,
    /// Becomes other than 0, at any time and from another thread, when another member has failed: no use waiting for
    /// it. It can be read as long as the process runs.
    pub alarm: *const u32,
}

/// What a backend is and what it promises. Texts are UTF-8 and end with a zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InfoV1 {
    /// Bytes that the host has room for; the rest is zero when it is asked. The fields of version 1 up to
    /// `capture` are always there.
    pub size: u32,
    /// Element type of masters, moments and gradients, in which checkpoints are written: a [`Master`](backend::Master).
    pub master: u32,
    /// Short name, such as `cpu`.
    pub name: [c_char; 32],
    /// The device as its maker calls it, with driver or thread count.
    pub device: [c_char; 128],
    /// The working precision: `f64`, `f32`, `tf32`, `f16` or `bf16`. It says how far results may be off.
    pub precision: [c_char; 16],
    /// Bytes that can still be allocated; `UINT64_MAX` where that is not known.
    pub memory: u64,
    /// 1 where that memory is the host's own, so that what the host keeps counts against it, too.
    pub host_memory: u32,
    /// Bytes per element of role [`Role::Act`].
    pub act_bytes: u32,
    /// Bytes per element of role [`Role::Weight`], half copy included.
    pub weight_bytes: u32,
    /// Row strides of weights and activations are multiples of this many elements; 1 to 4096.
    pub align: u32,
    /// The loss scale that a new run starts with; 1 where this backend does not scale.
    pub loss_scale: f32,
    /// 1 where the same calls give the same bits.
    pub deterministic: u32,
    /// 1 where `capture_begin`, `capture_end` and `replay` work.
    pub capture: u32,
}

/// What a backend is made of: filled by the function `vaecf_backend_v1`, in the order of the fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(clippy::type_complexity, reason = "a table of functions with the arguments that they have")]
pub struct VTableV1 {
    /// In: bytes that the host has room for. Out: bytes that the plugin filled, never more.
    pub size: u32,
    /// In: the host's version. Out: the plugin's.
    pub version: u32,
    /// In: which device, from 0.
    pub device: u32,
    /// In: threads of the host to use; 0 where the plugin decides.
    pub threads: u32,
    /// In: the working precision that was asked for, or `auto`; ends with a zero.
    pub precision: [c_char; 16],
    /// The backend's own state, the first argument of everything below; not null.
    pub ctx: *mut c_void,
    /// Copies the text of the last error to `text`, at most `len` bytes with the zero at the end, and
    /// returns how many bytes the whole text has without it. With a null `ctx` it is the text of the last
    /// opening that failed: this entry is filled before `vaecf_backend_v1` returns an error.
    pub last_error: Option<unsafe extern "C" fn(ctx: *mut c_void, text: *mut c_char, len: usize) -> usize>,
    /// Ends the backend and gives back all that it holds.
    pub destroy: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// [`Backend::info`](backend::Backend::info)
    pub info: Option<unsafe extern "C" fn(ctx: *mut c_void, info: *mut InfoV1) -> i32>,
    /// [`Backend::alloc`](backend::Backend::alloc)
    pub alloc: Option<unsafe extern "C" fn(ctx: *mut c_void, role: u32, len: u64, buf: *mut Buf) -> i32>,
    /// [`Backend::free`](backend::Backend::free)
    pub free: Option<unsafe extern "C" fn(ctx: *mut c_void, buf: Buf)>,
    /// [`Backend::upload`](backend::Backend::upload)
    ///
    /// `src` is `len` elements of a [`HostType`]; it may be null where `len` is 0.
    pub upload: Option<
        unsafe extern "C" fn(ctx: *mut c_void, dst: Buf, at: u64, host_type: u32, src: *const c_void, len: u64) -> i32,
    >,
    /// [`Backend::download`](backend::Backend::download)
    ///
    /// `dst` is `len` elements of a [`HostType`]; it may be null where `len` is 0.
    pub download: Option<
        unsafe extern "C" fn(ctx: *mut c_void, src: Buf, at: u64, host_type: u32, dst: *mut c_void, len: u64) -> i32,
    >,
    /// [`Backend::sync`](backend::Backend::sync)
    pub sync: Option<unsafe extern "C" fn(ctx: *mut c_void) -> i32>,
    /// [`Backend::encode_sparse`](backend::Backend::encode_sparse)
    pub encode_sparse: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            w: *const Mat,
            b: *const Mat,
            curve: u32,
            noise: *const Noise,
            step: Buf,
            y: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::encode_sparse_grad`](backend::Backend::encode_sparse_grad)
    pub encode_sparse_grad: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            dy: *const Mat,
            noise: *const Noise,
            step: Buf,
            dw: *const Mat,
            db: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::linear`](backend::Backend::linear)
    pub linear: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Mat,
            w: *const Mat,
            b: *const Mat,
            curve: u32,
            y: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::linear_grad_weight`](backend::Backend::linear_grad_weight)
    pub linear_grad_weight: Option<
        unsafe extern "C" fn(ctx: *mut c_void, x: *const Mat, dy: *const Mat, dw: *const Mat, db: *const Mat) -> i32,
    >,
    /// [`Backend::linear_grad_input`](backend::Backend::linear_grad_input)
    pub linear_grad_input: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            dy: *const Mat,
            w: *const Mat,
            x: *const Mat,
            curve: u32,
            dx: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::sample_latent`](backend::Backend::sample_latent)
    pub sample_latent: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            stats: *const Mat,
            noise: *const Noise,
            step: Buf,
            z: *const Mat,
            kl: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::sample_latent_grad`](backend::Backend::sample_latent_grad)
    pub sample_latent_grad: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            stats: *const Mat,
            dz: *const Mat,
            noise: *const Noise,
            step: Buf,
            scale: Buf,
            dstats: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::likelihood`](backend::Backend::likelihood)
    pub likelihood: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            kind: *const LikelihoodV1,
            logits: *const Mat,
            step: Buf,
            scale: Buf,
            loss: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::adam`](backend::Backend::adam)
    pub adam: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            w: Buf,
            dw: Buf,
            m: Buf,
            v: Buf,
            len: u64,
            decayed: u64,
            step: Buf,
            scale: Buf,
        ) -> i32,
    >,
    /// [`Backend::top_k`](backend::Backend::top_k)
    pub top_k: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            scores: *const Mat,
            seen: *const Rows,
            k: u32,
            items: Buf,
            values: Buf,
        ) -> i32,
    >,
    /// [`Backend::logits_rows`](backend::Backend::logits_rows)
    pub logits_rows: Option<unsafe extern "C" fn(ctx: *mut c_void, batch: u32, items: u32) -> u32>,
    /// [`Backend::decode_loss_grad`](backend::Backend::decode_loss_grad)
    pub decode_loss_grad: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            x: *const Rows,
            decode: *const DecodeV1,
            kind: *const LikelihoodV1,
            step: Buf,
            scale: Buf,
            loss: *const Mat,
            dw: *const Mat,
            db: *const Mat,
            dg: *const Mat,
        ) -> i32,
    >,
    /// [`Backend::recommend`](backend::Backend::recommend)
    pub recommend: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            decode: *const DecodeV1,
            seen: *const Rows,
            k: u32,
            items: Buf,
            values: Buf,
        ) -> i32,
    >,
    /// [`Backend::capture_begin`](backend::Backend::capture_begin)
    pub capture_begin: Option<unsafe extern "C" fn(ctx: *mut c_void) -> i32>,
    /// [`Backend::capture_end`](backend::Backend::capture_end)
    pub capture_end: Option<unsafe extern "C" fn(ctx: *mut c_void, graph: *mut Graph) -> i32>,
    /// [`Backend::replay`](backend::Backend::replay)
    pub replay: Option<unsafe extern "C" fn(ctx: *mut c_void, graph: Graph) -> i32>,
    /// [`Backend::join`](backend::Backend::join)
    pub join: Option<unsafe extern "C" fn(ctx: *mut c_void, seat: *const SeatV1) -> i32>,
    /// [`Backend::all_reduce`](backend::Backend::all_reduce)
    pub all_reduce: Option<unsafe extern "C" fn(ctx: *mut c_void, buf: Buf, at: u64, len: u64) -> i32>,
    /// [`Backend::broadcast`](backend::Backend::broadcast)
    pub broadcast: Option<unsafe extern "C" fn(ctx: *mut c_void, buf: Buf, len: u64, root: u32) -> i32>,
    /// [`Backend::mark`](backend::Backend::mark)
    pub mark: Option<unsafe extern "C" fn(ctx: *mut c_void, mark: *mut Mark) -> i32>,
    /// [`Backend::seconds`](backend::Backend::seconds)
    pub seconds: Option<unsafe extern "C" fn(ctx: *mut c_void, from: Mark, to: Mark, seconds: *mut f64) -> i32>,
    /// [`Backend::ceilings`](backend::Backend::ceilings)
    pub ceilings: Option<unsafe extern "C" fn(ctx: *mut c_void, ceilings: *mut Ceilings) -> i32>,
    /// [`Backend::invite`](backend::Backend::invite)
    pub invite: Option<unsafe extern "C" fn(ctx: *mut c_void, rank: u32, invitation: *mut Invitation) -> i32>,
}

/// The function that a plugin exports.
pub type Entry = unsafe extern "C" fn(host_version: u32, out: *mut VTableV1) -> i32;

/// The bytes that every plugin of this version fills: up to `top_k`.
pub const SMALLEST: usize = std::mem::offset_of!(VTableV1, logits_rows);

// SAFETY: integers, raw pointers and optional function pointers, for all of which zero is a value.
unsafe impl bytemuck::Zeroable for VTableV1 {}
// SAFETY: integers and floats, for which zero is a value.
unsafe impl bytemuck::Zeroable for InfoV1 {}

/// Writes a text and the zero that ends it, as much of it as there is room for in whole characters.
pub(super) fn write_text(text: &str, to: &mut [c_char]) {
    let Some(room) = to.len().checked_sub(1) else { return };
    let end = (0..=room.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    for (to, byte) in to.iter_mut().zip(text.as_bytes()[..end].iter().chain([&0])) {
        *to = *byte as c_char;
    }
}

/// The text in an array up to its zero; none where no zero ends it, or where it is not UTF-8.
pub(super) fn read_text(from: &[c_char]) -> Option<String> {
    let end = from.iter().position(|&c| c == 0)?;
    String::from_utf8(from[..end].iter().map(|&c| c as u8).collect()).ok()
}

/// How an argument of an operation crosses the border.
pub(super) trait Cross: Sized {
    /// What the host keeps for the time of the call.
    type Kept;
    /// What is passed.
    type Passed;
    /// Makes what is kept.
    fn keep(self) -> Self::Kept;
    /// Passes it.
    fn pass(kept: &Self::Kept) -> Self::Passed;
    /// Makes the argument again on the other side, or says why it is none.
    ///
    /// # Safety
    /// A pointer is null, or valid for reads.
    unsafe fn receive(passed: Self::Passed) -> Result<Self>;
}

fn unknown<T>(what: &str, value: u32) -> Result<T> {
    Err(Fault::Other(format!("{value} is no {what} of this version")))
}

/// What lies behind a pointer.
///
/// # Safety
/// The pointer is null, or valid for reads.
unsafe fn behind<T: Copy>(pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.copied().ok_or_else(|| Fault::Other("an argument is a null pointer".into()))
}

macro_rules! by_value {
    ($($type:ty),*) => {$(
        impl Cross for $type {
            type Kept = Self;
            type Passed = Self;
            fn keep(self) -> Self {
                self
            }
            fn pass(kept: &Self) -> Self {
                *kept
            }
            unsafe fn receive(passed: Self) -> Result<Self> {
                Ok(passed)
            }
        }
    )*};
}
by_value!(u32, u64, Buf, Graph, Mark);

macro_rules! by_pointer {
    ($($type:ty),*) => {$(
        impl Cross for $type {
            type Kept = Self;
            type Passed = *const Self;
            fn keep(self) -> Self {
                self
            }
            fn pass(kept: &Self) -> *const Self {
                kept
            }
            unsafe fn receive(passed: *const Self) -> Result<Self> {
                // SAFETY: the caller's promise.
                unsafe { behind(passed) }
            }
        }
    )*};
}
by_pointer!(Mat, Rows, Noise);

impl Cross for Curve {
    type Kept = u32;
    type Passed = u32;
    fn keep(self) -> u32 {
        self as u32
    }
    fn pass(kept: &u32) -> u32 {
        *kept
    }
    unsafe fn receive(passed: u32) -> Result<Self> {
        let all = [Self::Identity, Self::Tanh, Self::Relu];
        all.into_iter().find(|&curve| curve as u32 == passed).map_or_else(|| unknown("curve", passed), Ok)
    }
}

impl Cross for backend::Likelihood {
    type Kept = LikelihoodV1;
    type Passed = *const LikelihoodV1;
    fn keep(self) -> LikelihoodV1 {
        LikelihoodV1 { kind: self.kind as u32, seen: self.seen, unseen: self.unseen }
    }
    fn pass(kept: &LikelihoodV1) -> *const LikelihoodV1 {
        kept
    }
    unsafe fn receive(passed: *const LikelihoodV1) -> Result<Self> {
        // SAFETY: the caller's promise.
        let LikelihoodV1 { kind, seen, unseen } = unsafe { behind(passed) }?;
        let all = [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic];
        let kind = all.into_iter().find(|&k| k as u32 == kind).map_or_else(|| unknown("likelihood", kind), Ok)?;
        Ok(Self { kind, seen, unseen })
    }
}

impl Cross for backend::Seat {
    type Kept = SeatV1;
    type Passed = *const SeatV1;
    fn keep(self) -> SeatV1 {
        let Self { rank, world, invitation, half, limit, alarm } = self;
        SeatV1 { rank, world, invitation, half: half.into(), limit, alarm: alarm.as_ptr() }
    }
    fn pass(kept: &SeatV1) -> *const SeatV1 {
        kept
    }
    unsafe fn receive(passed: *const SeatV1) -> Result<Self> {
        // SAFETY: the caller's promise.
        let SeatV1 { rank, world, invitation, half, limit, alarm } = unsafe { behind(passed) }?;
        if alarm.is_null() || !alarm.is_aligned() {
            return Err(Fault::Other("a seat without an alarm".into()));
        }
        // SAFETY: the alarm of a seat can be read as long as the process runs, and is only written atomically.
        let alarm = unsafe { AtomicU32::from_ptr(alarm.cast_mut()) };
        Ok(Self { rank, world, invitation, half: half != 0, limit, alarm })
    }
}

impl Cross for backend::Decode {
    type Kept = DecodeV1;
    type Passed = *const DecodeV1;
    fn keep(self) -> DecodeV1 {
        DecodeV1 { g: self.g, w: self.w, b: self.b, curve: self.curve as u32, logits: self.logits }
    }
    fn pass(kept: &DecodeV1) -> *const DecodeV1 {
        kept
    }
    unsafe fn receive(passed: *const DecodeV1) -> Result<Self> {
        // SAFETY: the caller's promise, for the pointer; a curve is passed as a number.
        let (DecodeV1 { g, w, b, logits, .. }, curve) = unsafe {
            let decode = behind(passed)?;
            (decode, Curve::receive(decode.curve)?)
        };
        Ok(Self { g, w, b, curve, logits })
    }
}

/// The role that a number stands for.
pub(super) fn role(number: u32) -> Result<Role> {
    let all = [Role::Weight, Role::Grad, Role::Moment, Role::Act, Role::Value, Role::Index, Role::Step, Role::Scale];
    all.into_iter().find(|&role| role as u32 == number).map_or_else(|| unknown("role", number), Ok)
}

/// Hands the list of operations to a macro: what `export` and `load` say of each of them is the same.
macro_rules! operations {
    (required: $do:ident) => {
        $do! {
            encode_sparse(x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat);
            encode_sparse_grad(x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat);
            linear(x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat);
            linear_grad_weight(x: Mat, dy: Mat, dw: Mat, db: Mat);
            linear_grad_input(dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat);
            sample_latent(x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat);
            sample_latent_grad(x: Rows, stats: Mat, dz: Mat, noise: Noise, step: Buf, scale: Buf, dstats: Mat);
            likelihood(x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat);
            adam(w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf);
            top_k(scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf);
        }
    };
    (provided: $do:ident) => {
        $do! {
            decode_loss_grad(
                x: Rows, decode: Decode, kind: Likelihood, step: Buf, scale: Buf,
                loss: Mat, dw: Mat, db: Mat, dg: Mat
            );
            recommend(decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf);
            capture_begin();
            replay(graph: Graph);
            join(seat: Seat);
            all_reduce(buf: Buf, at: u64, len: u64);
            broadcast(buf: Buf, len: u64, root: u32);
        }
    };
    // What gives something back, which C writes behind a last pointer.
    (giving: $do:ident) => {
        $do! {
            capture_end() -> Graph = Graph(0);
            mark() -> Mark = Mark(0);
            seconds(from: Mark, to: Mark) -> f64 = 0.0;
            ceilings() -> Ceilings = Ceilings { copy: 0.0, products: 0.0 };
            invite(rank: u32) -> Invitation = Invitation { bytes: [0; 128] };
        }
    };
}
pub(super) use operations;
