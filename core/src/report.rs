//! What an evaluation says: as JSON for machines, as a table for people, and beside another one.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    metrics::{Metric, Profile},
    random::{Generator, stream},
};

/// How often a comparison draws users anew.
const RESAMPLES: usize = 2000;
/// How much of the drawn means its interval holds.
const CONFIDENCE: f64 = 0.95;

/// A mean with its uncertainty.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// The value; none where there was nobody to measure.
    pub value: Option<f64>,
    /// `sd / sqrt(n)` over users, with `n - 1` in the variance; none for fewer than two users and
    /// for what is no mean over users.
    pub standard_error: Option<f64>,
}

/// A metric, its value, and what it means.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MetricValue {
    /// The metric.
    pub name: Metric,
    /// As in [`Estimate`].
    pub value: Option<f64>,
    /// As in [`Estimate`].
    pub standard_error: Option<f64>,
    /// One sentence.
    pub definition: String,
}

/// Users with histories of similar length. The groups are as equal in size as they can be without
/// parting users of equal length.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActivityGroup {
    /// The shortest history.
    pub shortest: u32,
    /// The longest history.
    pub longest: u32,
    /// Users scored.
    pub users: u64,
    /// Per-user metrics, averaged over the group.
    pub metrics: BTreeMap<Metric, Estimate>,
}

/// Items of similar popularity: each group has a third of the training events, as nearly as whole
/// items allow, so the head is few items and the tail is many.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ItemGroup {
    /// `head`, `torso` or `tail`.
    pub name: String,
    /// Items in the group.
    pub items: u64,
    /// The depth of the rankings that are looked at: that of the first metric.
    pub depth: u32,
    /// Target items in the group, over all scored users.
    pub targets: u64,
    /// Those of them that were found.
    pub hits: u64,
    /// `hits / targets`, over all users together.
    pub recall: Option<f64>,
    /// Its part of all that was found.
    pub share_of_hits: Option<f64>,
}

/// The values of every scored user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PerUser {
    /// Which row of the evaluated part each user is; rows without a target are left out.
    pub rows: Vec<u64>,
    /// For each per-user metric one value for each of `rows`.
    pub values: BTreeMap<Metric, Vec<f64>>,
}

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The named set of definitions that the metrics are; none where they were chosen one by one.
    pub profile: Option<Profile>,
    /// In the order in which they were asked for.
    pub metrics: Vec<MetricValue>,
    /// Users that the means are over.
    pub users_scored: u64,
    /// Users with nothing to be found. They are in no mean.
    pub users_without_target: u64,
    /// By length of the history, the shortest first.
    pub by_activity: Vec<ActivityGroup>,
    /// By popularity of the target item; empty where no metric has a depth.
    pub by_popularity: Vec<ItemGroup>,
    /// Every user's values, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_user: Option<PerUser>,
}

impl Evaluation {
    /// The value of a metric, where it was measured.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.metrics.iter().find(|m| m.name == metric)?.value
    }

    /// How much better `other` does on a per-user metric, user by user.
    ///
    /// # Errors
    /// Where an evaluation has no per-user values of that metric, or other users were scored.
    pub fn compare(&self, other: &Self, metric: Metric, seed: u64) -> Result<Difference> {
        let (rows_a, a) = self.values_of(metric).map_err(|error| error.context("the first evaluation"))?;
        let (rows_b, b) = other.values_of(metric).map_err(|error| error.context("the second evaluation"))?;
        if rows_a != rows_b {
            return Err(Error::data(
                "the two evaluations scored different users; compare evaluations of the same part of the same data",
            ));
        }
        compare(a, b, seed)
    }

    fn values_of(&self, metric: Metric) -> Result<(&[u64], &[f64])> {
        let missing = || Error::data(format!("it has no {metric} of each user; evaluate again and ask for it"));
        let kept = self.per_user.as_ref().ok_or_else(missing)?;
        Ok((&kept.rows, kept.values.get(&metric).ok_or_else(missing)?))
    }
}

/// A paired difference, `b - a`, with its bootstrap interval.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// Users, each with a value on either side.
    pub users: u64,
    /// The mean of `b - a`.
    pub mean: f64,
    /// The lower end of the 95 % interval.
    pub lower: f64,
    /// The upper end of the 95 % interval.
    pub upper: f64,
    /// What the interval was drawn with.
    pub seed: u64,
}

