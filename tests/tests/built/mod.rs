//! Plugins, built for the tests.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; the tests need a C compiler and cargo"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The example in C.
pub(crate) fn plugin_c() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| c(&root().join("tests/examples/plugin_c.c"), "plugin_c", &[]))
}

/// The example in C with a fault: `what` in its source becomes `instead`.
pub(crate) fn mutant_c(name: &str, what: &str, instead: &str) -> PathBuf {
    let source = fs::read_to_string(root().join("tests/examples/plugin_c.c")).expect("the example");
    assert_eq!(source.matches(what).count(), 1, "{what:?} is not a place in the example");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.c"));
    fs::write(&path, source.replace(what, instead)).expect("a writable folder");
    c(&path, name, &[])
}

/// A small backend with the faults that are asked for: see `faulty.c`.
pub(crate) fn faulty(name: &str, faults: &[&str]) -> PathBuf {
    c(&root().join("tests/tests/built/faulty.c"), name, faults)
}

/// A folder of a layer for Vulkan that lets things go wrong: see `tests/vulkan/faults.c`.
pub(crate) fn vulkan_faults() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = c(&root().join("tests/vulkan/faults.c"), "vulkan_faults", &[]);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vulkan");
        fs::create_dir_all(&folder).expect("a writable folder");
        let manifest = format!(
            r#"{{"file_format_version": "1.1.2", "layer": {{"name": "VK_LAYER_VAECF_faults", "type": "GLOBAL",
            "library_path": {library:?}, "api_version": "1.3.0", "implementation_version": "1", "description": ""}}}}"#
        );
        fs::write(folder.join("faults.json"), manifest).expect("a writable folder");
        folder
    })
}

/// A shared library of one C file.
fn c(source: &Path, name: &str, defines: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{DLL_PREFIX}{name}{DLL_SUFFIX}"));
    // Whoever has the old file loaded keeps it: the new one comes under another name first.
    let draft = out.with_extension(format!("{}.draft", std::process::id()));
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ffp-contract=off"];
    run(Command::new(compiler)
        .args(flags)
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-I")
        .arg(root().join("core/include"))
        .arg("-o")
        .args([&draft, source])
        .arg("-lm"));
    fs::rename(&draft, &out).expect("a writable folder");
    out
}

/// The folder of the stand-ins for NVIDIA's libraries.
pub(crate) fn emulator() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        emulator_without(&folder, "");
        folder
    })
}

/// The same in a folder of its own, where the driver lacks some functions.
pub(crate) fn emulator_without(folder: &Path, functions: &str) {
    run(build(folder, &kernels()).env("VAECF_EMULATOR_WITHOUT", functions));
}

/// The same with these kernels, and all else from another folder.
pub(crate) fn emulator_from(folder: &Path, kernels: &Path, from: &Path) {
    // Quick to compile is worth more here than quick to run.
    run(build(folder, kernels).arg("-O1").env("VAECF_EMULATOR_FROM", from));
}

fn build(folder: &Path, kernels: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg(root().join("tests/emulator/build.sh")).args([folder, kernels]);
    command
}

/// The folder of the kernels' sources.
pub(crate) fn kernels() -> PathBuf {
    root().join("backend-cuda/kernels")
}

/// The example in Rust.
pub(crate) fn plugin_rust() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| example("plugin_rust"))
}

/// A backend in Rust that panics.
pub(crate) fn plugin_panics() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| example("plugin_panics"))
}

/// A shared library among the examples. `cargo test` has built it, unless only one test program was asked for.
fn example(name: &str) -> PathBuf {
    let this = env::current_exe().expect("a path");
    let profile = this.ancestors().nth(2).expect("the folder of the profile");
    let library = profile.join(format!("examples/{DLL_PREFIX}{name}{DLL_SUFFIX}"));
    if !is_fresh(&library) {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
        cargo.args(["build", "--locked", "-p", "vaecf-tests", "--example", name]);
        let profile_name = profile.file_name().expect("a name").to_str().expect("UTF-8");
        cargo.args(["--profile", if profile_name == "debug" { "dev" } else { profile_name }]);
        cargo.arg("--target-dir").arg(profile.parent().expect("the target folder")).current_dir(root());
        run(&mut cargo);
    }
    library
}

/// Whether a library is newer than all that cargo made it of, which lies listed beside it.
fn is_fresh(library: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let Ok(list) = fs::read_to_string(library.with_extension("d")) else { return false };
    let Some((_, sources)) = list.trim().split_once(": ") else { return false };
    // A space in a path is escaped.
    let sources = sources.replace("\\ ", "\0");
    let mut sources = sources.split(' ').map(|path| PathBuf::from(path.replace('\0', " ")));
    changed(library).is_some_and(|built| sources.all(|source| changed(&source).is_some_and(|at| at <= built)))
}
