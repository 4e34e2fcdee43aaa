//! A data set ready to train on: matrices, external ids, and held-out users.

use std::collections::HashMap;

use crate::{
    error::{Error, Result},
    matrix::Matrix,
};

/// External ids, in the order of their dense index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    text: String,
    ends: Vec<u64>,
}

impl Vocabulary {
    /// How many ids there are.
    pub fn len(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Appends an id, which gets the next index.
    pub fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len() as u64);
    }

    /// The id of an index.
    ///
    /// # Panics
    /// Where there is no such index.
    pub fn name(&self, index: u32) -> &str {
        let start = if index == 0 { 0 } else { self.ends[index as usize - 1] as usize };
        &self.text[start..self.ends[index as usize] as usize]
    }

    /// All ids in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.name(i))
    }

    /// A table from id to index, for looking up many.
    pub fn lookup(&self) -> HashMap<&str, u32, rustc_hash::FxBuildHasher> {
        self.iter().zip(0..).collect()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Vocabulary {
    fn from_iter<I: IntoIterator<Item = S>>(ids: I) -> Self {
        let mut vocabulary = Self::default();
        ids.into_iter().for_each(|id| vocabulary.push(id.as_ref()));
        vocabulary
    }
}

/// Users whose events are in part hidden: a history goes in, the target is to be found.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Index into the data set's users, one per row of the two matrices.
    pub users: Vec<u32>,
    /// What the model sees, and what is masked before ranking.
    pub history: Matrix,
    /// What it is to recommend. Users with an empty row are not scored.
    pub target: Matrix,
}

/// A data set, split.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Training histories: row `u` is user `u` of `users`.
    pub train: Matrix,
    /// Held out for choosing the epoch.
    pub validation: Option<Part>,
    /// Held out for the final figure.
    pub test: Option<Part>,
    /// External item ids; the columns of every matrix.
    pub items: Vocabulary,
    /// External user ids: the training rows first, then users seen only in a held-out part.
    pub users: Vocabulary,
}

impl Dataset {
    /// Puts a data set together.
    ///
    /// # Errors
    /// Where the parts do not agree on items or users.
    pub fn new(
        train: Matrix,
        validation: Option<Part>,
        test: Option<Part>,
        items: Vocabulary,
        users: Vocabulary,
    ) -> Result<Self> {
        let parts = [("validation", &validation), ("test", &test)];
        for (name, part) in parts.into_iter().filter_map(|(n, p)| p.as_ref().map(|p| (n, p))) {
            let rows = part.users.len();
            if part.history.users() as usize != rows || part.target.users() as usize != rows {
                return Err(Error::data(format!("{name}: users, histories and targets differ in number")));
            }
            if part.history.items() != train.items() || part.target.items() != train.items() {
                return Err(Error::data(format!("{name}: its item count differs from that of the training part")));
            }
            if part.users.iter().any(|&u| u >= users.len()) {
                return Err(Error::data(format!("{name}: a user index is beyond the {} users", users.len())));
            }
        }
        if items.len() != train.items() || users.len() < train.users() {
            return Err(Error::data("the ids of users or items do not match the training matrix"));
        }
        Ok(Self { train, validation, test, items, users })
    }
}
