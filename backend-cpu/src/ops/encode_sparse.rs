//! The first layer: a weighted sum of few rows.

use rayon::prelude::*;
use vaecf_core::{
    backend::{Curve, Noise, StepParams},
    math::{self, Real},
    random,
};

use crate::{
    Exec,
    memory::{Sparse, SparseRow, View, ViewMut},
    ops::linear::column_sums,
};

/// The transposed batch: which rows hold an item, and with which coefficient.
#[derive(Debug)]
pub(crate) struct Transpose<T> {
    /// Where each row's events start among all events of the batch.
    offsets: Vec<usize>,
    /// The coefficient of each event of the batch, row after row; zero where it was dropped.
    coefficients: Vec<T>,
    /// Where each item's events end in `events`.
    ends: Vec<usize>,
    /// Row and coefficient of each kept event, item after item, rows ascending.
    events: Vec<(u32, T)>,
}

/// The input layer's noise in one update.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    noise: Noise,
    update: u32,
}

impl Dropout {
    /// Calls `f(position, d)` for each event of a row in turn, `d` its normalised value after dropout.
    #[inline(always)]
    fn for_each<T: Real>(self, row: SparseRow<'_, T>, mut f: impl FnMut(usize, T)) {
        let Noise { seed, stream, keep } = self.noise;
        let factor = math::inverse_norm(row.items, row.values) / T::of(f64::from(keep));
        let threshold = random::threshold(keep);
        for (at, &item) in row.items.iter().enumerate() {
            let kept = keep >= 1.0 || random::keeps(seed, stream, self.update, row.user, item, threshold);
            let x = row.values.map_or(T::one(), |values| values[at]);
            f(at, if kept { factor * x } else { T::zero() });
        }
    }
}

/// `y = curve(d w + b)`.
pub(crate) fn encode_sparse<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    w: View<'_, T>,
    b: View<'_, T>,
    curve: Curve,
    noise: Noise,
    step: StepParams,
    y: &mut ViewMut<'_, T>,
) {
    let dropout = Dropout { noise, update: step.update };
    y.rows_mut().enumerate().for_each(|(r, y)| {
        let row = x.row(r);
        exec.wide(
            #[inline(always)]
            || {
                y.copy_from_slice(b.row(0));
                let mut sum = Sum::new(y);
                dropout.for_each(
                    row,
                    #[inline(always)]
                    |at, d| {
                        if d != T::zero() {
                            sum.add(w.row(row.items[at] as usize), d);
                        }
                    },
                );
                sum.finish();
                math::apply_curve(curve, y);
            },
        );
    });
}

/// `dw = d^T dy`, `db = colsum(dy)`. Each item's row is summed by one thread, users ascending.
pub(crate) fn encode_sparse_grad<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    dy: View<'_, T>,
    noise: Noise,
    step: StepParams,
    scratch: &mut Transpose<T>,
    dw: &mut ViewMut<'_, T>,
    db: &mut ViewMut<'_, T>,
) {
    scratch.fill(exec, x, Dropout { noise, update: step.update }, dw.rows);
    let Transpose { ends, events, .. } = scratch;
    dw.rows_mut().enumerate().with_min_len(16).for_each(|(item, dw)| {
        let start = if item == 0 { 0 } else { ends[item - 1] };
        exec.wide(
            #[inline(always)]
            || {
                dw.fill(T::zero());
                let mut sum = Sum::new(dw);
                for &(row, d) in &events[start..ends[item]] {
                    sum.add(dy.row(row as usize), d);
                }
                sum.finish();
            },
        );
    });
    column_sums(exec, dy, db);
}

impl<T: Real> Transpose<T> {
    pub(crate) fn new() -> Self {
        Self { offsets: Vec::new(), coefficients: Vec::new(), ends: Vec::new(), events: Vec::new() }
    }

    /// Draws the mask and sorts the kept events by item.
    fn fill(&mut self, exec: Exec, x: Sparse<'_, T>, dropout: Dropout, items: usize) {
        self.offsets.clear();
        self.offsets.push(0);
        let mut total = 0;
        self.offsets.extend((0..x.count).map(|r| {
            total += x.row(r).items.len();
            total
        }));
        self.coefficients.resize(total, T::zero());
        draw(exec, x, dropout, &self.offsets, &mut self.coefficients);

        // A counting sort: first how many, then where from, and after the placing where to.
        self.ends.clear();
        self.ends.resize(items, 0);
        let kept = |r: usize| {
            let coefficients = &self.coefficients[self.offsets[r]..self.offsets[r + 1]];
            x.row(r).items.iter().zip(coefficients).filter(|(_, d)| !d.is_zero())
        };
        for (&item, _) in (0..x.count).flat_map(kept) {
            self.ends[item as usize] += 1;
        }
        let mut total = 0;
        for end in &mut self.ends {
            total += std::mem::replace(end, total);
        }
        self.events.resize(total, (0, T::zero()));
        for r in 0..x.count {
            for (&item, &d) in kept(r) {
                let at = &mut self.ends[item as usize];
                self.events[*at] = (r as u32, d);
                *at += 1;
            }
        }
    }
}

/// Draws the coefficients of the rows that `offsets` bound, halving until a half is a small task.
fn draw<T: Real>(exec: Exec, x: Sparse<'_, T>, dropout: Dropout, offsets: &[usize], out: &mut [T]) {
    const ROWS: usize = 16;
    let rows = offsets.len() - 1;
    if rows > ROWS {
        let half = rows / 2;
        let (left, right) = out.split_at_mut(offsets[half] - offsets[0]);
        rayon::join(
            || draw(exec, x.block(0, half), dropout, &offsets[..=half], left),
            || draw(exec, x.block(half, rows - half), dropout, &offsets[half..], right),
        );
        return;
    }
    exec.wide(
        #[inline(always)]
        || {
            for (r, bounds) in offsets.windows(2).enumerate() {
                let out = &mut out[bounds[0] - offsets[0]..bounds[1] - offsets[0]];
                dropout.for_each(
                    x.row(r),
                    #[inline(always)]
                    |at, d| out[at] = d,
                );
            }
        },
    );
}

/// A running sum `y += d row` in the order of the terms, four at a time to spare `y` the traffic.
struct Sum<'a, T> {
    y: &'a mut [T],
    terms: [(&'a [T], T); 4],
    waiting: usize,
}

impl<'a, T: Real> Sum<'a, T> {
    #[inline(always)]
    fn new(y: &'a mut [T]) -> Self {
        Self { y, terms: [(&[], T::zero()); 4], waiting: 0 }
    }

    #[inline(always)]
    fn add(&mut self, row: &'a [T], d: T) {
        self.terms[self.waiting] = (row, d);
        self.waiting += 1;
        if self.waiting == 4 {
            self.waiting = 0;
            let [(a, p), (b, q), (c, r), (d, s)] = self.terms;
            for ((((y, &a), &b), &c), &d) in self.y.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *y = *y + a * p + b * q + c * r + d * s;
            }
        }
    }

    #[inline(always)]
    fn finish(self) {
        for (row, d) in &self.terms[..self.waiting] {
            self.y.iter_mut().zip(*row).for_each(|(y, &x)| *y += x * *d);
        }
    }
}
