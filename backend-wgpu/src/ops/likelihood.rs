//! To come.
#![allow(unused_variables, unused_imports)]
use crate::Wgpu;
use vaecf_core::backend::{Buf, Curve, Likelihood, Mat, Noise, Result, Rows};
impl Wgpu {
    pub(crate) fn op_likelihood(
        &mut self,
        x: Rows,
        kind: Likelihood,
        logits: Mat,
        step: Buf,
        scale: Buf,
        loss: Mat,
    ) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("likelihood"))
    }
}
