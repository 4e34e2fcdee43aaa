//! The loss of each row against its full history.

use rayon::prelude::*;
use vaecf_core::{
    backend::Likelihood,
    math::{self, Real},
};

use crate::{
    Exec,
    memory::{Sparse, ViewMut},
};

/// The losses, and the gradient in place of the logits.
pub(crate) fn likelihood<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    kind: Likelihood,
    scale: T,
    logits: &mut ViewMut<'_, T>,
    loss: &mut ViewMut<'_, T>,
) {
    logits.rows_mut().zip(loss.rows_mut()).enumerate().for_each(|(r, (logits, loss))| {
        let row = x.row(r);
        exec.wide(
            #[inline(always)]
            || {
                loss[0] = math::likelihood(kind, row.items, row.values, logits, scale);
            },
        );
    });
}
