//! From rows of events to a data set: filters, then a split into training, validation and test.
//!
//! Everything is decided by the events, the options and the seed. The order of the rows in a file
//! matters only to [`Split::Published`], because what was published depends on it.

mod build;
mod given;
pub mod numpy;

pub use given::{Given, given};

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use self::build::{Builder, NONE, PartBuilder, vocabulary};
use crate::{
    dataset::{Dataset, Part, Vocabulary},
    error::{Error, Result},
    events::{Ids, Rows},
    random::{permutation, stream},
};

/// Users with fewer events in the vocabulary are all history and are not scored.
const SCORED: usize = 5;

/// Which events count, by their value. Written `>3.5` or `>=4`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// Values above this.
    Above(f64),
    /// Values of at least this.
    AtLeast(f64),
}

impl Threshold {
    /// Whether an event of this value counts.
    #[inline]
    pub fn keeps(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(limit) => write!(f, ">{limit}"),
            Self::AtLeast(limit) => write!(f, ">={limit}"),
        }
    }
}

impl FromStr for Threshold {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (make, number): (fn(f64) -> Self, _) = match text.trim().strip_prefix('>') {
            Some(rest) => rest.strip_prefix('=').map_or((Self::Above as _, rest), |rest| (Self::AtLeast as _, rest)),
            None => (Self::AtLeast as _, text),
        };
        let limit = number.trim().parse().ok().filter(|limit: &f64| limit.is_finite());
        limit
            .map(make)
            .ok_or_else(|| Error::usage(format!("`{text}` is not a threshold; write for instance `>3.5` or `>=4`")))
    }
}

/// Which users and items have enough events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The fewest events of a user.
    pub min_user: u32,
    /// The fewest events of an item.
    pub min_item: u32,
    /// Whether to filter again until nothing changes. Otherwise items are filtered once, then users
    /// once, as in the published protocol, so that some items may end below their minimum.
    pub k_core: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Self { min_user: 5, min_item: 0, k_core: false }
    }
}

/// How many users are held out. Written `10000`, `10%` or `0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeldOut {
    /// So many.
    Users(u32),
    /// This share of all users, rounded down.
    Share(f64),
}

impl HeldOut {
    fn of(self, users: usize) -> Result<usize> {
        match self {
            Self::Users(count) => Ok(count as usize),
            Self::Share(share) => match (share * users as f64) as usize {
                0 if share > 0.0 => Err(Error::data(format!(
                    "{share} of {users} users is nobody; hold out a number of users instead, or split otherwise"
                ))),
                count => Ok(count),
            },
        }
    }
}

impl FromStr for HeldOut {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let share = match text.trim().strip_suffix('%') {
            Some(percent) => number(percent).map(|p| p / 100.0),
            None if text.trim().bytes().all(|b| b.is_ascii_digit()) => {
                return text.trim().parse().map(Self::Users).map_err(|_| wrong_held_out(text));
            }
            None => number(text),
        };
        share.filter(|s| (0.0..1.0).contains(s)).map(Self::Share).ok_or_else(|| wrong_held_out(text))
    }
}

fn wrong_held_out(text: &str) -> Error {
    Error::usage(format!("`{text}` is not a number of users to hold out; write for instance `10000` or `10%`"))
}

/// What is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Split {
    /// Strong generalisation: whole users are held out; of each, a share of the events is the target
    /// and the rest the history. The vocabulary is that of the training users.
    Strong {
        /// Users held out for choosing the epoch.
        validation: HeldOut,
        /// Users held out for the final figure.
        test: HeldOut,
        /// Share of a held-out user's events that are targets, rounded down.
        targets: f64,
    },
    /// Strong generalisation exactly as in the published preprocessing of Mult-VAE: numpy's legacy
    /// generator with [`Plan::seed`] (published: 98765), so the same users and the same targets.
    /// The events of a held-out user are drawn by their place in the file.
    Published {
        /// Users held out for validation, and as many for test.
        held_out: u32,
    },
    /// Weak generalisation: of every user a share of the events, drawn at random.
    Ratio {
        /// Share for validation.
        validation: f64,
        /// Share for test.
        test: f64,
    },
    /// One event of every user for test and one for validation, drawn at random; users with fewer
    /// than three events stay whole.
    LeaveOneOut,
    /// The newest event of every user for test and the one before for validation; users with fewer
    /// than three events stay whole. Of equal times the later row is the newer.
    LeaveLast,
    /// The newest events of all for test, those before them for validation. Events of one time stay
    /// together, so the shares are upper bounds.
    Time {
        /// Share for validation.
        validation: f64,
        /// Share for test.
        test: f64,
    },
    /// Nothing is held out.
    All,
}

