//! The loss, and its gradient in place of the logits.

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Likelihood, Mat, Result, Rows};

use crate::{
    Wgpu,
    batch::{self, EVENTS, ROWS},
    cut::stretches,
};

/// Columns of a row that a workgroup takes.
pub(crate) const CHUNK: u32 = 2048;
/// Bytes of what a chunk tells about the loss, and of where its events are.
const PART: u64 = 16;

/// `Params` in `likelihood.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: batch::Rows,
    kind: u32,
    seen: f32,
    unseen: f32,
    first_item: u32,
    cols: u32,
    four: u32,
    stride: u32,
    chunks: u32,
    row_chunks: u32,
    chunks_before: u32,
    loss: u32,
    loss_stride: u32,
}

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
        let (x, logits) = (self.rows(x)?, self.act(logits)?);
        let (step, scale) = (self.whole(step, "steps")?, self.whole(scale, "scales")?);
        let losses = self.losses(loss)?;
        for rows in stretches(&logits.cuts().rows) {
            let cells = stretches(&logits.rows(rows.start, rows.len() as u32).cuts().cols);
            let chunks = |cell: &std::ops::Range<u32>| (cell.end - cell.start).div_ceil(CHUNK);
            let row_chunks: u32 = cells.iter().map(chunks).sum();
            // As many rows at once as leave what is told of them within a piece.
            let most = (4 * self.piece / PART / u64::from(row_chunks).max(1)).clamp(1, u32::MAX.into()) as u32;
            for row in rows.clone().step_by(most as usize) {
                let count = most.min(rows.end - row);
                let bytes = PART * u64::from(count) * u64::from(row_chunks);
                let parts = self.scratch.partial.at_least(&self.context, &mut self.queue, bytes)?;
                let events = self.scratch.rows.at_least(&self.context, &mut self.queue, bytes)?;
                let mut calls = Vec::new();
                let mut chunks_before = 0;
                for cell in &cells {
                    let at = logits.at(row, cell.start);
                    let params = Params {
                        x: x.part(&(row..row + count)),
                        kind: kind.kind as u32,
                        seen: kind.seen,
                        unseen: kind.unseen,
                        first_item: cell.start,
                        cols: cell.end - cell.start,
                        four: at.four,
                        stride: logits.stride(),
                        chunks: chunks(cell),
                        row_chunks,
                        chunks_before,
                        loss: loss.offset as u32,
                        loss_stride: loss.stride,
                    };
                    chunks_before += params.chunks;
                    calls.push((params, at.buffer));
                }
                let groups = |params: &Params| u64::from(count) * u64::from(params.chunks);
                let shared = include_str!("../../shaders/likelihood.wgsl");
                for (params, logits) in &calls {
                    let first = [ROWS, EVENTS, shared, include_str!("../../shaders/likelihood_first.wgsl")];
                    let buffers = [&x.indptr, &x.indices, &x.values, &x.users, &step, logits, &parts, &events];
                    self.call("likelihood_first", &first, &buffers, params, groups(params))?;
                }
                for (params, logits) in &calls {
                    let rest = [EVENTS, shared, include_str!("../../shaders/likelihood_rest.wgsl")];
                    let buffers = [&x.indices, &x.values, &scale, &parts, &events, logits, &losses];
                    self.call("likelihood_rest", &rest, &buffers, params, groups(params))?;
                }
            }
        }
        Ok(())
    }
}
