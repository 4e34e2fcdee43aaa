//! The compiler: NVRTC from a file of its own, so that no other version on this machine is taken for it.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    path::Path,
    ptr,
};

use libloading::Library;

/// The compiler's version. Another one makes other bytes of the same source.
const VERSION: (c_int, c_int) = (12, 9);

const BUILTINS: &str = "libnvrtc-builtins.so.12.9";
const NVRTC: &str = "libnvrtc.so.12";

/// A program of the compiler; an opaque handle.
type Program = *mut c_void;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The compiler, loaded.
pub(crate) struct Nvrtc {
    compiler: Library,
    /// Found by its name when the first program is compiled, which succeeds because it is here already.
    _builtins: Library,
}

/// A source file, or one that others include: its name and its text.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// What the compiler made of a program.
pub(crate) struct Compiled {
    pub(crate) cubin: Vec<u8>,
    pub(crate) ptx: String,
    pub(crate) log: String,
}

impl Nvrtc {
    /// Loads it from the folder that `toolchain.sh` has filled.
    pub(crate) fn load(folder: &Path) -> Result<Self, String> {
        let open = |name: &str| {
            let path = std::path::absolute(folder.join(name)).map_err(|e| e.to_string())?;
            let missing = |_| format!("{} cannot be loaded; backend-cuda/kernels/toolchain.sh gets it", path.display());
            // SAFETY: toolchain.sh has checked that it is NVIDIA's library, which can be loaded at any time.
            unsafe { Library::new(&path) }.map_err(missing)
        };
        let nvrtc = Self { _builtins: open(BUILTINS)?, compiler: open(NVRTC)? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function has this type in nvrtc.h, and both places can be written.
        let status =
            unsafe { nvrtc.compiler.get::<Version>(c"nvrtcVersion").map(|f| f(&raw mut major, &raw mut minor)) };
        match (status, (major, minor)) {
            (Ok(0), VERSION) => Ok(nvrtc),
            _ => Err(format!("{} is NVRTC {major}.{minor}, and not {VERSION:?}", folder.join(NVRTC).display())),
        }
    }

    /// Compiles a program for a target such as `sm_80`. Nothing of this machine enters: the compiler is given texts
    /// and short names, and opens no file.
    pub(crate) fn compile(&self, source: &Source, headers: &[Source], target: &str) -> Result<Compiled, String> {
        let options = [
            &format!("--gpu-architecture={target}"),
            "--std=c++17",
            // Functions that do not say where they run, run on the device.
            "-default-device",
            // The registers and the spills of each kernel go to the log.
            "--ptxas-options=-v",
        ];
        let options = options.map(c_string);
        let texts: Vec<_> = headers.iter().map(|header| c_string(&header.text)).collect();
        let names: Vec<_> = headers.iter().map(|header| c_string(&header.name)).collect();
        let (text, name) = (c_string(&source.text), c_string(&source.name));
        let (options, texts, names) = (pointers(&options), pointers(&texts), pointers(&names));

        let library = &self.compiler;
        let missing = |e: libloading::Error| e.to_string();
        let mut program: Program = ptr::null_mut();
        // SAFETY: the functions have these types in nvrtc.h. Every pointer is to a string that ends with a zero, or
        // to as many of them as the number beside it says, and all outlive the calls.
        unsafe {
            let create = library.get::<Create>(c"nvrtcCreateProgram").map_err(missing)?;
            let compile = library.get::<Compile>(c"nvrtcCompileProgram").map_err(missing)?;
            let destroy = library.get::<Destroy>(c"nvrtcDestroyProgram").map_err(missing)?;
            let count = names.len() as c_int;
            match create(&raw mut program, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr()) {
                0 => {}
                status => return Err(format!("{}: NVRTC cannot take it, error {status}", source.name)),
            }
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let result = self.output(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog").and_then(|log| {
                let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
                match status {
                    0 => Ok(Compiled {
                        cubin: self.output(program, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?,
                        ptx: text_of(self.output(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")?)?,
                        log,
                    }),
                    _ => Err(format!("{} for {target} does not compile:\n{}", source.name, log.trim_end())),
                }
            });
            destroy(&raw mut program);
            result
        }
    }

    /// One of the things that the compiler has made.
    ///
    /// # Safety
    /// The program is alive, and the functions are a size and what has it.
    unsafe fn output(&self, program: Program, size: &std::ffi::CStr, get: &std::ffi::CStr) -> Result<Vec<u8>, String> {
        let missing = |e: libloading::Error| e.to_string();
        let mut len = 0;
        // SAFETY: the caller's promise; the second function writes as many bytes as the first has said.
        unsafe {
            let status = self.compiler.get::<Size>(size).map_err(missing)?(program, &raw mut len);
            let mut bytes = vec![0; len];
            match (status, self.compiler.get::<Get>(get).map_err(missing)?(program, bytes.as_mut_ptr().cast())) {
                (0, 0) => Ok(bytes),
                (status, other) => Err(format!("NVRTC: {get:?} fails, error {}", status.max(other))),
            }
        }
    }
}

/// Text without the zero that the compiler puts at its end: an assembler would stumble over it.
fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    let text = String::from_utf8(bytes).map_err(|e| format!("NVRTC: its PTX is no text: {e}"))?;
    Ok(text.trim_end_matches('\0').to_owned())
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("sources and options have no zeros")
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
