//! The plugin's side of the border: any [`Backend`] as a table of C functions.
//!
//! A panic never crosses: it becomes [`Code::Other`] with its text, and because nobody knows what it left
//! behind, every later call on that backend fails with the same text.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    ffi::{c_char, c_void},
    panic::{self, AssertUnwindSafe},
    slice,
    sync::Once,
};

use super::{
    Request,
    abi::{self, Code, Cross, HostType, SMALLEST, VERSION, VTableV1, operations, write_text},
};
use crate::backend::{
    Backend, Buf, Ceilings, Curve, Decode, Fault, Graph, Host, HostMut, Invitation, Likelihood, Mark, Mat, Noise,
    Result, Rows, ScaleState, Seat, StepParams,
};

/// Exports a backend from a shared library (`crate-type = ["cdylib"]`).
///
/// The argument is called for each [`Request`] and gives a [`Backend`]. An error goes to the person who
/// asked; so does the text of a panic.
///
/// ```
/// use vaecf_core::{Error, Result, plugin::Request};
/// # mod mine {
/// #     use vaecf_core::backend::*;
/// #     pub struct Mine(Box<dyn Backend>);
/// #     impl Backend for Mine {
/// #         vaecf_core::forward_backend! { self, self.0;
/// #             info alloc free upload download sync encode_sparse encode_sparse_grad linear linear_grad_weight
/// #             linear_grad_input sample_latent sample_latent_grad likelihood adam top_k
/// #         }
/// #     }
/// #     impl Mine {
/// #         pub fn new(inner: Box<dyn Backend>) -> Self {
/// #             Self(inner)
/// #         }
/// #     }
/// #     pub fn open_card(_: u32) -> vaecf_core::Result<Box<dyn Backend>> {
/// #         Err(vaecf_core::Error::failure("there is no card"))
/// #     }
/// # }
/// use mine::{Mine, open_card};
///
/// fn open(request: &Request) -> Result<Mine> {
///     if request.device > 0 {
///         return Err(Error::usage(format!("there is one device, 0, and no {}", request.device)));
///     }
///     Ok(Mine::new(open_card(request.device)?))
/// }
///
/// vaecf_core::export_backend!(open);
/// ```
#[macro_export]
macro_rules! export_backend {
    ($open:expr) => {
        /// The function that a host of vaecf looks for.
        ///
        /// # Safety
        /// `out` is a table of which its first field tells the size, as `vaecf_backend.h` describes it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn vaecf_backend_v1(host_version: u32, out: *mut $crate::plugin::abi::VTableV1) -> i32 {
            // SAFETY: the host's promise, which is the same.
            unsafe { $crate::plugin::export::fill(host_version, out, $open) }
        }
    };
}

/// What lies behind the table's `ctx`.
struct Context<B> {
    backend: B,
    /// The last error.
    text: String,
    /// The text of the panic that ended it.
    broken: Option<String>,
}