impl Default for Split {
    fn default() -> Self {
        Self::Strong { validation: HeldOut::Share(0.1), test: HeldOut::Share(0.1), targets: 0.2 }
    }
}

impl Split {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// Names the share that lies outside 0..1.
    pub fn check(&self) -> Result<()> {
        let shares: &[(&str, f64)] = match *self {
            Self::Strong { validation, test, targets } => {
                let of = |held| if let HeldOut::Share(share) = held { share } else { 0.0 };
                &[("validation users", of(validation)), ("test users", of(test)), ("targets", targets)]
            }
            Self::Ratio { validation, test } | Self::Time { validation, test } => {
                &[("validation", validation), ("test", test), ("validation and test together", validation + test)]
            }
            _ => &[],
        };
        match shares.iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
            Some((what, share)) => Err(Error::usage(format!("{share} is not a share for {what}; it lies in 0..1"))),
            None => Ok(()),
        }
    }

    /// Whether the split needs the time of each event.
    pub fn needs_times(&self) -> bool {
        matches!(self, Self::LeaveLast | Self::Time { .. })
    }

    /// Whether the split needs events in file order.
    pub fn needs_order(&self) -> bool {
        matches!(self, Self::Published { .. })
    }
}

/// Filters, split and seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Which users and items stay.
    pub filter: Filter,
    /// What is held out.
    pub split: Split,
    /// Seed of every random choice.
    pub seed: u64,
}

/// What filters and split kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SplitReport {
    /// Users left by the filters.
    pub users: u32,
    /// Items left by the filters.
    pub items: u32,
    /// Events left by the filters.
    pub events: u64,
    /// Events dropped because their item has too few.
    pub rare_item: u64,
    /// Events dropped because their user has too few.
    pub rare_user: u64,
    /// Held-out events dropped because no training user has the item.
    pub unknown_item: u64,
    /// Held-out events dropped because the user has no training event.
    pub unknown_user: u64,
    /// Targets dropped because they are in the history too (only in given files).
    pub already_seen: u64,
}

