//! Matrices and parts, made row by row.

use crate::{
    dataset::{Part, Vocabulary},
    error::{Error, Result},
    events::{Ids, Rows},
    matrix::Matrix,
};

/// Not in the vocabulary, or not among the users.
pub(super) const NONE: u32 = u32::MAX;

/// Numbers the known items, in id order or as they come.
pub(super) fn vocabulary(ids: &Ids, mut known: Vec<u32>, by_id: bool, map: &mut Vec<u32>) -> Vocabulary {
    if by_id {
        let ranks = ids.ranks();
        known.sort_unstable_by_key(|&item| ranks[item as usize]);
    }
    *map = vec![NONE; ids.names().len() as usize];
    known.iter().zip(0..).for_each(|(&item, column)| map[item as usize] = column);
    known.iter().map(|&item| ids.names().name(item)).collect()
}

/// Makes a matrix, row by row.
pub(super) struct Builder {
    items: u32,
    starts: Vec<u64>,
    indices: Vec<u32>,
    values: Option<Vec<f32>>,
    row: Vec<(u32, f32)>,
}

impl Builder {
    pub(super) fn new(items: &Vocabulary, rows: &Rows, users: usize, events: u64) -> Self {
        let mut starts = Vec::with_capacity(users + 1);
        starts.push(0);
        let indices = Vec::with_capacity(events as usize);
        let values = rows.values().map(|_| Vec::with_capacity(events as usize));
        Self { items: items.len(), starts, indices, values, row: Vec::new() }
    }

    pub(super) fn push(&mut self, row: impl Iterator<Item = (u32, f32)>) {
        match &mut self.values {
            Some(values) => {
                self.row.clear();
                self.row.extend(row);
                self.row.sort_unstable_by_key(|event| event.0);
                self.indices.extend(self.row.iter().map(|event| event.0));
                values.extend(self.row.iter().map(|event| event.1));
            }
            None => {
                let start = self.indices.len();
                self.indices.extend(row.map(|event| event.0));
                self.indices[start..].sort_unstable();
            }
        }
        self.starts.push(self.indices.len() as u64);
    }

    pub(super) fn finish(mut self) -> Result<Matrix> {
        self.indices.shrink_to_fit();
        Matrix::new(self.items, self.starts, self.indices, self.values.map(Into::into))
    }
}

/// Makes a held-out part, user by user.
pub(super) struct PartBuilder {
    users: Vec<u32>,
    history: Builder,
    target: Builder,
}

impl PartBuilder {
    pub(super) fn new(items: &Vocabulary, rows: &Rows) -> Self {
        Self { users: Vec::new(), history: Builder::new(items, rows, 0, 0), target: Builder::new(items, rows, 0, 0) }
    }

    pub(super) fn push(
        &mut self,
        user: u32,
        history: impl Iterator<Item = (u32, f32)>,
        target: impl Iterator<Item = (u32, f32)>,
    ) {
        self.users.push(user);
        self.history.push(history);
        self.target.push(target);
    }

    pub(super) fn finish(self, none: &str) -> Result<Part> {
        if self.target.indices.is_empty() {
            return Err(Error::data(none));
        }
        Ok(Part { users: self.users, history: self.history.finish()?, target: self.target.finish()? })
    }
}
