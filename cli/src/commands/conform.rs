//! `vaecf conform`: does a backend do what the contract says?

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use vaecf_core::{Error, Result};
use vaecf_tests::{Known, Options, Outcome, Report, Trial, plan, run_known, suite_watched};

use super::Context;
use crate::{
    backend,
    output::{Done, Format, Stop, print, print_json},
};

/// Put a backend to the conformance suite: every operation against the reference, with a table for a bug
/// report.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf conform                                     the backend that would be chosen
  vaecf conform --backend ./libmine.so              a backend of your own
  vaecf conform --only 'agrees linear '             some of the trials
  vaecf conform --list                              the trials' lines
  vaecf conform --trial 'agrees linear users=3 inner=1 outer=1'

Exits with 5 where a trial fails.")]
pub(crate) struct Conform {
    /// Only trials whose line contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// One trial, by its line
    #[arg(long, value_name = "LINE", conflicts_with_all = ["only", "list", "cases", "small"])]
    trial: Option<Trial>,
    /// Print the lines of the trials and run nothing
    #[arg(long)]
    list: bool,
    /// Random cases of each operation and check, drawn from --seed (1 unless given)
    #[arg(long, value_name = "N", default_value_t = 24)]
    cases: u32,
    /// Leave out sizes that want a real device: tens of thousands of items, weights of 133 MB
    #[arg(long)]
    small: bool,
    /// Failures that are expected: a TOML file whose list `known` has backend, device, trial, reason
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Conform {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let options = Options {
            seed: context.global.seed.unwrap_or(1),
            cases: self.cases,
            full: !self.small,
            filter: self.only.clone(),
            known: self.known()?,
            ..Options::default()
        };
        let trials = plan(&options);
        if trials.is_empty() {
            let only = self.only.as_deref().unwrap_or_default();
            return Err(Error::usage(format!("no trial's line contains {only:?}; --list shows them all")).into());
        }
        if self.list {
            return print(trials.iter().map(|trial| format!("{trial}\n")).collect::<String>());
        }
        let mut backend = backend::choose(&context.global, &context.ui)?;
        if let Some(trial) = &self.trial {
            let outcome = run_known(&mut *backend, &options.known, trial);
            return match self.format {
                Format::Json => print_json(&outcome),
                Format::Table => print(told(&outcome)),
            }
            .and(gate(!matches!(outcome, Outcome::Failed { .. })));
        }
        let bar = if context.ui.is_live() { bar(trials.len()) } else { ProgressBar::hidden() };
        let mut failed = 0;
        let report = suite_watched(&mut *backend, &options, &mut |_, _, outcome| {
            failed += u32::from(matches!(outcome, Outcome::Failed { .. }));
            bar.inc(1);
            bar.set_message(format!("{failed} failed"));
        });
        bar.finish_and_clear();
        match self.format {
            Format::Json => print_json(&report),
            Format::Table => print(&report),
        }
        .and(gate(Report::passes(&report)))
    }

    /// The project's own list, and the one that was given.
    fn known(&self) -> Result<Vec<Known>> {
        let mut known = Known::listed().map_err(Error::failure)?;
        if let Some(path) = &self.known {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
            known.extend(Known::parse(&text).map_err(|e| Error::usage(format!("{}, {e}", path.display())))?);
        }
        Ok(known)
    }
}

fn bar(trials: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} trials, {msg}, {eta} left");
    ProgressBar::new(trials as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed { worst } => format!("passed; the worst error is {worst:.3} of what is allowed\n"),
        Outcome::NotImplemented { what } => format!("absent: {what}\n"),
        Outcome::Known { reason } => format!("failed, as is known: {reason}\n"),
        Outcome::Failed { what, .. } => format!("FAILED: {what}\n"),
    }
}

fn gate(passes: bool) -> Done {
    if passes { Ok(()) } else { Err(Stop::Gate) }
}
