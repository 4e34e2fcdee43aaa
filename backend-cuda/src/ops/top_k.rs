//! The best items of each row.

use std::rc::Rc;

use vaecf_core::backend::{Buf, Mat, Result, Rows};

use crate::{
    Cuda,
    kernels::{Grid, launch},
};

const THREADS: u32 = 512;
/// Items that are ranked at once.
const ROUND: u32 = 2048;
/// Bytes of the histogram and what goes with it.
const STATE: u32 = (256 + THREADS / 32 + 3 + 1) * 4;

impl Cuda {
    pub(crate) fn op_top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let (rows, from) = (self.rows(seen)?, self.act(scores)?);
        let len = u64::from(scores.rows) * u64::from(k);
        let bufs = [items, values];
        bufs.into_iter().for_each(|buf| self.used(buf));
        let items = self.table.range(items, 0, len, "indices", &self.main)?.master();
        let values = self.table.range(values, 0, len, "floats", &self.main)?.in_single(values)?;
        if k == 0 {
            return Ok(());
        }
        let fixed = 8 * k.clamp(2, ROUND).next_power_of_two() + STATE;
        // A key is as wide as a score, and they come in vectors.
        let bytes = self.precision.bytes();
        let keys = scores.cols.next_multiple_of(16 / bytes).saturating_mul(bytes);
        let cached = fixed.saturating_add(keys) <= self.context.properties.shared;
        let shared = fixed + if cached { keys } else { 0 };
        let grid = Grid { blocks: [scores.rows, 1, 1], threads: THREADS, shared };
        let (kernel, stride, cols) = (self.named("top_k"), u64::from(scores.stride), scores.cols);
        launch!(self, &kernel, grid, from, stride, cols, rows, k, u32::from(cached), items, values)?;
        if self.capturing.is_none() {
            // So that one batch can be fetched while the device is at the next.
            let event = Rc::new(self.context.event(false)?);
            self.main.record(&event)?;
            bufs.into_iter().for_each(|buf| self.table.made(buf, Rc::clone(&event)));
        }
        Ok(())
    }
}
