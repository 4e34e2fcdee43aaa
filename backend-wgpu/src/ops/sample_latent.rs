//! The latent sample and its gradient.

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Mat, Noise, Result, Rows};

use crate::{
    Wgpu,
    batch::{self, ROWS},
    memory::{At, Floats},
};

const SUMS: &str = include_str!("../../shaders/sums.wgsl");
const LATENT: &str = include_str!("../../shaders/latent.wgsl");
const SAMPLE: &str = include_str!("../../shaders/sample_latent.wgsl");
const GRAD: &str = include_str!("../../shaders/sample_latent_grad.wgsl");

const THREADS: u64 = 64;

/// `Params` in `sample_latent.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sample {
    x: batch::Rows,
    noise: batch::Noise,
    from: u32,
    to: u32,
    mu: u32,
    logvar: u32,
    stats_stride: u32,
    z: u32,
    z_stride: u32,
    kl: u32,
    kl_stride: u32,
    again: u32,
}

/// `Params` in `sample_latent_grad.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Grad {
    x: batch::Rows,
    noise: batch::Noise,
    from: u32,
    to: u32,
    half_at: u32,
    stats: u32,
    stats_stride: u32,
    dz: u32,
    dz_stride: u32,
    out: u32,
    out_stride: u32,
}

/// Where a row would begin if all of it were in the piece of one of its columns: possibly before the start, where numbers
/// go around.
fn origin(of: &Floats, row: u32, col: u32) -> At {
    let At { buffer, four } = of.at(row, col / 4 * 4);
    At { buffer, four: four.wrapping_sub(col / 4) }
}

impl Wgpu {
    pub(crate) fn op_sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        let (x, step) = (self.rows(x)?, self.whole(step, "steps")?);
        let (from, to) = (self.act(stats)?, self.act(z)?);
        let losses = self.losses(kl)?;
        let (mut cuts, halves) = (to.cuts(), from.cuts());
        cuts.rows.extend(halves.rows);
        // A cut through either half is one through the units.
        cuts.cols.extend(halves.cols.iter().filter(|&&col| col < z.cols));
        cuts.cols.extend(halves.cols.iter().filter_map(|col| col.checked_sub(z.cols)));
        for (rows, units) in cuts.cells() {
            let mu = origin(&from, rows.start, units.start);
            let logvar = origin(&from, rows.start, z.cols + units.start);
            let z_at = origin(&to, rows.start, units.start);
            let params = Sample {
                x: x.part(&rows),
                noise: noise.into(),
                from: units.start,
                to: units.end,
                mu: mu.four,
                logvar: logvar.four.wrapping_mul(4).wrapping_add(z.cols),
                stats_stride: from.stride(),
                z: z_at.four,
                z_stride: to.stride(),
                kl: kl.offset as u32,
                kl_stride: kl.stride,
                again: (units.start > 0).into(),
            };
            let buffers = [&x.indptr, &x.users, &step, &mu.buffer, &logvar.buffer, &z_at.buffer, &losses];
            let groups = rows.end - rows.start;
            self.call("sample_latent", &[ROWS, SUMS, LATENT, SAMPLE], &buffers, &params, groups.into())?;
        }
        Ok(())
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
        let (x, step, scale) = (self.rows(x)?, self.whole(step, "steps")?, self.whole(scale, "scales")?);
        let (from, dz_from, to) = (self.act(stats)?, self.act(dz)?, self.act(dstats)?);
        let half = dz_from.cuts();
        let mut cuts = from.cuts().with(to.cuts());
        cuts.rows.extend(half.rows);
        // Each half is cut where the gradient of the sample is, and one from the other.
        cuts.cols.extend(half.cols.iter().flat_map(|&unit| [unit, dz.cols + unit]));
        for (rows, cols) in cuts.cells() {
            let half_at = if cols.start < dz.cols { 0 } else { dz.cols };
            let stats_at = origin(&from, rows.start, cols.start);
            let dz_at = origin(&dz_from, rows.start, cols.start - half_at);
            let out = origin(&to, rows.start, cols.start);
            let params = Grad {
                x: x.part(&rows),
                noise: noise.into(),
                from: cols.start,
                to: cols.end,
                half_at,
                stats: stats_at.four,
                stats_stride: from.stride(),
                dz: dz_at.four.wrapping_mul(4).wrapping_sub(half_at),
                dz_stride: dz_from.stride(),
                out: out.four,
                out_stride: to.stride(),
            };
            let buffers = [&x.indptr, &x.users, &step, &scale, &stats_at.buffer, &dz_at.buffer, &out.buffer];
            let fours = u64::from(cols.end.div_ceil(4) - cols.start / 4);
            let groups = (u64::from(rows.end - rows.start) * fours).div_ceil(THREADS);
            self.call("sample_latent_grad", &[ROWS, LATENT, GRAD], &buffers, &params, groups)?;
        }
        Ok(())
    }
}
