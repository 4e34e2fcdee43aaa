//! How good recommendations are: what each metric means, and the scorer that streams users through.
//!
//! A user has a ranking, with the history already masked, and a target `R`: the items that were
//! hidden. Most metrics are a number per user, averaged over the users who have a target; users
//! without one are counted and never averaged in. A few describe all lists together, and two the
//! error of predicted values. Peers disagree about some definitions under one name, so here each
//! definition has a name of its own, and every report carries the sentence that defines it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod scorer;

use scorer::Hit;
pub use scorer::{Scorer, User, depth};

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
