//! Matrix products: the one place that hands out raw pointers.

use std::marker::PhantomData;

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

/// What a product writes: a matrix, or some of its columns.
#[derive(Debug)]
pub(crate) struct Target<'a, T> {
    first: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: a target stands for a mutable borrow of its cells, which no other target has.
unsafe impl<T: Send> Send for Target<'_, T> {}

impl<'a, T: Real> Target<'a, T> {
    /// All of a matrix.
    ///
    /// # Panics
    /// Where the matrix is larger than its memory or its rows overlap: that is a bug of the caller.
    pub(crate) fn of(view: &'a mut ViewMut<'_, T>) -> Self {
        assert!(view.view().span() <= view.data.len(), "a matrix that is larger than its memory");
        assert!(view.rows <= 1 || view.cols <= view.stride, "a product whose rows overlap");
        let ViewMut { rows, cols, stride, .. } = *view;
        Self { first: view.data.as_mut_ptr(), rows, cols, stride, memory: PhantomData }
    }

    /// Blocks of `width` columns, the last one of what is left, to be written by several threads.
    pub(crate) fn columns(self, width: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let whole = rest.take().filter(|whole| whole.cols > 0)?;
            let cols = width.min(whole.cols);
            // SAFETY: the first cell after the block lies in the matrix, or just behind it. The block and
            // the rest share no cell, and `whole` is gone.
            let first = unsafe { whole.first.add(cols) };
            rest = Some(Self { first, cols: whole.cols - cols, ..whole });
            Some(Self { cols, ..whole })
        })
    }
}

/// `c = a b`, or `c += a b`, on `threads` threads of the current pool.
///
/// # Panics
/// Where the shapes do not fit: that is a bug of the caller.
pub(crate) fn multiply<T: Real>(
    c: &mut Target<'_, T>,
    accumulate: bool,
    a: Factor<'_, T>,
    b: Factor<'_, T>,
    threads: usize,
) {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    assert!((c.rows, c.cols, inner) == (m, n, k), "a {m} x {k} by {inner} x {n} product in {} x {}", c.rows, c.cols);
    for view in [a.view, b.view] {
        assert!(view.span() <= view.data.len(), "a factor that is larger than its memory");
    }
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let ((a_row, a_col), (b_row, b_col)) = (a.strides(), b.strides());
    // SAFETY: all elements that the shapes and strides reach lie inside the factors' slices (checked
    // above) and inside the target, which is all different cells, borrowed mutably, so that it overlaps
    // neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.first,
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
