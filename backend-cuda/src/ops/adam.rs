//! The update.

use vaecf_core::backend::{Buf, Result};

use crate::{
    Cuda, GROWTH, Precision,
    kernels::{Grid, launch},
};

const THREADS: u32 = 256;

impl Cuda {
    pub(crate) fn op_adam(
        &mut self,
        w: Buf,
        dw: Buf,
        m: Buf,
        v: Buf,
        len: u64,
        decayed: u64,
        step: Buf,
        scale: Buf,
    ) -> Result {
        let (step, scale) = (self.step(step)?, self.scale(scale)?);
        let mut whole = |buf| -> Result<(u64, Option<u64>)> {
            self.used(buf);
            let buffer = self.table.range(buf, 0, len, "floats", &self.main)?;
            Ok((buffer.in_single(buf)?, buffer.copy()))
        };
        let ((w, copy), (dw, _), (m, _), (v, _)) = (whole(w)?, whole(dw)?, whole(m)?, whole(v)?);
        let verdict = self.verdict.at();
        let each = u64::from(THREADS) * 4;
        let blocks = len.div_ceil(each).clamp(1, 8 * u64::from(self.context.properties.processors)) as u32;
        let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: 0 };
        let dynamic = u32::from(self.precision == Precision::F16);
        launch!(self, "adam_check", grid, dw, len, scale, verdict, dynamic, GROWTH)?;
        match copy {
            Some(copy) => {
                launch!(self, &self.named("adam"), grid, w, dw, m, v, copy, len, decayed, step, verdict)
            }
            None => launch!(self, "adam_f32", grid, w, dw, m, v, len, decayed, step, verdict),
        }
    }
}
