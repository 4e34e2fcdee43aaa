//! The best items of each row.

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Mat, Result, Rows};

use crate::{
    Wgpu,
    batch::{EVENTS, ROWS},
    cut::stretches,
};

/// Columns of a row that a workgroup takes: the items that may not be ranked are bits in its memory.
const CHUNK: u32 = 32_768;

const RANK: &str = include_str!("../../shaders/top_k.wgsl");

/// `Params` in `top_k_scores.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Scores {
    first: u32,
    count: u32,
    flags: u32,
    from: u32,
    cols: u32,
    four: u32,
    stride: u32,
    chunks: u32,
    out: u32,
    out_stride: u32,
    k: u32,
}

/// `Params` in `top_k_rankings.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Rankings {
    count: u32,
    each: u32,
    chunks: u32,
    out: u32,
    out_stride: u32,
    k: u32,
}

impl Wgpu {
    /// The rankings of the first of these rows are number `from` of those that are written.
    pub(crate) fn op_top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf, from: u32) -> Result {
        let (seen, scores) = (self.rows(seen)?, self.act(scores)?);
        let len = (u64::from(from) + u64::from(scores.mat.rows)) * u64::from(k);
        self.table.range(items, 0, len, "indices")?;
        self.table.range(values, 0, len, "floats")?;
        let best = [self.whole(items, "indices")?, self.whole(values, "floats")?];
        if k == 0 {
            return Ok(());
        }
        for rows in stretches(&scores.cuts().rows) {
            let cells = stretches(&scores.rows(rows.start, rows.len() as u32).cuts().cols);
            let lens = cells.iter().map(|cell| cell.end - cell.start);
            let chunks: u32 = lens.clone().map(|len| len.div_ceil(CHUNK)).sum();
            let whole = chunks == 1;
            // Where a row is not ranked at once, its chunks are, and their rankings are made one, as many rows at once
            // as leave these within a piece.
            let part = if whole { k } else { lens.max().unwrap_or(0).min(CHUNK).min(k) };
            let each = chunks * part;
            let most = if whole { u64::MAX } else { self.piece / u64::from(each).max(1) };
            let most = most.clamp(1, u32::MAX.into()) as u32;
            for row in rows.clone().step_by(most as usize) {
                let count = most.min(rows.end - row);
                let out = (from + row) * k;
                let parts = match whole {
                    true => best.clone(),
                    false => self.candidates(4 * u64::from(count) * u64::from(each))?,
                };
                let (mut at, out_stride) = if whole { (out, k) } else { (0, each) };
                for cell in &cells {
                    let begin = scores.at(row, cell.start);
                    let cols = cell.end - cell.start;
                    let params = Scores {
                        first: seen.first + row,
                        count,
                        flags: seen.flags,
                        from: cell.start,
                        cols,
                        four: begin.four,
                        stride: scores.stride(),
                        chunks: cols.div_ceil(CHUNK),
                        out: at,
                        out_stride,
                        k: part,
                    };
                    let kernel = [ROWS, EVENTS, include_str!("../../shaders/top_k_scores.wgsl"), RANK];
                    let lists = [&seen.indptr, &seen.indices, &seen.values, &seen.users];
                    let buffers = [&lists[..], &[&begin.buffer, &parts[0], &parts[1]]].concat();
                    let groups = u64::from(count) * u64::from(params.chunks);
                    self.call("top_k_scores", &kernel, &buffers, &params, groups)?;
                    at += params.chunks * part;
                }
                if !whole {
                    let kernel = [include_str!("../../shaders/top_k_rankings.wgsl"), RANK];
                    let buffers = [&parts[0], &parts[1], &best[0], &best[1]];
                    let params = Rankings { count, each, chunks: 1, out, out_stride: k, k };
                    self.call("top_k_rankings", &kernel, &buffers, &params, count.into())?;
                }
            }
        }
        Ok(())
    }

    /// Room for rankings of chunks: items and scores, so many bytes each.
    fn candidates(&mut self, bytes: u64) -> Result<[wgpu::Buffer; 2]> {
        let [items, scores] = &mut self.scratch.candidates;
        let mut room = |scratch: &mut crate::Scratch| scratch.at_least(&self.context, &mut self.queue, bytes);
        Ok([room(items)?, room(scores)?])
    }
}
