//! `vaecf recommend`: the best items for histories, in external ids.

use std::{
    collections::HashMap,
    io::{BufRead, BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use vaecf_core::{
    Error, Result,
    checkpoint::{ModelFolder, SavedModel},
    dataset::{Dataset, Vocabulary},
    events::Ids,
    files,
    matrix::Matrix,
    model::Model,
    ratings::{self, Keep, ReadOptions, Source},
    recommend::{Catalogue, Recommendation, Recommender},
    split::Threshold,
};

use super::{Context, evaluate, train};
use crate::{
    interrupt,
    options::{Reading, Several},
    output::{Done, Stop, Table, Ui, grouped, stdout_failed, vacant},
    sheet::{self, Column, Sheet},
};

/// What some editors put before a text.
const MARK: &str = "\u{feff}";

/// How many unknown ids a message shows.
const SHOWN: usize = 5;

/// Recommend items for histories.
#[derive(Args, Debug)]
#[command(
    long_about = "Recommend items for histories in external ids, of users the model knows or has never seen.

Histories come from a file in any form that `vaecf prepare` reads (rows of user and item in any order, lists,
Parquet), from a prepared data set (--data, --users), or as JSON on standard input: [\"item\", ...] or
{\"user\": \"...\", \"items\": [...]}, one or many. Their values are weights where the model was trained with
weights (in JSON: \"weights\": [...]). Items of the history are left out. Ids that the model does not know are
reported and left out; a history with nothing known gets the most popular items, marked as such.",
    after_help = "Examples:
  vaecf recommend model/ histories.csv -k 100 -o recommendations.parquet
  vaecf recommend model/ --data data/ --users 17,42
  vaecf recommend model/ --data data/ --users all -k 20 -o all.csv
  echo '[\"python3-numpy\", \"python3-scipy\"]' | vaecf recommend model/ - -k 10
  vaecf recommend model/ histories.csv --deny sold-out.txt --format json"
)]
pub(crate) struct Recommend {
    /// The folder of the model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The file of histories; `-` reads JSON from standard input
    #[arg(value_name = "HISTORIES", required_unless_present = "data", conflicts_with = "data")]
    histories: Option<PathBuf>,
    /// Take the histories from a prepared data set: training events, and for held-out users what is not a target
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Which of its users: ids by commas, a file with one a line, or all
    #[arg(long, value_name = "USERS", default_value = "all", requires = "data")]
    users: String,
    /// Items a user
    #[arg(short, value_name = "K", long = "top", default_value_t = 10)]
    k: u32,
    /// Leave the items of the history in the ranking
    #[arg(long)]
    no_mask: bool,
    /// Recommend only the items in this file, one id a line
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// Never recommend the items in this file, one id a line
    #[arg(long, value_name = "FILE")]
    deny: Option<PathBuf>,
    /// Which values of the histories count, such as `>3.5`; what the model's data were prepared with unless given
    #[arg(long, value_name = "LIMIT")]
    threshold: Option<Threshold>,
    #[command(flatten)]
    reading: Reading,
    /// The file to write: .csv, .parquet, .jsonl, or .json for one array; otherwise standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to write it, where the ending of the file does not tell
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// Replace the file that is there
    #[arg(long)]
    force: bool,
    /// Users ranked at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    batch: u32,
    #[command(flatten)]
    pub(crate) several: Several,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// One object a user and line
    Json,
    /// The same objects as one array
    JsonArray,
    /// One row a recommendation
    Csv,
    /// The same, in columns
    Parquet,
}

/// What is known of one user, in the model's numbers.
#[derive(Debug, Default)]
struct History {
    user: Option<String>,
    /// Items and their weights, in any order.
    items: Vec<(u32, f32)>,
    /// Ids that the model does not know.
    unknown: Vec<String>,
}

type Histories<'a> = Box<dyn Iterator<Item = Result<History>> + 'a>;

impl Recommend {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let form = self.form()?;
        let from_file = self.histories.as_ref().is_some_and(|path| path.as_os_str() != "-");
        if !from_file && (self.reading.options() != ReadOptions::default() || self.threshold.is_some()) {
            return Err(Error::usage("how a file is read has no meaning here: the histories come from no file").into());
        }
        if !context.group.is_root() {
            return self.attend(context);
        }
        if let Some(path) = &self.output {
            vacant(path, self.force)?;
            // Without it an interrupt between two batches would leave the draft behind.
            interrupt::listen()?;
        }
        let saved = ModelFolder::new(&self.model).read()?;
        let lookup = saved.items.lookup();
        let catalogue = self.catalogue(&saved, &lookup, &context.ui)?;
        let data = self.data.as_ref().map(|dir| train::open(dir)).transpose()?;
        let histories: Histories<'_> = match (&data, &self.histories) {
            (Some(data), _) => {
                let dir = self.data.as_deref().unwrap_or(Path::new(""));
                evaluate::same_items(&saved, data, &self.model, dir)?;
                of_data(data, known(data, &self.users, &context.ui)?)
            }
            (None, Some(path)) if path.as_os_str() == "-" => of_json(std::io::stdin().lock(), &lookup)?,
            (None, Some(path)) => self.of_file(path, &saved, &context.ui)?,
            (None, None) => return Err(Error::usage("name a file of histories, or a data set with --data").into()),
        };

        // The others have waited for the first history.
        context.group.barrier()?;
        let device = context.device()?;
        let model = saved.on(&device)?;
        let recommender = self.recommender(&model, &saved, catalogue)?;
        // Who takes one at a time may want its answer before there is another.
        let members = if self.batch > 1 { context.group.world() } else { 1 };
        let batch = self.batch.max(1).saturating_mul(members);
        let job = Job { recommender, saved: &saved, form, batch, unknown: Unknown::default(), users: 0, popular: 0 };
        self.write(job, histories, context)
    }

    /// The items that may be recommended.
    fn catalogue(&self, saved: &SavedModel, lookup: &impl Lookup, ui: &Ui) -> Result<Catalogue> {
        let listed = |path: &Option<PathBuf>| -> Result<Option<Vec<u32>>> {
            path.as_ref().map(|path| listed(path, lookup, ui)).transpose()
        };
        let (allowed, denied) = (listed(&self.allow)?, listed(&self.deny)?.unwrap_or_default());
        Ok(Catalogue::new(saved.items.len(), allowed.as_deref(), &denied))
    }

    fn recommender<'a>(
        &self,
        model: &'a Model,
        saved: &'a SavedModel,
        catalogue: Catalogue,
    ) -> Result<Recommender<'a>> {
        if self.k > model.items() {
            let items = model.items();
            return Err(Error::usage(format!("-k {}: there are {items} items; choose 1 to {items}", self.k)));
        }
        // What is allowed may be fewer: then everybody gets all of it, in order.
        let k = match catalogue.left(model.items()) {
            0 => self.k,
            left => self.k.min(left),
        };
        Recommender::new(model, &saved.popularity, catalogue, !self.no_mask, k, self.batch.max(1))
    }

    /// Ranks, as a member of a group, what the root reads and writes.
    fn attend(&self, context: &Context) -> Done {
        let saved = ModelFolder::new(&self.model).read()?;
        let catalogue = self.catalogue(&saved, &saved.items.lookup(), &context.ui)?;
        context.group.at_leisure().barrier()?;
        let model = saved.on(&context.device()?)?;
        Ok(self.recommender(&model, &saved, catalogue)?.attend()?)
    }

    fn write(&self, mut job: Job<'_>, histories: Histories<'_>, context: &Context) -> Done {
        let start = Instant::now();
        match &self.output {
            None => {
                let out = BufWriter::new(std::io::stdout());
                job.write(histories, out, &|e| stdout_failed(&e))?;
            }
            Some(path) => {
                // What is no error, such as an interrupt, must still keep the draft from its place.
                let mut stopped = None;
                let done = files::write_atomic(path, |to| {
                    let failed = |e| Stop::Failed(Error::io("writing", path, &e));
                    job.write(histories, to, &failed).map_err(|stop| match stop {
                        Stop::Failed(error) => error,
                        stop => {
                            stopped = Some(stop);
                            Error::failure("interrupted")
                        }
                    })
                });
                if let Some(stop) = stopped {
                    return Err(stop);
                }
                done?;
                let seconds = start.elapsed().as_secs_f64();
                context.ui.note(format_args!("{}: {} users in {seconds:.1} s", path.display(), grouped(job.users)));
            }
        }
        job.report(&context.ui);
        Ok(())
    }

    fn form(&self) -> Result<Form> {
        let ending = self.output.as_ref().map(|path| path.extension().and_then(|e| e.to_str()).unwrap_or(""));
        match (self.format, ending) {
            (Some(form), _) => Ok(form),
            (None, None) => Ok(Form::Table),
            (None, Some("csv")) => Ok(Form::Csv),
            (None, Some("parquet")) => Ok(Form::Parquet),
            (None, Some("jsonl")) => Ok(Form::Json),
            (None, Some("json")) => Ok(Form::JsonArray),
            (None, Some("txt")) => Ok(Form::Table),
            (None, Some(_)) => Err(Error::usage(
                "the ending of the file does not tell its form: use .csv, .parquet, .json or .jsonl, or name it with --format",
            )),
        }
    }

    /// Histories of a file, which may be in any order, so it is read whole: four bytes an event.
    fn of_file(&self, path: &Path, saved: &SavedModel, ui: &Ui) -> Result<Histories<'static>> {
        let (mut users, mut ids) = (Ids::default(), Ids::default());
        // The model's items get the model's numbers; whatever comes after them is unknown.
        for item in saved.items.iter() {
            ids.number(item)?;
        }
        let threshold = self.threshold.or(saved.card.threshold);
        let keep = Keep { threshold, values: saved.card.weighted, times: false, if_any: self.threshold.is_none() };
        let (events, report) =
            ratings::read(vec![Source::from(path)], &self.reading.options(), keep, &mut users, &mut ids)?;
        if let (Some(threshold), 1..) = (threshold, report.below_threshold) {
            let count = grouped(report.below_threshold);
            ui.note(format_args!("{}: {count} events are left out, their values are not {threshold}", path.display()));
        }
        let dropped = [
            ("rows without a user or an item were left out", report.missing_id),
            ("lines that cannot be read were skipped", report.bad_lines),
        ];
        for (what, count) in dropped.into_iter().filter(|(_, count)| *count > 0) {
            ui.warn(format_args!("{}: {} {what}", path.display(), grouped(count)));
        }
        if events.is_empty() {
            let why = if report.below_threshold > 0 { ": no value passes the threshold" } else { "" };
            return Err(Error::data(format!("{}: there is no history in it{why}", path.display())));
        }
        let rows = events.group(users.names().len(), ids.names().len(), false)?;
        let known = saved.items.len();
        Ok(Box::new((0..rows.users()).map(move |user| {
            let mut history = History { user: Some(users.names().name(user).to_owned()), ..History::default() };
            let weights = rows.row_values(user);
            for (at, &item) in rows.row(user).iter().enumerate() {
                match item < known {
                    true => history.items.push((item, weights.map_or(1.0, |weights| weights[at]))),
                    false => history.unknown.push(ids.names().name(item).to_owned()),
                }
            }
            Ok(history)
        })))
    }
}

