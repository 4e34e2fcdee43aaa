//! To come.
#![allow(unused_variables, unused_imports)]
use crate::Wgpu;
use vaecf_core::backend::{Buf, Curve, Likelihood, Mat, Noise, Result, Rows};
impl Wgpu {
    pub(crate) fn op_linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("linear"))
    }
    pub(crate) fn op_linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat, add: bool) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("linear"))
    }
    pub(crate) fn op_linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("linear"))
    }
}
