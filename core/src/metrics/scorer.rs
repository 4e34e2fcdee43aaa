//! The scorer: users stream through it, one at a time, and leave sums behind.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{ACTIVITY_GROUPS, ITEM_GROUPS, MAX_GRADE, Measure, Metric, NO_ITEM, Profile, Scope};
use crate::{
    error::{Error, Result},
    matrix::Matrix,
    popularity::Popularity,
    report::{ActivityGroup, Estimate, Evaluation, ItemGroup, MetricValue, PerUser},
};

/// How deep rankings must be for these metrics and targets: the largest `k`, and for R-precision the
/// longest target; never more than there are items.
pub fn depth(metrics: &[Metric], target: &Matrix) -> u32 {
    let longest = target.indptr().windows(2).map(|row| row[1] - row[0]).max().unwrap_or(0);
    let places = metrics.iter().map(|metric| metric.places(longest as usize)).max().unwrap_or(0);
    places.min(target.items() as usize) as u32
}

/// What is known of a user who is scored.
#[derive(Clone, Copy, Debug, Default)]
pub struct User<'a> {
    /// Items, best first, each at most once, the history left out; [`NO_ITEM`] is a place that found
    /// none. As long as [`depth`] says, or longer.
    pub ranking: &'a [u32],
    /// The items to be found, ascending, each once.
    pub target: &'a [u32],
    /// The values of the target items: grades, or ratings. None means all ones.
    pub values: Option<&'a [f32]>,
    /// What the model predicts for the target items; needed for `rmse` and `mae` only.
    pub predicted: Option<&'a [f32]>,
    /// How many items the model has seen of the user.
    pub history: u32,
}

/// Scores users one after the other; what it holds does not grow with their number, unless
/// [`Scorer::keep_values`] asks for it.
#[derive(Clone, Debug)]
pub struct Scorer {
    metrics: Vec<Metric>,
    popularity: Popularity,
    /// The metrics that have a value per user, and below one entry for each of them.
    per_user: Vec<Metric>,
    values: Vec<f64>,
    means: Vec<Moments>,
    /// By history length, which is bounded by the catalogue, not by the users.
    activity: BTreeMap<u32, (u64, Vec<Moments>)>,
    exposure: Vec<Exposure>,
    finds: Option<Finds>,
    errors: Errors,
    kept: Option<PerUser>,
    rows: u64,
    scored: u64,
    hits: Vec<Hit>,
    ideal: Vec<f64>,
    /// The call in which each item was last seen in a ranking, which finds repeats without clearing.
    stamps: Vec<u64>,
    calls: u64,
}

impl Scorer {
    /// A scorer of these metrics; `popularity` is that of the training users.
    pub fn new(metrics: &[Metric], popularity: &Popularity) -> Self {
        let items = popularity.items() as usize;
        let of_scope = |scope| metrics.iter().copied().filter(move |metric| metric.measure.scope() == scope);
        let per_user: Vec<_> = of_scope(Scope::User).collect();
        let mut cuts: Vec<_> = of_scope(Scope::Lists).filter_map(Metric::depth).collect();
        cuts.sort_unstable();
        cuts.dedup();
        Self {
            values: Vec::with_capacity(per_user.len()),
            means: vec![Moments::default(); per_user.len()],
            per_user,
            activity: BTreeMap::new(),
            exposure: cuts.into_iter().map(|depth| Exposure { depth, counts: vec![0; items] }).collect(),
            finds: metrics.iter().find_map(|metric| metric.depth).map(|depth| Finds::new(depth, popularity)),
            errors: Errors::default(),
            kept: None,
            rows: 0,
            scored: 0,
            hits: Vec::new(),
            ideal: Vec::new(),
            stamps: vec![0; items],
            calls: 0,
            metrics: metrics.to_vec(),
            popularity: popularity.clone(),
        }
    }

    /// Keeps every user's values for the report, eight bytes a metric and user.
    #[must_use]
    pub fn keep_values(mut self) -> Self {
        let values = self.per_user.iter().map(|&metric| (metric, Vec::new())).collect();
        self.kept = Some(PerUser { rows: Vec::new(), values });
        self
    }

    /// The metrics that have a value per user, in the order in which [`Scorer::user`] gives them.
    pub fn per_user(&self) -> &[Metric] {
        &self.per_user
    }

