//! From files to a data set: read, filter, split, and say what was kept and what was dropped.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    dataset::{Dataset, Part, Vocabulary},
    error::{Error, Result},
    events::{Events, Ids, Rows},
    ratings::{self, Keep, ReadOptions, ReadReport, Source},
    split::{self, Filter, Given, Plan, Split, SplitReport, Threshold},
};

/// What to make a data set from.
#[derive(Debug)]
pub enum Input {
    /// Ratings that are to be split. A single folder in the published form (`train.csv`,
    /// `validation_tr.csv`, `validation_te.csv`, `test_tr.csv`, `test_te.csv`, `unique_sid.txt`) or in
    /// that of LightGCN (`train.*` and `test.*`) is taken as the split it is.
    Ratings(Vec<Source>),
    /// Files that are split already; filters and split of the options do not apply.
    Given {
        /// The training events.
        train: Source,
        /// The validation events.
        validation: Option<Held>,
        /// The test events.
        test: Option<Held>,
    },
}

impl<P: Into<PathBuf>> From<P> for Input {
    fn from(path: P) -> Self {
        Self::Ratings(vec![path.into().into()])
    }
}

/// A held-out part in files of its own.
#[derive(Debug)]
pub struct Held {
    /// Where the users are not training users: what the model sees of them.
    pub history: Option<Source>,
    /// What it is to recommend.
    pub target: Source,
}

/// How to make a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareOptions {
    /// How to read the files.
    pub read: ReadOptions,
    /// Rows whose value does not pass do not count. Applied to each row, before repeats are joined.
    pub threshold: Option<Threshold>,
    /// Whether values are kept as weights. Otherwise every event weighs one.
    pub weights: bool,
    /// Which users and items have enough events.
    pub filter: Filter,
    /// What is held out.
    pub split: Split,
    /// Seed of every random choice.
    pub seed: u64,
}

impl Default for PrepareOptions {
    /// All rows count, users have at least five events, a tenth of the users is held out for
    /// validation and as many for test, and the seed is that of the published split.
    fn default() -> Self {
        Self {
            read: ReadOptions::default(),
            threshold: None,
            weights: false,
            filter: Filter::default(),
            split: Split::default(),
            seed: 98765,
        }
    }
}

/// What happened to the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareReport {
    /// What was read.
    pub read: ReadReport,
    /// Rows that repeat a pair; pairs count once, with the value and time of the last row.
    pub repeats: u64,
    /// What filters and split kept and dropped.
    pub split: SplitReport,
    /// Size of the training part.
    pub train: PartReport,
    /// Size of the validation part.
    pub validation: Option<PartReport>,
    /// Size of the test part.
    pub test: Option<PartReport>,
}

/// The size of a part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartReport {
    /// Its users.
    pub users: u32,
    /// Users that are scored, those with a target; of the training part all.
    pub scored: u32,
    /// Items in the vocabulary.
    pub items: u32,
    /// Training events, or those of the histories.
    pub events: u64,
    /// Target events.
    pub targets: u64,
}

/// Makes a data set, and says what was kept and what was dropped.
///
/// # Errors
/// One sentence: what is wrong with a file, where, and what to do.
pub fn prepare(input: Input, options: &PrepareOptions) -> Result<(Dataset, PrepareReport)> {
    options.split.check()?;
    let (input, catalogue) = known_folder(input)?;
    let mut work =
        Preparation { options, users: Ids::default(), items: Ids::default(), report: PrepareReport::default() };
    let (mut dataset, split) = match input {
        Input::Ratings(sources) => {
            let events = work.read(sources, options.split.needs_times())?;
            let rows = work.group(events, options.split.needs_order())?;
            let plan = Plan { filter: options.filter.clone(), split: options.split.clone(), seed: options.seed };
            split::split(&rows, &work.users, &work.items, &plan)?
        }
        Input::Given { train, validation, test } => {
            // Ids first, rows when all ids are known.
            let train = work.read(vec![train], false)?;
            let validation = work.read_held(validation)?;
            let test = work.read_held(test)?;
            let train = work.group(train, false)?;
            let validation = work.group_held(validation)?;
            let test = work.group_held(test)?;
            split::given(&train, validation.as_ref(), test.as_ref(), &work.users, &work.items)?
        }
    };
    if let Some(path) = catalogue {
        dataset.items = rename(&dataset.items, &path)?;
    }
    let mut report = work.report;
    report.split = split;
    let (users, events) = (dataset.train.users(), dataset.train.events());
    report.train = PartReport { users, scored: users, items: dataset.items.len(), events, targets: 0 };
    report.validation = dataset.validation.as_ref().map(PartReport::of);
    report.test = dataset.test.as_ref().map(PartReport::of);
    Ok((dataset, report))
}

