//! `vaecf prepare`: from files of ratings to a data set.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use vaecf_core::{
    Result,
    prepare::{self, Held, Input, PrepareOptions, PrepareReport},
    ratings::Source,
    split::{Filter, HeldOut, Split, Threshold},
};

use super::Context;
use crate::{
    options::Reading,
    output::{Done, Format, Table, grouped, print, print_json, write_text},
    run_file,
};

/// Make a data set from ratings: read, filter, map ids, split.
#[derive(Args, Debug)]
#[command(
    long_about = "Make a data set from ratings: read, filter, map ids, split.

Formats are told by their content, plain or in gzip, zstd, zip or tar: MovieLens (ratings.csv, ratings.dat,
u.data), Netflix (mv_*.txt, combined_data_*.txt), LightGCN lists, any table with named or numbered columns,
Parquet. A folder that is split already is taken as it is.",
    after_help = "Examples:
  vaecf prepare ml-20m/ratings.csv --threshold '>3.5' --validation 10000 --test 10000 -o data/
  vaecf prepare ml-20m.zip --threshold '>3.5' --split published --held-out 10000 -o data/
  vaecf prepare plays.tsv.zst --user listener --item artist --min-item 5 --k-core -o data/
  vaecf prepare train.txt --given-test test.txt -o data/"
)]
pub(crate) struct Prepare {
    /// Files or folders of ratings; `-` is standard input
    #[arg(required = true, value_name = "RATINGS")]
    ratings: Vec<PathBuf>,
    /// The folder for the data set
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Replace a data set that is there
    #[arg(long)]
    force: bool,
    /// How to print what was kept and dropped
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    reading: Reading,

    /// Which values count, such as '>3.5' or '>=4' (in quotes, for the shell); 4 means '>=4'
    #[arg(long, value_name = "LIMIT", help_heading = "Filters")]
    threshold: Option<Threshold>,
    /// Keep the values as weights; otherwise every event weighs one
    #[arg(long, help_heading = "Filters")]
    weights: bool,
    /// The fewest events of a user
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Filters")]
    min_user: u32,
    /// The fewest events of an item
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Filters")]
    min_item: u32,
    /// Filter again until every user and item has its minimum
    #[arg(long, help_heading = "Filters")]
    k_core: bool,

    /// What is held out
    #[arg(long, value_enum, default_value_t = Kind::Strong, help_heading = "Split")]
    split: Kind,
    /// Held out for validation and as much again for test: users (`10000` or `10%`), or with ratio and
    /// time a share of the events; 10% unless given, 10000 users with published
    #[arg(long, value_name = "AMOUNT", help_heading = "Split")]
    held_out: Option<HeldOut>,
    /// Held out for validation, where it differs
    #[arg(long, value_name = "AMOUNT", help_heading = "Split")]
    validation: Option<HeldOut>,
    /// Held out for test, where it differs
    #[arg(long, value_name = "AMOUNT", help_heading = "Split")]
    test: Option<HeldOut>,
    /// Share of a held-out user's events that are to be found, with strong; 0.2 unless given
    #[arg(long, value_name = "SHARE", help_heading = "Split")]
    targets: Option<f64>,
    /// A validation file of its own; ratings are then the training part
    #[arg(long, value_name = "FILE", help_heading = "Split")]
    given_validation: Option<PathBuf>,
    /// What is known of its users, where they are not training users
    #[arg(long, value_name = "FILE", requires = "given_validation", help_heading = "Split")]
    given_validation_history: Option<PathBuf>,
    /// A test file of its own; ratings are then the training part
    #[arg(long, value_name = "FILE", help_heading = "Split")]
    given_test: Option<PathBuf>,
    /// What is known of its users, where they are not training users
    #[arg(long, value_name = "FILE", requires = "given_test", help_heading = "Split")]
    given_test_history: Option<PathBuf>,
}

/// How a data set is split.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Whole users are held out; of each, a share of the events is to be found
    Strong,
    /// The same, with the very users and targets of the published preprocessing of Mult-VAE
    Published,
    /// Of every user a share of the events
    Ratio,
    /// Of every user one event each for validation and test
    LeaveOneOut,
    /// Of every user the newest event for test, the one before for validation
    LeaveLast,
    /// The newest events of all
    Time,
    /// Nothing is held out
    None,
}

impl Prepare {
    pub(crate) fn run(&self, mut context: Context) -> Done {
        let options = self.options(context.seed())?;
        context.settings.set(&json!({ "seed": options.seed }))?;
        let (data, report) = prepare::prepare(self.input()?, &options)?;
        let made = json!({ "options": options, "report": report });
        data.save(&self.output, &made, self.force)?;
        write_text(&self.output.join(run_file::NAME), &context.settings.text("prepare"))?;
        match self.format {
            Format::Json => print_json(&report),
            Format::Table => print(kept(&report)),
        }?;
        context.ui.note(format_args!("written to {}", self.output.display()));
        Ok(())
    }

