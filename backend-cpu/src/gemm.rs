//! Matrix products: the one place that hands out raw pointers.

use vaecf_core::math::Real;

use crate::memory::{View, ViewMut};

/// A factor: a matrix or its transpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor<'a, T> {
    view: View<'a, T>,
    transposed: bool,
}

impl<'a, T: Real> View<'a, T> {
    /// The matrix as it is.
    pub(crate) fn plain(self) -> Factor<'a, T> {
        Factor { view: self, transposed: false }
    }

    /// Its transpose.
    pub(crate) fn transposed(self) -> Factor<'a, T> {
        Factor { view: self, transposed: true }
    }

    /// Elements from the first to the last.
    fn span(self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols }
    }
}

impl<T: Real> Factor<'_, T> {
    fn shape(self) -> (usize, usize) {
        let View { rows, cols, .. } = self.view;
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }

    /// From row to row, and from column to column.
    fn strides(self) -> (isize, isize) {
        let stride = self.view.stride as isize;
        if self.transposed { (1, stride) } else { (stride, 1) }
    }
}

/// `c = a b`, or `c += a b`, on `threads` threads of the current pool.
///
/// # Panics
/// Where the shapes do not fit: that is a bug of the caller.
pub(crate) fn multiply<T: Real>(
    c: &mut ViewMut<'_, T>,
    accumulate: bool,
    a: Factor<'_, T>,
    b: Factor<'_, T>,
    threads: usize,
) {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    assert!((c.rows, c.cols, inner) == (m, n, k), "a {m} x {k} by {inner} x {n} product in {} x {}", c.rows, c.cols);
    for view in [a.view, b.view, c.view()] {
        assert!(view.span() <= view.data.len(), "a matrix that is larger than its memory");
    }
    assert!(c.rows <= 1 || c.cols <= c.stride, "a product whose rows overlap");
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let ((a_row, a_col), (b_row, b_col)) = (a.strides(), b.strides());
    // SAFETY: all elements that the shapes and strides reach lie inside their slices (`span`, checked
    // above), those of `c` are all different, and `c`, borrowed mutably, overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            accumulate,
            a.view.data.as_ptr(),
            a_col,
            a_row,
            b.view.data.as_ptr(),
            b_col,
            b_row,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}
