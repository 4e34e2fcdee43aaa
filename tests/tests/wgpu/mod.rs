//! What the WGPU backend is put to beside what every backend is: drivers in software, matrices in pieces, and sizes at
//! which its kernels take another way.

#![allow(dead_code, reason = "each test program uses its part of this")]

use vaecf_tests::Trial;
use vaecf_wgpu::{Choice, Lowered, Options, Precision};

/// Pieces so small that most matrices are cut, both ways, and grids that are folded.
pub(crate) const PIECES: Lowered = Lowered { binding: None, buffer: None, groups: Some(8), piece: Some(256) };

/// Trials that reach what other sizes do not.
const BEYOND: &[&str] = &[];

/// Those trials.
pub(crate) fn beyond() -> Vec<Trial> {
    BEYOND.iter().map(|line| line.parse().expect("the line of a trial")).collect()
}

/// A driver in software, which is chosen by name, so that a device of this machine never is.
pub(crate) fn software(driver: &str, precision: Precision, lowered: Lowered) -> Options {
    Options { adapter: Choice::Name(driver.into()), precision, lowered, ..Default::default() }
}
