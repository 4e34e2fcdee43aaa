//! The output layer with what follows it, in blocks of users and chunks of items: a chunk is used
//! while it is still in the cache, and only one block of logits is held, however large the batch.

use rayon::prelude::*;
use vaecf_core::{
    backend::{Curve, Likelihood},
    math::{self, Part, Real},
};

use crate::{
    Exec,
    gemm::{Target, multiply},
    memory::{Cut, Sparse, View, ViewMut},
    ops::{
        linear::{add, linear_grad_weight},
        top_k::Best,
    },
};

/// Items of a chunk: narrower ones slow the products down, wider ones fall out of the cache.
const ITEMS: usize = 640;

/// Parts in which the sum over the items that makes the input's gradient is taken. A constant, so that
/// its order does not depend on the number of threads.
const GROUPS: usize = 16;

/// The output layer.
#[derive(Debug)]
pub(crate) struct Layer<'a, T> {
    /// Its input `[B, H]`, which `curve` gave.
    pub(crate) g: View<'a, T>,
    pub(crate) w: View<'a, T>,
    pub(crate) b: View<'a, T>,
    pub(crate) curve: Curve,
    /// One block of logits; chunk after chunk is kept here, each a matrix of its own.
    pub(crate) logits: ViewMut<'a, T>,
}

/// What lies between the passes, kept from call to call.
#[derive(Debug)]
pub(crate) struct Scratch<T: Real> {
    /// The histories, chunk by chunk.
    cut: Cut<T>,
    /// What each chunk tells of each user's loss.
    parts: Vec<Part<T>>,
    /// What all chunks tell.
    whole: Vec<Part<T>>,
    /// The input's gradient, one part a group.
    sums: Vec<T>,
    /// The best items so far.
    pub(crate) best: Vec<Best<T>>,
}

impl<T: Real> Scratch<T> {
    pub(crate) fn new() -> Self {
        Self { cut: Cut::new(), parts: Vec::new(), whole: Vec::new(), sums: Vec::new(), best: Vec::new() }
    }
}

/// How the items are divided.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    items: usize,
    /// Items of a chunk, but for the last.
    width: usize,
    /// Chunks of a group, but for the last.
    per_group: usize,
}

impl Chunks {
    fn of(items: usize) -> Self {
        let width = items.div_ceil(GROUPS).next_multiple_of(32).clamp(64, ITEMS);
        Self { items, width, per_group: items.div_ceil(width).div_ceil(GROUPS).max(1) }
    }

    fn count(self) -> usize {
        self.items.div_ceil(self.width)
    }

    /// The items of a chunk, as (first, how many).
    fn span(self, chunk: usize) -> (usize, usize) {
        let from = chunk * self.width;
        (from, self.width.min(self.items - from))
    }
}

impl<T: Real> Layer<'_, T> {
    /// The blocks of a batch, as (first row, rows): as few as the scratch allows, and evenly long.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let batch = self.g.rows;
        let rows = batch.div_ceil(batch.div_ceil(self.logits.rows.max(1)).max(1)).max(1);
        (0..batch).step_by(rows).map(move |from| (from, rows.min(batch - from)))
    }
}

/// A chunk of logits.
fn chunk_of<T: Real>(data: &mut [T], rows: usize, cols: usize) -> ViewMut<'_, T> {
    ViewMut { data: &mut data[..rows * cols], rows, cols, stride: cols }
}

