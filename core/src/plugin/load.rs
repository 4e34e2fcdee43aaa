//! The host's side of the border: a table of C functions as a [`Backend`].

use std::ffi::c_void;

use super::{
    Request,
    abi::{self, Code, Cross, Entry, HostType, SMALLEST, VERSION, VTableV1, operations, read_text, write_text},
};
use crate::{
    Error, Kind,
    backend::{
        Backend, Buf, Ceilings, Curve, Decode, Fault, Graph, Host, HostMut, Info, Invitation, Likelihood, Mark, Master,
        Mat, Noise, Result, Role, Rows, ScaleState, Seat, StepParams,
    },
    forward_backend,
};

/// Opens a backend of a shared library.
///
/// The library stays loaded until the process ends: threads that it has started, and values of the
/// C++ and Rust runtimes in it, may outlive the backend, and nobody can tell from outside.
///
/// # Errors
/// Of kind [`Kind::Device`], and beginning with the path: where there is no such file, where it is no
/// shared library for this system or no backend of this version of the interface, where the backend
/// refuses the request, and where what it says of itself cannot be.
#[cfg(feature = "plugins")]
pub fn load(path: &std::path::Path, request: &Request) -> crate::Result<Box<dyn Backend>> {
    let fail = |what: String| Err(fault(&path.display().to_string(), &what));
    match path.metadata() {
        Ok(found) if found.is_dir() => return fail("this is a folder; name the shared library in it".into()),
        Ok(found) if !found.is_file() => return fail("this is not a file; name a shared library".into()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return fail("there is no such file; name a shared library".into());
        }
        Err(e) => return fail(format!("reading failed: {e}")),
    }
    // A bare name would be looked for among the libraries of the system instead of in this folder.
    let absolute = std::path::absolute(path).map_err(|e| Error::io("finding", path, &e))?;
    let library = match open_library(&absolute) {
        Ok(library) => library,
        Err(e) => {
            let all = e.to_string();
            let reason = all.strip_prefix(&format!("{}: ", absolute.display())).unwrap_or(&all);
            let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
            return fail(format!(
                "this is no shared library that can be loaded here ({reason}); build it for {system} on {processor}"
            ));
        }
    };
    // SAFETY: a symbol of this name has this type: that is what its name promises, version included.
    let entry = unsafe { library.get::<Entry>(b"vaecf_backend_v1\0") }.map(|symbol| *symbol);
    // Never unloaded: see above.
    std::mem::forget(library);
    let Ok(entry) = entry else {
        return fail(
            "it does not export vaecf_backend_v1, so it is no backend of vaecf or one for another version of the \
             interface; build it against the vaecf_backend.h of this version"
                .into(),
        );
    };
    // SAFETY: as above; and the library is never unloaded.
    unsafe { link(entry, &path.display().to_string(), request) }
}

#[cfg(all(feature = "plugins", unix))]
fn open_library(path: &std::path::Path) -> std::result::Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: loading runs the initialisers of a library that the person has named in order to run it.
    // All of its symbols are resolved now: one that is missing would end the process when first called.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

#[cfg(all(feature = "plugins", not(unix)))]
fn open_library(path: &std::path::Path) -> std::result::Result<libloading::Library, libloading::Error> {
    // SAFETY: loading runs the initialisers of a library that the person has named in order to run it.
    unsafe { libloading::Library::new(path) }
}

