//! One pass over the arena.

use rayon::prelude::*;
use vaecf_core::{
    backend::{ScaleState, StepParams},
    math::{self, Real},
};

use crate::Exec;

/// Elements that one thread updates at a time.
const CHUNK: usize = 1 << 15;

/// Updates weights and moments, unless a gradient is not finite. The first `decayed` elements decay.
pub(crate) fn adam<T: Real>(
    exec: Exec,
    w: &mut [T],
    dw: &[T],
    m: &mut [T],
    v: &mut [T],
    decayed: usize,
    step: &StepParams,
    scale: &mut ScaleState,
) {
    if !dw.par_chunks(CHUNK).all(|dw| {
        exec.wide(
            #[inline(always)]
            || math::all_finite(dw),
        )
    }) {
        scale.skipped += 1;
        scale.finite = 0;
        return;
    }
    let weights = math::Adam::<T>::new(step, scale.scale);
    let biases = math::Adam { l2: T::zero(), ..weights };
    let (w, m, v) = (w.split_at_mut(decayed), m.split_at_mut(decayed), v.split_at_mut(decayed));
    let dw = dw.split_at(decayed);
    for (rule, w, dw, m, v) in [(weights, w.0, dw.0, m.0, v.0), (biases, w.1, dw.1, m.1, v.1)] {
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let chunks = w.par_chunks_mut(CHUNK).zip(dw.par_chunks(CHUNK)).zip(moments);
        chunks.for_each(|((w, dw), (m, v))| {
            exec.wide(
                #[inline(always)]
                || rule.update(w, dw, m, v),
            )
        });
    }
    scale.good += 1;
    scale.finite = 1;
}