/// Output layer, likelihood and all gradients.
pub(crate) fn decode_loss_grad<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    layer: Layer<'_, T>,
    kind: Likelihood,
    scale: T,
    scratch: &mut Scratch<T>,
    loss: &mut ViewMut<'_, T>,
    dw: &mut ViewMut<'_, T>,
    db: &mut ViewMut<'_, T>,
    dg: &mut ViewMut<'_, T>,
) {
    if layer.g.rows == 0 {
        return linear_grad_weight(exec, layer.g, View { rows: 0, ..layer.w }, dw, db);
    }
    let hidden = layer.g.cols;
    let chunks @ Chunks { width, per_group, .. } = Chunks::of(layer.w.cols);
    let blocks = layer.blocks();
    let Layer { g, w, b, curve, logits } = layer;
    let Scratch { cut, parts, whole, sums, .. } = scratch;
    db.row_mut(0).fill(T::zero());
    for (from, rows) in blocks {
        let g = g.block(from, rows);
        cut.fill(x.block(from, rows), width, chunks.count());
        let cut = &*cut;
        let nothing = Part::default();
        parts.resize(rows * chunks.count(), nothing);
        whole.resize(rows, nothing);
        sums.resize(rows * hidden * GROUPS, T::zero());

        let each = logits.data.par_chunks_mut(rows * width).zip(parts.par_chunks_mut(rows)).enumerate();
        let threads = exec.threads.div_ceil(chunks.count());
        each.with_max_len(1).for_each(|(chunk, (logits, parts))| {
            let (at, cols) = chunks.span(chunk);
            let mut f = chunk_of(logits, rows, cols);
            multiply(&mut Target::of(&mut f), false, g.plain(), w.columns(at, cols).plain(), threads);
            for (r, part) in parts.iter_mut().enumerate() {
                let history = cut.stretch(chunk, r);
                exec.wide(
                    #[inline(always)]
                    || {
                        let f = f.row_mut(r);
                        add(f, &b.row(0)[at..at + cols]);
                        *part = math::likelihood_part(kind, history, f, scale);
                    },
                );
            }
        });

        let mut loss = loss.block(from, rows);
        for (r, whole) in whole.iter_mut().enumerate() {
            let row = parts.iter().skip(r).step_by(rows).copied();
            *whole = row.reduce(Part::join).unwrap_or_default();
            loss.row_mut(r)[0] = whole.loss(kind);
        }

        let (parts, whole) = (&*parts, &*whole);
        let groups = logits.data.chunks_mut(rows * width * per_group).zip(sums.chunks_mut(rows * hidden));
        let groups = groups.zip(Target::of(dw).columns(width * per_group));
        let groups = groups.zip(db.row_mut(0).chunks_mut(width * per_group)).enumerate();
        let threads = exec.threads.div_ceil(chunks.count().div_ceil(per_group));
        groups.par_bridge().for_each(|(group, (((logits, sum), dw), db))| {
            let each = logits.chunks_mut(rows * width).zip(dw.columns(width)).zip(db.chunks_mut(width)).enumerate();
            for (number, ((logits, mut dw), db)) in each {
                let chunk = group * per_group + number;
                let (at, cols) = chunks.span(chunk);
                let mut df = chunk_of(logits, rows, cols);
                for r in 0..rows {
                    let (history, part) = (cut.stretch(chunk, r), parts[chunk * rows + r]);
                    exec.wide(
                        #[inline(always)]
                        || {
                            math::likelihood_rest(kind, history, part, whole[r], df.row_mut(r), scale);
                            add(db, df.view().row(r));
                        },
                    );
                }
                multiply(&mut dw, from > 0, g.transposed(), df.view().plain(), threads);
                let mut sum = chunk_of(sum, rows, hidden);
                let w = w.columns(at, cols).transposed();
                multiply(&mut Target::of(&mut sum), number > 0, df.view().plain(), w, threads);
            }
        });

        let used = chunks.count().div_ceil(per_group) * rows * hidden;
        dg.block(from, rows).rows_mut().enumerate().for_each(|(r, dg)| {
            exec.wide(
                #[inline(always)]
                || {
                    dg.fill(T::zero());
                    sums[..used].chunks(rows * hidden).for_each(|sum| add(dg, &sum[r * hidden..][..hidden]));
                    math::apply_curve_grad(curve, g.row(r), dg);
                },
            );
        });
    }
}

/// Output layer and the best items.
pub(crate) fn recommend<T: Real>(
    exec: Exec,
    layer: Layer<'_, T>,
    seen: Sparse<'_, T>,
    k: usize,
    scratch: &mut Scratch<T>,
    items: &mut [u32],
    values: &mut [T],
) {
    if k == 0 {
        return;
    }
    let chunks @ Chunks { width, .. } = Chunks::of(layer.w.cols);
    // As many chunks at a time as keep all threads busy and are still in the cache afterwards.
    let turn = (4 * exec.threads).min(chunks.count()).max(1);
    let blocks = layer.blocks();
    let Layer { g, w, b, logits, .. } = layer;
    for (from, rows) in blocks {
        let g = g.block(from, rows);
        scratch.cut.fill(seen.block(from, rows), width, chunks.count());
        let (cut, best) = (&scratch.cut, Best::start(&mut scratch.best, rows));
        for first in (0..chunks.count()).step_by(turn) {
            let these = first..chunks.count().min(first + turn);
            let data = &mut logits.data[..chunks.items.min(width * turn) * rows];
            let threads = exec.threads.div_ceil(these.len());
            these.clone().into_par_iter().zip(data.par_chunks_mut(rows * width)).with_max_len(1).for_each(
                |(chunk, logits)| {
                    let (at, cols) = chunks.span(chunk);
                    let mut f = chunk_of(logits, rows, cols);
                    multiply(&mut Target::of(&mut f), false, g.plain(), w.columns(at, cols).plain(), threads);
                },
            );
            let data = &*data;
            // Chunk after chunk, so that each thread reads memory in a row.
            let share = rows.div_ceil(exec.threads);
            best.par_chunks_mut(share).enumerate().for_each(|(number, best)| {
                for (chunk, logits) in these.clone().zip(data.chunks(rows * width)) {
                    let (at, cols) = chunks.span(chunk);
                    let bias = &b.row(0)[at..at + cols];
                    for (r, best) in (number * share..).zip(&mut *best) {
                        let logits = &logits[r * cols..][..cols];
                        exec.wide(
                            #[inline(always)]
                            || best.look(logits, bias, at as u32, cut.stretch(chunk, r).items, k),
                        );
                    }
                }
            });
        }
        let range = from * k..(from + rows) * k;
        Best::finish(best, k, &mut items[range.clone()], &mut values[range]);
    }
}
