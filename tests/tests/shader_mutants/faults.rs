//! The faults.

use vaecf_tests::Op;
use vaecf_wgpu::{Lowered, Precision};

use crate::{
    hunts::{Fault, Row},
    wgpu::PIECES,
};

/// How the backend is opened.
#[derive(Clone, Copy)]
pub(crate) struct On {
    pub(crate) precision: Precision,
    pub(crate) lowered: Lowered,
}

const WHOLE: Lowered = Lowered { binding: None, buffer: None, groups: None, piece: None };
const F32: On = On { precision: Precision::F32, lowered: WHOLE };
const F16: On = On { precision: Precision::F16, lowered: WHOLE };
/// Matrices in pieces, which are cut.
const CUT: On = On { precision: Precision::F32, lowered: PIECES };
const CUT16: On = On { precision: Precision::F16, lowered: PIECES };

/// All of them.
pub(crate) fn faults() -> Vec<Fault<On>> {
    FAULTS.iter().map(Fault::of).collect()
}

#[rustfmt::skip]
const FAULTS: &[Row<On>] = &[
    // ---- the update ----
    (Op::Adam, F32, "adam", "4u * at >= p.len || bad != 0u", "4u * at + 4u >= p.len || bad != 0u", "the last four stay"),
    (Op::Adam, F32, "adam_check", "4u * at >= p.len", "4u * at + 4u >= p.len", "the last four gradients are not looked at"),
];