/// Histories as JSON values, one after the other.
fn of_json<'a>(mut from: impl BufRead + 'a, lookup: &'a impl Lookup) -> Result<Histories<'a>> {
    let start = from.fill_buf().map_err(|e| Error::failure(format!("standard input: reading failed: {e}")))?;
    if start.starts_with(MARK.as_bytes()) {
        from.consume(MARK.len());
    }
    let values = serde_json::Deserializer::from_reader(from).into_iter::<Value>();
    Ok(Box::new(values.zip(1_u64..).map(|(value, number)| {
        let wrong = |what: &str| {
            Error::data(format!(
                "standard input, history {number}: {what}; a history is [\"item\", ...] or \
                 {{\"user\": \"...\", \"items\": [...]}}"
            ))
        };
        history(&value.map_err(|e| wrong(&format!("not JSON ({e})")))?, lookup).map_err(wrong)
    })))
}

/// One of them.
fn history(value: &Value, lookup: &impl Lookup) -> std::result::Result<History, &'static str> {
    // Numbers are their digits.
    let id = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
        _ => Err("an id is neither a text nor a whole number"),
    };
    let fields = value.as_object();
    let items = fields.map_or(Some(value), |fields| fields.get("items"));
    let items = items.and_then(Value::as_array).ok_or("there is no list of items")?;
    let weights = match fields.and_then(|fields| fields.get("weights")) {
        None => None,
        Some(weights) => {
            Some(weights.as_array().filter(|w| w.len() == items.len()).ok_or("not a weight for each item")?)
        }
    };
    let user = fields.and_then(|fields| fields.get("user")).filter(|user| !user.is_null());
    let mut history = History { user: user.map(id).transpose()?, ..History::default() };
    for (at, item) in items.iter().enumerate() {
        let item = id(item)?;
        let weight = match weights {
            None => 1.0,
            Some(weights) => {
                weights[at].as_f64().filter(|w| *w >= 0.0).ok_or("a weight is not a number from 0 on")? as f32
            }
        };
        match lookup.find(&item) {
            Some(index) => history.items.push((index, weight)),
            None => history.unknown.push(item),
        }
    }
    Ok(history)
}

