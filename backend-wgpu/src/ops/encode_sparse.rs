//! To come.
#![allow(unused_variables, unused_imports)]
use crate::Wgpu;
use vaecf_core::backend::{Buf, Curve, Likelihood, Mat, Noise, Result, Rows};
impl Wgpu {
    pub(crate) fn op_encode_sparse(
        &mut self,
        x: Rows,
        w: Mat,
        b: Mat,
        curve: Curve,
        noise: Noise,
        step: Buf,
        y: Mat,
    ) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("encode_sparse"))
    }
    pub(crate) fn op_encode_sparse_grad(
        &mut self,
        x: Rows,
        dy: Mat,
        noise: Noise,
        step: Buf,
        dw: Mat,
        db: Mat,
    ) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("encode_sparse"))
    }
}
