//! Users x items, sparse: the histories and the targets of a data set.
//!
//! A [`Matrix`] is CSR whose arrays are either owned or lie in a memory-mapped file. It checks its
//! invariants where it is made: row starts ascend from 0 to the number of events, item indices are
//! below the item count and ascend strictly within a row, weights are finite and not negative.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use sprs::{CsMatI, CsMatViewI};

use crate::error::{Error, Result};

/// An immutable array, owned or shared with its file.
#[derive(Clone)]
pub struct Array<T: 'static>(Arc<dyn Deref<Target = [T]> + Send + Sync>);

impl<T: Send + Sync> Array<T> {
    /// An array backed by anything that dereferences to a slice, such as a mapped file.
    pub fn shared(source: impl Deref<Target = [T]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }
}

impl<T: Send + Sync> From<Vec<T>> for Array<T> {
    fn from(values: Vec<T>) -> Self {
        Self::shared(values)
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// A sparse matrix of users x items, in CSR. Without values every event weighs one.
#[derive(Clone)]
pub struct Matrix {
    items: u32,
    indptr: Array<u64>,
    indices: Array<u32>,
    values: Option<Array<f32>>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} users x {} items, {} events)", self.users(), self.items, self.events())
    }
}

impl PartialEq for Matrix {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
            && *self.indptr == *other.indptr
            && *self.indices == *other.indices
            && self.values.as_deref() == other.values.as_deref()
    }
}

impl Matrix {
    /// A matrix of its parts, checked in full.
    ///
    /// # Errors
    /// Names the first invariant that does not hold, and the row where it fails.
    pub fn new(
        items: u32,
        indptr: impl Into<Array<u64>>,
        indices: impl Into<Array<u32>>,
        values: Option<Array<f32>>,
    ) -> Result<Self> {
        let matrix = Self::trusted(items, indptr.into(), indices.into(), values)?;
        matrix.check()?;
        Ok(matrix)
    }

    /// A matrix of parts whose events were checked when they were written. Only what keeps every
    /// access in bounds is checked here, so that a mapped file opens without being read;
    /// [`Matrix::check`] does the rest.
    ///
    /// # Errors
    /// Where the array lengths or the row starts do not fit together.
    pub fn trusted(items: u32, indptr: Array<u64>, indices: Array<u32>, values: Option<Array<f32>>) -> Result<Self> {
        let users = indptr.len().checked_sub(1).ok_or_else(|| Error::data("a matrix needs at least one row start"))?;
        if u32::try_from(users).is_err() {
            return Err(Error::data(format!("{users} users are more than 4,294,967,295")));
        }
        if indptr[0] != 0 || indptr[users] != indices.len() as u64 || indptr.windows(2).any(|w| w[0] > w[1]) {
            return Err(Error::data(format!("row starts do not ascend from 0 to the {} events", indices.len())));
        }
        if let Some(values) = values.as_ref().filter(|v| v.len() != indices.len()) {
            return Err(Error::data(format!("{} weights for {} events", values.len(), indices.len())));
        }
        Ok(Self { items, indptr, indices, values })
    }

    /// Reads every event and checks it.
    ///
    /// # Errors
    /// Names the row of the first event that is out of range, out of order or not a weight.
    pub fn check(&self) -> Result<()> {
        for (user, (items, values)) in self.rows().enumerate() {
            if items.windows(2).any(|w| w[0] >= w[1]) {
                return Err(Error::data(format!("row {user}: items are not in ascending order, each once")));
            }
            if let Some(&item) = items.last().filter(|&&item| item >= self.items) {
                return Err(Error::data(format!("row {user}: item {item} is beyond the {} items", self.items)));
            }
            if let Some(value) = values.and_then(|v| v.iter().find(|v| !(v.is_finite() && **v >= 0.0))) {
                return Err(Error::data(format!(
                    "row {user}: {value} is not a weight; weights are finite and at least 0"
                )));
            }
        }
        Ok(())
    }

    /// A matrix of rows of items (any order, repeats counted once), all weights one.
    ///
    /// # Errors
    /// Where an item is not below `items`.
    pub fn from_rows<R: AsRef<[u32]>>(items: u32, rows: impl IntoIterator<Item = R>) -> Result<Self> {
        let (mut indptr, mut indices) = (vec![0], Vec::new());
        for row in rows {
            let start = indices.len();
            indices.extend_from_slice(row.as_ref());
            indices[start..].sort_unstable();
            let mut end = start;
            for at in start..indices.len() {
                if at == start || indices[at] != indices[end - 1] {
                    indices[end] = indices[at];
                    end += 1;
                }
            }
            indices.truncate(end);
            indptr.push(end as u64);
        }
        Self::new(items, indptr, indices, None)
    }

