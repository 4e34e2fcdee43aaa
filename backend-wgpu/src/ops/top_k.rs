//! To come.
#![allow(unused_variables, unused_imports)]
use crate::Wgpu;
use vaecf_core::backend::{Buf, Curve, Likelihood, Mat, Noise, Result, Rows};
impl Wgpu {
    pub(crate) fn op_top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf, from: u32) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("top_k"))
    }
}
