//! The first layer.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Buf, Curve, Mat, Noise, Result, Rows};

use crate::{
    Wgpu,
    batch::{self, EVENTS, ROWS},
    cut::{cut_every, or_nothing, stretches},
    queue::Command,
};

const SUMS: &str = include_str!("../../shaders/sums.wgsl");
const SCAN: &str = include_str!("../../shaders/scan.wgsl");
const NORM: &str = include_str!("../../shaders/norm.wgsl");
const ENCODE: &str = include_str!("../../shaders/encode_sparse.wgsl");
const WHOLE: &str = include_str!("../../shaders/encode_sparse_whole.wgsl");
const PART: &str = include_str!("../../shaders/encode_sparse_part.wgsl");
const FINISH: &str = include_str!("../../shaders/encode_sparse_finish.wgsl");
const HOLDERS: &str = include_str!("../../shaders/holders.wgsl");
const MARK: &str = include_str!("../../shaders/mark_batch.wgsl");
const GRAD: &str = include_str!("../../shaders/encode_sparse_grad.wgsl");
const LIGHT: &str = include_str!("../../shaders/encode_sparse_grad_light.wgsl");
const HEAVY: &str = include_str!("../../shaders/encode_sparse_grad_heavy.wgsl");

const THREADS: u64 = 256;
/// Fours of a block of columns that a group encodes, at the most.
const BLOCK: u32 = 64;
/// Bytes of a `Holder`.
const HOLDER: u64 = 12;
/// Items of a group, where they have few rows: up to `MOST`. Fours that a group takes of those with more.
const ITEMS: u32 = 8;
const MOST: u32 = 64;
const SLAB: u32 = 16;
/// Groups that share the latter.
const SHARERS: u64 = 1024;

/// `Params` in `encode_sparse.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Encode {
    x: batch::Rows,
    noise: batch::Noise,
    groups: u32,
    fours: u32,
    wide: u32,
    first_item: u32,
    items: u32,
    w: u32,
    w_stride: u32,
    again: u32,
    curve: u32,
    cols: u32,
    b: u32,
    y: u32,
    y_stride: u32,
}

/// `Params` in `encode_sparse_finish.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Finish {
    rows: u32,
    fours: u32,
    curve: u32,
    cols: u32,
    b: u32,
    y: u32,
    y_stride: u32,
}

/// `Params` in `mark_batch.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Mark {
    x: batch::Rows,
    noise: batch::Noise,
    words: u32,
    first_item: u32,
    items: u32,
}

/// `Params` in `encode_sparse_grad.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Grad {
    x: batch::Rows,
    groups: u32,
    words: u32,
    first_item: u32,
    items: u32,
    fours: u32,
    cols: u32,
    dy: u32,
    dy_stride: u32,
    dw: u32,
    dw_stride: u32,
    add: u32,
}