thread_local! {
    /// Why the last opening on this thread failed.
    static OPENING: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether this thread is inside a backend, where a panic is an error and not printed.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic inside a backend happened.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Fills the host's table with the backend that `open` makes: what [`export_backend!`](crate::export_backend)
/// exports. Returns a [`Code`].
///
/// # Safety
/// `out` points to as many writable bytes as its first field says, and no fewer than eight, aligned like
/// [`VTableV1`]; where `host_version` is [`VERSION`], its inputs are set and the rest is zero.
pub unsafe fn fill<B: Backend + 'static>(
    host_version: u32,
    out: *mut VTableV1,
    open: impl FnOnce(&Request) -> crate::Result<B>,
) -> i32 {
    // SAFETY: size and version are there in every version; nothing else is looked at before they are.
    let (room, version) = unsafe { ((&raw const (*out).size).read() as usize, &raw mut (*out).version) };
    if host_version != VERSION || room < SMALLEST {
        // SAFETY: as above.
        unsafe { version.write(VERSION) };
        return Code::Unsupported as i32;
    }
    let filled = room.min(size_of::<VTableV1>());
    let mut table: VTableV1 = bytemuck::Zeroable::zeroed();
    // SAFETY: `filled` bytes are readable there and writable here, in two places; both hold a `VTableV1` or the
    // beginning of one, all of whose fields may be zero.
    unsafe { out.cast::<u8>().copy_to_nonoverlapping((&raw mut table).cast(), filled) };

    let request = Request {
        device: table.device,
        threads: (table.threads > 0).then_some(table.threads as usize),
        precision: abi::read_text(&table.precision).unwrap_or_default(),
    };
    describe::<B>(&mut table);
    let opened = guarded(|| open(&request)).map(|opened| opened.map_err(|error| error.to_string()));
    let code = match opened {
        Ok(Ok(backend)) => {
            let context = Context { backend, text: String::new(), broken: None };
            table.ctx = Box::into_raw(Box::new(context)).cast();
            Code::Ok
        }
        Ok(Err(text)) | Err(text) => {
            OPENING.set(text);
            Code::Other
        }
    };
    table.size = filled as u32;
    table.version = VERSION;
    // SAFETY: the host has room for `filled` bytes, which are no more than the table has.
    unsafe { (&raw const table).cast::<u8>().copy_to_nonoverlapping(out.cast(), filled) };
    code as i32
}

/// Enters the functions of `B`.
fn describe<B: Backend>(table: &mut VTableV1) {
    table.last_error = Some(last_error::<B>);
    table.destroy = Some(destroy::<B>);
    table.info = Some(info::<B>);
    table.alloc = Some(alloc::<B>);
    table.free = Some(free::<B>);
    table.upload = Some(upload::<B>);
    table.download = Some(download::<B>);
    table.sync = Some(sync::<B>);
    table.logits_rows = Some(logits_rows::<B>);
    macro_rules! enter {
        ($($name:ident($($arg:ident: $kind:ident),*) $(-> $out:ident = $none:expr)?;)*) => {
            $(table.$name = Some($name::<B>);)*
        };
    }
    operations!(required: enter);
    operations!(provided: enter);
    operations!(giving: enter);
}

/// Runs what is not ours to trust: a panic becomes its text.
fn guarded<R>(body: impl FnOnce() -> R) -> std::result::Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if INSIDE.get() {
                PLACE.set(info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default());
            } else {
                before(info);
            }
        }));
    });
    let outside = INSIDE.replace(true);
    // What the body has left half-changed is never used again: see `Context::broken`.
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(outside);
    result.map_err(|payload| format!("the backend stopped at a bug of its own: {}{}", words(payload), PLACE.take()))
}

/// What a panic says.
fn words(payload: Box<dyn Any + Send>) -> String {
    let payload = match payload.downcast::<String>() {
        Ok(text) => return *text,
        Err(payload) => payload,
    };
    match payload.downcast::<&'static str>() {
        Ok(text) => (*text).to_owned(),
        Err(other) => {
            // Dropping a value of an unknown type may panic again.
            std::mem::forget(other);
            "a panic without words".to_owned()
        }
    }
}

/// Makes one call on the backend behind `ctx`; the result as a code, its text kept for [`last_error`].
///
/// # Safety
/// `ctx` is from [`fill`] with the same `B`, not destroyed yet, and used by no other call.
unsafe fn call<B: Backend>(ctx: *mut c_void, body: impl FnOnce(&mut B) -> Result) -> i32 {
    // SAFETY: the caller's promise: a live context, to which this call alone has access.
    let context = unsafe { &mut *ctx.cast::<Context<B>>() };
    if let Some(text) = &context.broken {
        context.text.clone_from(text);
        return Code::Other as i32;
    }
    let backend = &mut context.backend;
    let fault = match guarded(|| body(backend)) {
        Ok(Ok(())) => return Code::Ok as i32,
        Ok(Err(fault)) => fault,
        Err(text) => {
            context.broken = Some(text.clone());
            Fault::Other(text)
        }
    };
    let (code, text) = match fault {
        Fault::OutOfMemory { .. } => (Code::OutOfMemory, fault.to_string()),
        Fault::Alarm => (Code::Other, fault.to_string()),
        Fault::Lost(text) => (Code::Lost, text),
        Fault::Unsupported(what) => (Code::Unsupported, what.to_owned()),
        Fault::Waited(text) | Fault::Other(text) => (Code::Other, text),
    };
    context.text = text;
    code as i32
}

