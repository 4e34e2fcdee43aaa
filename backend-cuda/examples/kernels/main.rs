//! Compiles the kernels ahead, and audits what the compiler made of them. No GPU and no toolkit is needed:
//!
//!     backend-cuda/kernels/toolchain.sh target/nvrtc
//!     cargo run -p vaecf-cuda --features compile --example kernels -- build target/nvrtc
//!
//! `build` writes `backend-cuda/kernels/kernels.bin`, which is committed; `check` compiles everything again and
//! demands that the file is the same, byte for byte. Both then hold every kernel to the rules in `audit.rs`, after
//! showing on kernels with planted faults that the rules find them.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use audit::{Breach, Function, GPUS, Gpu};
use nvrtc::{Nvrtc, Source};
use vaecf_cuda::blob::{Blob, Image, Kernel, Target};

mod audit;
mod nvrtc;
mod planted;

const USAGE: &str = "usage: kernels build|check TOOLCHAIN [KERNELS]
  TOOLCHAIN  the folder that backend-cuda/kernels/toolchain.sh has filled
  KERNELS    the folder of sources; that of the backend unless given";

/// The file in the folder of sources.
const FILE: &str = "kernels.bin";

/// What goes with machine code for GPUs that nobody knows yet: PTX, which their drivers compile. It is that of 8.0
/// and no lower, because all that is lower and known has machine code, and bf16, tf32 and asynchronous copies
/// begin there.
const PTX: (&str, &str) = ("sm_80", "compute_80");

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is as it should be.
fn run() -> Result<bool, String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, toolchain, folder) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [command @ ("build" | "check"), toolchain] => {
            (command, toolchain, concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
        }
        [command @ ("build" | "check"), toolchain, folder] => (command, toolchain, folder),
        _ => return Err(USAGE.into()),
    };
    let (toolchain, folder) = (Toolchain::open(Path::new(toolchain))?, Path::new(folder));
    let headers = sources(folder, "cuh")?;
    planted::all_found(&toolchain, &headers)?;

    let programs = sources(folder, "cu")?;
    if programs.is_empty() {
        return Err(format!("{}: there are no programs (*.cu)", folder.display()));
    }
    let built = toolchain.build(&programs, &headers)?;
    let bytes = Blob::pack(&images(&built));
    let path = folder.join(FILE);
    let mut faults = Vec::new();
    if command == "build" {
        fs::write(&path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    } else {
        let committed = fs::read(&path).map_err(|e| format!("{}: {e}; `kernels build` makes it", path.display()))?;
        faults.extend(difference(&committed, &bytes));
    }

    println!("{}", audit::head());
    for (program, (name, kernel)) in built.iter().flat_map(|program| program.kernels().map(move |k| (program, k))) {
        println!("{}", kernel.row(&program.stem, name, program.gpu));
    }
    faults.extend(built.iter().flat_map(|program| {
        program.breaches().map(|breach| format!("{}.cu for {}: {}", program.stem, program.gpu.target, breach.text))
    }));
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    for gpu in &GPUS {
        let time: Duration = built.iter().filter(|program| program.gpu.target == gpu.target).map(|p| p.time).sum();
        println!("{}: compiled in {:.1} s", gpu.target, time.as_secs_f64());
    }
    let code: usize = images(&built).iter().map(|image| image.code.len()).sum();
    let (images, size) = (images(&built).len(), bytes.len());
    println!("{images} images, {code} bytes of code, {size} in {FILE}; {} faults", faults.len());
    Ok(faults.is_empty())
}

/// The files of a folder with this ending, by name.
fn sources(folder: &Path, ending: &str) -> Result<Vec<Source>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Source { name, text })
    };
    paths.iter().map(read).collect()
}

