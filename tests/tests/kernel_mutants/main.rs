//! Kernels with one fault each, on the emulator: the proof that the emulated suite can fail.
//!
//! Each fault is a text in a kernel's source and what becomes of it. A child process, because a process has one
//! driver, runs the trials of one operation until the first that fails; the same trial must pass on the kernels as
//! they are.

#[path = "../built/mod.rs"]
mod built;
#[path = "../cuda/mod.rs"]
mod cuda;
mod faults;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use faults::{Fault, faults};
use libtest_mimic::{Arguments, Failed, Trial};
use vaecf_cuda::Precision;
use vaecf_tests::{Op, Options, Outcome, plan, run};

/// What a child is told: the folder of its driver, the precision, and an operation or the line of one trial.
const FOLDER: &str = "VAECF_MUTANT_FOLDER";
const PRECISION: &str = "VAECF_MUTANT_PRECISION";
const TRIALS: &str = "VAECF_MUTANT_TRIALS";

/// What caught a mutant: a row of the table.
struct Caught {
    number: usize,
    by: String,
    what: String,
    seconds: f64,
}

fn main() -> ExitCode {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the emulator is built on Linux only");
        return ExitCode::SUCCESS;
    }
    if let Some(folder) = env::var_os(FOLDER) {
        return hunt(Path::new(&folder));
    }
    let (faults, table) = (Arc::new(faults()), Arc::new(Mutex::new(Vec::new())));
    let trial = |number: usize| {
        let (all, table) = (Arc::clone(&faults), Arc::clone(&table));
        let Fault { op, file, name, .. } = &faults[number];
        Trial::test(format!("{} {file}: {name}", op.name()), move || is_caught(&all[number], number, &table))
    };
    let trials = (0..faults.len()).map(trial).collect();
    let code = libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
    if let Ok(mut table) = table.lock() {
        table.sort_by_key(|caught: &Caught| caught.number);
        for Caught { number, by, what, seconds } in &*table {
            let Fault { file, name, .. } = &faults[*number];
            println!("{file:<22}{name:<58}{seconds:>5.1} s  {by}\n{:24}{what}", "");
        }
    }
    code
}

fn is_caught(fault: &Fault, number: usize, table: &Mutex<Vec<Caught>>) -> Result<(), Failed> {
    let start = Instant::now();
    let mutant = build(fault, number)?;
    let line = child(&mutant, fault.precision, fault.op.name())?.ok_or("the suite passes this fault")?;
    let (by, what) = line.split_once('\t').ok_or("a child that says something else")?;
    if let Some(what) = child(built::emulator(), fault.precision, by)? {
        return Err(format!("{by} fails without the fault, too: {what}").into());
    }
    fs::remove_dir_all(&mutant)?;
    let (by, what, seconds) = (by.to_owned(), what.to_owned(), start.elapsed().as_secs_f64());
    table.lock().map_err(|e| e.to_string())?.push(Caught { number, by, what, seconds });
    Ok(())
}

/// The stand-ins with a fault in the kernels.
fn build(fault: &Fault, number: usize) -> Result<PathBuf, Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-mutant-{number}"));
    let kernels = folder.join("kernels");
    fs::create_dir_all(&kernels)?;
    // The headers, and of the kernels those with the fault; the others are there, compiled.
    for entry in fs::read_dir(built::kernels())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.extension().is_some_and(|e| e == "cuh") || path.file_stem().is_some_and(|stem| stem == fault.kernel()) {
            let source = fs::read_to_string(&path)?;
            let source = if name == fault.file { fault.in_source(&source)? } else { source };
            fs::write(kernels.join(name), source)?;
        }
    }
    built::emulator_from(&folder, &kernels, built::emulator());
    Ok(folder)
}

/// The first trial that fails, with a tab and what it said.
fn child(folder: &Path, precision: Precision, trials: &str) -> Result<Option<String>, Failed> {
    let mut command = Command::new(env::current_exe()?);
    command.env(FOLDER, folder).env(PRECISION, precision.name()).env(TRIALS, trials).envs(cuda::DEVICE);
    let output = command.stderr(Stdio::piped()).output()?;
    let (said, complained) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    // What the emulator says of a fault comes first.
    let why = complained.lines().next().unwrap_or_default();
    match (output.status.code(), said.trim_end()) {
        (Some(0), "") => Ok(None),
        (Some(0), line) if why.is_empty() => Ok(Some(line.to_owned())),
        (Some(0), line) => Ok(Some(format!("{} {why}", line.split_inclusive('\t').next().unwrap_or_default()))),
        (code, _) => Err(format!("the child ended with {code:?}: {complained}").into()),
    }
}

/// The child: trials until one fails.
fn hunt(folder: &Path) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let told = |name| env::var(name).expect("a child is told what to do");
    let (precision, trials) = (told(PRECISION), told(TRIALS));
    let precision = Precision::ALL.into_iter().find(|p| p.name() == precision).expect("a precision");
    let mut cuda = cuda::open(folder, precision, true).expect("the stand-ins");
    let of = |op: Op| {
        let all = plan(&Options { full: false, ..Options::default() }).into_iter().chain(cuda::beyond());
        // By its line a trial is not made smaller when it fails, which here would only take time.
        all.filter(|trial| trial.case.op == op)
            .map(|trial| trial.to_string().parse().expect("the line of a trial"))
            .collect()
    };
    let trials: Vec<vaecf_tests::Trial> = match Op::ALL.into_iter().find(|op| op.name() == trials) {
        Some(op) => of(op),
        None => vec![trials.parse().expect("the line of a trial")],
    };
    for trial in trials {
        if let Outcome::Failed { what, .. } = run(&mut cuda, &trial) {
            println!("{trial}\t{}", what.replace('\n', " "));
            break;
        }
    }
    ExitCode::SUCCESS
}
