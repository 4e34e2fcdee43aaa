//! Events as they were read: pairs of dense numbers in file order, and the external ids behind them.
//!
//! An event takes 8 bytes; values and times are kept only where the split or the weights need them.
//! [`Events::group`] turns the log into rows, in place.

use std::ops::Deref;

use rustc_hash::FxHashMap;

use crate::{
    dataset::Vocabulary,
    error::{Error, Result},
};

/// Integer ids below this are looked up in a table, all others in a hash map.
const TABLE: u64 = 1 << 20;

/// External ids, numbered in the order in which they first appear.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    names: Vocabulary,
    /// Number + 1 of the id that is this integer.
    table: Vec<u32>,
    integers: FxHashMap<u64, u32>,
    texts: FxHashMap<Box<str>, u32>,
    last: Option<(u64, u32)>,
}

impl Ids {
    /// The number of an id, a new one where the id is new.
    ///
    /// # Errors
    /// Where there are more ids than a `u32` can count.
    pub fn number(&mut self, id: &str) -> Result<u32> {
        if let Some(integer) = integer(id.as_bytes()) {
            return self.number_of_integer(integer);
        }
        if let Some(&number) = self.texts.get(id) {
            return Ok(number);
        }
        let number = self.add(id)?;
        self.texts.insert(id.into(), number);
        Ok(number)
    }

    /// The number of an id that is an integer in its plain form; see [`integer`].
    ///
    /// # Errors
    /// Where there are more ids than a `u32` can count.
    #[inline]
    pub fn number_of_integer(&mut self, id: u64) -> Result<u32> {
        // Files sorted by user repeat the id.
        if let Some((_, number)) = self.last.filter(|last| last.0 == id) {
            return Ok(number);
        }
        let known = if id < TABLE {
            self.table.get(id as usize).and_then(|n| n.checked_sub(1))
        } else {
            self.integers.get(&id).copied()
        };
        let number = match known {
            Some(number) => number,
            None => self.add_integer(id)?,
        };
        self.last = Some((id, number));
        Ok(number)
    }

    fn add_integer(&mut self, id: u64) -> Result<u32> {
        let number = self.add(&id.to_string())?;
        if id >= TABLE {
            self.integers.insert(id, number);
        } else {
            let at = id as usize;
            if self.table.len() <= at {
                self.table.resize(at + 1, 0);
            }
            self.table[at] = number + 1;
        }
        Ok(number)
    }

    fn add(&mut self, id: &str) -> Result<u32> {
        if self.names.len() == u32::MAX - 1 {
            return Err(Error::data("there are more than 4,294,967,294 different ids"));
        }
        self.names.push(id);
        Ok(self.names.len() - 1)
    }

    /// The ids by number.
    pub fn names(&self) -> &Vocabulary {
        &self.names
    }

    /// The place of each number when ids are sorted: as numbers where all are integers, else as text.
    /// So a data set does not depend on the order of the rows it was read from.
    pub fn ranks(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.names.len()).collect();
        match self.names.iter().map(|id| id.parse::<i128>().ok()).collect::<Option<Vec<_>>>() {
            Some(numbers) => order.sort_by_key(|&n| numbers[n as usize]),
            None => order.sort_by_key(|&n| self.names.name(n)),
        }
        let mut ranks = vec![0; order.len()];
        order.iter().zip(0..).for_each(|(&n, rank)| ranks[n as usize] = rank);
        ranks
    }
}

/// The value of an integer written in its plain form: no sign, no leading zeros. Anything else is text.
#[inline]
pub fn integer(id: &[u8]) -> Option<u64> {
    if id.is_empty() || id.len() > 19 || (id[0] == b'0' && id.len() > 1) {
        return None;
    }
    id.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| sum * 10 + u64::from(digit))
    })
}

/// Who touched what, in file order.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// `user << 32 | item`.
    pairs: Vec<u64>,
    values: Option<Vec<f32>>,
    times: Option<Vec<i64>>,
}

impl Events {
    /// An empty log, that keeps the values and the times of events or leaves them.
    pub fn new(values: bool, times: bool) -> Self {
        Self { pairs: Vec::new(), values: values.then(Vec::new), times: times.then(Vec::new) }
    }

