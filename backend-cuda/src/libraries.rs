//! Where NVIDIA's libraries lie.
//!
//! The system's loader looks in its own folders first. What it does not find there is looked for where drivers,
//! toolkits and Python's packages put it, and opened by its full path: the loader knows it by its name from then on.
//! cudarc asks the loader for other names first, so whether it has the same library is looked at afterwards.

use std::{
    env,
    ffi::c_void,
    fs,
    path::{Path, PathBuf},
};

/// A library that was opened.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Where its first function lies.
    address: usize,
}

impl Found {
    /// Whether this is the library in which a function lies.
    pub(crate) fn has(&self, function: *const c_void) -> bool {
        self.address == function as usize
    }
}

/// Names of the driver's library.
const DRIVER: [&str; 1] = ["libcuda.so.1"];
/// Names of the matrix products' library, newest first.
const PRODUCTS: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];

/// Name of the library of sums over several devices.
const COLLECTIVES: [&str; 1] = ["libnccl.so.2"];

/// Opens the driver's library where the loader alone would not find it. `first` is looked in before all else.
pub(crate) fn find_driver(first: Option<&Path>) -> Option<Found> {
    let folders = [
        "/usr/lib/wsl/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib64/nvidia",
        "/usr/lib/nvidia",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
    ];
    keep_first(&DRIVER, "cuInit", first, folders.into_iter().map(PathBuf::from))
}

/// Opens the library of matrix products, of at most this major version, which is the driver's.
pub(crate) fn find_products(first: Option<&Path>, major: u32) -> Option<Found> {
    let usable = |name: &&str| name.rsplit('.').next().and_then(|n| n.parse().ok()).is_some_and(|n: u32| n <= major);
    let names: Vec<&str> = PRODUCTS.into_iter().filter(|name| usable(name)).collect();
    keep_first(&names, "cublasLtCreate", first, toolkits().into_iter().chain(packages()))
}

/// Opens the library of sums over several devices.
pub(crate) fn find_collectives(first: Option<&Path>) -> Option<Found> {
    keep_first(&COLLECTIVES, "ncclGetVersion", first, toolkits().into_iter().chain(packages()))
}

/// Opens the first of the names that is there, for good: what was opened by its path is found by its name.
fn keep_first(
    names: &[&str],
    function: &str,
    first: Option<&Path>,
    then: impl Iterator<Item = PathBuf>,
) -> Option<Found> {
    if let Some(folder) = first {
        return names.iter().find_map(|name| keep(folder.join(name), function));
    }
    if let Some(found) = names.iter().find_map(|name| keep(PathBuf::from(name), function)) {
        return Some(found);
    }
    let folders: Vec<PathBuf> = then.collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .filter(|path| path.is_file())
        .find_map(|path| keep(path, function))
}

fn keep(path: PathBuf, function: &str) -> Option<Found> {
    // SAFETY: NVIDIA's libraries run nothing when they are opened but the set-up of their own data.
    let library = unsafe { libloading::Library::new(&path) }.ok()?;
    // SAFETY: the function is only looked up, not called, and its type has the size of a pointer.
    let address = unsafe { library.get::<*const c_void>(function.as_bytes()) }.map_or(0, |at| *at as usize);
    std::mem::forget(library);
    Some(Found { path, address })
}

/// Folders of toolkits, of which conda's is its environment.
fn toolkits() -> Vec<PathBuf> {
    let variables = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT", "CONDA_PREFIX"];
    let named = variables.into_iter().filter_map(env::var_os).map(PathBuf::from);
    let usual = matching(Path::new("/usr/local"), "cuda").into_iter().chain([PathBuf::from("/opt/cuda")]);
    let within = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let folders = |root: PathBuf| within.map(|folder| root.join(folder));
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"].map(PathBuf::from);
    named.chain(usual).flat_map(folders).chain(system).collect()
}

/// Folders in which Python's packages keep their libraries.
fn packages() -> Vec<PathBuf> {
    let of_home = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let of_python = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|folder| folder.join("python3").exists())
        .flat_map(|folder| {
            // A virtual environment's python3 is a link to that of the system: both may have the package.
            let real = fs::canonicalize(folder.join("python3")).ok();
            let real = real.and_then(|python| Some(python.parent()?.parent()?.to_owned()));
            folder.parent().map(Path::to_owned).into_iter().chain(real)
        });
    let local = env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
    let roots = of_home.chain(of_python).chain(local).chain(["/usr", "/usr/local"].map(PathBuf::from));
    let mut all = Vec::new();
    for root in roots {
        for python in ["lib", "lib64"].iter().flat_map(|lib| matching(&root.join(lib), "python3")) {
            for site in ["site-packages", "dist-packages"] {
                let nvidia = python.join(site).join("nvidia");
                all.extend(["cu13/lib", "cublas/lib", "nccl/lib"].map(|folder| nvidia.join(folder)));
            }
        }
    }
    all.dedup();
    all
}

/// Entries of a folder whose names begin so, the last in order first.
fn matching(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}
