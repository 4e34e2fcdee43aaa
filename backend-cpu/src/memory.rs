//! Buffers, and views of them.
//!
//! Each kind of element has a [`Table`] of its own, so that a handle used in the wrong place, or after
//! it was freed, is simply not found. An operation borrows all it needs from a table in one call, which
//! splits buffers into disjoint slices: weights and bias may share one arena, and so may gradients.

use std::{collections::BTreeMap, marker::PhantomData};

use bytemuck::Pod;
use memmap2::{MmapMut, MmapOptions};
use rayon::prelude::*;
use vaecf_core::{
    backend::{Buf, Fault, Mat, Result, Rows},
    math::{Real, Stretch},
};

/// A range of a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) buf: Buf,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Span {
    /// From the first element of a matrix to its last; what pads the last row does not belong to it.
    fn of(mat: Mat) -> Self {
        let empty = mat.rows == 0 || mat.cols == 0;
        let len = if empty { 0 } else { u64::from(mat.rows - 1) * u64::from(mat.stride) + u64::from(mat.cols) };
        Self { buf: mat.buf, start: mat.offset, len }
    }
}

/// What is lent to read, and what to write.
type Lent<A, B, const R: usize, const W: usize> = ([A; R], [B; W]);

/// All buffers of one element type. Handles are never used twice.
#[derive(Debug)]
pub(crate) struct Table<E> {
    name: &'static str,
    buffers: BTreeMap<u32, Memory<E>>,
}

/// The elements of one buffer, in memory of its own: pages straight from the system, huge ones where it
/// has them. With ordinary pages, passes over hundreds of megabytes take twice as long.
#[derive(Debug)]
struct Memory<E> {
    map: MmapMut,
    elements: PhantomData<E>,
}

impl<E: Pod> Memory<E> {
    /// Zeros; `None` where the system refuses.
    fn zeroed(len: usize) -> Option<Self> {
        let mut map = MmapOptions::new().len(len.checked_mul(size_of::<E>())?).map_anon().ok()?;
        // A wish, not a need: without huge pages everything works the same.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        // The system gives zeros, but only when they are touched; what does not fit must show now.
        map.fill(0);
        Some(Self { map, elements: PhantomData })
    }

    fn all(&self) -> &[E] {
        bytemuck::cast_slice(&self.map)
    }

    fn all_mut(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

impl<E: Pod> Table<E> {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, buffers: BTreeMap::new() }
    }

    /// Makes a buffer of zeros; `None` where the allocator refuses.
    pub(crate) fn insert(&mut self, handle: u32, len: usize) -> Option<()> {
        self.buffers.insert(handle, Memory::zeroed(len)?);
        Some(())
    }

    pub(crate) fn remove(&mut self, buf: Buf) {
        self.buffers.remove(&buf.0);
    }

    /// All of a buffer; no buffer is an empty span.
    pub(crate) fn whole(&self, buf: Buf) -> Result<Span> {
        let len = match self.buffers.get(&buf.0) {
            Some(buffer) => buffer.all().len() as u64,
            None if buf.is_none() => 0,
            None => return Err(Fault::Other(format!("{} is not a live handle of {}", buf.0, self.name))),
        };
        Ok(Span { buf, start: 0, len })
    }

    /// A range of one buffer.
    pub(crate) fn range(&mut self, buf: Buf, at: u64, len: usize) -> Result<&mut [E]> {
        let ([], [range]) = self.borrow([], [Span { buf, start: at, len: len as u64 }])?;
        Ok(range)
    }

    /// The only element of a buffer.
    pub(crate) fn one(&mut self, buf: Buf) -> Result<E> {
        Ok(self.range(buf, 0, 1)?[0])
    }

