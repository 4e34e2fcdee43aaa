//! How good recommendations are: what each metric means, and the scorer that streams users through.
//!
//! A user has a ranking, with the history already masked, and a target `R`: the items that were
//! hidden. Most metrics are a number per user, averaged over the users who have a target; users
//! without one are counted and never averaged in. A few describe all lists together, and two the
//! error of predicted values. Peers disagree about some definitions under one name, so here each
//! definition has a name of its own, and every report carries the sentence that defines it.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    matrix::Matrix,
    popularity::Popularity,
    report::{ActivityGroup, Estimate, Evaluation, ItemGroup, MetricValue, PerUser},
};

/// A place in a ranking for which no item was left.
pub const NO_ITEM: u32 = u32::MAX;

/// Grades above this are refused: `2^grade` is not a gain any more, and sums of it would overflow.
const MAX_GRADE: f32 = 100.0;

/// Into how many groups of users and of items an evaluation is broken down.
const ACTIVITY_GROUPS: u64 = 4;
const ITEM_GROUPS: [&str; 3] = ["head", "torso", "tail"];

/// What is measured. [`Metric`] adds the depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    /// `|R in top k| / min(k, |R|)` (Liang et al. 2018).
    Recall,
    /// `|R in top k| / |R|` (LightGCN, He et al. 2020).
    RecallAll,
    /// `|R in top k| / k`.
    Precision,
    /// 1 where the top k holds an item of R, else 0.
    HitRate,
    /// `1 / rank` of the first item of R within the top k, else 0.
    Mrr,
    /// Average precision, `sum_{i<=k} P(i) rel(i) / min(k, |R|)`.
    Map,
    /// Average precision as some slides have it, `sum_{i<=k} P(i) rel(i) / k`.
    MapSlide,
    /// `sum_{i<=k} rel(i) / log2(i+1)`.
    Dcg,
    /// `sum_{i<=k} (2^grade - 1) / log2(i+1)` (Burges et al. 2005).
    DcgGraded,
    /// `DCG@k` over that of the ideal list, cut at k (Järvelin and Kekäläinen 2002).
    Ndcg,
    /// `DCG@k` with graded gains over that of the ideal list, cut at k.
    NdcgGraded,
    /// `|R in top |R|| / |R|`.
    RPrecision,
    /// Share of the catalogue that is in anybody's top k.
    Coverage,
    /// Mean popularity of what is recommended, as a share of the training users.
    Popularity,
    /// Mean self-information of what is recommended, `-log2(popularity)` (Zhou et al. 2010).
    Novelty,
    /// Gini coefficient of how often items are recommended: 0 all alike, towards 1 a few get all.
    Gini,
    /// Root of the mean squared error of predicted values.
    Rmse,
    /// Mean absolute error of predicted values.
    Mae,
}

/// Over what a measure is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// One value a user, then averaged.
    User,
    /// One value for all lists.
    Lists,
    /// One value for all predicted target values.
    Values,
}

impl Measure {
    /// Every measure, in the order of the documentation.
    pub const ALL: [Self; 18] = [
        Self::Recall,
        Self::RecallAll,
        Self::Precision,
        Self::HitRate,
        Self::Mrr,
        Self::Map,
        Self::MapSlide,
        Self::Dcg,
        Self::DcgGraded,
        Self::Ndcg,
        Self::NdcgGraded,
        Self::RPrecision,
        Self::Coverage,
        Self::Popularity,
        Self::Novelty,
        Self::Gini,
        Self::Rmse,
        Self::Mae,
    ];

