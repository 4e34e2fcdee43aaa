//! Dense layers.

use rayon::prelude::*;
use vaecf_core::{
    backend::Curve,
    math::{self, Real},
};

use crate::{
    Exec,
    gemm::{Target, multiply},
    memory::{View, ViewMut},
};

/// Columns that one thread sums at a time.
const COLUMNS: usize = 512;

/// `y = curve(x w + b)`.
pub(crate) fn linear<T: Real>(
    exec: Exec,
    x: View<'_, T>,
    w: View<'_, T>,
    b: View<'_, T>,
    curve: Curve,
    y: &mut ViewMut<'_, T>,
) {
    multiply(&mut Target::of(y), false, x.plain(), w.plain(), exec.threads);
    y.rows_mut().for_each(|row| {
        exec.wide(
            #[inline(always)]
            || {
                add(row, b.row(0));
                math::apply_curve(curve, row);
            },
        );
    });
}

/// `dw = x^T dy`, `db = colsum(dy)`.
pub(crate) fn linear_grad_weight<T: Real>(
    exec: Exec,
    x: View<'_, T>,
    dy: View<'_, T>,
    dw: &mut ViewMut<'_, T>,
    db: &mut ViewMut<'_, T>,
) {
    multiply(&mut Target::of(dw), false, x.transposed(), dy.plain(), exec.threads);
    column_sums(exec, dy, db);
}

/// `dx = (dy w^T) * curve'(x)`.
pub(crate) fn linear_grad_input<T: Real>(
    exec: Exec,
    dy: View<'_, T>,
    w: View<'_, T>,
    x: View<'_, T>,
    curve: Curve,
    dx: &mut ViewMut<'_, T>,
) {
    multiply(&mut Target::of(dx), false, dy.plain(), w.transposed(), exec.threads);
    dx.rows_mut().enumerate().for_each(|(r, row)| {
        exec.wide(
            #[inline(always)]
            || math::apply_curve_grad(curve, x.row(r), row),
        )
    });
}

/// The sum of all rows, in their order, whatever the number of threads.
pub(crate) fn column_sums<T: Real>(exec: Exec, dy: View<'_, T>, db: &mut ViewMut<'_, T>) {
    db.row_mut(0).par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        exec.wide(
            #[inline(always)]
            || {
                sums.fill(T::zero());
                for r in 0..dy.rows {
                    add(sums, &dy.row(r)[chunk * COLUMNS..][..sums.len()]);
                }
            },
        );
    });
}

/// `y += x`.
#[inline(always)]
pub(crate) fn add<T: Real>(y: &mut [T], x: &[T]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
}
