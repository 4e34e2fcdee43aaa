//! The first layer.

use vaecf_core::backend::{Buf, Curve, Mat, Noise, Result, Rows};

use crate::{
    Cuda,
    kernels::{Grid, launch},
    noise as for_kernels,
};

const THREADS: u32 = 256;
/// Bytes a thread needs to hand over its sums: a vector's worth of f32, of which half precision has eight.
const SUMS: u32 = THREADS * 8 * 4;
/// Bytes that sums over a block need.
const SCRATCH: u32 = THREADS / 32 * 4;
/// Bytes of an event in a list, and lengths of the lists of a warp and of a block.
const EVENT: u32 = 8;
const LIGHT: u32 = 64;
const HEAVY: u32 = 2048;

impl Cuda {
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
        let (rows, step) = (self.rows(x)?, self.step(step)?);
        let (weights, bias, out) = (self.act(w)?, self.act(b)?, self.act(y)?);
        let shared = THREADS * EVENT + SUMS + SCRATCH;
        let grid = Grid { blocks: [y.rows, 1, 1], threads: THREADS, shared };
        let (w_stride, y_stride) = (u64::from(w.stride), u64::from(y.stride));
        let (kernel, noise) = (self.named("encode_sparse"), for_kernels(noise));
        launch!(self, &kernel, grid, rows, weights, w_stride, bias, y.cols, curve as u32, noise, step, out, y_stride)
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
        let (rows, step) = (self.rows(x)?, self.step(step)?);
        let (from, to) = (self.act(dy)?, self.single(dw)?);
        let (words, items) = (x.count.div_ceil(32), dw.rows);
        // The bits, and behind them the list of items with many rows.
        let bits = 4 * u64::from(words) * u64::from(items);
        let marks = self.marks.at_least(&self.context, bits + 4 + 4 * u64::from(items))?;
        let list = marks + bits;
        let factors = self.factors.at_least(&self.context, 4 * u64::from(x.count.max(1)))?;
        self.main.fill(marks, 0, bits + 4)?;
        let each = THREADS / 32;
        let grid = Grid { blocks: [x.count.div_ceil(each), 1, 1], threads: THREADS, shared: 0 };
        launch!(self, "mark_batch", grid, rows, for_kernels(noise), step, words, marks, factors)?;

        let (dy_stride, dw_stride) = (u64::from(dy.stride), u64::from(dw.stride));
        let shared = each * LIGHT * EVENT;
        let grid = Grid { blocks: [items.div_ceil(each), 1, 1], threads: THREADS, shared };
        let kernel = self.named("encode_sparse_grad_light");
        let cols = dw.cols;
        launch!(
            self, &kernel, grid, rows, step, marks, words, factors, from, dy_stride, cols, to, dw_stride, items, list
        )?;
        if x.count > LIGHT {
            let shared = HEAVY * EVENT + SUMS + SCRATCH;
            let blocks = [8 * self.context.properties.processors, 1, 1];
            let grid = Grid { blocks, threads: THREADS, shared };
            let kernel = self.named("encode_sparse_grad_heavy");
            launch!(
                self, &kernel, grid, rows, step, marks, words, factors, from, dy_stride, cols, to, dw_stride, list
            )?;
        }
        self.column_sums(dy, db)
    }
}
