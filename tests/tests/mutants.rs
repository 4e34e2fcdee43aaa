//! Every mutant is caught, and the table says by what.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
};

use libtest_mimic::{Arguments, Failed, Trial};
use vaecf_tests::{
    Op, Options,
    mutants::{Caught, FAULTS, hunt, with_fault},
};

/// Where each fault was found.
type Table = Arc<Mutex<Vec<(usize, Caught)>>>;

fn options(full: bool) -> Options {
    Options { full, cases: 12, ..Options::default() }
}

fn is_caught(number: usize, table: &Table) -> Result<(), Failed> {
    let fault = FAULTS[number];
    let mut backend = with_fault(fault)?;
    // Small shapes find nearly all; some faults only show where 16 bits end or blocks do.
    let open = |_| with_fault(fault);
    let caught = hunt(&mut *backend, &open, fault.0, &options(false));
    let caught = caught.or_else(|| hunt(&mut *backend, &open, fault.0, &options(true)));
    let caught = caught.ok_or("the suite passes this fault")?;
    table.lock().map_err(|e| e.to_string())?.push((number, caught));
    Ok(())
}

fn a_mutant_without_a_fault_passes(op: Op) -> Result<(), Failed> {
    let mut backend = with_fault((op, "no fault"))?;
    match hunt(&mut *backend, &|_| with_fault((op, "no fault")), op, &options(false)) {
        None => Ok(()),
        Some(Caught { by, what, .. }) => Err(format!("{by}: {what}").into()),
    }
}

fn main() -> ExitCode {
    // A fault that is a panic is told by the trial that catches it.
    std::panic::set_hook(Box::new(|_| {}));
    let table = Table::default();
    let without = |name, op| Trial::test(name, move || a_mutant_without_a_fault_passes(op));
    let mut trials = vec![
        without("a mutant without a fault passes", Op::Memory),
        without("a mutant with collectives and without a fault passes", Op::Group),
    ];
    for (number, (op, fault)) in FAULTS.iter().enumerate() {
        let table = Arc::clone(&table);
        trials.push(Trial::test(format!("{}: {fault}", op.name()), move || is_caught(number, &table)));
    }
    let arguments = Arguments::from_args();
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    if let Ok(mut table) = table.lock() {
        table.sort_by_key(|(number, _)| *number);
        for (number, Caught { by, after, .. }) in &*table {
            let (op, fault) = FAULTS[*number];
            println!("{:<20}{fault:<55}after {after:>4}  {by}", op.name());
        }
    }
    code
}