/// Filters and splits.
///
/// # Errors
/// Where nothing is left, or the split asks for more than there is.
pub fn split(rows: &Rows, users: &Ids, items: &Ids, plan: &Plan) -> Result<(Dataset, SplitReport)> {
    plan.split.check()?;
    let mut report = SplitReport::default();
    let (user_kept, item_kept) = filter(rows, items.names().len(), &plan.filter, &mut report);
    let ranks = users.ranks();
    let mut order: Vec<u32> = (0..rows.users()).filter(|&u| user_kept[u as usize]).collect();
    order.sort_unstable_by_key(|&u| ranks[u as usize]);
    report.users = order.len() as u32;
    if order.is_empty() {
        return Err(Error::data(format!(
            "no user is left of {} with {} events; a user needs {} and an item {}: lower the minimum or the threshold",
            rows.users(),
            rows.events(),
            plan.filter.min_user,
            plan.filter.min_item
        )));
    }
    let mut work = Work { rows, users, items, item_kept, ranks, map: Vec::new(), report };
    let dataset = match plan.split {
        Split::Strong { validation, test, targets } => {
            let (validation, test) = (validation.of(order.len())?, test.of(order.len())?);
            let mut held: Vec<u32> = permutation(plan.seed, stream::SPLIT, 0, order.len() as u32);
            held.truncate(training(order.len(), validation, test)?.1);
            let mut is_held = vec![false; order.len()];
            held.iter().for_each(|&at| is_held[at as usize] = true);
            let (first, second) = held.split_at_mut(validation);
            first.sort_unstable();
            second.sort_unstable();
            let train = (0..order.len()).filter(|&at| !is_held[at]).map(|at| order[at]);
            let order: Vec<u32> = train.chain(held.iter().map(|&at| order[at as usize])).collect();
            let seed = plan.seed;
            work.strong(&order, validation, test, targets, false, |_| {
                Box::new(move |index, n| permutation(seed, stream::TARGET, index, n))
            })
        }
        Split::Published { held_out } => {
            let seed = u32::try_from(plan.seed)
                .map_err(|_| Error::usage("the seed of the published split lies in 0..4294967296"))?;
            let held_out = held_out as usize;
            training(order.len(), held_out, held_out)?;
            let drawn = numpy::RandomState::new(seed).permutation(order.len() as u32);
            let order: Vec<u32> = drawn.iter().map(|&at| order[at as usize]).collect();
            // The published code seeds the generator again for each held-out part.
            work.strong(&order, held_out, held_out, 0.2, true, |_| {
                let mut state = numpy::RandomState::new(seed);
                Box::new(move |_, n| state.permutation(n))
            })
        }
        Split::Ratio { validation, test } => {
            work.weak(&order, (validation > 0.0, test > 0.0), |index, mut row, tag| {
                row.sort_unstable_by_key(|event| event.0);
                let drawn = permutation(plan.seed, stream::SPLIT, index, row.len() as u32);
                let tests = (test * row.len() as f64) as usize;
                let validations = (validation * row.len() as f64) as usize;
                drawn[..tests].iter().for_each(|&at| tag(row[at as usize].1, TEST));
                drawn[tests..tests + validations].iter().for_each(|&at| tag(row[at as usize].1, VALIDATION));
            })
        }
        Split::LeaveOneOut => work.weak(&order, (true, true), |index, mut row, tag| {
            row.sort_unstable_by_key(|event| event.0);
            if let [test, validation, _, ..] = permutation(plan.seed, stream::SPLIT, index, row.len() as u32)[..] {
                tag(row[test as usize].1, TEST);
                tag(row[validation as usize].1, VALIDATION);
            }
        }),
        Split::LeaveLast => {
            let times = work.times()?;
            work.weak(&order, (true, true), |_, mut row, tag| {
                row.sort_unstable_by_key(|&(_, at)| (times[at], at));
                if let [.., _, validation, test] = row[..] {
                    tag(test.1, TEST);
                    tag(validation.1, VALIDATION);
                }
            })
        }
        Split::Time { validation, test } => {
            let times = work.times()?;
            let mut sorted: Vec<i64> = Vec::with_capacity(work.report.events as usize);
            order.iter().for_each(|&user| sorted.extend(work.kept(user).map(|at| times[at])));
            sorted.sort_unstable();
            // The last time that is not newer than a share of the events.
            let cut = |share: f64| {
                let before = ((1.0 - share) * sorted.len() as f64).ceil() as usize;
                sorted[before.clamp(1, sorted.len()) - 1]
            };
            let (cut_test, cut_validation) = (cut(test), cut(test + validation));
            work.weak(&order, (validation > 0.0, test > 0.0), |_, row, tag| {
                for (_, at) in row {
                    if times[at] > cut_test {
                        tag(at, TEST);
                    } else if times[at] > cut_validation {
                        tag(at, VALIDATION);
                    }
                }
            })
        }
        Split::All => work.weak(&order, (false, false), |_, _, _| {}),
    }?;
    Ok((dataset, work.report))
}

/// How many train and how many are held out; an error where nobody trains.
fn training(users: usize, validation: usize, test: usize) -> Result<(usize, usize)> {
    let held = validation.saturating_add(test);
    match users.checked_sub(held) {
        Some(train) if train > 0 => Ok((train, held)),
        _ => Err(Error::usage(format!(
            "{validation} + {test} users to hold out leave none of the {users} to train on; hold out fewer"
        ))),
    }
}

