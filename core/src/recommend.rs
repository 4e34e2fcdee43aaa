//! Top-k recommendations for histories: fold in, score, mask, rank.

use crate::{
    error::{Error, Result},
    matrix::Matrix,
    metrics::NO_ITEM,
    model::{Model, Workspace},
    popularity::Popularity,
};

/// The recommendations for one history, best first. Shorter than asked where the catalogue is exhausted.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// Item and score: the model's, or the number of training users where `popular`.
    pub items: Vec<(u32, f32)>,
    /// The history was empty, so these are the most popular items.
    pub popular: bool,
}

/// Which items may be recommended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    denied: Vec<u32>,
}

impl Catalogue {
    /// All of `items` but the denied ones; where `allowed` is given, only those in it.
    pub fn new(items: u32, allowed: Option<&[u32]>, denied: &[u32]) -> Self {
        let mut keep = vec![allowed.is_none(); items as usize];
        let mut set =
            |list: &[u32], to| list.iter().for_each(|&i| keep.get_mut(i as usize).into_iter().for_each(|k| *k = to));
        set(allowed.unwrap_or_default(), true);
        set(denied, false);
        Self { denied: (0..items).filter(|&i| !keep[i as usize]).collect() }
    }

    /// How many of `items` there are left to recommend.
    pub fn left(&self, items: u32) -> u32 {
        items - self.denied.len() as u32
    }
}

/// Ranks histories with a model, a batch at a time, in memory that does not grow with their number.
#[derive(Debug)]
pub struct Recommender<'a> {
    model: &'a Model,
    popularity: &'a Popularity,
    catalogue: Catalogue,
    mask: bool,
    k: u32,
    space: Workspace,
}

impl<'a> Recommender<'a> {
    /// For `k` items a history, up to `batch` histories at once. `mask` leaves out what is in the history.
    ///
    /// # Errors
    /// Where `k` is zero or larger than the catalogue, or the device has no room.
    pub fn new(
        model: &'a Model,
        popularity: &'a Popularity,
        catalogue: Catalogue,
        mask: bool,
        k: u32,
        batch: u32,
    ) -> Result<Self> {
        let left = catalogue.left(model.items());
        if left == 0 {
            return Err(Error::usage(
                "no item is left to recommend: the model knows none of those allowed, or all are denied",
            ));
        }
        if k == 0 || k > left {
            return Err(Error::usage(format!(
                "{k} recommendations a user: choose 1 to {left}, the items there are to recommend"
            )));
        }
        let space = Workspace::new(model, batch.max(1), k)?;
        Ok(Self { model, popularity, catalogue, mask, k, space })
    }

    /// Recommendations for each row of `histories`.
    ///
    /// # Errors
    /// Where the histories are over other items, or what the device reports.
    pub fn recommend(&self, histories: &Matrix) -> Result<Vec<Recommendation>> {
        let mut all = Vec::with_capacity(histories.users() as usize);
        let mut first = 0;
        while first < histories.users() {
            let end = self.end(histories, first);
            self.batch(&histories.select(&(first..end).collect::<Vec<_>>()), &mut all)?;
            first = end;
        }
        Ok(all)
    }

    /// Where the batch ends that begins at a row: what is left out of its rankings is one list on the device, too.
    fn end(&self, histories: &Matrix, first: u32) -> u32 {
        let mut room = self.model.device().longest_list();
        let full = histories.users().min(first.saturating_add(self.space.batch()));
        let fits = |&row: &u32| {
            let hidden = histories.row(row).len() as u64 + self.catalogue.denied.len() as u64;
            room.checked_sub(hidden).map(|left| room = left).is_some()
        };
        let rows = (first..full).take_while(fits).count() as u32;
        // A row that is too long by itself is refused by the device.
        first + rows.max(1)
    }

    fn batch(&self, histories: &Matrix, out: &mut Vec<Recommendation>) -> Result<()> {
        let device = self.model.device();
        let (count, k) = (histories.users(), self.k as usize);
        let on_device = device.matrix(histories)?;
        let hidden = |row: &[u32]| -> Vec<u32> {
            let own = if self.mask { row } else { &[] };
            own.iter().chain(&self.catalogue.denied).copied().collect()
        };
        let seen = if self.catalogue.denied.is_empty() {
            None
        } else {
            let rows = histories.rows().map(|(row, _)| hidden(row));
            Some(device.matrix(&Matrix::from_rows(histories.items(), rows)?)?)
        };
        let seen = seen.as_ref().or(self.mask.then_some(&on_device));
        let (items, scores) = self.model.rank(&on_device, seen, 0, count, self.k, &self.space)?;
        let ranked = items.chunks_exact(k).zip(scores.chunks_exact(k));
        for ((row, _), (items, scores)) in histories.rows().zip(ranked) {
            let popular = row.is_empty();
            let items = if popular {
                let mut ranking = vec![NO_ITEM; k];
                self.popularity.rank(&self.catalogue.denied, &mut ranking);
                let score = |&i: &u32| (i, self.popularity.counts()[i as usize] as f32);
                ranking.iter().filter(|&&i| i != NO_ITEM).map(score).collect()
            } else {
                items.iter().copied().zip(scores.iter().copied()).filter(|&(i, _)| i != NO_ITEM).collect()
            };
            out.push(Recommendation { items, popular });
        }
        Ok(())
    }
}