    /// A matrix of rows of items and their weights, in any order; of repeats the last counts. Where it
    /// is not `weighted` all weights are one.
    ///
    /// # Errors
    /// Where an item is not below `items`, or a weight is negative or not finite.
    pub fn from_pairs<R: IntoIterator<Item = (u32, f32)>>(
        items: u32,
        rows: impl IntoIterator<Item = R>,
        weighted: bool,
    ) -> Result<Self> {
        let (mut indptr, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in rows {
            let row: BTreeMap<u32, f32> = row.into_iter().collect();
            indices.extend(row.keys());
            values.extend(row.values());
            indptr.push(indices.len() as u64);
        }
        Self::new(items, indptr, indices, weighted.then(|| values.into()))
    }

    /// What tells it from others: a checksum of all that it holds.
    pub(crate) fn checksum(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&self.items.to_le_bytes());
        sum.update(bytemuck::cast_slice(self.indptr()));
        sum.update(bytemuck::cast_slice(self.indices()));
        sum.update(bytemuck::cast_slice(self.values().unwrap_or_default()));
        sum.finalize()
    }

    /// Users, the rows.
    pub fn users(&self) -> u32 {
        (self.indptr.len() - 1) as u32
    }

    /// Items, the columns.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// Events, the cells that are not empty.
    pub fn events(&self) -> u64 {
        self.indices.len() as u64
    }

    /// Row starts `[users + 1]`.
    pub fn indptr(&self) -> &[u64] {
        &self.indptr
    }

    /// Item indices `[events]`.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Weights `[events]`; none means all ones.
    pub fn values(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    /// The items of a user, ascending.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, user: u32) -> &[u32] {
        &self.indices[self.span(user)]
    }

    /// The weights of a user's items, where the matrix has weights.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row_values(&self, user: u32) -> Option<&[f32]> {
        self.values.as_ref().map(|v| &v[self.span(user)])
    }

    /// All rows in order: items and, where there are any, weights.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (&[u32], Option<&[f32]>)> {
        (0..self.users()).map(|u| (self.row(u), self.row_values(u)))
    }

    /// The rows `users`, in that order.
    ///
    /// # Panics
    /// Where there is no such row.
    #[must_use]
    pub fn select(&self, users: &[u32]) -> Self {
        let mut indptr = Vec::with_capacity(users.len() + 1);
        indptr.push(0);
        let mut indices = Vec::new();
        let mut values = self.values.as_ref().map(|_| Vec::new());
        for &user in users {
            indices.extend_from_slice(self.row(user));
            if let (Some(to), Some(from)) = (&mut values, self.row_values(user)) {
                to.extend_from_slice(from);
            }
            indptr.push(indices.len() as u64);
        }
        Self { items: self.items, indptr: indptr.into(), indices: indices.into(), values: values.map(Into::into) }
    }

    /// How many users have each item `[items]`.
    ///
    /// # Panics
    /// Where the matrix was not checked and holds an item out of range.
    pub fn popularity(&self) -> Vec<u32> {
        let mut counts = vec![0; self.items as usize];
        for &item in self.indices() {
            counts[item as usize] += 1;
        }
        counts
    }

    /// The matrix as sprs sees it; a matrix without weights is filled with ones.
    pub fn to_sprs(&self) -> CsMatI<f32, u32, u64> {
        let values = self.values().map_or_else(|| vec![1.0; self.indices.len()], <[f32]>::to_vec);
        let shape = (self.users() as usize, self.items as usize);
        CsMatI::new(shape, self.indptr.to_vec(), self.indices.to_vec(), values)
    }

    fn span(&self, user: u32) -> std::ops::Range<usize> {
        self.indptr[user as usize] as usize..self.indptr[user as usize + 1] as usize
    }
}

impl TryFrom<CsMatViewI<'_, f32, u32, u64>> for Matrix {
    type Error = Error;

    /// Takes over a matrix of sprs, in either orientation.
    fn try_from(view: CsMatViewI<'_, f32, u32, u64>) -> Result<Self> {
        let csr = view.to_csr();
        let items = u32::try_from(csr.cols())
            .map_err(|_| Error::data(format!("{} items are more than 4,294,967,295", csr.cols())))?;
        let (indptr, indices, values) = csr.into_raw_storage();
        Self::new(items, indptr, indices, Some(values.into()))
    }
}