/// Drops rare items and users; says which stay.
fn filter(rows: &Rows, items: u32, filter: &Filter, report: &mut SplitReport) -> (Vec<bool>, Vec<bool>) {
    let mut user_kept = vec![true; rows.users() as usize];
    let mut item_kept = vec![true; items as usize];
    loop {
        let mut changed = false;
        let mut counts = vec![0_u32; items as usize];
        for user in (0..rows.users()).filter(|&u| user_kept[u as usize]) {
            rows.items()[rows.span(user)].iter().for_each(|&item| counts[item as usize] += 1);
        }
        for (kept, count) in item_kept.iter_mut().zip(&counts) {
            if *kept && *count < filter.min_item.max(1) {
                (*kept, changed) = (false, true);
                report.rare_item += u64::from(*count);
            }
        }
        report.events = 0;
        for (user, kept) in (0..).zip(user_kept.iter_mut()).filter(|(_, kept)| **kept) {
            let events = rows.items()[rows.span(user)].iter().filter(|&&item| item_kept[item as usize]).count();
            if events < filter.min_user.max(1) as usize {
                (*kept, changed) = (false, true);
                report.rare_user += events as u64;
            } else {
                report.events += events as u64;
            }
        }
        if !(filter.k_core && changed) {
            break;
        }
    }
    let mut left = vec![false; items as usize];
    for user in (0..rows.users()).filter(|&u| user_kept[u as usize]) {
        rows.items()[rows.span(user)].iter().for_each(|&item| left[item as usize] = item_kept[item as usize]);
    }
    report.items = left.iter().filter(|&&left| left).count() as u32;
    (user_kept, left)
}

const VALIDATION: u8 = 1;
const TEST: u8 = 2;

/// A draw of `n` positions for the held-out user of that index.
type Draw = Box<dyn FnMut(u32, u32) -> Vec<u32>>;

struct Work<'a> {
    rows: &'a Rows,
    users: &'a Ids,
    items: &'a Ids,
    item_kept: Vec<bool>,
    /// Place of each user in id order.
    ranks: Vec<u32>,
    /// Column of each item, or [`NONE`].
    map: Vec<u32>,
    report: SplitReport,
}

