//! The loss, and its gradient in place of the logits.

use vaecf_core::backend::{Buf, Likelihood, Mat, Result, Rows};

use crate::{
    Cuda,
    kernels::{Grid, launch},
};

/// Threads of a block, in half and in single precision.
const HALF: u32 = 256;
const SINGLE: u32 = 512;
/// Bytes that sums over a block need.
const SCRATCH: u32 = SINGLE / 32 * 4;
/// Bytes of a tile of a row that does not fit in one: three blocks to a processor, at least.
const TILE: u32 = 32 << 10;

impl Cuda {
    pub(crate) fn op_likelihood(
        &mut self,
        x: Rows,
        kind: Likelihood,
        logits: Mat,
        step: Buf,
        scale: Buf,
        loss: Mat,
    ) -> Result {
        let (rows, step, scale) = (self.rows(x)?, self.step(step)?, self.scale(scale)?);
        let (at, losses) = (self.act(logits)?, self.single(loss)?);
        let bytes = self.precision.bytes();
        let row = logits.cols.next_multiple_of(16 / bytes).saturating_mul(bytes);
        let tile = if row <= self.context.properties.shared - SCRATCH { row } else { TILE };
        let threads = if self.precision.is_half() { HALF } else { SINGLE };
        let grid = Grid { blocks: [logits.rows, 1, 1], threads, shared: SCRATCH + tile };
        let (stride, loss_stride) = (u64::from(logits.stride), u64::from(loss.stride));
        let Likelihood { kind, seen, unseen } = kind;
        let (kernel, kind, cols, size) = (self.named("likelihood"), kind as u32, logits.cols, tile / bytes);
        launch!(self, &kernel, grid, rows, kind, seen, unseen, at, stride, cols, size, step, scale, losses, loss_stride)
    }
}