/// Opens a backend whose entry point is part of this program. `name` begins its errors.
///
/// # Errors
/// As of `load`, from the entry point on.
///
/// # Safety
/// `entry` does what `vaecf_backend.h` asks of it, as do the functions that it gives, for the rest of
/// the process.
pub unsafe fn link(entry: Entry, name: &str, request: &Request) -> crate::Result<Box<dyn Backend>> {
    let mut table: VTableV1 = bytemuck::Zeroable::zeroed();
    table.size = size_of::<VTableV1>() as u32;
    table.version = VERSION;
    table.device = request.device;
    table.threads = request.threads.map_or(0, |threads| u32::try_from(threads).unwrap_or(u32::MAX));
    if request.precision.len() >= table.precision.len() || request.precision.contains('\0') {
        return Err(Error::usage(format!("{:?} is no precision", request.precision)));
    }
    write_text(&request.precision, &mut table.precision);
    // SAFETY: the caller's promise; the table is set up as the interface asks.
    let code = unsafe { entry(VERSION, &raw mut table) };

    // Before any pointer: do both sides mean the same table?
    let VTableV1 { size, version, .. } = table;
    if version != VERSION {
        let (age, what) = if version < VERSION { ("older", "build it again") } else { ("newer", "update vaecf") };
        return Err(fault(
            name,
            &format!("it is made for version {version} of the interface, {age} than {VERSION}, which this is; {what}"),
        ));
    }
    // Half an entry would be half a pointer.
    let whole = (size as usize).is_multiple_of(size_of::<usize>());
    if (size as usize) < SMALLEST || size as usize > size_of::<VTableV1>() || !whole {
        return Err(fault(
            name,
            &format!(
                "it fills {size} bytes of the interface's table, and {SMALLEST} to {}, in whole entries, are needed; build it against the \
                 vaecf_backend.h of this version",
                size_of::<VTableV1>()
            ),
        ));
    }
    // SAFETY: the table is this long. What an older plugin does not know is none, whatever lies there.
    unsafe { (&raw mut table).cast::<u8>().add(size as usize).write_bytes(0, size_of::<VTableV1>() - size as usize) };

    if code != Code::Ok as i32 {
        // SAFETY: the plugin has filled this entry; a null context asks for the error of the opening.
        let text = unsafe { last_error(&table, std::ptr::null_mut()) };
        let silent =
            || format!("it refused with code {code} and gives no reason: last_error is filled before it refuses");
        return Err(fault(name, &if text.is_empty() { silent() } else { text }));
    }
    // From here on the context is destroyed, whatever is found.
    let plugin = Plugin { table, name: name.to_owned() };
    let missing = [
        ("alloc", table.alloc.is_none()),
        ("free", table.free.is_none()),
        ("upload", table.upload.is_none()),
        ("download", table.download.is_none()),
        ("info", table.info.is_none()),
    ];
    if let Some((entry, _)) = missing.into_iter().find(|(_, missing)| *missing) {
        return Err(fault(name, &format!("it has no {entry}, and no backend works without; see vaecf_backend.h")));
    }
    if table.ctx.is_null() {
        return Err(fault(
            name,
            "it is open and gives no ctx, which must not be null: last_error could not tell it from none",
        ));
    }
    let info = plugin.info().map_err(|what| fault(name, &what))?;
    if info.capture && (table.capture_begin.is_none() || table.capture_end.is_none() || table.replay.is_none()) {
        return Err(fault(name, "info promises captures, and capture_begin, capture_end or replay is null"));
    }
    Ok(Box::new(Loaded(Required { plugin, info })))
}

fn fault(name: &str, what: &str) -> Error {
    Error::new(Kind::Device, format!("{name}: {what}"))
}

/// The text of the last error, on one line; empty where there is none.
///
/// # Safety
/// The entry of the table may be called with this context.
unsafe fn last_error(table: &VTableV1, ctx: *mut c_void) -> String {
    /// Nobody reads more.
    const LONGEST: usize = 1 << 12;
    let Some(last_error) = table.last_error else { return String::new() };
    let mut text = [0; LONGEST];
    // SAFETY: the caller's promise; and there is room for as many bytes as are named.
    unsafe { last_error(ctx, text.as_mut_ptr(), text.len()) };
    text[LONGEST - 1] = 0;
    let bytes: Vec<u8> = text.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A context of a plugin, and what can be done with it.
struct Plugin {
    table: VTableV1,
    /// What its errors begin with.
    name: String,
}

// SAFETY: the interface lets calls come from any thread, one at a time; `&self` methods cannot run at
// the same time either, because this is not `Sync`.
unsafe impl Send for Plugin {}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(destroy) = self.table.destroy {
            // SAFETY: the context is live, and this is the last use of it.
            unsafe { destroy(self.table.ctx) };
        }
    }
}

impl Plugin {
    /// What a call has come to.
    fn done(&self, operation: &'static str, code: i32) -> Result {
        if code == Code::Ok as i32 { Ok(()) } else { Err(self.fault(operation, code)) }
    }

    #[cold]
    fn fault(&self, operation: &'static str, code: i32) -> Fault {
        // SAFETY: the context is live, and no other call is under way.
        let text = unsafe { last_error(&self.table, self.table.ctx) };
        let why = |otherwise: &str| {
            let text = if text.is_empty() { otherwise } else { &text };
            format!("{}: {operation}: {text}", self.name)
        };
        match code {
            c if c == Code::OutOfMemory as i32 => Fault::Other(why("out of memory; use a smaller batch or model")),
            c if c == Code::Lost as i32 => Fault::Lost(why("it gives no reason")),
            c if c == Code::Unsupported as i32 => Fault::Unsupported(operation),
            c if c == Code::Other as i32 => Fault::Other(why("it failed and gives no reason")),
            c => Fault::Other(why(&format!("it failed with code {c}, which has no meaning"))),
        }
    }

