//! Shaders with one fault each, on a driver in software: the proof that the suite catches faulty shaders.
//!
//! Each fault is a text in a kernel and what becomes of it; the backend plants it when it compiles the kernel.

mod faults;
#[path = "../hunts/mod.rs"]
mod hunts;
#[path = "../wgpu/mod.rs"]
mod wgpu;

use std::{env, process::ExitCode};

use faults::{On, faults};
use hunts::{Caught, Fault};
use libtest_mimic::{Completion, Failed, Trial};
use vaecf_wgpu::{Planted, Wgpu};

/// What a child is told: the number of a fault, and whether it is planted.
const FAULT: &str = "VAECF_MUTANT_FAULT";
const PLANTED: &str = "VAECF_MUTANT_PLANTED";

fn main() -> ExitCode {
    if hunts::is_child() {
        let number = env::var(FAULT).ok().and_then(|number| number.parse().ok());
        let fault = faults().into_iter().nth(number.expect("a child is told which fault")).expect("a fault");
        let planted = env::var_os(PLANTED).is_some();
        let mut wgpu = open(&fault, planted).expect("the driver");
        return hunts::hunt(&mut wgpu, None, wgpu::beyond(fault.on.lowered));
    }
    match Wgpu::open(&wgpu::software(DRIVER, Default::default(), Default::default())) {
        Ok(_) => hunts::run(faults(), Vec::new(), is_caught),
        Err(why) => {
            let why = why.to_string();
            let row = Trial::ignorable_test(DRIVER, move || Ok(Completion::ignored_with(why)));
            hunts::run(Vec::new(), vec![row], is_caught)
        }
    }
}

const DRIVER: &str = "llvmpipe";

fn open(fault: &Fault<On>, planted: bool) -> vaecf_core::Result<Wgpu> {
    let Fault { on: On { precision, lowered }, place, what, which, instead, .. } = *fault;
    let planted = planted.then(|| Planted { kernel: place.into(), what: what.into(), which, instead: instead.into() });
    Wgpu::open(&vaecf_wgpu::Options { planted, ..wgpu::software(DRIVER, precision, lowered) })
}

fn is_caught(fault: &Fault<On>, number: usize) -> Result<Caught, Failed> {
    let without = vec![(FAULT, number.to_string().into())];
    let with = without.iter().cloned().chain([(PLANTED, "1".into())]).collect();
    let caught = hunts::catch(fault.op, &with, &without)?;
    // A kernel that is not made fails, too, and is not meant.
    match ["is no place in", "does not compile"].into_iter().find(|why| caught.what.contains(why)) {
        Some(_) => Err(caught.what.into()),
        None => Ok(caught),
    }
}
