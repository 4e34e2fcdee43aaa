//! The latent sample and its gradient.

use vaecf_core::backend::{Buf, Mat, Noise, Result, Rows};

use crate::{
    Cuda,
    kernels::{Grid, launch},
    noise as for_kernels,
};

const THREADS: u32 = 128;

impl Cuda {
    pub(crate) fn op_sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        let (rows, step) = (self.rows(x)?, self.step(step)?);
        let (from, to, losses) = (self.act(stats)?, self.act(z)?, self.single(kl)?);
        let grid = Grid { blocks: [x.count, 1, 1], threads: THREADS, shared: THREADS / 32 * 4 };
        let (stats_stride, z_stride, kl_stride) = (u64::from(stats.stride), u64::from(z.stride), u64::from(kl.stride));
        let (kernel, noise) = (self.named("sample_latent"), for_kernels(noise));
        launch!(self, &kernel, grid, rows, from, stats_stride, z.cols, noise, step, to, z_stride, losses, kl_stride)
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
        let (rows, step, scale) = (self.rows(x)?, self.step(step)?, self.scale(scale)?);
        let (from, dz_at, to) = (self.act(stats)?, self.act(dz)?, self.act(dstats)?);
        let grid = Grid { blocks: [x.count, 1, 1], threads: THREADS, shared: 0 };
        let (s, d, o) = (u64::from(stats.stride), u64::from(dz.stride), u64::from(dstats.stride));
        let (kernel, noise) = (self.named("sample_latent_grad"), for_kernels(noise));
        launch!(self, &kernel, grid, rows, from, s, dz.cols, dz_at, d, noise, step, scale, to, o)
    }
}
