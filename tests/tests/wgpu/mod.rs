//! What the WGPU backend is put to beside what every backend is: drivers in software, matrices in pieces, and sizes at
//! which its kernels take another way.

#![allow(dead_code, reason = "each test program uses its part of this")]

use vaecf_tests::Trial;
use vaecf_wgpu::{Choice, Lowered, Options, Precision};

/// Pieces so small that most matrices are cut, both ways, and grids so small that they are folded into three sides.
pub(crate) const PIECES: Lowered = Lowered { binding: None, buffer: None, groups: Some(4), piece: Some(256) };

/// Trials that reach what other sizes do not.
const BEYOND: &[&str] = &[
    // More events than a workgroup has threads, and more fours of columns than a block.
    "agrees encode_sparse users=3 items=600 outer=2060 fill=full weights=true curve=relu keep=0.8",
    "agrees encode_sparse users=3 items=5 outer=2060 fill=empty",
    "agrees encode_sparse_grad users=5 items=4 outer=2060 fill=full",
    // Items with as many rows as a few threads list, with more, and with more than a workgroup lists.
    "agrees encode_sparse_grad users=64 items=3 outer=9 fill=full keep=1",
    "agrees encode_sparse_grad users=600 items=40 outer=152 fill=full weights=true keep=0.9",
    "agrees encode_sparse_grad users=2300 items=3 outer=3 fill=full keep=1",
    // More of them than workgroups.
    "agrees encode_sparse_grad users=70 items=1100 outer=5 fill=full keep=1 data=integers",
    // More words of bits than threads, of items with few rows and with many.
    "agrees encode_sparse_grad users=8300 items=20 outer=3 fill=one data=integers",
    "agrees encode_sparse_grad users=8300 items=600 outer=3 fill=one data=integers",
    // Several tiles both ways, more than eight rows of them, and sums that several workgroups share.
    "agrees linear users=130 inner=70 outer=140 curve=tanh gap=1",
    "agrees linear users=300 inner=9 outer=70 curve=relu",
    "agrees linear users=5 inner=1100 outer=20 curve=relu",
    "agrees linear users=3 inner=1600 outer=300 curve=identity data=integers",
    "agrees linear_grad_weight users=1100 inner=13 outer=14 data=integers",
    "agrees linear_grad_weight users=2100 inner=13 outer=14 data=integers",
    "agrees linear_grad_input users=5 inner=20 outer=1600 curve=tanh",
    // More units than a workgroup takes at once.
    "agrees sample_latent users=2 outer=1030",
    "agrees sample_latent_grad users=2 outer=1030",
    // Several chunks of a row, and full ones.
    "agrees likelihood users=3 items=5000 kind=multinomial fill=full weights=true scale=8",
    "agrees likelihood users=90 items=2500 kind=multinomial data=extreme",
    "agrees likelihood users=3 items=5000 kind=gaussian scale=8",
    // Several rounds, after the last of which a few are left to rank, and none.
    "agrees top_k users=2 items=3000 k=1100",
    "agrees top_k users=2 items=2600 k=2600 data=extreme fill=huge",
    "agrees top_k users=3 items=600 k=1100 data=extreme",
    // More scores that are equal than one round has room for.
    "agrees top_k users=2 items=6000 k=20 data=integers",
    // Several chunks of a row.
    "agrees top_k users=3 items=70001 k=20 data=integers fill=huge",
];

/// The same where matrices are in pieces: what is large would be in thousands of them.
const BEYOND_PIECES: &[&str] = &[
    // Whole steps along the batch, which begin before a cell does.
    "agrees linear_grad_weight users=150 inner=3 outer=10",
    // More chunks of a row than a workgroup has threads.
    "agrees likelihood users=2 items=66000 kind=multinomial",
];

/// Those trials.
pub(crate) fn beyond(lowered: Lowered) -> Vec<Trial> {
    let lines = if lowered == Lowered::default() { BEYOND } else { BEYOND_PIECES };
    lines.iter().map(|line| line.parse().expect("the line of a trial")).collect()
}

/// A driver in software, which is chosen by name, so that a device of this machine never is.
pub(crate) fn software(driver: &str, precision: Precision, lowered: Lowered) -> Options {
    Options { adapter: Choice::Name(driver.into()), precision, lowered, ..Default::default() }
}
