//! What the WGPU backend is put to beside what every backend is: drivers in software, matrices in pieces, and sizes at
//! which its kernels take another way.

#![allow(dead_code, reason = "each test program uses its part of this")]

use vaecf_tests::Trial;
use vaecf_wgpu::{Choice, Lowered, Options, Precision};

/// Pieces so small that most matrices are cut, both ways, and grids that are folded.
pub(crate) const PIECES: Lowered = Lowered { binding: None, buffer: None, groups: Some(8), piece: Some(256) };

/// Trials that reach what other sizes do not.
const BEYOND: &[&str] = &[
    // Several chunks of a row, full ones, and more of them than threads where a row is cut.
    "agrees likelihood users=3 items=5000 kind=multinomial fill=full weights=true scale=8",
    "agrees likelihood users=3 items=5000 kind=multinomial data=extreme",
    "agrees likelihood users=3 items=5000 kind=gaussian scale=8",
    "agrees likelihood users=2 items=66000 kind=multinomial",
    // Several rounds, after the last of which a few are left to rank, and none.
    "agrees top_k users=2 items=3000 k=1100",
    "agrees top_k users=2 items=2600 k=2600 data=extreme fill=huge",
    // More scores that are equal than one round has room for.
    "agrees top_k users=2 items=6000 k=20 data=integers",
    // Several chunks of a row.
    "agrees top_k users=3 items=70001 k=20 data=integers fill=huge",
];

/// Those trials.
pub(crate) fn beyond() -> Vec<Trial> {
    BEYOND.iter().map(|line| line.parse().expect("the line of a trial")).collect()
}

/// A driver in software, which is chosen by name, so that a device of this machine never is.
pub(crate) fn software(driver: &str, precision: Precision, lowered: Lowered) -> Options {
    Options { adapter: Choice::Name(driver.into()), precision, lowered, ..Default::default() }
}