    /// Lends all `reads` and `writes` at once. Reads may overlap each other, writes nothing.
    pub(crate) fn borrow<const R: usize, const W: usize>(
        &mut self,
        reads: [Span; R],
        writes: [Span; W],
    ) -> Result<Lent<&[E], &mut [E], R, W>> {
        for span in reads.iter().chain(&writes) {
            let (len, Span { buf, start, len: wanted }) = (self.whole(span.buf)?.len, *span);
            if start.checked_add(wanted).is_none_or(|end| end > len) {
                let message = format!("{wanted} {} from {start} on, of the {len} that handle {} has", self.name, buf.0);
                return Err(Fault::Other(message));
            }
        }
        let overlap = || Fault::Other(format!("an operation writes {} that it also uses otherwise", self.name));
        let mut lent: [Option<&[E]>; R] = reads.map(|s| (s.len == 0).then_some(&[][..]));
        let mut owned: [&mut [E]; W] = std::array::from_fn(|_| Default::default());
        let mut ascending: [usize; W] = std::array::from_fn(|i| i);
        ascending.sort_unstable_by_key(|&i| writes[i].start);
        for (&handle, buffer) in &mut self.buffers {
            // What is written is cut out from left to right; the gaps between are there to be read.
            let (mut rest, mut at) = (buffer.all_mut(), 0);
            for &i in ascending.iter().filter(|&&i| writes[i].buf.0 == handle && writes[i].len > 0) {
                let Span { start, len, .. } = writes[i];
                let skip = start.checked_sub(at).ok_or_else(overlap)?;
                let (gap, tail) = rest.split_at_mut(skip as usize);
                lend_gap(handle, at, gap, &reads, &mut lent);
                (owned[i], rest) = tail.split_at_mut(len as usize);
                at = start + len;
            }
            lend_gap(handle, at, rest, &reads, &mut lent);
        }
        if lent.iter().any(Option::is_none) {
            return Err(overlap());
        }
        Ok((lent.map(Option::unwrap_or_default), owned))
    }
}

/// Lends those reads that lie inside `gap`, the part of a buffer from element `at` on.
fn lend_gap<'a, E>(handle: u32, at: u64, gap: &'a [E], reads: &[Span], lent: &mut [Option<&'a [E]>]) {
    for (span, slot) in reads.iter().zip(lent) {
        if span.buf.0 == handle
            && let Some(from) = span.start.checked_sub(at)
        {
            *slot = slot.or(gap.get(from as usize..(from + span.len) as usize));
        }
    }
}

impl<T: Real> Table<T> {
    /// Lends matrices; [`Buf::NONE`] is a matrix of nothing.
    pub(crate) fn views<const R: usize, const W: usize>(
        &mut self,
        reads: [Mat; R],
        writes: [Mat; W],
    ) -> Result<Lent<View<'_, T>, ViewMut<'_, T>, R, W>> {
        if let Some(mat) = reads.iter().chain(&writes).find(|m| m.rows > 1 && m.stride < m.cols) {
            return Err(Fault::Other(format!("rows of {} elements that are {} apart", mat.cols, mat.stride)));
        }
        let (lent, owned) = self.borrow(reads.map(Span::of), writes.map(Span::of))?;
        let (mut lent, mut owned) = (lent.into_iter(), owned.into_iter());
        Ok((
            reads.map(|m| View::new(lent.next().unwrap_or_default(), m)),
            writes.map(|m| ViewMut::new(owned.next().unwrap_or_default(), m)),
        ))
    }

    /// All of a buffer as one row, for what is optional.
    pub(crate) fn row(&self, buf: Buf) -> Result<Mat> {
        let len = self.whole(buf)?.len;
        let cols = u32::try_from(len).map_err(|_| Fault::Other(format!("{len} values are more than 2^32")))?;
        Ok(Mat { buf, rows: 1, cols, stride: cols, offset: 0 })
    }
}

/// A matrix to read: row `r` starts at element `r * stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<'a, T: Real> View<'a, T> {
    fn new(data: &'a [T], mat: Mat) -> Self {
        Self { data, rows: mat.rows as usize, cols: mat.cols as usize, stride: mat.stride as usize }
    }

    pub(crate) fn row(self, r: usize) -> &'a [T] {
        &self.data[r * self.stride..][..self.cols]
    }

    /// Columns `from..from + cols`.
    pub(crate) fn columns(self, from: usize, cols: usize) -> Self {
        Self { data: self.data.get(from..).unwrap_or_default(), cols, ..self }
    }

    /// Rows `from..from + rows`.
    pub(crate) fn block(self, from: usize, rows: usize) -> Self {
        Self { data: self.data.get(from * self.stride..).unwrap_or_default(), rows, ..self }
    }
}

/// A matrix to write.
#[derive(Debug)]
pub(crate) struct ViewMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<'a, T: Real> ViewMut<'a, T> {
    fn new(data: &'a mut [T], mat: Mat) -> Self {
        Self { data, rows: mat.rows as usize, cols: mat.cols as usize, stride: mat.stride as usize }
    }

    pub(crate) fn view(&self) -> View<'_, T> {
        View { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Rows `from..from + rows`.
    pub(crate) fn block(&mut self, from: usize, rows: usize) -> ViewMut<'_, T> {
        let data = self.data.get_mut(from * self.stride..).unwrap_or_default();
        ViewMut { data, rows, cols: self.cols, stride: self.stride }
    }