impl Wgpu {
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
        let (x, step) = (self.rows(x)?, self.whole(step, "steps")?);
        let (weights, bias, out) = (self.act(w)?, self.act(b)?, self.act(y)?);
        let (mut cuts, w_cuts) = (out.cuts(), weights.cuts());
        // Of no items there is a sum, too.
        let items = or_nothing(stretches(&w_cuts.rows));
        cuts.cols.extend(w_cuts.cols);
        cuts.cols.extend(bias.cuts().cols);
        for (rows, cols) in cuts.cells() {
            let fours = (cols.end - cols.start).div_ceil(4);
            let wide = fours.div_ceil(fours.div_ceil(BLOCK));
            let groups = (rows.end - rows.start) * fours.div_ceil(wide);
            let (b_at, y_at) = (bias.at(0, cols.start), out.at(rows.start, cols.start));
            let all = Encode {
                x: x.part(&rows),
                noise: noise.into(),
                groups,
                fours,
                wide,
                first_item: 0,
                items: 0,
                w: 0,
                w_stride: weights.stride(),
                again: 0,
                curve: curve as u32,
                cols: cols.end - cols.start,
                b: b_at.four,
                y: y_at.four,
                y_stride: out.stride(),
            };
            let place = |items: &Range<u32>| {
                let at = weights.at(items.start, cols.start);
                let (first_item, again) = (items.start, u32::from(items.start > 0));
                (at.buffer, Encode { first_item, items: items.end - items.start, w: at.four, again, ..all })
            };
            let lists = [&x.indptr, &x.indices, &x.values, &x.users, &step];
            if let [items] = &items[..] {
                let (w, params) = place(items);
                let buffers = [&lists[..], &[&w, &b_at.buffer, &y_at.buffer]].concat();
                self.call(
                    "encode_sparse",
                    &[ROWS, EVENTS, SUMS, NORM, ENCODE, WHOLE],
                    &buffers,
                    &params,
                    groups.into(),
                )?;
                continue;
            }
            // The weights are in several places: sums are added up place by place.
            let bytes = 16 * u64::from(rows.end - rows.start) * u64::from(fours);
            let partial = self.scratch.partial.at_least(&self.context, &mut self.queue, bytes)?;
            for items in &items {
                let (w, params) = place(items);
                let buffers = [&lists[..], &[&w, &partial]].concat();
                let parts = [ROWS, EVENTS, SUMS, NORM, ENCODE, PART];
                self.call("encode_sparse_part", &parts, &buffers, &params, groups.into())?;
            }
            let rows = rows.end - rows.start;
            let params =
                Finish { rows, fours, curve: all.curve, cols: all.cols, b: all.b, y: all.y, y_stride: all.y_stride };
            let groups = (u64::from(rows) * u64::from(fours)).div_ceil(THREADS);
            self.call("encode_sparse_finish", &[FINISH], &[&partial, &b_at.buffer, &y_at.buffer], &params, groups)?;
        }
        Ok(())
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
        let (x, step) = (self.rows(x)?, self.whole(step, "steps")?);
        let (from, to) = (self.act(dy)?, self.single(dw)?);
        let (from_cuts, to_cuts) = (from.cuts(), to.cuts());
        let cols = from_cuts.cols.union(&to_cuts.cols).copied().collect();
        // What is known of a row takes less than four words, and has to fit a buffer.
        let rows = or_nothing(cut_every(from_cuts.rows, self.piece / 4));
        for rows in &rows {
            let words = (rows.end - rows.start).div_ceil(32);
            // So do the bits, and the list of items with many rows.
            let most = (self.piece / u64::from(words.max(1))).min(self.piece / 2 - 1);
            for items in cut_every(to_cuts.rows.clone(), most) {
                let n = items.end - items.start;
                let bits = 4 * u64::from(words) * u64::from(n);
                let marks = self.scratch.marks.at_least(&self.context, &mut self.queue, bits)?;
                let bytes = HOLDER * u64::from(rows.end - rows.start);
                let holders = self.scratch.rows.at_least(&self.context, &mut self.queue, bytes)?;
                let heavy = self.scratch.heavy.at_least(&self.context, &mut self.queue, 8 + 8 * u64::from(n))?;
                if bits > 0 {
                    self.queue.push(&self.context, Command::Clear { buffer: marks.clone(), bytes: bits });
                }
                let part = x.part(rows);
                let params = Mark { x: part, noise: noise.into(), words, first_item: items.start, items: n };
                let buffers = [&x.indptr, &x.indices, &x.values, &x.users, &step, &marks, &holders];
                let parts = [ROWS, EVENTS, SUMS, NORM, HOLDERS, MARK];
                self.call("mark_batch", &parts, &buffers, &params, (rows.end - rows.start).into())?;
                for cols in stretches(&cols) {
                    let fours = (cols.end - cols.start).div_ceil(4);
                    let (dy_at, dw_at) = (from.at(rows.start, cols.start), to.at(items.start, cols.start));
                    let groups = n.div_ceil(ITEMS);
                    let params = Grad {
                        x: part,
                        groups,
                        words,
                        first_item: items.start,
                        items: n,
                        fours,
                        cols: cols.end - cols.start,
                        dy: dy_at.four,
                        dy_stride: from.stride(),
                        dw: dw_at.four,
                        dw_stride: to.stride(),
                        add: (rows.start > 0).into(),
                    };
                    let buffers = [&x.indices, &x.values, &marks, &holders, &dy_at.buffer, &dw_at.buffer, &heavy];
                    self.queue.push(&self.context, Command::Clear { buffer: heavy.clone(), bytes: 8 });
                    let light = [EVENTS, HOLDERS, GRAD, LIGHT];
                    self.call("encode_sparse_grad_light", &light, &buffers, &params, groups.into())?;
                    if rows.end - rows.start > MOST {
                        let tasks = u64::from(n) * u64::from(fours.div_ceil(SLAB));
                        let groups = tasks.min(SHARERS);
                        let params = Grad { groups: groups as u32, ..params };
                        let heavy = [EVENTS, HOLDERS, SCAN, GRAD, HEAVY];
                        self.call("encode_sparse_grad_heavy", &heavy, &buffers, &params, groups)?;
                    }
                }
            }
        }
        self.column_sums(dy, db, false)
    }
}