impl Difference {
    /// Whether the interval lies below zero: `b` is worse, and not by chance.
    pub fn is_worse(&self) -> bool {
        self.upper < 0.0
    }

    /// Whether the interval lies above zero: `b` is better, and not by chance.
    pub fn is_better(&self) -> bool {
        self.lower > 0.0
    }
}

/// The mean difference `b - a` of values of the same users, with the percentile bootstrap interval
/// (Efron 1979) over users. The same seed gives the same interval.
///
/// # Errors
/// Where the two differ in length, are empty, or hold what is not a finite number.
pub fn compare(a: &[f64], b: &[f64], seed: u64) -> Result<Difference> {
    if a.len() != b.len() {
        return Err(Error::data(format!("{} users on one side and {} on the other", a.len(), b.len())));
    }
    if a.is_empty() {
        return Err(Error::data("there are no users to compare"));
    }
    let off: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    if let Some(user) = off.iter().position(|off| !off.is_finite()) {
        return Err(Error::data(format!("user {user}: {} and {} cannot be compared", a[user], b[user])));
    }
    let n = off.len();
    let mut random = Generator::new(seed, stream::BOOTSTRAP, 0);
    let mean = |sum: f64| sum / n as f64;
    let mut draws: Vec<f64> =
        (0..RESAMPLES).map(|_| mean((0..n).map(|_| off[random.below(n as u32) as usize]).sum())).collect();
    draws.sort_unstable_by(f64::total_cmp);
    let tail = (RESAMPLES as f64 * (1.0 - CONFIDENCE) / 2.0) as usize;
    Ok(Difference {
        users: n as u64,
        mean: mean(off.iter().sum()),
        lower: draws[tail],
        upper: draws[RESAMPLES - 1 - tail],
        seed,
    })
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, mean, lower, upper, .. } = self;
        let percent = CONFIDENCE * 100.0;
        write!(f, "{mean:+.5} ({percent:.0} % interval {lower:+.5} to {upper:+.5}, {users} users)")
    }
}

/// As a table; with `{:#}` the definitions follow.
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![cells(["metric", "value", "std. error"])];
        rows.extend(self.metrics.iter().map(|m| vec![m.name.to_string(), decimal(m.value), decimal(m.standard_error)]));
        table(f, &rows)?;
        let profile = self.profile.map_or_else(|| "metrics chosen one by one".into(), |p| format!("profile {p}"));
        writeln!(
            f,
            "{} users scored, {} without a target left out; {profile}",
            self.users_scored, self.users_without_target
        )?;

        if let [first, _, ..] = self.by_activity.as_slice()
            && !first.metrics.is_empty()
        {
            let column = |title: &str, cell: &dyn Fn(&ActivityGroup) -> String| {
                std::iter::once(title.to_string()).chain(self.by_activity.iter().map(cell)).collect::<Vec<_>>()
            };
            let mut rows = vec![
                column("items in history", &|g| match g.longest == g.shortest {
                    true => g.shortest.to_string(),
                    false => format!("{}-{}", g.shortest, g.longest),
                }),
                column("users", &|g| g.users.to_string()),
            ];
            rows.extend(first.metrics.keys().map(|metric| {
                column(&metric.to_string(), &|g| decimal(g.metrics.get(metric).and_then(|estimate| estimate.value)))
            }));
            writeln!(f)?;
            table(f, &rows)?;
        }

        if let Some(ItemGroup { depth, .. }) = self.by_popularity.first() {
            let mut rows =
                vec![cells(["popularity", "items", "targets", &format!("found@{depth}"), "recall", "share of found"])];
            rows.extend(self.by_popularity.iter().map(|g| {
                let counts = [g.items, g.targets, g.hits].map(|count| count.to_string());
                let ratios = [g.recall, g.share_of_hits].map(decimal);
                std::iter::once(g.name.clone()).chain(counts).chain(ratios).collect()
            }));
            writeln!(f)?;
            table(f, &rows)?;
        }

        if f.alternate() {
            writeln!(f)?;
            self.metrics.iter().try_for_each(|m| writeln!(f, "{}: {}", m.name, m.definition))?;
        }
        Ok(())
    }
}

fn cells<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(String::from).to_vec()
}

/// Five digits after the point, as the publications print them; a dash where there is no value.
fn decimal(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.5}"))
}

/// Columns as wide as their widest cell, the first to the left and numbers to the right.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if at == 0 { write!(f, "{cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
        }
        writeln!(f)?;
    }
    Ok(())
}
