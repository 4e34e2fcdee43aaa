//! The suite on every backend at hand, one named trial per case and backend.
//!
//! `cargo test -p vaecf-tests --test conformance -- 'agrees linear '` runs a part of it. Random cases are drawn
//! from `VAECF_SEED` (1 unless given).

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Failed, Trial};
use vaecf_core::backend::Backend;
use vaecf_cpu::Cpu;
use vaecf_tests::{Narrow, Options, Outcome, Recorded, plan, run};

/// A backend under test, or why it is not here.
type Subject = (&'static str, Result<Box<dyn Backend>, String>);

fn subjects() -> Vec<Subject> {
    vec![
        ("cpu f32", Cpu::<f32>::new(Some(2)).map(|cpu| Box::new(cpu) as _).map_err(|e| e.to_string())),
        (
            "captured f16",
            Cpu::<f32>::new(Some(2))
                .map(|cpu| Box::new(Recorded::new(Narrow::f16(cpu))) as _)
                .map_err(|e| e.to_string()),
        ),
        (
            "narrow bf16",
            Cpu::<f32>::new(Some(2)).map(|cpu| Box::new(Narrow::bf16(cpu)) as _).map_err(|e| e.to_string()),
        ),
        ("cpu f64", Cpu::<f64>::new(Some(2)).map(|cpu| Box::new(cpu) as _).map_err(|e| e.to_string())),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let seed = std::env::var("VAECF_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let options = Options { seed, ..Options::default() };
    let mut trials = Vec::new();
    for (name, subject) in subjects() {
        match subject {
            Err(why) => trials.push(Trial::test(format!("{name}: absent: {why}"), || Ok(())).with_ignored_flag(true)),
            Ok(backend) => {
                let backend = Arc::new(Mutex::new(backend));
                for trial in plan(&options) {
                    let backend = Arc::clone(&backend);
                    let line = format!("{name}: {trial}");
                    trials.push(Trial::test(line, move || {
                        let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
                        match run(&mut **backend, &trial) {
                            Outcome::Failed { what, repeat } => Err(Failed::from(format!(
                                "{what}\nrepeat: cargo test -p vaecf-tests --test conformance -- --exact '{name}: {repeat}'"
                            ))),
                            _ => Ok(()),
                        }
                    }));
                }
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