/// A table from id to index.
trait Lookup {
    fn find(&self, id: &str) -> Option<u32>;
}

impl<S: std::hash::BuildHasher> Lookup for HashMap<&str, u32, S> {
    fn find(&self, id: &str) -> Option<u32> {
        self.get(id).copied()
    }
}

/// The users of a data set that were asked for, by index.
fn known(data: &Dataset, users: &str, ui: &Ui) -> Result<Vec<u32>> {
    if users == "all" {
        return Ok((0..data.users.len()).collect());
    }
    let lookup = data.users.lookup();
    let ids: Vec<String> = match Path::new(users) {
        path if path.is_file() => lines(path)?,
        _ => users.split(',').map(|id| id.trim().to_owned()).collect(),
    };
    let mut unknown = Unknown::default();
    let found: Vec<u32> = ids.into_iter().filter_map(|id| lookup.find(&id).or_else(|| unknown.add(id))).collect();
    if found.is_empty() {
        return Err(Error::data(format!("--users {users}: the data set knows none of them")));
    }
    unknown.report(ui, "user ids that the data set does not know were left out");
    Ok(found)
}

fn of_data(data: &Dataset, users: Vec<u32>) -> Histories<'_> {
    let mut held: HashMap<u32, (&[u32], Option<&[f32]>)> = HashMap::new();
    for part in [&data.validation, &data.test].into_iter().flatten() {
        held.extend(part.users.iter().copied().zip(part.history.rows()));
    }
    Box::new(users.into_iter().map(move |user| {
        let (items, weights) = match user < data.train.users() {
            true => (data.train.row(user), data.train.row_values(user)),
            false => held.get(&user).copied().unwrap_or_default(),
        };
        let weight = |at: usize| weights.map_or(1.0, |weights| weights[at]);
        let items = items.iter().enumerate().map(|(at, &item)| (item, weight(at))).collect();
        Ok(History { user: Some(data.users.name(user).to_owned()), items, ..History::default() })
    }))
}

