//! The popularity baseline: everybody gets what most people had.
//!
//! It stands beside a model in every evaluation, because a model that does not beat it has learned
//! nothing about persons, and it is what an empty history gets.

use crate::{
    error::{Error, Result},
    matrix::Matrix,
    metrics::NO_ITEM,
};

/// How many training users have each item, and the items in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Popularity {
    users: u32,
    counts: Vec<u32>,
    order: Vec<u32>,
}

impl Popularity {
    /// Popularity in a training matrix.
    ///
    /// # Panics
    /// Where the matrix was not checked and holds an item out of range.
    pub fn of(train: &Matrix) -> Self {
        Self::ranked(train.popularity(), train.users())
    }

    /// Popularity as a model stores it: users per item `[items]`, and how many users there were.
    ///
    /// # Errors
    /// Where an item has more users than there are.
    pub fn new(counts: Vec<u32>, users: u32) -> Result<Self> {
        if let Some((item, count)) = counts.iter().enumerate().find(|(_, count)| **count > users) {
            return Err(Error::data(format!("item {item} has {count} users, yet there are only {users}")));
        }
        Ok(Self::ranked(counts, users))
    }

    fn ranked(counts: Vec<u32>, users: u32) -> Self {
        let mut order: Vec<u32> = (0..counts.len() as u32).collect();
        // A stable sort, so that ties go to the smaller index, as they do in every ranking.
        order.sort_by_key(|&item| std::cmp::Reverse(counts[item as usize]));
        Self { users, counts, order }
    }

    /// What tells it from others.
    pub(crate) fn checksum(&self) -> u32 {
        crc32fast::hash(bytemuck::cast_slice(&[&[self.users][..], &self.counts].concat()))
    }

    /// Items in the catalogue.
    pub fn items(&self) -> u32 {
        self.counts.len() as u32
    }

    /// Training users.
    pub fn users(&self) -> u32 {
        self.users
    }

    /// Training users of each item `[items]`.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// All items, the most popular first; ties go to the smaller index `[items]`.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Writes the most popular items that are not in `history` (ascending) into `ranking`, best
    /// first; where fewer are left the rest is [`NO_ITEM`].
    pub fn rank(&self, history: &[u32], ranking: &mut [u32]) {
        let unseen = self.order.iter().filter(|item| history.binary_search(item).is_err());
        let mut filled = 0;
        for (place, &item) in ranking.iter_mut().zip(unseen) {
            *place = item;
            filled += 1;
        }
        ranking[filled..].fill(NO_ITEM);
    }
}