    /// What the plugin says of itself, or why that cannot be.
    fn info(&self) -> std::result::Result<Info, String> {
        let mut told: abi::InfoV1 = bytemuck::Zeroable::zeroed();
        told.size = size_of::<abi::InfoV1>() as u32;
        let ask = self.table.info.ok_or("it has no info")?;
        // SAFETY: the context is live, no other call is under way, and there is room for as much as is said.
        let code = unsafe { ask(self.table.ctx, &raw mut told) };
        if code != Code::Ok as i32 {
            // SAFETY: the context is live, and no other call is under way.
            let text = unsafe { last_error(&self.table, self.table.ctx) };
            return Err(format!("info: {}", if text.is_empty() { "it failed and gives no reason" } else { &text }));
        }
        let text = |what, text: &[_]| {
            let told = read_text(text).filter(|told| !told.is_empty());
            // It goes to terminals and into reports.
            let told = told.map(|told| told.replace(char::is_control, " "));
            told.ok_or_else(|| format!("info gives a {what} that is empty, not UTF-8, or not ended by a zero"))
        };
        let positive = |what, number| {
            if number > 0 { Ok(number) } else { Err(format!("info gives 0 as {what}, which is at least 1")) }
        };
        let precision = text("precision", &told.precision)?;
        if !["f64", "f32", "tf32", "f16", "bf16"].contains(&precision.as_str()) {
            return Err(format!("info gives the precision {precision:?}, which is f64, f32, tf32, f16 or bf16"));
        }
        // The widest row of a matrix unit is a few hundred elements; far more than that is a mistake.
        if told.align > 4096 {
            return Err(format!("info gives {} as align, which is at most 4096", told.align));
        }
        let master = [Master::F32, Master::F64].into_iter().find(|&master| master as u32 == told.master);
        if !(told.loss_scale.is_finite() && told.loss_scale > 0.0) {
            return Err(format!("info gives the loss scale {}, which is positive", told.loss_scale));
        }
        Ok(Info {
            name: text("name", &told.name)?,
            device: text("device", &told.device)?,
            precision,
            master: master.ok_or_else(|| format!("info gives {} as the type of masters", told.master))?,
            memory: (told.memory != u64::MAX).then_some(told.memory),
            host_memory: told.host_memory != 0,
            act_bytes: positive("act_bytes", told.act_bytes)?,
            weight_bytes: positive("weight_bytes", told.weight_bytes)?,
            align: positive("align", told.align)?,
            loss_scale: told.loss_scale,
            deterministic: told.deterministic != 0,
            capture: told.capture != 0,
        })
    }
}

/// The methods that every backend has. The others are the trait's own, which are made of these.
struct Required {
    plugin: Plugin,
    /// What it was when it was opened.
    info: Info,
}

impl Required {
    /// Bytes of `len` elements.
    fn bytes(&self, role: Role, len: u64) -> u64 {
        let master = self.info.master.bytes();
        let each = match role {
            Role::Weight => u64::from(self.info.weight_bytes),
            Role::Act => u64::from(self.info.act_bytes),
            Role::Grad | Role::Moment | Role::Value => master,
            Role::Index => 4,
            Role::Step => size_of::<StepParams>() as u64,
            Role::Scale => size_of::<ScaleState>() as u64,
        };
        len.saturating_mul(each)
    }
}

/// Calls an entry of the table with the arguments of the method, and with room for what it gives.
macro_rules! cross {
    ($self:ident, $name:ident, $entry:ident($($arg:ident: $kind:ident),*) $(-> $out:ident)?) => {{
        $(let $arg = <$kind as Cross>::keep($arg);)*
        // SAFETY: the context is live, no other call is under way, and what is pointed to outlives the call.
        let code = unsafe { $entry($self.plugin.table.ctx, $(<$kind as Cross>::pass(&$arg),)* $(&raw mut $out)?) };
        $self.plugin.done(stringify!($name), code)
    }};
}

macro_rules! required {
    ($($name:ident($($arg:ident: $kind:ident),*);)*) => {$(
        fn $name(&mut self, $($arg: $kind),*) -> Result {
            let entry = self.plugin.table.$name.ok_or(Fault::Unsupported(stringify!($name)))?;
            cross!(self, $name, entry($($arg: $kind),*))
        }
    )*};
}

