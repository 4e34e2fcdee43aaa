//! Where a matrix is cut, so that each part lies in one piece of its buffer.
//!
//! A buffer is a row of pieces of equal length, because a shader sees only so much of one at a time. A matrix that
//! lies across the border of two pieces is cut into rows before it, the row that it divides, which is cut into
//! columns as well, and rows behind it. Most matrices lie in one piece and are not cut.

use std::{collections::BTreeSet, ops::Range};

use vaecf_core::backend::Mat;

/// Where rows and columns are cut: ascending, the first and the last being the matrix's own borders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    pub(crate) rows: BTreeSet<u32>,
    pub(crate) cols: BTreeSet<u32>,
}

impl Cuts {
    /// Those of a matrix in pieces of `piece` elements.
    pub(crate) fn new(mat: Mat, piece: u64) -> Self {
        let mut cuts = Self { rows: [0, mat.rows].into(), cols: [0, mat.cols].into() };
        if mat.rows == 0 || mat.cols == 0 {
            return cuts;
        }
        let (stride, cols) = (u64::from(mat.stride), u64::from(mat.cols));
        let end = mat.offset + u64::from(mat.rows - 1) * stride + cols;
        // Every border strictly within the matrix.
        let mut border = (mat.offset / piece + 1) * piece;
        while border < end {
            let (row, col) = ((border - mat.offset) / stride, (border - mat.offset) % stride);
            if col == 0 {
                cuts.rows.insert(row as u32);
            } else {
                cuts.rows.insert(row as u32 + 1);
                if col < cols {
                    cuts.rows.insert(row as u32);
                    cuts.cols.insert(col as u32);
                }
            }
            border += piece;
        }
        cuts
    }

    /// Those of both.
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.cols.extend(other.cols);
        self
    }

    /// The cells between them, row after row.
    pub(crate) fn cells(&self) -> Vec<(Range<u32>, Range<u32>)> {
        let cols = stretches(&self.cols);
        let row = |rows: Range<u32>| cols.iter().map(move |cols| (rows.clone(), cols.clone()));
        stretches(&self.rows).into_iter().flat_map(row).collect()
    }
}

/// The stretches between cuts.
pub(crate) fn stretches(cuts: &BTreeSet<u32>) -> Vec<Range<u32>> {
    let ends = cuts.iter().skip(1);
    cuts.iter().zip(ends).map(|(&from, &to)| from..to).collect()
}

/// The stretches between cuts, none longer than `most`, which is at least 1.
pub(crate) fn cut_every(mut cuts: BTreeSet<u32>, most: u64) -> Vec<Range<u32>> {
    let end = cuts.last().copied().unwrap_or(0);
    cuts.extend((0..end).step_by(usize::try_from(most).unwrap_or(usize::MAX)));
    stretches(&cuts)
}

/// For sums: where there is nothing to add up, a sum over nothing is made.
pub(crate) fn or_nothing(mut stretches: Vec<Range<u32>>) -> Vec<Range<u32>> {
    if stretches.is_empty() {
        stretches.push(0..0);
    }
    stretches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vaecf_core::backend::Buf;

    use super::*;

    proptest! {
        /// Each cell lies in one piece, and together they are the matrix; what lies in one piece is not cut.
        #[test]
        fn cells_lie_in_one_piece_each(
            piece in 1_u64..40,
            offset in 0_u64..200,
            rows in 0_u32..12,
            cols in 0_u32..50,
            beyond in 0_u32..9,
        ) {
            let stride = (cols + beyond).max(1);
            let mat = Mat { buf: Buf(1), rows, cols, stride, offset };
            let cuts = Cuts::new(mat, piece);
            let place = |row: u32, col: u32| (offset + u64::from(row) * u64::from(stride) + u64::from(col)) / piece;
            let mut cells = 0_u64;
            for part in stretches(&cuts.rows) {
                for side in stretches(&cuts.cols) {
                    let piece = place(part.start, side.start);
                    prop_assert_eq!(piece, place(part.end - 1, side.end - 1));
                    for row in part.clone() {
                        prop_assert_eq!(place(row, side.start), piece);
                        prop_assert_eq!(place(row, side.end - 1), piece);
                    }
                    cells += u64::from(part.end - part.start) * u64::from(side.end - side.start);
                }
            }
            prop_assert_eq!(cells, u64::from(rows) * u64::from(cols));
            if rows > 0 && cols > 0 && place(0, 0) == place(rows - 1, cols - 1) {
                prop_assert_eq!((cuts.rows.len(), cuts.cols.len()), (2, 2));
            }
        }
    }
}
