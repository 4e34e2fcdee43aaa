//! `vaecf compare`: whether one evaluation is better than another, user by user.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vaecf_core::{Error, Result, metrics::Metric, report::Difference};

use super::{Context, evaluate::Evaluated};
use crate::output::{Done, Format, Stop, Table, print, print_json};

/// Compare two evaluations, user by user.
#[derive(Args, Debug)]
#[command(
    long_about = "Compare two evaluations of the same users: the paired difference B - A of each metric with its 95 %
bootstrap interval. Where the interval lies below zero, B is worse, and not by chance.",
    after_help = "Examples:
  vaecf evaluate old/ data/ -o a.json && vaecf evaluate new/ data/ -o b.json
  vaecf compare a.json b.json
  vaecf compare a.json b.json --metrics ndcg@100 --gate    (exit code 5 where B is worse)"
)]
pub(crate) struct Compare {
    /// The evaluation to compare with
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The evaluation in question
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Metrics to compare; all that both have for each user unless given
    #[arg(long, value_name = "METRICS", value_delimiter = ',')]
    metrics: Vec<Metric>,
    /// Exit with code 5 where B is worse in any of the metrics
    #[arg(long)]
    gate: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    metric: Metric,
    a: Option<f64>,
    b: Option<f64>,
    #[serde(flatten)]
    difference: Difference,
    verdict: &'static str,
}

impl Compare {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let (first, second) = (read(&self.first)?, read(&self.second)?);
        let (a, b) = (&first.evaluation, &second.evaluation);
        if first.part != second.part {
            return Err(
                Error::data("the two evaluations are of different parts: one of validation, one of test").into()
            );
        }
        let metrics = match &self.metrics[..] {
            [] => {
                let both = |metric: &Metric| b.per_user.as_ref().is_some_and(|kept| kept.values.contains_key(metric));
                a.metrics
                    .iter()
                    .map(|metric| metric.name)
                    .filter(|m| a.per_user.as_ref().is_some_and(|kept| kept.values.contains_key(m)))
                    .filter(both)
                    .collect()
            }
            given => given.to_vec(),
        };
        if metrics.is_empty() {
            return Err(Error::data("the two evaluations share no metric that has a value for each user").into());
        }
        let mut rows = Vec::with_capacity(metrics.len());
        for metric in metrics {
            let difference = a.compare(b, metric, context.seed())?;
            let verdict = match () {
                () if difference.is_worse() => "worse",
                () if difference.is_better() => "better",
                () => "no difference shown",
            };
            rows.push(Row { metric, a: a.value(metric), b: b.value(metric), difference, verdict });
        }
        match self.format {
            Format::Json => print_json(&rows),
            Format::Table => print(table(&rows)),
        }?;
        if self.gate && rows.iter().any(|row| row.difference.is_worse()) {
            context.ui.note("gate: B is worse");
            return Err(Stop::Gate);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Evaluated> {
    if path.is_dir() {
        let what = "this is a folder; name the JSON file that `vaecf evaluate -o` wrote";
        return Err(Error::usage(format!("{}: {what}", path.display())));
    }
    let text = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::data(format!("{}: not an evaluation as `vaecf evaluate -o` writes it: {e}", path.display()))
    })
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::titled(["metric", "A", "B", "B - A", "95 % from", "to", "B is"]);
    let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.5}"));
    for Row { metric, a, b, difference, verdict } in rows {
        let signed = |value: f64| format!("{value:+.5}");
        table.row([
            metric.to_string(),
            number(*a),
            number(*b),
            signed(difference.mean),
            signed(difference.lower),
            signed(difference.upper),
            (*verdict).into(),
        ]);
    }
    let users = rows.first().map_or(0, |row| row.difference.users);
    format!("{table}{users} users, each with a value on either side\n")
}