impl Backend for Required {
    fn info(&self) -> Info {
        // It was fine when it was opened; a broken backend is told of by the operations.
        self.plugin.info().unwrap_or_else(|_| self.info.clone())
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        let alloc = self.plugin.table.alloc.ok_or(Fault::Unsupported("alloc"))?;
        let mut buf = Buf::NONE;
        // SAFETY: the context is live, no other call is under way, and there is room for a handle.
        let code = unsafe { alloc(self.plugin.table.ctx, role as u32, len, &raw mut buf) };
        if code == Code::OutOfMemory as i32 {
            return Err(Fault::OutOfMemory { device: self.info.device.clone(), wanted: self.bytes(role, len) });
        }
        self.plugin.done("alloc", code)?;
        if buf.is_none() {
            Err(Fault::Other(format!("{}: alloc: it gave no handle", self.plugin.name)))
        } else {
            Ok(buf)
        }
    }

    fn free(&mut self, buf: Buf) {
        if let Some(free) = self.plugin.table.free {
            // SAFETY: the context is live, and no other call is under way.
            unsafe { free(self.plugin.table.ctx, buf) };
        }
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        let upload = self.plugin.table.upload.ok_or(Fault::Unsupported("upload"))?;
        let (kind, src, len): (_, *const c_void, _) = match src {
            Host::F32(s) => (HostType::F32, s.as_ptr().cast(), s.len()),
            Host::F64(s) => (HostType::F64, s.as_ptr().cast(), s.len()),
            Host::U32(s) => (HostType::U32, s.as_ptr().cast(), s.len()),
            Host::Step(s) => (HostType::Step, (&raw const *s).cast(), 1),
            Host::Scale(s) => (HostType::Scale, (&raw const *s).cast(), 1),
        };
        // SAFETY: the context is live, no other call is under way, and `len` elements can be read.
        let code = unsafe { upload(self.plugin.table.ctx, dst, at, kind as u32, src, len as u64) };
        self.plugin.done("upload", code)
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        let download = self.plugin.table.download.ok_or(Fault::Unsupported("download"))?;
        let (kind, dst, len): (_, *mut c_void, _) = match dst {
            HostMut::F32(d) => (HostType::F32, d.as_mut_ptr().cast(), d.len()),
            HostMut::F64(d) => (HostType::F64, d.as_mut_ptr().cast(), d.len()),
            HostMut::U32(d) => (HostType::U32, d.as_mut_ptr().cast(), d.len()),
            HostMut::Scale(d) => (HostType::Scale, (&raw mut *d).cast(), 1),
        };
        // SAFETY: the context is live, no other call is under way, and `len` elements can be written.
        let code = unsafe { download(self.plugin.table.ctx, src, at, kind as u32, dst, len as u64) };
        self.plugin.done("download", code)
    }

    fn sync(&mut self) -> Result {
        match self.plugin.table.sync {
            None => Ok(()),
            // SAFETY: the context is live, and no other call is under way.
            Some(sync) => self.plugin.done("sync", unsafe { sync(self.plugin.table.ctx) }),
        }
    }

    operations!(required: required);
}

/// A backend of a shared library. What it does not provide is the trait's default.
struct Loaded(Required);

macro_rules! provided {
    ($($name:ident($($arg:ident: $kind:ident),*);)*) => {$(
        fn $name(&mut self, $($arg: $kind),*) -> Result {
            let Self(backend) = self;
            match backend.plugin.table.$name {
                None => backend.$name($($arg),*),
                Some(entry) => cross!(backend, $name, entry($($arg: $kind),*)),
            }
        }
    )*};
}

macro_rules! giving {
    ($($name:ident($($arg:ident: $kind:ident),*) -> $out:ident = $none:expr;)*) => {$(
        fn $name(&mut self, $($arg: $kind),*) -> Result<$out> {
            let Self(backend) = self;
            let Some(entry) = backend.plugin.table.$name else { return backend.$name($($arg),*) };
            let mut given = $none;
            cross!(backend, $name, entry($($arg: $kind),*) -> given).map(|()| given)
        }
    )*};
}

impl Backend for Loaded {
    forward_backend! { self, self.0;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    operations!(provided: provided);
    operations!(giving: giving);

    fn logits_rows(&self, batch: u32, items: u32) -> u32 {
        match self.0.plugin.table.logits_rows {
            None => self.0.logits_rows(batch, items),
            // SAFETY: the context is live, and no other call is under way.
            Some(logits_rows) => unsafe { logits_rows(self.0.plugin.table.ctx, batch, items) },
        }
    }
}