unsafe extern "C" fn last_error<B>(ctx: *mut c_void, to: *mut c_char, len: usize) -> usize {
    let copy = |text: &str| {
        if !to.is_null() {
            // SAFETY: the host's promise: `len` writable bytes.
            write_text(text, unsafe { slice::from_raw_parts_mut(to, len) });
        }
        text.len()
    };
    // SAFETY: the host's promise: null, or a live context, to which this call alone has access.
    match unsafe { ctx.cast::<Context<B>>().as_ref() } {
        Some(context) => copy(&context.text),
        None => OPENING.with_borrow(|text| copy(text)),
    }
}

unsafe extern "C" fn destroy<B>(ctx: *mut c_void) {
    if ctx.is_null() {
        return;
    }
    // SAFETY: the host's promise: a context from `fill`, which is not used again.
    let context = unsafe { Box::from_raw(ctx.cast::<Context<B>>()) };
    // There is nobody left to tell of a panic.
    let _ = guarded(|| drop(context));
}

unsafe extern "C" fn info<B: Backend>(ctx: *mut c_void, out: *mut abi::InfoV1) -> i32 {
    let fill = |backend: &mut B| {
        let info = backend.info();
        // SAFETY: the host's promise: room for the information of version 1, which has not grown yet.
        let out = unsafe { &mut *out };
        out.master = info.master as u32;
        write_text(&info.name, &mut out.name);
        write_text(&info.device, &mut out.device);
        write_text(&info.precision, &mut out.precision);
        out.memory = info.memory.unwrap_or(u64::MAX);
        out.host_memory = info.host_memory.into();
        out.act_bytes = info.act_bytes;
        out.weight_bytes = info.weight_bytes;
        out.align = info.align;
        out.loss_scale = info.loss_scale;
        out.deterministic = info.deterministic.into();
        out.capture = info.capture.into();
        Ok(())
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, fill) }
}

unsafe extern "C" fn alloc<B: Backend>(ctx: *mut c_void, role: u32, len: u64, out: *mut Buf) -> i32 {
    let alloc = |backend: &mut B| {
        let buf = backend.alloc(abi::role(role)?, len)?;
        // SAFETY: the host's promise: room for a handle.
        unsafe { out.write(buf) };
        Ok(())
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, alloc) }
}

unsafe extern "C" fn free<B: Backend>(ctx: *mut c_void, buf: Buf) {
    let free = |backend: &mut B| {
        backend.free(buf);
        Ok(())
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, free) };
}

fn unknown_type(number: u32) -> Fault {
    Fault::Other(format!("{number} is no type of host memory for this call"))
}

/// `len` elements from `pointer` on; a C host may give null where there are none.
///
/// # Safety
/// As of [`slice::from_raw_parts`], where `len` is not zero.
unsafe fn elements<'a, T>(pointer: *const c_void, len: u64) -> &'a [T] {
    // SAFETY: the caller's promise. What lies in memory has a length that fits.
    if len == 0 { &[] } else { unsafe { slice::from_raw_parts(pointer.cast(), len as usize) } }
}

/// The same to write to.
///
/// # Safety
/// As of [`slice::from_raw_parts_mut`], where `len` is not zero.
unsafe fn elements_mut<'a, T>(pointer: *mut c_void, len: u64) -> &'a mut [T] {
    // SAFETY: the caller's promise. What lies in memory has a length that fits.
    if len == 0 { &mut [] } else { unsafe { slice::from_raw_parts_mut(pointer.cast(), len as usize) } }
}

