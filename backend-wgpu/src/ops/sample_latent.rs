//! To come.
#![allow(unused_variables, unused_imports)]
use crate::Wgpu;
use vaecf_core::backend::{Buf, Curve, Likelihood, Mat, Noise, Result, Rows};
impl Wgpu {
    pub(crate) fn op_sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("sample_latent"))
    }
    pub(crate) fn op_sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        noise: Noise,
        step: Buf,
        scale: Buf,
        dstats: Mat,
    ) -> Result {
        Err(vaecf_core::backend::Fault::Unsupported("sample_latent"))
    }
}