    /// Scores the next user. Gives the values of the metrics of [`Scorer::per_user`], or none where
    /// the user has no target and was only counted.
    ///
    /// # Errors
    /// Where the user is not as [`User`] says: a ranking too short, an item beyond the catalogue or
    /// named twice, values that do not fit. Nothing was counted then.
    pub fn user(&mut self, user: &User<'_>) -> Result<Option<&[f64]>> {
        if user.target.is_empty() {
            self.rows += 1;
            return Ok(None);
        }
        self.check(user).map_err(|error| error.context(format_args!("user {} of the evaluation", self.rows)))?;
        let row = self.rows;
        self.rows += 1;
        self.scored += 1;

        let gain = |at: usize| f64::from(user.values.map_or(1.0, |values| values[at])).exp2() - 1.0;
        self.hits.clear();
        self.hits.extend(user.ranking.iter().zip(1..).filter_map(|(item, rank)| {
            let at = user.target.binary_search(item).ok()?;
            Some(Hit { rank, at, gain: gain(at) })
        }));
        self.ideal.clear();
        if self.metrics.iter().any(|metric| metric.measure.graded()) {
            self.ideal.extend((0..user.target.len()).map(gain));
            self.ideal.sort_unstable_by(|a, b| b.total_cmp(a));
        }

        let (hits, ideal, relevant) = (&self.hits, &self.ideal, user.target.len());
        self.values.clear();
        self.values.extend(self.per_user.iter().filter_map(|metric| metric.of_user(hits, relevant, ideal)));
        let (users, means) =
            self.activity.entry(user.history).or_insert_with(|| (0, vec![Moments::default(); self.per_user.len()]));
        *users += 1;
        for (at, &value) in self.values.iter().enumerate() {
            self.means[at].push(value);
            means[at].push(value);
        }
        if let Some(kept) = &mut self.kept {
            kept.rows.push(row);
            // By metric, so that one asked for twice is kept once.
            for (metric, values) in &mut kept.values {
                values.extend(self.per_user.iter().position(|m| m == metric).map(|at| self.values[at]));
            }
        }

        for exposure in &mut self.exposure {
            exposure.add(user.ranking);
        }
        if let Some(finds) = &mut self.finds {
            finds.add(user.target, &self.hits);
        }
        if let Some(predicted) = user.predicted {
            self.errors.add(predicted, user.values);
        }
        Ok(Some(&self.values))
    }

    /// The means over the users scored so far, and everything else there is to say of them.
    pub fn finish(self) -> Evaluation {
        let metrics = self.metrics.iter().map(|&metric| {
            let estimate = match self.per_user.iter().position(|&m| m == metric) {
                Some(at) => self.means[at].estimate(),
                None => Estimate { value: self.of_all(metric), standard_error: None },
            };
            let Estimate { value, standard_error } = estimate;
            MetricValue { name: metric, value, standard_error, definition: metric.definition() }
        });
        Evaluation {
            profile: Profile::of(&self.metrics),
            metrics: metrics.collect(),
            users_scored: self.scored,
            users_without_target: self.rows - self.scored,
            by_activity: self.by_activity(),
            by_popularity: self.finds.as_ref().map_or_else(Vec::new, Finds::groups),
            per_user: self.kept,
        }
    }