    /// The name, as a metric starts.
    pub fn name(self) -> &'static str {
        self.about().0
    }

    /// The definition, in one sentence.
    pub fn definition(self) -> &'static str {
        self.about().2
    }

    /// Whether a metric of it has a depth: `recall@20`, but `rmse`.
    pub fn has_depth(self) -> bool {
        !matches!(self, Self::RPrecision | Self::Rmse | Self::Mae)
    }

    /// Whether a smaller value is the better one: errors, and how much the lists favour a few items.
    pub fn smaller_is_better(self) -> bool {
        matches!(self, Self::Popularity | Self::Gini | Self::Rmse | Self::Mae)
    }

    fn graded(self) -> bool {
        matches!(self, Self::DcgGraded | Self::NdcgGraded)
    }

    fn scope(self) -> Scope {
        self.about().1
    }

    fn about(self) -> (&'static str, Scope, &'static str) {
        use Scope::{Lists, User, Values};
        match self {
            Self::Recall => ("recall", User, "target items in the top k, divided by min(k, target items)."),
            Self::RecallAll => ("recall-all", User, "target items in the top k, divided by all target items."),
            Self::Precision => ("precision", User, "target items in the top k, divided by k."),
            Self::HitRate => ("hit-rate", User, "1 where the top k holds a target item, else 0."),
            Self::Mrr => ("mrr", User, "1 / rank of the first target item within the top k, else 0."),
            Self::Map => (
                "map",
                User,
                "the precisions at the ranks of the target items in the top k, summed, divided by min(k, target items).",
            ),
            Self::MapSlide => (
                "map-slide",
                User,
                "the precisions at the ranks of the target items in the top k, summed, divided by k.",
            ),
            Self::Dcg => ("dcg", User, "1 / log2(rank + 1), summed over the target items in the top k."),
            Self::DcgGraded => (
                "dcg-graded",
                User,
                "(2^grade - 1) / log2(rank + 1), summed over the target items in the top k; the grade is the target's value.",
            ),
            Self::Ndcg => ("ndcg", User, "dcg@k divided by that of a list with the target items first, cut at k."),
            Self::NdcgGraded => (
                "ndcg-graded",
                User,
                "dcg-graded@k divided by that of the target items by falling grade, cut at k; 0 where all grades are 0.",
            ),
            Self::RPrecision => {
                ("r-precision", User, "target items among as many top places as there are target items, as a share.")
            }
            Self::Coverage => ("coverage", Lists, "items in the top k of any scored user, divided by all items."),
            Self::Popularity => (
                "popularity",
                Lists,
                "the share of training users who have the item, averaged over every place in the top k of all scored users.",
            ),
            Self::Novelty => (
                "novelty",
                Lists,
                "-log2 of the share of training users who have the item (at least one is assumed), averaged over every place in the top k of all scored users.",
            ),
            Self::Gini => (
                "gini",
                Lists,
                "the Gini coefficient of how often each item of the catalogue is in the top k of a scored user.",
            ),
            Self::Rmse => (
                "rmse",
                Values,
                "the root of the squared difference of predicted and true value, averaged over all target items.",
            ),
            Self::Mae => {
                ("mae", Values, "the absolute difference of predicted and true value, averaged over all target items.")
            }
        }
    }
}

// The list above and the enum are in the same order and equally long.
const _: () = assert!(Measure::ALL.len() == Measure::Mae as usize + 1);

/// A measure at a depth, written `ndcg@100`; without one where it has none, as `rmse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Metric {
    measure: Measure,
    depth: Option<u32>,
}

impl Metric {
    /// `ndcg@100`, which chooses the epoch unless told otherwise.
    pub const NDCG_100: Self = Self::at(Measure::Ndcg, 100);

    /// A metric of a measure and the depth `k`, where the measure has one.
    ///
    /// # Errors
    /// Where a depth is missing, is zero, or is given to a measure that has none.
    pub fn new(measure: Measure, depth: Option<u32>) -> Result<Self> {
        let name = measure.name();
        match (measure.has_depth(), depth) {
            (true, None) => Err(Error::usage(format!("{name} needs a depth, such as {name}@20"))),
            (true, Some(0)) => Err(Error::usage(format!("{name}@0 looks at nothing; the depth is at least 1"))),
            (false, Some(depth)) => Err(Error::usage(format!("{name}@{depth}: {name} has no depth; write {name}"))),
            _ => Ok(Self { measure, depth }),
        }
    }

    const fn at(measure: Measure, depth: u32) -> Self {
        Self { measure, depth: Some(depth) }
    }

    /// What is measured.
    pub fn measure(self) -> Measure {
        self.measure
    }

    /// The depth `k`, where it has one.
    pub fn depth(self) -> Option<u32> {
        self.depth
    }

    /// The definition, in one sentence with the depth filled in.
    pub fn definition(self) -> String {
        let Some(depth) = self.depth else { return self.measure.definition().to_string() };
        let filled = |word: &str| match word.strip_prefix('k') {
            Some(rest) if !rest.starts_with(char::is_alphanumeric) => format!("{depth}{rest}"),
            _ => word.to_string(),
        };
        self.measure.definition().split_inclusive(|c: char| !c.is_alphanumeric()).map(filled).collect()
    }

    /// How many places of a ranking it looks at for a user with `relevant` target items.
    fn places(self, relevant: usize) -> usize {
        match self.measure.scope() {
            Scope::Values => 0,
            Scope::User | Scope::Lists => self.depth.map_or(relevant, |k| k as usize),
        }
    }