impl<'a> Work<'a> {
    fn times(&self) -> Result<&'a [i64]> {
        self.rows.times().ok_or_else(|| Error::usage("a split by time needs a column of times; name it"))
    }

    /// Where the events of a user lie that the filters left.
    fn kept(&self, user: u32) -> impl Iterator<Item = usize> {
        self.rows.span(user).filter(|&at| self.item_kept[self.rows.items()[at] as usize])
    }

    fn value(&self, at: usize) -> f32 {
        self.rows.values().map_or(1.0, |values| values[at])
    }

    /// The events of a user in the vocabulary: column and value.
    fn row(&self, user: u32) -> impl Iterator<Item = (u32, f32)> {
        self.rows
            .span(user)
            .map(|at| (self.map[self.rows.items()[at] as usize], self.value(at)))
            .filter(|event| event.0 != NONE)
    }

    /// Training users first in `order`, then validation, then test.
    fn strong(
        &mut self,
        order: &[u32],
        validation: usize,
        test: usize,
        targets: f64,
        published: bool,
        draws: impl Fn(u32) -> Draw,
    ) -> Result<Dataset> {
        let train = order.len() - validation - test;
        let mut seen = vec![false; self.item_kept.len()];
        let mut appeared = Vec::new();
        let mut by_file = order[..train].to_vec();
        by_file.sort_unstable();
        for at in by_file.iter().flat_map(|&user| self.kept(user)) {
            let item = self.rows.items()[at];
            if !std::mem::replace(&mut seen[item as usize], true) {
                appeared.push(item);
            }
        }
        let items = vocabulary(self.items, appeared, !published, &mut self.map);
        let mut matrix = Builder::new(&items, self.rows, train, self.report.events);
        order[..train].iter().for_each(|&user| matrix.push(self.row(user)));
        let users = order.iter().map(|&user| self.users.names().name(user)).collect();
        let mut parts = [None, None];
        for (part, (first, count)) in parts.iter_mut().zip([(train, validation), (train + validation, test)]) {
            if count > 0 {
                let held = &order[first..first + count];
                *part = Some(self.held(&items, held, first as u32, targets, published, draws(first as u32))?);
            }
        }
        let [validation, test] = parts;
        Dataset::new(matrix.finish()?, validation, test, items, users)
    }

    /// One held-out part of strong generalisation.
    fn held(
        &mut self,
        items: &Vocabulary,
        users: &[u32],
        first: u32,
        targets: f64,
        published: bool,
        mut draw: Draw,
    ) -> Result<Part> {
        // Drawn in the order of user ids, whatever the order of the rows.
        let mut by_id: Vec<usize> = (0..users.len()).collect();
        by_id.sort_unstable_by_key(|&at| self.ranks[users[at] as usize]);
        let mut is_target = vec![Vec::new(); users.len()];
        for at in by_id {
            let n = self.row(users[at]).count();
            if n >= SCORED {
                let chosen = draw(first + at as u32, n as u32);
                is_target[at] = vec![false; n];
                let count = (targets * n as f64) as usize;
                chosen[..count].iter().for_each(|&c| is_target[at][c as usize] = true);
            }
        }
        let mut part = PartBuilder::new(items, self.rows);
        for (at, &user) in users.iter().enumerate() {
            let mut row: Vec<_> = self.row(user).collect();
            self.report.unknown_item += (self.kept(user).count() - row.len()) as u64;
            if !published {
                row.sort_unstable_by_key(|event| event.0);
            }
            let pick = |wanted: bool| {
                let is_target = &is_target[at];
                let chosen = move |n: usize| is_target.get(n).copied().unwrap_or(false) == wanted;
                row.iter().enumerate().filter(move |(n, _)| chosen(*n)).map(|(_, &event)| event)
            };
            part.push(first + at as u32, pick(false), pick(true));
        }
        part.finish("of the users held out, none has five events on items that training users have; hold out more")
    }

    /// Every user trains; `choose` gets (row, [(item rank, place)], tag) and tags the events held out.
    fn weak(
        &mut self,
        order: &[u32],
        (validation, test): (bool, bool),
        choose: impl Fn(u32, Vec<(u32, usize)>, &mut dyn FnMut(usize, u8)),
    ) -> Result<Dataset> {
        let ranks = self.items.ranks();
        let mut tags = vec![0_u8; self.rows.events() as usize];
        let mut seen = vec![false; self.item_kept.len()];
        let mut train = Vec::with_capacity(order.len());
        for (index, &user) in (0..).zip(order) {
            let row = self.kept(user).map(|at| (ranks[self.rows.items()[at] as usize], at)).collect();
            choose(index, row, &mut |at, tag| tags[at] = tag);
            let mut stays = false;
            for at in self.kept(user).filter(|&at| tags[at] == 0) {
                seen[self.rows.items()[at] as usize] = true;
                stays = true;
            }
            if stays {
                train.push(user);
            } else {
                self.report.unknown_user += self.kept(user).count() as u64;
            }
        }
        if train.is_empty() {
            return Err(Error::data("the split leaves no event to train on; hold out less"));
        }
        let known = (0..).zip(seen).filter(|(_, seen)| *seen).map(|(item, _)| item).collect();
        let items = vocabulary(self.items, known, true, &mut self.map);
        let mut matrix = Builder::new(&items, self.rows, train.len(), self.report.events);
        let (mut first, mut second) = (PartBuilder::new(&items, self.rows), PartBuilder::new(&items, self.rows));
        for (index, &user) in (0..).zip(&train) {
            let mut row: [Vec<(u32, f32)>; 3] = Default::default();
            let mut unknown = 0;
            for at in self.kept(user) {
                match self.map[self.rows.items()[at] as usize] {
                    NONE => unknown += 1,
                    item => row[tags[at] as usize].push((item, self.value(at))),
                }
            }
            self.report.unknown_item += unknown;
            let [train, validations, tests] = row;
            if !validations.is_empty() {
                first.push(index, train.iter().copied(), validations.iter().copied());
            }
            if !tests.is_empty() {
                second.push(index, train.iter().chain(&validations).copied(), tests.iter().copied());
            }
            matrix.push(train.into_iter());
        }
        let none = "the split leaves no target; hold out more, or keep users with more events";
        let users = train.iter().map(|&user| self.users.names().name(user)).collect();
        let validation = validation.then(|| first.finish(none)).transpose()?;
        let test = test.then(|| second.finish(none)).transpose()?;
        Dataset::new(matrix.finish()?, validation, test, items, users)
    }
}