    /// Everything is checked before anything is counted.
    fn check(&mut self, user: &User<'_>) -> Result<()> {
        let items = self.popularity.items();
        let relevant = user.target.len();
        if user.target.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::data("the target items are not in ascending order, each once"));
        }
        if let Some(item) = user.target.last().filter(|&&item| item >= items) {
            return Err(Error::data(format!("target item {item} is beyond the {items} items")));
        }
        let deepest = self.metrics.iter().max_by_key(|metric| metric.places(relevant));
        if let Some(metric) = deepest.filter(|m| user.ranking.len() < m.places(relevant).min(items as usize)) {
            let (has, needs) = (user.ranking.len(), metric.places(relevant).min(items as usize));
            return Err(Error::usage(format!("the ranking has {has} places and {metric} needs {needs}")));
        }
        self.calls += 1;
        for &item in user.ranking.iter().filter(|&&item| item != NO_ITEM) {
            let Some(stamp) = self.stamps.get_mut(item as usize) else {
                return Err(Error::data(format!("ranked item {item} is beyond the {items} items")));
            };
            if std::mem::replace(stamp, self.calls) == self.calls {
                return Err(Error::data(format!("item {item} is in the ranking twice")));
            }
        }
        let graded = self.metrics.iter().any(|metric| metric.measure.graded());
        let most = if graded { MAX_GRADE } else { f32::MAX };
        fits("values", user.values, relevant, 0.0..=most)?;
        fits("predictions", user.predicted, relevant, f32::MIN..=f32::MAX)?;
        if let Some(metric) = self.metrics.iter().find(|metric| metric.measure.scope() == Scope::Values)
            && user.predicted.is_none()
        {
            return Err(Error::usage(format!("{metric} needs predicted values, which this model does not give")));
        }
        Ok(())
    }

    /// A metric of all lists or of all values.
    fn of_all(&self, metric: Metric) -> Option<f64> {
        let exposure = self.exposure.iter().find(|exposure| Some(exposure.depth) == metric.depth);
        match metric.measure {
            Measure::Coverage => exposure?.coverage(),
            Measure::Popularity => exposure?.mean(|item| self.share(item, 0)),
            Measure::Novelty => exposure?.mean(|item| -self.share(item, 1).log2()),
            Measure::Gini => exposure?.gini(),
            Measure::Rmse => self.errors.mean(self.errors.squares).map(f64::sqrt),
            Measure::Mae => self.errors.mean(self.errors.absolutes),
            _ => None,
        }
    }

    /// The share of training users who have an item, with `least` of them assumed.
    fn share(&self, item: usize, least: u32) -> f64 {
        f64::from(self.popularity.counts()[item].max(least)) / f64::from(self.popularity.users().max(1))
    }

    fn by_activity(&self) -> Vec<ActivityGroup> {
        let (mut groups, mut before) = (BTreeMap::<u64, (u32, u32, u64, Vec<Moments>)>::new(), 0);
        for (&length, (users, means)) in &self.activity {
            let group = groups
                .entry(quantile(ACTIVITY_GROUPS, before, *users, self.scored))
                .or_insert_with(|| (length, length, 0, vec![Moments::default(); means.len()]));
            group.1 = length;
            group.2 += users;
            group.3.iter_mut().zip(means).for_each(|(all, part)| all.merge(part));
            before += users;
        }
        groups
            .into_values()
            .map(|(shortest, longest, users, means)| ActivityGroup {
                shortest,
                longest,
                users,
                metrics: self.per_user.iter().copied().zip(means.iter().map(Moments::estimate)).collect(),
            })
            .collect()
    }
}

/// Values of the target items are as many as these, and numbers in a range.
fn fits(name: &str, values: Option<&[f32]>, relevant: usize, range: RangeInclusive<f32>) -> Result<()> {
    let Some(values) = values else { return Ok(()) };
    if values.len() != relevant {
        return Err(Error::data(format!("{} {name} for {relevant} target items", values.len())));
    }
    match values.iter().find(|value| !range.contains(*value)) {
        Some(value) => {
            let (least, most) = range.into_inner();
            Err(Error::data(format!("{value} is among the {name}, which lie within {least:e} and {most:e}")))
        }
        None => Ok(()),
    }
}

/// A target item that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    /// From 1.
    pub(super) rank: usize,
    /// Where in the target.
    pub(super) at: usize,
    /// `2^grade - 1`.
    pub(super) gain: f64,
}

/// Mean and spread of a stream (Welford 1962; merged after Chan, Golub and LeVeque 1983).
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn push(&mut self, value: f64) {
        self.count += 1;
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (value - self.mean);
    }

    fn merge(&mut self, other: &Self) {
        let count = self.count + other.count;
        if other.count == 0 {
            return;
        }
        let (off, part) = (other.mean - self.mean, other.count as f64 / count as f64);
        self.squares += other.squares + off * off * self.count as f64 * part;
        self.mean += off * part;
        self.count = count;
    }

    /// The mean, and its standard error `sd / sqrt(n)` with `n - 1` in the variance.
    fn estimate(&self) -> Estimate {
        let count = self.count as f64;
        Estimate {
            value: (self.count > 0).then_some(self.mean),
            standard_error: (self.count > 1).then(|| (self.squares / (count - 1.0) / count).sqrt()),
        }
    }
}

