//! The best items of each row.

use std::cmp::Ordering;

use rayon::prelude::*;
use vaecf_core::math::Real;

use crate::{
    Exec,
    memory::{Sparse, View},
};

/// Scores that are looked at together.
const LANES: usize = 32;

/// The candidates of one row: score and item.
pub(crate) type Candidates<T> = Vec<(T, u32)>;

/// The `k` best items of each row that are not in `seen`; `scratch` holds one list a thread or more.
pub(crate) fn top_k<T: Real>(
    exec: Exec,
    scores: View<'_, T>,
    seen: Sparse<'_, T>,
    k: usize,
    scratch: &mut [Candidates<T>],
    items: &mut [u32],
    values: &mut [T],
) {
    if k == 0 || scores.rows == 0 {
        return;
    }
    let rows = scores.rows.div_ceil(scratch.len());
    let results = items.par_chunks_mut(rows * k).zip(values.par_chunks_mut(rows * k));
    results.zip(scratch).enumerate().for_each(|(chunk, ((items, values), candidates))| {
        let results = items.chunks_mut(k).zip(values.chunks_mut(k));
        for (r, (items, values)) in (chunk * rows..).zip(results) {
            exec.wide(|| select(scores.row(r), seen.row(r).items, k, candidates));
            let found = candidates.len();
            for ((item, value), &(score, index)) in items.iter_mut().zip(&mut *values).zip(candidates.iter()) {
                (*item, *value) = (index, score);
            }
            items[found..].fill(u32::MAX);
            values[found..].fill(T::neg_infinity());
        }
    });
}

/// Leaves the best `k` unseen items in `best`, in order.
///
/// Items that do not beat the k-th best so far are passed over, [`LANES`] at a time; the others
/// gather until there are twice as many as wanted, when the worse half goes and the bar rises.
#[inline(always)]
fn select<T: Real>(scores: &[T], seen: &[u32], k: usize, best: &mut Candidates<T>) {
    best.clear();
    let room = (2 * k).max(k + LANES);
    let mut bar = None;
    // From gap to gap between the seen items.
    let mut from = 0;
    for &stop in seen.iter().chain([&(scores.len() as u32)]) {
        let stop = stop as usize;
        for (at, chunk) in (from..).step_by(LANES).zip(scores[from..stop].chunks(LANES)) {
            if let Some(bar) = bar
                && !beats(chunk, bar)
            {
                continue;
            }
            for (&score, item) in chunk.iter().zip(at as u32..) {
                if bar.is_none_or(|bar| score > bar) {
                    best.push((score, item));
                }
            }
            if best.len() >= room {
                let (_, &mut (kth, _), _) = best.select_nth_unstable_by(k - 1, better);
                bar = (!kth.is_nan()).then_some(kth);
                best.truncate(k);
            }
        }
        from = stop + 1;
    }
    if best.len() > k {
        best.select_nth_unstable_by(k - 1, better);
        best.truncate(k);
    }
    best.sort_unstable_by(better);
}

/// Whether any score is above `bar`: a tie comes later than what set the bar, so it loses.
#[inline(always)]
fn beats<T: Real>(chunk: &[T], bar: T) -> bool {
    chunk.iter().fold(false, |any, &score| any | (score > bar))
}

/// Higher scores first, NaN last, and among equals the smaller index.
#[inline(always)]
fn better<T: Real>(a: &(T, u32), b: &(T, u32)) -> Ordering {
    let by_score = b.0.partial_cmp(&a.0).unwrap_or_else(|| a.0.is_nan().cmp(&b.0.is_nan()));
    by_score.then(a.1.cmp(&b.1))
}
