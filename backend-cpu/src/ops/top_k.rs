//! The best items of each row.

use rayon::prelude::*;
use vaecf_core::math::Real;

use crate::{
    Exec,
    memory::{Sparse, View},
};

/// Scores that are passed over together.
const WIDE: usize = 64;

/// Scores that are looked at together where one of those is worth it.
const LANES: usize = 16;

/// The best items of one row among those looked at.
///
/// Items that do not beat the k-th best so far are passed over, [`WIDE`] at a time; the others
/// gather until there are twice as many as wanted, when the worse half goes and the bar rises.
#[derive(Clone, Debug)]
pub(crate) struct Best<T: Real> {
    candidates: Vec<T::Rank>,
    /// The score to beat, once there is one: a tie comes later than what set it, so it loses.
    bar: Option<T>,
}

/// The `k` best items of each row that are not in `seen`.
pub(crate) fn top_k<T: Real>(
    exec: Exec,
    scores: View<'_, T>,
    seen: Sparse<'_, T>,
    k: usize,
    scratch: &mut Vec<Best<T>>,
    items: &mut [u32],
    values: &mut [T],
) {
    if k == 0 {
        return;
    }
    let (best, bias) = (Best::start(scratch, scores.rows), vec![T::zero(); scores.cols]);
    best.par_iter_mut().enumerate().for_each(|(r, best)| {
        exec.wide(
            #[inline(always)]
            || best.look(scores.row(r), &bias, 0, seen.row(r).items, k),
        );
    });
    Best::finish(best, k, items, values);
}

impl<T: Real> Best<T> {
    /// Nothing looked at yet, for `rows` rows.
    pub(crate) fn start(scratch: &mut Vec<Self>, rows: usize) -> &mut [Self] {
        if scratch.len() < rows {
            scratch.resize(rows, Self { candidates: Vec::new(), bar: None });
        }
        let best = &mut scratch[..rows];
        for row in &mut *best {
            row.candidates.clear();
            row.bar = None;
        }
        best
    }

    /// Looks at the scores of consecutive items, `logits + bias`, the first of which is item `first`; the
    /// `seen` among them are left out. Rows are looked at from left to right.
    #[inline(always)]
    pub(crate) fn look(&mut self, logits: &[T], bias: &[T], first: u32, mut seen: &[u32], k: usize) {
        let above =
            |bar: T, logits: &[T], bias: &[T]| logits.iter().zip(bias).fold(false, |any, (&f, &b)| any | (f + b > bar));
        let mut item = first;
        for (logits, bias) in logits.chunks(WIDE).zip(bias.chunks(WIDE)) {
            // A fixed length, so that it takes no loop.
            let passed = self.bar.is_some_and(|bar| match (logits.try_into(), bias.try_into()) {
                (Ok::<&[T; WIDE], _>(logits), Ok::<&[T; WIDE], _>(bias)) => !above(bar, logits, bias),
                _ => false,
            });
            if !passed {
                let mut item = item;
                for (logits, bias) in logits.chunks(LANES).zip(bias.chunks(LANES)) {
                    if self.bar.is_none_or(|bar| above(bar, logits, bias)) {
                        seen = self.gather(logits, bias, item, seen, k);
                    }
                    item += logits.len() as u32;
                }
            }
            item += logits.len() as u32;
        }
    }

    /// Takes in what beats the bar; returns the seen items that come later.
    fn gather<'a>(&mut self, logits: &[T], bias: &[T], first: u32, mut seen: &'a [u32], k: usize) -> &'a [u32] {
        for ((&f, &b), item) in logits.iter().zip(bias).zip(first..) {
            let score = f + b;
            if self.bar.is_none_or(|bar| score > bar) {
                while let Some((_, later)) = seen.split_first().filter(|(next, _)| **next < item) {
                    seen = later;
                }
                if seen.first() != Some(&item) {
                    self.candidates.push(score.rank(item));
                }
            }
        }
        // The first bar is worth waiting for: what beats none needs no comparing.
        let room = if self.bar.is_none() { 6 * k } else { 2 * k };
        if self.candidates.len() >= room.max(k + LANES) {
            let (_, &mut kth, _) = self.candidates.select_nth_unstable(k - 1);
            self.bar = Some(T::unrank(kth).0).filter(|kth| !kth.is_nan());
            self.candidates.truncate(k);
        }
        seen
    }

    /// Writes the `k` best of each row, in order; where fewer are left, `u32::MAX` and -inf.
    pub(crate) fn finish(best: &mut [Self], k: usize, items: &mut [u32], values: &mut [T]) {
        let results = items.par_chunks_mut(k).zip(values.par_chunks_mut(k));
        results.zip(best).for_each(|((items, values), Self { candidates, .. })| {
            if candidates.len() > k {
                candidates.select_nth_unstable(k - 1);
                candidates.truncate(k);
            }
            candidates.sort_unstable();
            for ((item, value), &rank) in items.iter_mut().zip(&mut *values).zip(candidates.iter()) {
                (*value, *item) = T::unrank(rank);
            }
            items[candidates.len()..].fill(u32::MAX);
            values[candidates.len()..].fill(T::neg_infinity());
        });
    }
}