    /// Appends an event.
    #[inline]
    pub fn push(&mut self, user: u32, item: u32, value: f32, time: i64) {
        self.pairs.push(u64::from(user) << 32 | u64::from(item));
        if let Some(values) = &mut self.values {
            values.push(value);
        }
        if let Some(times) = &mut self.times {
            times.push(time);
        }
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The log as rows of users, each pair once: repeats count as one event at the place of the
    /// first, with the value and the time of the last. Within a row events stay in file order, or,
    /// where `ordered` is false and the log is not sorted by user, come in no particular order.
    ///
    /// Works in the log's own memory: 8 bytes an event at most, 4 afterwards. Only a log that is not
    /// sorted by user and must stay ordered, or has values or times, takes more.
    ///
    /// # Errors
    /// Where there are more events than can be sorted with 32-bit numbers.
    pub fn group(mut self, users: u32, items: u32, ordered: bool) -> Result<Rows> {
        if !self.pairs.is_sorted_by_key(|pair| pair >> 32) {
            if self.values.is_some() || self.times.is_some() {
                self.sort_all()?;
            } else if ordered {
                self.pairs.sort_by_key(|pair| pair >> 32);
            } else {
                self.pairs.sort_unstable();
            }
        }
        let Self { mut pairs, mut values, mut times } = self;
        // For each item the row that had it last, and where.
        let mut seen = vec![(u32::MAX, 0_usize); items as usize];
        let mut starts = Vec::with_capacity(users as usize + 1);
        let (total, mut end) = (pairs.len(), 0);
        for at in 0..total {
            let (user, item) = ((pairs[at] >> 32) as u32, pairs[at] as u32);
            while starts.len() <= user as usize {
                starts.push(end as u64);
            }
            let seen = &mut seen[item as usize];
            let to = if seen.0 == user { seen.1 } else { end };
            if let Some(values) = &mut values {
                values[to] = values[at];
            }
            if let Some(times) = &mut times {
                times[to] = times[at];
            }
            if to == end {
                *seen = (user, end);
                // The cell written lies at or before the pair just read.
                bytemuck::cast_slice_mut::<u64, u32>(&mut pairs)[end] = item;
                end += 1;
            }
        }
        starts.resize(users as usize + 1, end as u64);
        pairs.truncate(end.div_ceil(2));
        pairs.shrink_to_fit();
        values.iter_mut().for_each(|v| v.truncate(end));
        times.iter_mut().for_each(|t| t.truncate(end));
        Ok(Rows { starts, items: Packed { cells: pairs, len: end }, values, times, repeats: (total - end) as u64 })
    }

    /// Sorts by user, stably, with everything an event has.
    fn sort_all(&mut self) -> Result<()> {
        let count = u32::try_from(self.pairs.len())
            .map_err(|_| Error::data("more than 4,294,967,295 events with values or times are too many; leave out --weights, or sort the file by user"))?;
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by_key(|&at| self.pairs[at as usize] >> 32);
        self.pairs = order.iter().map(|&at| self.pairs[at as usize]).collect();
        if let Some(values) = &mut self.values {
            *values = order.iter().map(|&at| values[at as usize]).collect();
        }
        if let Some(times) = &mut self.times {
            *times = order.iter().map(|&at| times[at as usize]).collect();
        }
        Ok(())
    }
}

/// Item numbers in the memory that held the pairs.
#[derive(Clone, Debug, Default)]
struct Packed {
    cells: Vec<u64>,
    len: usize,
}

impl Deref for Packed {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.cells)[..self.len]
    }
}

/// Events by user, each pair once; see [`Events::group`].
#[derive(Clone, Debug)]
pub struct Rows {
    starts: Vec<u64>,
    items: Packed,
    values: Option<Vec<f32>>,
    times: Option<Vec<i64>>,
    repeats: u64,
}

impl Rows {
    /// How many users there are, with or without events.
    pub fn users(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// How many events there are.
    pub fn events(&self) -> u64 {
        self.items.len() as u64
    }

    /// How many events of the log were repeats of a pair.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// The items of a user, each once, in the order of [`Events::group`].
    ///
    /// # Panics
    /// Where there is no such user.
    pub fn row(&self, user: u32) -> &[u32] {
        &self.items[self.span(user)]
    }

    /// The values of a user's items, where they were kept.
    ///
    /// # Panics
    /// Where there is no such user.
    pub fn row_values(&self, user: u32) -> Option<&[f32]> {
        self.values.as_ref().map(|values| &values[self.span(user)])
    }

    /// Where the events of a user lie.
    pub(crate) fn span(&self, user: u32) -> std::ops::Range<usize> {
        self.starts[user as usize] as usize..self.starts[user as usize + 1] as usize
    }

    /// The items of all events.
    pub(crate) fn items(&self) -> &[u32] {
        &self.items
    }

    /// The values of all events, where they were kept.
    pub(crate) fn values(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    /// The times of all events, where they were kept.
    pub(crate) fn times(&self) -> Option<&[i64]> {
        self.times.as_deref()
    }
}