/// The items of an allow or deny file.
fn listed(path: &Path, lookup: &impl Lookup, ui: &Ui) -> Result<Vec<u32>> {
    let mut unknown = Unknown::default();
    let found = lines(path)?.into_iter().filter_map(|id| lookup.find(&id).or_else(|| unknown.add(id))).collect();
    unknown.report(ui, &format!("item ids in {} are unknown to the model", path.display()));
    Ok(found)
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
    let text = text.strip_prefix(MARK).unwrap_or(&text);
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Ids that were not known: how many, and the first few.
#[derive(Debug, Default)]
struct Unknown {
    count: u64,
    first: Vec<String>,
}

impl Unknown {
    /// Notes an id; always none, to stand where a found one would.
    fn add(&mut self, id: String) -> Option<u32> {
        self.count += 1;
        if self.first.len() < SHOWN && !self.first.contains(&id) {
            self.first.push(id);
        }
        None
    }

    fn report(&self, ui: &Ui, what: &str) {
        if self.count > 0 {
            ui.warn(format_args!("{} {what}; the first: {}", grouped(self.count), self.first.join(", ")));
        }
    }
}

/// Histories in, recommendations out, a batch at a time.
struct Job<'a> {
    recommender: Recommender<'a>,
    saved: &'a SavedModel,
    form: Form,
    batch: u32,
    unknown: Unknown,
    users: u64,
    popular: u64,
}