    /// The value for a user with `relevant` target items, of which `hits` (by rank) were found;
    /// `ideal` are all grades, falling. None where it is no per-user metric.
    fn of_user(self, hits: &[Hit], relevant: usize, ideal: &[f64]) -> Option<f64> {
        let k = self.places(relevant);
        let hits = &hits[..hits.partition_point(|hit| hit.rank <= k)];
        let (found, reachable) = (hits.len() as f64, k.min(relevant));
        let discount = |rank: usize| 1.0 / ((rank + 1) as f64).log2();
        let precisions = || hits.iter().zip(1..).map(|(hit, i)| f64::from(i) / hit.rank as f64).sum::<f64>();
        let dcg = || hits.iter().map(|hit| discount(hit.rank)).sum::<f64>();
        let dcg_graded = || hits.iter().map(|hit| hit.gain * discount(hit.rank)).sum::<f64>();
        Some(match self.measure {
            Measure::Recall => found / reachable as f64,
            Measure::RecallAll | Measure::RPrecision => found / relevant as f64,
            Measure::Precision => found / k as f64,
            Measure::HitRate => f64::from(u8::from(!hits.is_empty())),
            Measure::Mrr => hits.first().map_or(0.0, |hit| 1.0 / hit.rank as f64),
            Measure::Map => precisions() / reachable as f64,
            Measure::MapSlide => precisions() / k as f64,
            Measure::Dcg => dcg(),
            Measure::DcgGraded => dcg_graded(),
            Measure::Ndcg => dcg() / (1..=reachable).map(discount).sum::<f64>(),
            Measure::NdcgGraded => {
                let best = ideal.iter().take(k).zip(1..).map(|(gain, rank)| gain * discount(rank)).sum::<f64>();
                if best > 0.0 { dcg_graded() / best } else { 0.0 }
            }
            Measure::Coverage | Measure::Popularity | Measure::Novelty | Measure::Gini => return None,
            Measure::Rmse | Measure::Mae => return None,
        })
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.depth {
            Some(depth) => f.pad(&format!("{}@{depth}", self.measure.name())),
            None => f.pad(self.measure.name()),
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    /// Reads `ndcg@100`; capitals are fine.
    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_lowercase();
        let (name, depth) = lower.split_once('@').map_or((lower.as_str(), None), |(name, depth)| (name, Some(depth)));
        let Some(measure) = Measure::ALL.into_iter().find(|measure| measure.name() == name) else {
            let shown = |m: &Measure| if m.has_depth() { format!("{}@k", m.name()) } else { m.name().to_string() };
            let names: Vec<_> = Measure::ALL.iter().map(shown).collect();
            return Err(Error::usage(format!(
                "'{text}' is not a metric; choose from {}, with a depth k such as 20",
                names.join(", ")
            )));
        };
        let depth = depth.map(str::parse).transpose().map_err(|_| {
            Error::usage(format!("'{text}': the depth after @ is a whole number from 1, such as {name}@20"))
        })?;
        Self::new(measure, depth)
    }
}

impl TryFrom<String> for Metric {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.to_string()
    }
}

/// A named set of metrics: the definitions that one line of publications uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Profile {
    /// Liang et al. 2018, with more beside.
    #[default]
    Default,
    /// LightGCN and its successors: recall over all target items, depth 20.
    Lightgcn,
    /// Lecture slides on the large-batch Mult-VAE: average precision divided by k.
    Slides,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 3] = [Self::Default, Self::Lightgcn, Self::Slides];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Lightgcn => "lightgcn",
            Self::Slides => "slides",
        }
    }

    /// Its metrics, the most quoted first.
    pub fn metrics(self) -> &'static [Metric] {
        use Measure::{Coverage, Gini, HitRate, Map, MapSlide, Mrr, Ndcg, Novelty, Precision, Recall, RecallAll};
        const DEFAULT: &[Metric] = &[
            Metric::at(Recall, 20),
            Metric::at(Recall, 50),
            Metric::NDCG_100,
            Metric::at(Map, 100),
            Metric::at(Mrr, 100),
            Metric::at(Precision, 20),
            Metric::at(HitRate, 20),
            Metric::at(Coverage, 100),
            Metric::at(Novelty, 100),
            Metric::at(Gini, 100),
        ];
        const LIGHTGCN: &[Metric] = &[Metric::at(RecallAll, 20), Metric::at(Ndcg, 20), Metric::at(Precision, 20)];
        const SLIDES: &[Metric] =
            &[Metric::at(Recall, 20), Metric::at(Recall, 50), Metric::NDCG_100, Metric::at(MapSlide, 100)];
        match self {
            Self::Default => DEFAULT,
            Self::Lightgcn => LIGHTGCN,
            Self::Slides => SLIDES,
        }
    }

    /// The profile that names exactly these metrics, if one does.
    pub fn of(metrics: &[Metric]) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.metrics() == metrics)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_lowercase();
        Self::ALL.into_iter().find(|profile| profile.name() == lower).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::usage(format!("'{text}' is not a metrics profile; choose from {names}"))
        })
    }
}

impl TryFrom<String> for Profile {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.to_string()
    }
}

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
struct Hit {
    /// From 1.
    rank: usize,
    /// Where in the target.
    at: usize,
    /// `2^grade - 1`.
    gain: f64,
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