/// How often each item is in a top k.
#[derive(Clone, Debug)]
struct Exposure {
    depth: u32,
    counts: Vec<u64>,
}

impl Exposure {
    fn add(&mut self, ranking: &[u32]) {
        for &item in ranking.iter().take(self.depth as usize).filter(|&&item| item != NO_ITEM) {
            self.counts[item as usize] += 1;
        }
    }

    fn total(&self) -> Option<f64> {
        let total = self.counts.iter().sum::<u64>();
        (total > 0).then_some(total as f64)
    }

    fn coverage(&self) -> Option<f64> {
        self.total()?;
        Some(self.counts.iter().filter(|&&count| count > 0).count() as f64 / self.counts.len() as f64)
    }

    /// A property of items, averaged over all recommendations.
    fn mean(&self, property: impl Fn(usize) -> f64) -> Option<f64> {
        let total = self.total()?;
        let shown = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        Some(shown.map(|(item, &count)| count as f64 * property(item)).sum::<f64>() / total)
    }

    /// `sum_i (2i - n - 1) x_i / (n sum x)` with `x` ascending and `i` from 1.
    fn gini(&self) -> Option<f64> {
        let total = self.total()?;
        let mut counts = self.counts.clone();
        counts.sort_unstable();
        let n = counts.len() as f64;
        let weighted = counts.iter().enumerate().map(|(i, &x)| (2.0 * i as f64 + 1.0 - n) * x as f64);
        Some(weighted.sum::<f64>() / (n * total))
    }
}

/// Target items and those found, by the popularity of the item.
#[derive(Clone, Debug)]
struct Finds {
    depth: u32,
    group: Vec<u8>,
    targets: [u64; ITEM_GROUPS.len()],
    hits: [u64; ITEM_GROUPS.len()],
}

impl Finds {
    fn new(depth: u32, popularity: &Popularity) -> Self {
        let mut group = vec![0; popularity.items() as usize];
        let total = popularity.counts().iter().map(|&count| u64::from(count)).sum();
        let mut before = 0;
        for &item in popularity.order() {
            let count = u64::from(popularity.counts()[item as usize]);
            group[item as usize] = quantile(ITEM_GROUPS.len() as u64, before, count, total) as u8;
            before += count;
        }
        Self { depth, group, targets: [0; ITEM_GROUPS.len()], hits: [0; ITEM_GROUPS.len()] }
    }

    fn add(&mut self, target: &[u32], hits: &[Hit]) {
        let group = |item: u32| self.group[item as usize] as usize;
        for &item in target {
            self.targets[group(item)] += 1;
        }
        for hit in hits.iter().take_while(|hit| hit.rank <= self.depth as usize) {
            self.hits[group(target[hit.at])] += 1;
        }
    }

    fn groups(&self) -> Vec<ItemGroup> {
        let all = self.hits.iter().sum::<u64>();
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let group = |(at, &name): (usize, &&str)| ItemGroup {
            name: name.to_string(),
            items: self.group.iter().filter(|&&group| group as usize == at).count() as u64,
            depth: self.depth,
            targets: self.targets[at],
            hits: self.hits[at],
            recall: ratio(self.hits[at], self.targets[at]),
            share_of_hits: ratio(self.hits[at], all),
        };
        ITEM_GROUPS.iter().enumerate().map(group).collect()
    }
}

/// Errors of predicted values, summed over all target items.
#[derive(Clone, Debug, Default)]
struct Errors {
    count: u64,
    squares: f64,
    absolutes: f64,
}

impl Errors {
    fn add(&mut self, predicted: &[f32], values: Option<&[f32]>) {
        for (at, &predicted) in predicted.iter().enumerate() {
            let off = f64::from(predicted) - f64::from(values.map_or(1.0, |values| values[at]));
            self.squares += off * off;
            self.absolutes += off.abs();
        }
        self.count += predicted.len() as u64;
    }

    fn mean(&self, sum: f64) -> Option<f64> {
        (self.count > 0).then(|| sum / self.count as f64)
    }
}

/// Which of `groups` equal parts of `total` a run of `count` that starts at `before` belongs to: the
/// one that its middle lies in. A run is never cut, so equals stay together.
fn quantile(groups: u64, before: u64, count: u64, total: u64) -> u64 {
    (groups * (2 * before + count)).checked_div(2 * total).unwrap_or(groups).min(groups - 1)
}