/// Why a file is not the one that was built, if it is not.
fn difference(committed: &[u8], built: &[u8]) -> Option<String> {
    let (old, new) = match (committed == built, Blob::open(committed), Blob::open(built)) {
        (true, ..) => return None,
        (_, Err(_), _) | (_, _, Err(_)) => {
            return Some(format!("{FILE} is damaged; commit what `kernels build` makes"));
        }
        (_, Ok(old), Ok(new)) => (old, new),
    };
    let (old, new): (Vec<_>, Vec<_>) = (old.images().collect(), new.images().collect());
    let differ = old.iter().filter(|image| !new.contains(image)).chain(new.iter().filter(|image| !old.contains(image)));
    let mut names: Vec<_> = differ.map(|image| format!("{}.cu for {}", image.stem, image.target)).collect();
    names.sort();
    names.dedup();
    Some(format!("{FILE} is not what the sources give ({}); commit what `kernels build` makes", names.join(", ")))
}

/// The compiler and the disassembler.
struct Toolchain {
    nvrtc: Nvrtc,
    nvdisasm: PathBuf,
}

/// A program compiled for a kind of GPU.
struct Program {
    stem: String,
    gpu: &'static Gpu,
    target: Target,
    /// In the order of their names.
    functions: BTreeMap<String, Function>,
    index: Vec<Kernel>,
    cubin: Vec<u8>,
    ptx: String,
    /// What the compiler took.
    time: Duration,
}

impl Program {
    fn kernels(&self) -> impl Iterator<Item = (&str, &Function)> {
        self.functions.iter().filter(|(_, function)| function.entry).map(|(name, function)| (&name[..], function))
    }

    fn breaches(&self) -> impl Iterator<Item = Breach> {
        self.functions.iter().flat_map(|(name, function)| function.breaches(name))
    }
}

impl Toolchain {
    fn open(folder: &Path) -> Result<Self, String> {
        Ok(Self { nvrtc: Nvrtc::load(folder)?, nvdisasm: folder.join("nvdisasm") })
    }

    fn program(&self, source: &Source, headers: &[Source], gpu: &'static Gpu) -> Result<Program, String> {
        let start = Instant::now();
        let compiled = self.nvrtc.compile(source, headers, gpu.target)?;
        let time = start.elapsed();
        let functions = audit::functions(&compiled, &self.nvdisasm)
            .map_err(|e| format!("{} for {}: {e}", source.name, gpu.target))?;
        let entries = functions.iter().filter(|(_, function)| function.entry);
        Ok(Program {
            stem: source.name.trim_end_matches(".cu").into(),
            gpu,
            target: gpu.target.parse()?,
            index: entries.map(|(name, function)| function.kernel(name)).collect(),
            functions,
            cubin: compiled.cubin,
            ptx: compiled.ptx,
            time,
        })
    }

    /// Every program for every kind of GPU, in this order, on as many threads as there are.
    fn build(&self, sources: &[Source], headers: &[Source]) -> Result<Vec<Program>, String> {
        let jobs: Vec<_> = sources.iter().flat_map(|source| GPUS.iter().map(move |gpu| (source, gpu))).collect();
        let next = AtomicUsize::new(0);
        let built = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((at, (source, gpu))) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        jobs.get(at).map(|job| (at, job))
                    } {
                        let program = self.program(source, headers, gpu);
                        built.lock().expect("no thread has panicked").insert(at, program);
                    }
                });
            }
        });
        built.into_inner().expect("no thread has panicked").into_values().collect()
    }
}

/// The images of the programs: all machine code, and the PTX of one target.
fn images(programs: &[Program]) -> Vec<Image<'_>> {
    let mut images = Vec::new();
    for program in programs {
        let (stem, kernels) = (&program.stem[..], &program.index[..]);
        images.push(Image { stem, kernels, target: program.target, code: &program.cubin });
        if program.gpu.target == PTX.0 {
            let target = PTX.1.parse().expect("a target");
            images.push(Image { stem, kernels, target, code: program.ptx.as_bytes() });
        }
    }
    images
}
