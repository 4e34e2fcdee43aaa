//! The best items of each row.

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Mat, Result, Rows};

use crate::{
    Wgpu,
    batch::{self, EVENTS, ROWS},
    cut::stretches,
};

/// Columns of a row that a workgroup takes: the items that may not be ranked are bits in its memory.
pub(crate) const CHUNK: u32 = 32_768;

/// Items that the rankings of chunks have at once, unless those of one row are more.
const ROOM: u64 = 1 << 24;

const RANK: &str = include_str!("../../shaders/top_k.wgsl");

/// `Params` in `top_k_scores.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Scores {
    seen: batch::Rows,
    groups: u32,
    first_item: u32,
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
    groups: u32,
    each: u32,
    out: u32,
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
            // Where a row is not ranked at once, its chunks are, and their rankings are made one.
            let part = if whole { k } else { lens.max().unwrap_or(0).min(CHUNK).min(k) };
            let each = chunks * part;
            let most = if whole { u64::MAX } else { self.piece.min(ROOM) / u64::from(each).max(1) };
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
                    let chunks = cols.div_ceil(CHUNK);
                    let params = Scores {
                        seen: seen.part(&(row..row + count)),
                        groups: count * chunks,
                        first_item: cell.start,
                        cols,
                        four: begin.four,
                        stride: scores.stride(),
                        chunks,
                        out: at,
                        out_stride,
                        k: part,
                    };
                    let kernel = [ROWS, EVENTS, include_str!("../../shaders/top_k_scores.wgsl"), RANK];
                    let lists = [&seen.indptr, &seen.indices, &seen.values, &seen.users];
                    let buffers = [&lists[..], &[&begin.buffer, &parts[0], &parts[1]]].concat();
                    self.call("top_k_scores", &kernel, &buffers, &params, params.groups.into())?;
                    at += chunks * part;
                }
                if !whole {
                    let kernel = [include_str!("../../shaders/top_k_rankings.wgsl"), RANK];
                    let buffers = [&parts[0], &parts[1], &best[0], &best[1]];
                    let params = Rankings { groups: count, each, out, k };
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
