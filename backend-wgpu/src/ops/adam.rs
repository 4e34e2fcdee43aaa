//! One update of the whole arena.

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Fault, Result};

use crate::{GROWTH, Precision, Wgpu};

const THREADS: u64 = 256;

/// `Params` in `adam.wgsl`, `adam_check.wgsl` and `adam_settle.wgsl`, which have the first ones of them.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Update {
    len: u32,
    decayed: u32,
    copied: u32,
}

impl Wgpu {
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
        let mut pieces = Vec::new();
        for buf in [w, dw, m, v] {
            self.queue.used(buf);
            let buffer = self.table.range(buf, 0, len, "floats")?;
            pieces.push((buffer.in_pieces(buf)?.to_vec(), buffer.copy.clone()));
        }
        if self.precision == Precision::F16 && pieces[0].1.is_empty() {
            return Err(Fault::Other(format!("handle {} is not of weights", w.0)));
        }
        let (step, scale) = (self.whole(step, "steps")?, self.whole(scale, "scales")?);
        let verdict = self.verdict.clone();
        let parts = |from: u64| {
            let len = self.piece.min(len - from);
            let decayed = decayed.saturating_sub(from).min(len);
            Update { len: len as u32, decayed: decayed as u32, copied: (self.precision == Precision::F16).into() }
        };
        let updates: Vec<_> = (0..len).step_by(self.piece as usize).map(parts).collect();
        let groups = |update: &Update| u64::from(update.len).div_ceil(4 * THREADS);
        for (i, update) in updates.iter().enumerate() {
            let check = include_str!("../../shaders/adam_check.wgsl");
            self.call("adam_check", &[check], &[&pieces[1].0[i], &verdict], update, groups(update))?;
        }
        for (i, update) in updates.iter().enumerate() {
            let [w, dw, m, v] = [0, 1, 2, 3].map(|which| &pieces[which].0[i]);
            let copy = pieces[0].1.get(i).unwrap_or(&self.nothing).clone();
            let buffers = [w, dw, m, v, &copy, &step, &scale, &verdict];
            self.call("adam", &[include_str!("../../shaders/adam.wgsl")], &buffers, update, groups(update))?;
        }
        let growth = if self.precision == Precision::F16 { GROWTH } else { 0 };
        let settle = include_str!("../../shaders/adam_settle.wgsl");
        self.call("adam_settle", &[settle], &[&scale, &verdict], &growth, 1)
    }
}