    fn input(&self) -> Result<Input> {
        let source = |path: &PathBuf| match path.to_str() {
            Some("-") => Source::Stream("standard input".into(), Box::new(std::io::stdin())),
            _ => path.clone().into(),
        };
        let held = |target: &Option<PathBuf>, history: &Option<PathBuf>| {
            target.as_ref().map(|target| Held { history: history.as_ref().map(source), target: source(target) })
        };
        let validation = held(&self.given_validation, &self.given_validation_history);
        let test = held(&self.given_test, &self.given_test_history);
        match &self.ratings[..] {
            ratings if validation.is_none() && test.is_none() => {
                Ok(Input::Ratings(ratings.iter().map(source).collect()))
            }
            [train] => Ok(Input::Given { train: source(train), validation, test }),
            _ => Err(vaecf_core::Error::usage("with --given-validation or --given-test there is one file to train on")),
        }
    }

    fn options(&self, seed: u64) -> Result<PrepareOptions> {
        let usage = |what: String| vaecf_core::Error::usage(what);
        // An option that the chosen split does not look at is a misunderstanding, not a detail.
        let (amounts, parts, targets) = match self.split {
            Kind::Strong => (true, true, true),
            Kind::Ratio | Kind::Time => (true, true, false),
            Kind::Published => (true, false, false),
            Kind::LeaveOneOut | Kind::LeaveLast | Kind::None => (false, false, false),
        };
        let unused = [
            ("--held-out", self.held_out.is_some() && !amounts),
            ("--validation", self.validation.is_some() && !parts),
            ("--test", self.test.is_some() && !parts),
            ("--targets", self.targets.is_some() && !targets),
        ];
        if let Some((name, _)) = unused.iter().find(|(_, unused)| *unused) {
            let what = "has no meaning in this split; leave it out or choose another --split";
            return Err(usage(format!("{name} {what}")));
        }
        let share = |amount: HeldOut| match amount {
            HeldOut::Share(share) => Ok(share),
            HeldOut::Users(0) => Ok(0.0),
            HeldOut::Users(n) => {
                Err(usage(format!("{n} held out: this split holds out a share of the events, such as 10%")))
            }
        };
        let both = self.held_out.unwrap_or(HeldOut::Share(0.1));
        let (validation, test) = (self.validation.unwrap_or(both), self.test.unwrap_or(both));
        let split = match self.split {
            Kind::Strong => Split::Strong { validation, test, targets: self.targets.unwrap_or(0.2) },
            Kind::Published => match self.held_out {
                None => Split::Published { held_out: 10_000 },
                Some(HeldOut::Users(held_out)) => Split::Published { held_out },
                Some(HeldOut::Share(_)) => {
                    return Err(usage(
                        "the published split holds out a number of users, such as --held-out 10000".into(),
                    ));
                }
            },
            Kind::Ratio => Split::Ratio { validation: share(validation)?, test: share(test)? },
            Kind::LeaveOneOut => Split::LeaveOneOut,
            Kind::LeaveLast => Split::LeaveLast,
            Kind::Time => Split::Time { validation: share(validation)?, test: share(test)? },
            Kind::None => Split::All,
        };
        Ok(PrepareOptions {
            read: self.reading.options(),
            threshold: self.threshold,
            weights: self.weights,
            filter: Filter { min_user: self.min_user, min_item: self.min_item, k_core: self.k_core },
            split,
            seed,
        })
    }
}

/// What was kept and what was dropped, and why.
pub(crate) fn kept(report: &PrepareReport) -> String {
    let (mut flow, mut formats) = (Table(Vec::new()), String::new());
    for source in &report.read.sources {
        flow.row([source.name.clone(), grouped(source.rows)]);
        formats += &format!("{}: {}\n", source.name, source.format);
    }
    let (read, split) = (&report.read, &report.split);
    let dropped = |flow: &mut Table, what: &str, count: u64| {
        if count > 0 {
            flow.row([format!("  {what}"), format!("-{}", grouped(count))]);
        }
    };
    dropped(&mut flow, "no user or item", read.missing_id);
    dropped(&mut flow, "below the threshold", read.below_threshold);
    dropped(&mut flow, "repeats of a pair: one event, and of its values the last", report.repeats);
    dropped(&mut flow, "items with too few events", split.rare_item);
    dropped(&mut flow, "users with too few events", split.rare_user);
    flow.row(["events kept".into(), grouped(split.events)]);
    dropped(&mut flow, "held-out events on items that no training user has", split.unknown_item);
    dropped(&mut flow, "held-out events of users without training events", split.unknown_user);
    dropped(&mut flow, "targets that are in the history too", split.already_seen);
    if read.bad_lines > 0 {
        flow.row(["lines skipped because they cannot be read".into(), grouped(read.bad_lines)]);
    }

    let mut parts = Table::titled(["part", "users", "scored", "items", "events", "targets"]);
    let all =
        [("training", Some(&report.train)), ("validation", report.validation.as_ref()), ("test", report.test.as_ref())];
    for (name, part) in all.into_iter().filter_map(|(name, part)| Some((name, part?))) {
        let held = name != "training";
        let only_held = |count: u64| if held { grouped(count) } else { "-".into() };
        parts.row([
            name.into(),
            grouped(part.users.into()),
            only_held(part.scored.into()),
            grouped(part.items.into()),
            grouped(part.events),
            only_held(part.targets),
        ]);
    }
    let examples: String = read.bad_examples.iter().map(|line| format!("  {line}\n")).collect();
    format!("{formats}\n{flow}{examples}\n{parts}")
}