unsafe extern "C" fn upload<B: Backend>(
    ctx: *mut c_void,
    dst: Buf,
    at: u64,
    host_type: u32,
    src: *const c_void,
    len: u64,
) -> i32 {
    let upload = |backend: &mut B| {
        // SAFETY: the host's promise: `len` readable elements of the type that it names, aligned.
        let host = unsafe {
            match host_type {
                t if t == HostType::F32 as u32 => Host::F32(elements(src, len)),
                t if t == HostType::F64 as u32 => Host::F64(elements(src, len)),
                t if t == HostType::U32 as u32 => Host::U32(elements(src, len)),
                t if t == HostType::Step as u32 && len == 1 => Host::Step(&*src.cast::<StepParams>()),
                t if t == HostType::Scale as u32 && len == 1 => Host::Scale(&*src.cast::<ScaleState>()),
                other => return Err(unknown_type(other)),
            }
        };
        backend.upload(dst, at, host)
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, upload) }
}

unsafe extern "C" fn download<B: Backend>(
    ctx: *mut c_void,
    src: Buf,
    at: u64,
    host_type: u32,
    dst: *mut c_void,
    len: u64,
) -> i32 {
    let download = |backend: &mut B| {
        // SAFETY: the host's promise: `len` initialised and writable elements of the type that it names, aligned.
        let host = unsafe {
            match host_type {
                t if t == HostType::F32 as u32 => HostMut::F32(elements_mut(dst, len)),
                t if t == HostType::F64 as u32 => HostMut::F64(elements_mut(dst, len)),
                t if t == HostType::U32 as u32 => HostMut::U32(elements_mut(dst, len)),
                t if t == HostType::Scale as u32 && len == 1 => HostMut::Scale(&mut *dst.cast::<ScaleState>()),
                other => return Err(unknown_type(other)),
            }
        };
        backend.download(src, at, host)
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, download) }
}

unsafe extern "C" fn sync<B: Backend>(ctx: *mut c_void) -> i32 {
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, B::sync) }
}

unsafe extern "C" fn logits_rows<B: Backend>(ctx: *mut c_void, batch: u32, items: u32) -> u32 {
    // Where the backend panics, no fewer rows than any answer; the next call tells of the panic.
    let mut rows = batch;
    let ask = |backend: &mut B| {
        rows = backend.logits_rows(batch, items);
        Ok(())
    };
    // SAFETY: the host's promise: a live context, to which this call alone has access.
    unsafe { call(ctx, ask) };
    rows
}

macro_rules! shims {
    ($($name:ident($($arg:ident: $kind:ident),*);)*) => {$(
        unsafe extern "C" fn $name<B: Backend>(ctx: *mut c_void, $($arg: <$kind as Cross>::Passed),*) -> i32 {
            let call_it = |backend: &mut B| {
                // SAFETY: the host's promise: pointers that are valid for the time of the call.
                $(let $arg = unsafe { <$kind as Cross>::receive($arg) }?;)*
                backend.$name($($arg),*)
            };
            // SAFETY: the host's promise: a live context, to which this call alone has access.
            unsafe { call(ctx, call_it) }
        }
    )*};
}
operations!(required: shims);
operations!(provided: shims);

macro_rules! shims_that_give {
    ($($name:ident($($arg:ident: $kind:ident),*) -> $out:ident = $none:expr;)*) => {$(
        unsafe extern "C" fn $name<B: Backend>(
            ctx: *mut c_void,
            $($arg: <$kind as Cross>::Passed,)*
            out: *mut $out,
        ) -> i32 {
            let call_it = |backend: &mut B| {
                // SAFETY: the host's promise: pointers that are valid for the time of the call.
                $(let $arg = unsafe { <$kind as Cross>::receive($arg) }?;)*
                let given = backend.$name($($arg),*)?;
                // SAFETY: the host's promise: room for what is given.
                unsafe { out.write(given) };
                Ok(())
            };
            // SAFETY: the host's promise: a live context, to which this call alone has access.
            unsafe { call(ctx, call_it) }
        }
    )*};
}
operations!(giving: shims_that_give);