impl Job<'_> {
    /// Whatever keeps it from going on without being an error, the other members are told.
    fn write<W: Write + Send>(
        &mut self,
        histories: Histories<'_>,
        to: W,
        failed: &dyn Fn(std::io::Error) -> Stop,
    ) -> Done {
        let done = self.write_all(histories, to, failed);
        if !matches!(done, Err(Stop::Failed(_))) {
            self.recommender.done()?;
        }
        done
    }

    fn write_all<W: Write + Send>(
        &mut self,
        histories: Histories<'_>,
        mut to: W,
        failed: &dyn Fn(std::io::Error) -> Stop,
    ) -> Done {
        let form = match self.form {
            Form::Csv => Some(sheet::Form::Csv),
            Form::Parquet => Some(sheet::Form::Parquet),
            Form::Table | Form::Json | Form::JsonArray => None,
        };
        if let Some(form) = form {
            let names = ["user", "rank", "item", "score", "popular"];
            let mut sheet = Sheet::new(form, to, &names, &self.columns(&[])).map_err(failed)?;
            self.batches(histories, |job, done| sheet.write(&job.columns(done)).map_err(failed))?;
            return sheet.finish().map_err(failed);
        }
        // Between the objects of an array, and around them.
        let (mut before, between, end) = match self.form {
            Form::JsonArray => ("[\n", ",\n", "\n]\n"),
            _ => ("", "", ""),
        };
        self.batches(histories, |job, done| {
            let text = match job.form {
                Form::Table => job.table(done),
                Form::JsonArray => job.json(done).trim_end().replace('\n', between),
                _ => job.json(done),
            };
            let text = format!("{}{text}", std::mem::replace(&mut before, between));
            to.write_all(text.as_bytes()).and_then(|()| to.flush()).map_err(failed)
        })?;
        // Of no user there is an empty array.
        let start = if before == between { "" } else { before };
        to.write_all(format!("{start}{end}").as_bytes()).and_then(|()| to.flush()).map_err(failed)
    }

    fn batches(
        &mut self,
        mut histories: Histories<'_>,
        mut write: impl FnMut(&Self, &[(Option<String>, Recommendation)]) -> Done,
    ) -> Done {
        loop {
            if interrupt::asked() {
                return Err(Stop::Interrupted);
            }
            let batch = histories.by_ref().take(self.batch as usize).collect::<Result<Vec<_>>>()?;
            if batch.is_empty() {
                return Ok(());
            }
            let rows = batch.iter().map(|history| history.items.iter().copied());
            let matrix = Matrix::from_pairs(self.saved.items.len(), rows, self.saved.card.weighted)?;
            let best = self.recommender.recommend(&matrix)?;
            self.users += batch.len() as u64;
            self.popular += best.iter().filter(|best| best.popular).count() as u64;
            let mut done = Vec::with_capacity(batch.len());
            for (history, best) in batch.into_iter().zip(best) {
                history.unknown.into_iter().for_each(|id| {
                    self.unknown.add(id);
                });
                done.push((history.user, best));
            }
            write(self, &done)?;
        }
    }

    fn columns(&self, done: &[(Option<String>, Recommendation)]) -> Vec<Column> {
        let (mut users, mut ranks, mut items) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scores, mut popular) = (Vec::new(), Vec::new());
        for (user, best) in done {
            for (&(item, score), rank) in best.items.iter().zip(1..) {
                users.push(user.clone().unwrap_or_default());
                ranks.push(rank);
                items.push(self.saved.items.name(item).to_owned());
                scores.push(f64::from(score));
                popular.push(best.popular);
            }
        }
        vec![
            Column::Text(users),
            Column::Count(ranks),
            Column::Text(items),
            Column::Number(scores),
            Column::Flag(popular),
        ]
    }

    fn json(&self, done: &[(Option<String>, Recommendation)]) -> String {
        let line = |(user, best): &(Option<String>, Recommendation)| {
            let item = |&(item, score): &(u32, f32)| json!({ "item": self.saved.items.name(item), "score": score });
            let items: Vec<_> = best.items.iter().map(item).collect();
            format!("{}\n", json!({ "user": user, "popular": best.popular, "items": items }))
        };
        done.iter().map(line).collect()
    }

    fn table(&self, done: &[(Option<String>, Recommendation)]) -> String {
        let user = |(user, best): &(Option<String>, Recommendation)| {
            let mark = if best.popular { " (nothing known of it: the most popular items)" } else { "" };
            let head = format!("{}{mark}\n", user.as_deref().unwrap_or("history"));
            head + &ranking(best, &self.saved.items)
        };
        done.iter().map(user).collect()
    }

    fn report(&self, ui: &Ui) {
        self.unknown.report(ui, "events are on items that the model does not know, and were left out");
        if self.popular > 0 {
            ui.warn(format_args!(
                "{} of {} users have no item that the model knows, and got the most popular ones",
                grouped(self.popular),
                grouped(self.users)
            ));
        }
        if self.users == 0 {
            ui.warn("there was no history");
        }
    }
}

/// The recommendations of one user for people.
pub(crate) fn ranking(best: &Recommendation, items: &Vocabulary) -> String {
    let mut table = Table(Vec::new());
    for (&(item, score), rank) in best.items.iter().zip(1..) {
        table.row([format!("{rank:>5}  {}", items.name(item)), format!("{score:.3}")]);
    }
    table.to_string()
}
