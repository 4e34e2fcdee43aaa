//! The suite on a list of backends, one named trial per case and backend.

use std::{
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vaecf_core::backend::Backend;
use vaecf_tests::{Known, Open, Options, Outcome, plan, run_known};

/// A backend under test.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// The backend, or why it is absent.
    pub(crate) backend: Result<Box<dyn Backend>, String>,
    /// Sizes that want a real device, too.
    pub(crate) full: bool,
    /// Whole runs, too.
    pub(crate) runs: bool,
    /// Trials beside those of every backend.
    pub(crate) beyond: Vec<vaecf_tests::Trial>,
    /// Opens the members of a group, where there can be one.
    pub(crate) open: Option<Opener>,
}

/// What opens the backend of a member, by its rank.
pub(crate) type Opener = Box<dyn Fn(u32) -> vaecf_core::Result<Box<dyn Backend>> + Send + Sync>;

impl Subject {
    pub(crate) fn new<B: Backend + 'static>(name: &'static str, full: bool, backend: vaecf_core::Result<B>) -> Self {
        let backend = backend.map(|backend| Box::new(backend) as Box<dyn Backend>).map_err(|e| e.to_string());
        Self { name, backend, full, runs: true, beyond: Vec::new(), open: None }
    }
}

/// The command that repeats a trial.
fn again(program: &str, name: &str, line: &str) -> String {
    let plugin = std::env::var("VAECF_PLUGIN").map(|path| format!("VAECF_PLUGIN='{path}' ")).unwrap_or_default();
    format!("{plugin}VAECF_TRIAL='{line}' cargo test -p vaecf-tests --test {program} -- '{name}'")
}

/// Runs the suite on each, in the test program of this name.
pub(crate) fn run(program: &'static str, subjects: Vec<Subject>) -> ExitCode {
    let arguments = Arguments::from_args();
    let seed = std::env::var("VAECF_SEED").map_or(1, |seed| seed.parse().expect("VAECF_SEED is a whole number"));
    let known = Arc::new(Known::listed().expect("tests/known.toml can be read"));
    let mut trials = Vec::new();
    // How many passed, by backend: one that is here and has nothing that passes is no success.
    let mut passed: Vec<(&str, Arc<AtomicUsize>)> = Vec::new();
    for Subject { name, backend, full, runs, beyond, open } in subjects {
        let open = Arc::new(open);
        let backend = match backend {
            Ok(backend) => Arc::new(Mutex::new(backend)),
            Err(why) => {
                trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(why))));
                continue;
            }
        };
        let all = match std::env::var("VAECF_TRIAL") {
            Ok(line) => vec![line.parse().expect("VAECF_TRIAL is the line of a trial")],
            Err(_) => plan(&Options { seed, full, ..Options::default() }).into_iter().chain(beyond).collect(),
        };
        assert!(!all.is_empty(), "no trials at all");
        let count = Arc::new(AtomicUsize::new(0));
        passed.push((name, Arc::clone(&count)));
        let whole_run = |trial: &vaecf_tests::Trial| trial.to_string().contains(" training ");
        for trial in all.into_iter().filter(|trial| runs || !whole_run(trial)) {
            let (backend, known, count) = (Arc::clone(&backend), Arc::clone(&known), Arc::clone(&count));
            let open = Arc::clone(&open);
            let line = format!("{name}: {trial}");
            trials.push(Trial::ignorable_test(line, move || {
                let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
                match run_known(&mut **backend, open.as_ref().as_ref().map(|open| &**open as Open<'_>), &known, &trial)
                {
                    Outcome::Passed { .. } => {
                        count.fetch_add(1, Ordering::Relaxed);
                        Ok(Completion::Completed)
                    }
                    Outcome::NotImplemented { what } => {
                        Ok(Completion::ignored_with(format!("{what} is not implemented")))
                    }
                    Outcome::Known { reason } => Ok(Completion::ignored_with(format!("known to fail: {reason}"))),
                    Outcome::Failed { what, repeat } => {
                        Err(Failed::from(format!("{what}\nrepeat: {}", again(program, name, &repeat))))
                    }
                }
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list && !arguments.ignored;
    for (name, count) in passed {
        if whole && count.load(Ordering::Relaxed) == 0 {
            eprintln!("{name}: no trial passed, which is a failure");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}