impl PartReport {
    fn of(part: &Part) -> Self {
        Self {
            users: part.target.users(),
            scored: part.target.rows().filter(|row| !row.0.is_empty()).count() as u32,
            items: part.target.items(),
            events: part.history.events(),
            targets: part.target.events(),
        }
    }
}

struct Preparation<'a> {
    options: &'a PrepareOptions,
    users: Ids,
    items: Ids,
    report: PrepareReport,
}

impl Preparation<'_> {
    fn read(&mut self, sources: Vec<Source>, times: bool) -> Result<Events> {
        let keep = Keep { threshold: self.options.threshold, values: self.options.weights, times, if_any: false };
        let (events, read) = ratings::read(sources, &self.options.read, keep, &mut self.users, &mut self.items)?;
        if let (true, Some(threshold), below @ 1..) = (events.is_empty(), keep.threshold, read.below_threshold) {
            return Err(Error::data(format!("none of {below} values is {threshold}: choose another threshold")));
        }
        self.report.read.add(read);
        Ok(events)
    }

    fn group(&mut self, events: Events, ordered: bool) -> Result<Rows> {
        let rows = events.group(self.users.names().len(), self.items.names().len(), ordered)?;
        self.report.repeats += rows.repeats();
        Ok(rows)
    }

    fn read_held(&mut self, held: Option<Held>) -> Result<Option<(Option<Events>, Events)>> {
        let Some(held) = held else { return Ok(None) };
        let history = held.history.map(|source| self.read(vec![source], false)).transpose()?;
        Ok(Some((history, self.read(vec![held.target], false)?)))
    }

    fn group_held(&mut self, held: Option<(Option<Events>, Events)>) -> Result<Option<Given>> {
        let Some((history, target)) = held else { return Ok(None) };
        let history = history.map(|events| self.group(events, false)).transpose()?;
        Ok(Some(Given { history, target: self.group(target, false)? }))
    }
}

/// Sees whether a folder is a split already; also the file of its item ids.
fn known_folder(input: Input) -> Result<(Input, Option<PathBuf>)> {
    let folder = match &input {
        Input::Ratings(sources) => match &sources[..] {
            [Source::Path(path)] if path.is_dir() => path.clone(),
            _ => return Ok((input, None)),
        },
        Input::Given { .. } => return Ok((input, None)),
    };
    let paths = ratings::list(&folder)?;
    let file = |stem: &str| -> Option<PathBuf> {
        paths.iter().find(|path| stem_of(path) == Some(stem) && path.is_file()).cloned()
    };
    let held = |part: &str| -> Option<Held> {
        let (history, target) = (file(&format!("{part}_tr"))?, file(&format!("{part}_te"))?);
        Some(Held { history: Some(history.into()), target: target.into() })
    };
    let Some(train) = file("train") else { return Ok((input, None)) };
    let (validation, test) = (held("validation"), held("test"));
    if validation.is_some() || test.is_some() {
        return Ok((Input::Given { train: train.into(), validation, test }, file("unique_sid")));
    }
    let alone = |stem: &str| file(stem).map(|target| Held { history: None, target: target.into() });
    let (validation, test) = (alone("validation").or_else(|| alone("valid")), alone("test"));
    if test.is_none() {
        return Ok((input, None));
    }
    Ok((Input::Given { train: train.into(), validation, test }, None))
}

/// `train` of `train.csv` and `train.txt.zst`.
fn stem_of(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let (stem, endings) = name.split_once('.')?;
    let text = endings.strip_suffix(".gz").or_else(|| endings.strip_suffix(".zst")).unwrap_or(endings);
    ["csv", "tsv", "txt", "dat", "parquet"].contains(&text).then_some(stem)
}

/// The published split numbers its items; their ids stand in a list, a line each.
fn rename(numbers: &Vocabulary, path: &Path) -> Result<Vocabulary> {
    let (file, names) = (path.display(), ratings::lines(path)?);
    numbers
        .iter()
        .map(|number| {
            number.parse().ok().and_then(|n: usize| names.get(n)).ok_or_else(|| {
                Error::data(format!(
                    "{file}: there is no line for item {number}, which is counted from 0; is it the list of this split?"
                ))
            })
        })
        .collect()
}
