//! `vaecf evaluate`: how good a model is on held-out users.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use vaecf_core::{
    Error, Result,
    checkpoint::{ModelFolder, SavedModel},
    dataset::{Dataset, Part},
    device::Device,
    evaluate::{Judge, Options},
    metrics::{Measure, Metric, Profile},
    report::Evaluation,
};

use super::{Context, train};
use crate::{
    options::Several,
    output::{Done, Format, Table, print, print_json, to_json, vacant, write_text},
    sheet::{self, Column},
};

/// Measure a model on held-out users.
#[derive(Args, Debug)]
#[command(
    long_about = "Measure a model on held-out users: metrics with standard errors over users, by activity of the
user and by popularity of the item. Users without a target are counted, never averaged in.",
    after_help = "Examples:
  vaecf evaluate model/ data/ --baseline
  vaecf evaluate model/ data/ --metrics ndcg@100,recall@20 --format json
  vaecf evaluate model/ data/ --metrics-profile lightgcn --per-user users.parquet
  vaecf evaluate model/ data/ -o a.json        (for vaecf compare)"
)]
pub(crate) struct Evaluate {
    /// The folder of the model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The prepared data set
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// Which held-out users
    #[arg(long, value_enum, default_value_t)]
    part: Held,
    /// Metrics by name and depth, such as ndcg@100,recall@20
    #[arg(long, value_name = "METRICS", value_delimiter = ',', conflicts_with = "metrics_profile")]
    metrics: Vec<Metric>,
    /// A named set of metrics: default, lightgcn, slides
    #[arg(long, value_name = "PROFILE")]
    metrics_profile: Option<Profile>,
    /// Leave the items of the history in the ranking
    #[arg(long)]
    no_mask: bool,
    /// Put the popularity ranking beside the model
    #[arg(long)]
    baseline: bool,
    /// Users ranked at once
    #[arg(long, value_name = "N", default_value_t = vaecf_core::evaluate::BATCH)]
    batch: u32,
    /// Write every user's values to a .csv or .parquet file
    #[arg(long, value_name = "FILE")]
    per_user: Option<PathBuf>,
    /// Write the evaluation as JSON to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    pub(crate) several: Several,
}

/// A held-out part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Held {
    /// The part that chose the epoch
    Validation,
    /// The part that nothing was chosen by
    #[default]
    Test,
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The part of a data set.
    fn of(self, data: &Dataset) -> Result<&Part> {
        let part = if self == Self::Test { &data.test } else { &data.validation };
        part.as_ref().ok_or_else(|| {
            let name = self.name();
            let other = match (&data.validation, &data.test) {
                (None, None) => "",
                _ => ", or choose the other with --part",
            };
            Error::data(format!("the data set has no {name} part; prepare it with one{other}"))
        })
    }
}

/// An evaluation on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Evaluated {
    /// The version of vaecf that made it.
    pub(crate) version: String,
    pub(crate) model: String,
    pub(crate) data: String,
    pub(crate) part: Held,
    /// Items of the history were left out of the ranking.
    pub(crate) masked: bool,
    #[serde(flatten)]
    pub(crate) evaluation: Evaluation,
    /// The same users, ranked by popularity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Evaluation>,
}

impl Evaluate {
    pub(crate) fn run(&self, context: &Context) -> Done {
        for path in [&self.output, &self.per_user].into_iter().flatten() {
            vacant(path, self.force)?;
        }
        if let Some(path) = &self.per_user {
            sheet::Form::of(path)?;
        }
        let saved = ModelFolder::new(&self.model).read()?;
        let data = train::open(&self.data)?;
        let part = self.part.of(&data)?;
        same_items(&saved, &data, &self.model, &self.data)?;
        let metrics = match &self.metrics[..] {
            [] => self.metrics_profile.unwrap_or_default().metrics(),
            metrics => metrics,
        };
        let options = Options { batch: self.batch.max(1), mask: !self.no_mask, keep_values: true };
        let (evaluation, baseline) = judge(&saved, &context.device()?, part, metrics, options, self.baseline)?;
        if !context.group.is_root() {
            return Ok(());
        }
        if let (Some(path), Some(kept)) = (&self.per_user, &evaluation.per_user) {
            let user = |&row: &u64| data.users.name(part.users[row as usize]).to_owned();
            let names: Vec<_> = kept.values.keys().map(Metric::to_string).collect();
            let names: Vec<_> = std::iter::once("user").chain(names.iter().map(String::as_str)).collect();
            let columns: Vec<_> = std::iter::once(Column::Text(kept.rows.iter().map(user).collect()))
                .chain(kept.values.values().map(|values| Column::Number(values.clone())))
                .collect();
            sheet::write_file(path, &names, &columns)?;
        }
        let evaluated = Evaluated {
            version: env!("CARGO_PKG_VERSION").into(),
            model: self.model.display().to_string(),
            data: self.data.display().to_string(),
            part: self.part,
            masked: !self.no_mask,
            evaluation,
            baseline,
        };
        if let Some(path) = &self.output {
            write_text(path, &(to_json(&evaluated)? + "\n"))?;
        }
        match self.format {
            Format::Json => print_json(&evaluated),
            Format::Table => print(table(&evaluated)),
        }
    }
}

/// A model's evaluation and, where wanted, that of the popularity ranking.
pub(crate) fn judge(
    saved: &SavedModel,
    device: &Device,
    part: &Part,
    metrics: &[Metric],
    options: Options,
    baseline: bool,
) -> Result<(Evaluation, Option<Evaluation>)> {
    let model = saved.on(device)?;
    let judge = Judge::new(&model, part, &saved.popularity, metrics, options)?;
    let evaluation = judge.evaluate(&model)?;
    if !baseline {
        return Ok((evaluation, None));
    }
    // A ranking by popularity predicts no values.
    let ranks = |metric: &&Metric| !matches!(metric.measure(), Measure::Rmse | Measure::Mae);
    let ranked: Vec<_> = metrics.iter().filter(ranks).copied().collect();
    let options = Options { keep_values: false, ..options };
    let baseline = Judge::new(&model, part, &saved.popularity, &ranked, options)?.baseline()?;
    Ok((evaluation, Some(baseline)))
}

pub(crate) fn same_items(saved: &SavedModel, data: &Dataset, model: &Path, dir: &Path) -> Result<()> {
    if saved.items == data.items {
        return Ok(());
    }
    Err(Error::data(format!(
        "{} ranks {} items and {} has {}, not the same ones: evaluate with the data set the model was trained on, or \
         one with its items",
        model.display(),
        saved.items.len(),
        dir.display(),
        data.items.len()
    )))
}

/// The evaluation for people, the popularity ranking beside it.
pub(crate) fn table(evaluated: &Evaluated) -> String {
    let Evaluated { evaluation, baseline, part, masked, .. } = evaluated;
    let mask = if *masked { "" } else { ", history left in" };
    let head = format!("{} users{mask}\n", part.name());
    let Some(baseline) = baseline else { return format!("{head}{evaluation}") };
    let mut beside = Table::titled(["metric", "model", "popularity", "ratio"]);
    for metric in &evaluation.metrics {
        let (ours, theirs) = (metric.value, baseline.value(metric.name));
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.5}"));
        let ratio =
            ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| format!("{:.2}", ours / theirs));
        beside.row([metric.name.to_string(), number(ours), number(theirs), ratio.unwrap_or_else(|| "-".into())]);
    }
    format!("{head}{evaluation}\nbeside the popularity ranking\n{beside}")
}
