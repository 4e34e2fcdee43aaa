//! Kernels with one fault each: every fault must be caught by a trial that passes without it.
//!
//! A child process runs the trials of one operation until the first that fails, so that a crash or an endless loop is
//! a failure like any other. The same trial must pass on the kernels as they are.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::{
    env,
    ffi::OsString,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed};
use vaecf_core::backend::Backend;
use vaecf_tests::{Op, Open, Options, Outcome, Trial, plan, run_known};

/// What a child is told to run: an operation, or the line of one trial.
const TRIALS: &str = "VAECF_MUTANT_TRIALS";

/// After so long a trial does not end. Those of an emulated device take a minute where the machine is busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// A fault.
pub(crate) struct Fault<On> {
    /// The operation whose trials catch it.
    pub(crate) op: Op,
    /// How the backend is opened.
    pub(crate) on: On,
    /// The source or the kernel.
    pub(crate) place: &'static str,
    /// A text in it, which of those that are the same, and what it becomes.
    pub(crate) what: &'static str,
    pub(crate) which: Option<usize>,
    pub(crate) instead: &'static str,
    /// What it does.
    pub(crate) name: String,
}

/// The same as a row of a list: a text of which there is only one.
pub(crate) type Row<On> = (Op, On, &'static str, &'static str, &'static str, &'static str);

impl<On: Copy> Fault<On> {
    pub(crate) fn of(&(op, on, place, what, instead, name): &Row<On>) -> Self {
        Self { op, on, place, what, which: None, instead, name: name.to_owned() }
    }
}

/// The trial that caught a fault.
pub(crate) struct Caught {
    pub(crate) by: String,
    pub(crate) what: String,
    /// What was said on standard error.
    pub(crate) complained: String,
}

/// Environment of a child, which tells it what to open.
pub(crate) type Told = Vec<(&'static str, OsString)>;

/// Whether this process is a child.
pub(crate) fn is_child() -> bool {
    env::var_os(TRIALS).is_some()
}

/// Runs all faults that the command line asks for, one named trial each, and prints what caught them.
pub(crate) fn run<On: Send + Sync + 'static>(
    faults: Vec<Fault<On>>,
    others: Vec<libtest_mimic::Trial>,
    is_caught: fn(&Fault<On>, usize) -> Result<Caught, Failed>,
) -> ExitCode {
    let (faults, table) = (Arc::new(faults), Arc::new(Mutex::new(Vec::new())));
    let trial = |number: usize| {
        let (all, table) = (Arc::clone(&faults), Arc::clone(&table));
        let Fault { op, place, name, .. } = &faults[number];
        libtest_mimic::Trial::test(format!("{} {place}: {name}", op.name()), move || {
            let start = Instant::now();
            let caught = is_caught(&all[number], number)?;
            let row = (number, caught, start.elapsed().as_secs_f64());
            table.lock().unwrap_or_else(PoisonError::into_inner).push(row);
            Ok(())
        })
    };
    let trials = (0..faults.len()).map(trial).chain(others).collect();
    let code = libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    table.sort_by_key(|(number, ..)| *number);
    for (number, Caught { by, what, .. }, seconds) in &*table {
        let Fault { place, name, .. } = &faults[*number];
        println!("{place:<22}{name:<58}{seconds:>5.1} s  {by}\n{:24}{what}", "");
    }
    code
}

/// Hunts a fault: by the trials of an operation in a child with the fault, and by the one that fails in a child without.
pub(crate) fn catch(op: Op, with: &Told, without: &Told) -> Result<Caught, Failed> {
    let caught = child(with, op.name())?.ok_or("the suite passes this fault")?;
    match child(without, &caught.by)? {
        None => Ok(caught),
        Some(Caught { by, what, .. }) => Err(format!("{by} fails without the fault, too: {what}").into()),
    }
}

/// The first trial that fails.
fn child(told: &Told, trials: &str) -> Result<Option<Caught>, Failed> {
    let output = Command::new(env::current_exe()?).envs(told.iter().cloned()).env(TRIALS, trials).output()?;
    let (said, complained) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    // A line for each trial that was begun, and behind a tab what was wrong with the last.
    let wrong = said.lines().find_map(|line| line.strip_prefix('\t'));
    let what = match wrong {
        Some(wrong) => wrong.to_owned(),
        None if output.status.success() => return Ok(None),
        None => format!("the process ended with {}", output.status),
    };
    match said.lines().rfind(|line| !line.starts_with('\t')) {
        Some(by) => Ok(Some(Caught { by: by.to_owned(), what, complained })),
        None => Err(format!("a child has run no trial: {what}: {complained}").into()),
    }
}

/// In a child: trials on a backend until one fails, of those that every backend is put to and of some beside them. Members
/// of groups are opened by `open`.
pub(crate) fn hunt(backend: &mut dyn Backend, open: Option<Open<'_>>, beyond: Vec<Trial>) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = env::var(TRIALS).expect("a child is told what to run");
    let trials: Vec<Trial> = match Op::ALL.into_iter().find(|op| op.name() == wanted) {
        None => vec![wanted.parse().expect("the line of a trial")],
        Some(op) => {
            let all = plan(&Options { full: false, ..Options::default() }).into_iter().chain(beyond);
            // By its line a trial is not made smaller when it fails, which here would only take time.
            all.filter(|trial| trial.case.op == op)
                .map(|trial| trial.to_string().parse().expect("the line of a trial"))
                .collect()
        }
    };
    let begun = Arc::new(Mutex::new(Instant::now()));
    let watched = Arc::clone(&begun);
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            if watched.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > PATIENCE {
                println!("\tit does not end");
                // Any other way out would wait for what does not end.
                std::process::abort();
            }
        }
    });
    for trial in trials {
        *begun.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        println!("{trial}");
        if let Outcome::Failed { what, .. } = run_known(backend, open, &[], &trial) {
            println!("\t{}", what.replace('\n', " "));
            break;
        }
    }
    ExitCode::SUCCESS
}
