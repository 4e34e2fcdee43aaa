//! What the CUDA backend is put to beside what every backend is: sizes at which its kernels take another way.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::path::Path;

use vaecf_cuda::{Cuda, Options, Precision};
use vaecf_tests::Trial;

/// The emulated devices: little shared memory and few processors, so that those sizes are small ones; and as many of
/// them as the largest group has members.
pub(crate) const DEVICE: [(&str, &str); 3] =
    [("VAECF_EMULATOR_SHARED", "49152"), ("VAECF_EMULATOR_PROCESSORS", "4"), ("VAECF_EMULATOR_DEVICES", "3")];

/// Trials that reach what other sizes do not.
const BEYOND: &[&str] = &[
    // More vectors of columns than a block has threads, and more events than it lists at once.
    "agrees encode_sparse users=3 items=600 outer=2060 fill=full weights=true curve=relu keep=0.8",
    "agrees encode_sparse users=3 items=5 outer=2060 fill=empty",
    "agrees encode_sparse_grad users=5 items=4 outer=2060 fill=full",
    // Items with too many rows for one block, and more of them than there are blocks to share them.
    "agrees encode_sparse_grad users=600 items=40 outer=152 fill=full weights=true keep=0.9",
    "agrees encode_sparse_grad users=64 items=3 outer=9 fill=full keep=1",
    "agrees encode_sparse_grad users=513 items=6 outer=9 fill=full keep=1 data=integers",
    // More words of bits than threads, and than the second kernel lists at once.
    "agrees encode_sparse_grad users=8300 items=20 outer=3 fill=one data=integers",
    "agrees encode_sparse_grad users=8300 items=20 outer=3 fill=huge",
    "agrees encode_sparse_grad users=2300 items=3 outer=3 fill=full keep=1",
    // Several tiles both ways, and sums over k that blocks share.
    "agrees linear users=130 inner=70 outer=140 curve=tanh gap=1",
    "agrees linear users=5 inner=600 outer=20 curve=relu",
    "agrees linear users=130 inner=530 outer=21 curve=tanh data=integers",
    "agrees linear users=3 inner=1100 outer=300 curve=identity data=integers",
    "agrees linear_grad_weight users=600 inner=130 outer=140 data=integers",
    "agrees linear_grad_weight users=257 inner=3 outer=300",
    "agrees linear_grad_input users=130 inner=140 outer=70 curve=relu gap=1",
    "agrees linear_grad_input users=5 inner=20 outer=600 curve=tanh",
    // More units than a block takes at once.
    "agrees sample_latent users=2 outer=1030",
    "agrees sample_latent_grad users=2 outer=1030",
    // Rows that threads go through several times, and rows that do not fit in shared memory.
    "agrees likelihood users=2 items=5000 kind=multinomial fill=full weights=true scale=8",
    "agrees likelihood users=3 items=25001 kind=multinomial weights=true scale=8",
    "agrees likelihood users=3 items=25001 kind=multinomial data=extreme fill=full",
    "agrees likelihood users=2 items=25001 kind=gaussian fill=full weights=true",
    "agrees likelihood users=2 items=25001 kind=logistic",
    // More elements than all blocks take at once.
    "agrees adam items=40003 outer=1001 scale=4",
    "agrees adam items=100003 outer=1001 scale=4 data=extreme seed=2",
    "agrees adam items=100003 outer=1001 scale=4 data=extreme seed=3",
    "agrees adam items=100003 outer=1001 scale=4 data=extreme seed=4",
    "agrees adam items=100003 outer=1001 scale=4 data=extreme seed=5",
    // Several rounds, and keys that do not fit in shared memory.
    "agrees top_k users=2 items=3000 k=2500 data=integers",
    "agrees top_k users=2 items=2600 k=2600 data=extreme fill=huge",
    "agrees top_k users=2 items=16500 k=2500 data=integers",
    "agrees top_k users=3 items=30000 k=20 data=extreme fill=huge",
    // More elements than all blocks pack at once.
    "agrees group world=2 half=true items=200003 users=3 inner=4 outer=5",
];

/// Those trials.
pub(crate) fn beyond() -> Vec<Trial> {
    BEYOND.iter().map(|line| line.parse().expect("the line of a trial")).collect()
}

/// The backend on the stand-ins in a folder.
pub(crate) fn open(folder: &Path, precision: Precision, own_products: bool) -> vaecf_core::Result<Cuda> {
    open_device(folder, precision, own_products, 0)
}

/// The same for one of several devices.
pub(crate) fn open_device(
    folder: &Path,
    precision: Precision,
    own_products: bool,
    device: u32,
) -> vaecf_core::Result<Cuda> {
    Cuda::open(&Options { precision, libraries: Some(folder.to_owned()), own_products, device })
}