    pub(crate) fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[r * self.stride..][..self.cols]
    }

    /// All rows, to be shared among threads. The padding between is left out.
    pub(crate) fn rows_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [T]> {
        let cols = self.cols;
        self.data.par_chunks_mut(self.stride.max(1)).take(self.rows).map(move |row| &mut row[..cols])
    }
}

/// The window of a sparse matrix that an operation works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sparse<'a, T> {
    indptr: &'a [u32],
    indices: &'a [u32],
    values: Option<&'a [T]>,
    users: Option<&'a [u32]>,
    first: usize,
    pub(crate) count: usize,
}

/// One row of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseRow<'a, T> {
    pub(crate) user: u32,
    pub(crate) items: &'a [u32],
    pub(crate) values: Option<&'a [T]>,
}

impl<'a, T: Real> Sparse<'a, T> {
    /// `index` are the row starts, the items and the users of `rows`.
    pub(crate) fn new(rows: Rows, first: u64, index: [&'a [u32]; 3], values: View<'a, T>) -> Result<Self> {
        let [indptr, indices, users] = index;
        let window = Self {
            indptr,
            indices,
            values: (!rows.values.is_none()).then_some(values.data),
            users: (!rows.users.is_none()).then_some(users),
            first: first as usize,
            count: rows.count as usize,
        };
        let end = window.first + window.count;
        let known = match window.users {
            Some(users) => users.len(),
            None if rows.indptr.is_none() => usize::MAX,
            None => indptr.len().saturating_sub(1),
        };
        if end > known {
            return Err(Fault::Other(format!("a batch of the users {first}..{end}, of which there are {known}")));
        }
        Ok(window)
    }

    pub(crate) fn row(&self, r: usize) -> SparseRow<'a, T> {
        let at = self.first + r;
        let user = self.users.map_or(at as u32, |users| users[at]);
        if self.indptr.is_empty() {
            return SparseRow { user, items: &[], values: None };
        }
        let range = self.indptr[user as usize] as usize..self.indptr[user as usize + 1] as usize;
        SparseRow { user, items: &self.indices[range.clone()], values: self.values.map(|v| &v[range]) }
    }

    /// Rows `from..from + count` of the window.
    pub(crate) fn block(self, from: usize, count: usize) -> Self {
        Self { first: self.first + from, count, ..self }
    }
}

/// The rows of a window cut at multiples of a number of items: all that falls in the first chunk, row
/// after row, then all in the second, and so on. To be worked on chunk by chunk without a search.
#[derive(Debug)]
pub(crate) struct Cut<T> {
    width: usize,
    rows: usize,
    /// Where each row of each chunk ends in `items`, after a zero.
    ends: Vec<usize>,
    items: Vec<u32>,
    /// Weights, empty where all are one.
    values: Vec<T>,
}

impl<T: Real> Cut<T> {
    pub(crate) fn new() -> Self {
        Self { width: 1, rows: 0, ends: Vec::new(), items: Vec::new(), values: Vec::new() }
    }

    /// Cuts a window into `chunks` times `width` items.
    pub(crate) fn fill(&mut self, x: Sparse<'_, T>, width: usize, chunks: usize) {
        (self.width, self.rows) = (width, x.count);
        // A counting sort: first how many, then where from, and after the placing where to.
        self.ends.clear();
        self.ends.resize(1 + chunks * x.count, 0);
        let ends = &mut self.ends[1..];
        for r in 0..x.count {
            for &item in x.row(r).items {
                ends[item as usize / width * x.count + r] += 1;
            }
        }
        let mut total = 0;
        for end in &mut *ends {
            total += std::mem::replace(end, total);
        }
        self.items.resize(total, 0);
        self.values.resize(if x.values.is_some() { total } else { 0 }, T::zero());
        for r in 0..x.count {
            let row = x.row(r);
            for (at, &item) in row.items.iter().enumerate() {
                let to = &mut ends[item as usize / width * x.count + r];
                self.items[*to] = item;
                if let Some(values) = row.values {
                    self.values[*to] = values[at];
                }
                *to += 1;
            }
        }
    }

    /// What a row holds of a chunk.
    pub(crate) fn stretch(&self, chunk: usize, row: usize) -> Stretch<'_, T> {
        let at = chunk * self.rows + row;
        let range = self.ends[at]..self.ends[at + 1];
        let values = (!self.values.is_empty()).then(|| &self.values[range.clone()]);
        Stretch { from: (chunk * self.width) as u32, items: &self.items[range], values }
    }
}
