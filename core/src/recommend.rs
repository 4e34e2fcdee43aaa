//! Top-k recommendations for histories: fold in, score, mask, rank.

use crate::{
    error::{Error, Result},
    group::Group,
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
    /// For `k` items a history, up to `batch` histories at once. `mask` leaves out what is in the history. In a group all
    /// members make this call, with the same.
    ///
    /// # Errors
    /// Where `k` is zero or larger than the catalogue, the device has no room, or a member of the group asks for
    /// something else.
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
        let asked =
            || format!("{k} {} {mask} {:?} {}", batch.max(1), catalogue.denied, popularity.checksum()).into_bytes();
        model.device().group().agree("what is recommended", asked)?;
        let space = Workspace::new(model, batch.max(1), k)?;
        Ok(Self { model, popularity, catalogue, mask, k, space })
    }

    /// Recommendations for each row of `histories`. In a group the root makes this call, while the others
    /// [attend](Recommender::attend): each takes a batch in turn.
    ///
    /// # Errors
    /// Where the histories are over other items, or what the device or the group reports.
    pub fn recommend(&self, histories: &Matrix) -> Result<Vec<Recommendation>> {
        if histories.items() != self.model.items() {
            return Err(Error::data(format!(
                "the histories are over {} items, the model over {}: they belong to different data sets",
                histories.items(),
                self.model.items()
            )));
        }
        let mut all = Vec::with_capacity(histories.users() as usize);
        let (mut batches, mut first) = (Vec::new(), 0);
        while first < histories.users() {
            let end = self.end(histories, first);
            batches.push(histories.select(&(first..end).collect::<Vec<_>>()));
            first = end;
        }
        for dealt in batches.chunks(self.group().world() as usize) {
            for (histories, ranked) in dealt.iter().zip(self.take(dealt)?) {
                self.name(histories, &ranked, &mut all);
            }
        }
        Ok(all)
    }

    /// Does a member's part of all that the root recommends, until the root is [done](Recommender::done). There may be
    /// any time between two calls of the root's.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn attend(&self) -> Result<()> {
        while !self.take(&[])?.is_empty() {}
        Ok(())
    }

    /// The root has nothing more to recommend: the others' [`Recommender::attend`] returns.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn done(&self) -> Result<()> {
        self.take(&[]).map(drop)
    }

    fn group(&self) -> &Group {
        self.model.device().group()
    }

    /// The rankings of the root's batches, one for each member at the most; none where it has no more.
    fn take(&self, dealt: &[Matrix]) -> Result<Vec<Ranked>> {
        let group = self.group();
        if group.world() == 1 {
            return dealt.iter().map(|histories| self.rank(histories)).collect();
        }
        let words: Vec<u32> = dealt.iter().flat_map(words).collect();
        // The others wait for the root as long as it takes; they come at once.
        let waiting = if group.is_root() { group.clone() } else { group.at_leisure() };
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&waiting.broadcast(bytemuck::cast_slice(&words))?);
        let batches = batches(self.model.items(), &words)?;
        let own = batches.get(group.rank() as usize).map(|histories| self.rank(histories)).transpose()?;
        let own = own.unwrap_or_default();
        let items = group.all_gather(bytemuck::cast_slice(&own.items))?;
        let scores = group.all_gather(bytemuck::cast_slice(&own.scores))?;
        let ranked = items.iter().zip(&scores).take(batches.len()).map(|(items, scores)| Ranked {
            items: bytemuck::pod_collect_to_vec(items),
            scores: bytemuck::pod_collect_to_vec(scores),
        });
        Ok(ranked.collect())
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

    /// The best items of a batch, on this device.
    fn rank(&self, histories: &Matrix) -> Result<Ranked> {
        let device = self.model.device();
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
        let (items, scores) = self.model.rank(&on_device, seen, 0, histories.users(), self.k, &self.space)?;
        Ok(Ranked { items, scores })
    }

    /// Rankings as recommendations: nobody knows anything of an empty history.
    fn name(&self, histories: &Matrix, ranked: &Ranked, out: &mut Vec<Recommendation>) {
        let k = self.k as usize;
        let ranked = ranked.items.chunks_exact(k).zip(ranked.scores.chunks_exact(k));
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
    }
}

/// The best items of a batch, and their scores, one row after the other.
#[derive(Debug, Default)]
struct Ranked {
    items: Vec<u32>,
    scores: Vec<f32>,
}

/// A batch of histories on its way to a member: how many rows and events, whether they have weights, the events of each
/// row, the items, the weights.
fn words(histories: &Matrix) -> Vec<u32> {
    let lens = histories.rows().map(|(row, _)| row.len() as u32);
    let head = [histories.users(), histories.events() as u32, histories.values().is_some().into()];
    let weights = histories.values().unwrap_or_default().iter().map(|weight| weight.to_bits());
    head.into_iter().chain(lens).chain(histories.indices().iter().copied()).chain(weights).collect()
}

/// All batches again.
fn batches(items: u32, mut words: &[u32]) -> Result<Vec<Matrix>> {
    let mut take = |count: u32| -> Result<Vec<u32>> {
        let (taken, rest) = words
            .split_at_checked(count as usize)
            .ok_or_else(|| Error::failure("a bug in vaecf, please report it: histories came in part"))?;
        words = rest;
        Ok(taken.to_vec())
    };
    let mut all = Vec::new();
    loop {
        let Ok(head) = take(3) else { return Ok(all) };
        let mut indptr = vec![0];
        for len in take(head[0])? {
            indptr.push(indptr[indptr.len() - 1] + u64::from(len));
        }
        let indices = take(head[1])?;
        let weights: Vec<f32> = take(head[1] * head[2])?.into_iter().map(f32::from_bits).collect();
        all.push(Matrix::new(items, indptr, indices, (head[2] > 0).then(|| weights.into()))?);
    }
}
