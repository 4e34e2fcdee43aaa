//! `vaecf train`: from a data set to a model.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use vaecf_core::{
    Error, Result,
    backend::Curve,
    checkpoint::{Card, ModelFolder},
    config::{LrScaling, Member, ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    metrics::Metric,
    prepared,
    split::Threshold,
    trainer::{Best, Ending, EpochReport, Observer, Pace, Placement, Plan, Snapshot, Trainer},
};

use super::Context;
use crate::{
    interrupt,
    options::Several,
    output::{Done, Format, Stop, Ui, bytes, grouped, print, write_text},
    run_file,
};

/// The log of a run in its folder: one JSON object a line.
const LOG: &str = "training.jsonl";

/// Train a model on a prepared data set.
#[derive(Args, Debug)]
#[command(
    long_about = "Train a model on a prepared data set.

The folder of the model stands alone: weights, item ids, popularity, how it was made. The best epoch by
validation is the result. Ctrl-C writes a checkpoint and exits 130; --resume goes on from there, or from a
crash, to the very bits of a run that was never stopped.",
    allow_negative_numbers = true,
    after_help = "Examples:
  vaecf train data/ -o model/
  vaecf train data/ -o model/ --preset paper
  vaecf train data/ -o model/ --member mult-dae --hidden none --latent 200 --l2 0.01
  vaecf train data/ -o model/ --resume
  vaecf train data/ -o again/ --config model/run.toml --seed 2"
)]
pub(crate) struct Train {
    /// The prepared data set
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// The folder for the model
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Go on with the run in the folder
    #[arg(long)]
    resume: bool,
    /// Replace the model that is there
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// json: one object a line on standard output while it runs
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The settings that everything below departs from; default unless given
    #[arg(long, value_enum)]
    preset: Option<Preset>,

    /// Member of the family: mult-vae (default), mult-dae, gaussian-vae, logistic-vae
    #[arg(long, value_parser = member, help_heading = "Model")]
    member: Option<Member>,
    /// Units of the encoder's hidden layers, mirrored by the decoder, such as 600,300; or none (default 600)
    #[arg(long, value_name = "UNITS", help_heading = "Model")]
    hidden: Option<Hidden>,
    /// Units of the latent layer (default 200)
    #[arg(long, value_name = "UNITS", help_heading = "Model")]
    latent: Option<u32>,
    /// Curve of the hidden layers: tanh (default), relu, identity
    #[arg(long, value_parser = curve, help_heading = "Model")]
    curve: Option<Curve>,
    /// Confidence of seen items; gaussian-vae only
    #[arg(long, value_name = "C", help_heading = "Model")]
    confidence_seen: Option<f32>,
    /// Confidence of unseen items; gaussian-vae only
    #[arg(long, value_name = "C", help_heading = "Model")]
    confidence_unseen: Option<f32>,

    /// Epochs at the most
    #[arg(long, value_name = "N", help_heading = "Training")]
    epochs: Option<u32>,
    /// Users per update
    #[arg(long, value_name = "N", help_heading = "Training")]
    batch: Option<u32>,
    /// Learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    lr: Option<f64>,
    /// How the learning rate follows the users of an update: none (default), linear, sqrt
    #[arg(long, value_name = "RULE", value_parser = lr_scaling, help_heading = "Training")]
    lr_scaling: Option<LrScaling>,
    /// Users of the update that --lr is meant for, where it follows them (default 500)
    #[arg(long, value_name = "N", help_heading = "Training")]
    lr_batch: Option<u32>,
    /// Updates over which the learning rate rises from 0 (default 0: none)
    #[arg(long, value_name = "UPDATES", help_heading = "Training")]
    warmup: Option<u32>,
    /// Adam: decay of the first moment
    #[arg(long, value_name = "B", help_heading = "Training")]
    beta1: Option<f64>,
    /// Adam: decay of the second moment
    #[arg(long, value_name = "B", help_heading = "Training")]
    beta2: Option<f64>,
    /// Adam: added to the root of the second moment
    #[arg(long, value_name = "E", help_heading = "Training")]
    eps: Option<f64>,
    /// l2/2 times the sum of squared weights is added to the loss
    #[arg(long, value_name = "L2", help_heading = "Training")]
    l2: Option<f64>,
    /// Probability that an event of the input is dropped
    #[arg(long, value_name = "P", help_heading = "Training")]
    dropout: Option<f64>,
    /// Largest weight of the KL term
    #[arg(long, value_name = "WEIGHT", help_heading = "Training")]
    kl_cap: Option<f64>,
    /// Updates over which that weight would rise from 0 to 1
    #[arg(long, value_name = "UPDATES", help_heading = "Training")]
    kl_steps: Option<f64>,
    /// What validation looks at (default ndcg@100)
    #[arg(long, value_name = "METRIC", help_heading = "Training")]
    metric: Option<Metric>,
    /// Epochs between validations
    #[arg(long, value_name = "EPOCHS", help_heading = "Training")]
    validate_every: Option<u32>,
    /// Validations without a better figure after which training stops; 0 never stops early
    #[arg(long, value_name = "N", help_heading = "Training")]
    patience: Option<u32>,
    /// Bytes of the device for the training data, such as 8GiB; more than that pass through in chunks, with the
    /// very same result. auto: all of them where they fit, else as many as do; all: all of them
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = placement, help_heading = "Training")]
    data_memory: Placement,
    /// Seconds between checkpoints; one is always written at the end
    #[arg(long, value_name = "SECONDS", help_heading = "Training")]
    checkpoint_seconds: Option<f64>,
    #[command(flatten)]
    pub(crate) several: Several,
    /// Add up gradients in half precision, which sends half as many bytes; of the cuda backend, on NCCL
    #[arg(long, help_heading = "Several devices")]
    half_sums: bool,
}

/// Where settings start from.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    /// Follows the size of the data set: about 100 updates an epoch, batches of 50 to 500 users, learning rate
    /// 0.001, at most 200 epochs, patience 15
    Default,
    /// Liang et al. 2018: batch 500, learning rate 0.001, 200 epochs
    Paper,
    /// The one behind the published multi-GPU figures: batch 24576, learning rate 0.004, 400 epochs
    LargeBatch,
}

/// Units of hidden layers; none is a list, too.
#[derive(Clone, Debug)]
struct Hidden(Vec<u32>);

impl FromStr for Hidden {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if matches!(text.trim(), "" | "none") {
            return Ok(Self(Vec::new()));
        }
        let units = text.split(',').map(|units| units.trim().parse());
        units
            .collect::<std::result::Result<_, _>>()
            .map(Self)
            .map_err(|_| "write units by commas, such as 600,300, or none".into())
    }
}

fn member(text: &str) -> std::result::Result<Member, String> {
    let names = Member::ALL.map(Member::name).join(", ");
    Member::ALL.into_iter().find(|member| member.name() == text).ok_or(format!("choose from {names}"))
}

fn lr_scaling(text: &str) -> std::result::Result<LrScaling, String> {
    let names = LrScaling::ALL.map(LrScaling::name).join(", ");
    LrScaling::ALL.into_iter().find(|rule| rule.name() == text).ok_or(format!("choose from {names}"))
}

fn placement(text: &str) -> std::result::Result<Placement, String> {
    match text {
        "auto" => Ok(Placement::Auto),
        "all" => Ok(Placement::Resident),
        _ => size(text).map(|bytes| Placement::Streamed { bytes }).ok_or("auto, all, or a size such as 512MiB".into()),
    }
}

/// Bytes: a number, which may end in KiB, MiB, GiB or TiB.
fn size(text: &str) -> Option<u64> {
    let (number, power) = ["KiB", "MiB", "GiB", "TiB"]
        .iter()
        .zip(1..)
        .find_map(|(unit, power)| Some((text.strip_suffix(unit)?, power)))
        .unwrap_or((text, 0));
    number.trim_end().parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

fn curve(text: &str) -> std::result::Result<Curve, String> {
    match text {
        "tanh" => Ok(Curve::Tanh),
        "relu" => Ok(Curve::Relu),
        "identity" => Ok(Curve::Identity),
        _ => Err("choose from tanh, relu, identity".into()),
    }
}

/// Opens a prepared data set after reading all of it, because a damaged one would train to nonsense.
pub(crate) fn open(dir: &Path) -> Result<Dataset> {
    prepared::verify(dir)?;
    Dataset::open(dir)
}

impl Train {
    pub(crate) fn run(&self, mut context: Context) -> Done {
        let data = open(&self.data)?;
        let folder = ModelFolder::new(&self.output);
        let mut resumed = None;
        let (model, train) = context.group.from_root(|| {
            match self.resume {
                true => resumed = Some(folder.read_run(&data)?),
                false => folder.vacant(self.force)?,
            }
            let (model, train) = match &resumed {
                Some((card, _)) => self.resumed(card, &data, context.global.seed)?,
                None => self.configs(&data, context.seed()),
            };
            train.check()?;
            Ok((model, train))
        })?;
        context.settings.set(&model)?;
        context.settings.set(&train)?;
        context.half_sums = self.half_sums;
        let device = context.device()?;
        let (placement, threshold) = (self.data_memory, threshold(&self.data)?);
        let job = Job { data: &data, device: &device, folder, model, train, placement, threshold };
        if !context.group.is_root() {
            return job.follow();
        }
        let (card, ending) = job.run(resumed, self.force, &context, self.format)?;
        if ending == Ending::Interrupted {
            let again = format!("vaecf train {} -o {} --resume", self.data.display(), self.output.display());
            context.ui.note(format_args!("interrupted; the checkpoint is written, go on with: {again}"));
            return Err(Stop::Interrupted);
        }
        if self.format == Format::Table {
            print(summary(&card, &self.output))?;
        }
        Ok(())
    }

    /// The preset, and what was asked to be otherwise.
    fn configs(&self, data: &Dataset, seed: u64) -> (ModelConfig, TrainConfig) {
        let member = self.member.unwrap_or_default();
        let mut model = ModelConfig::of(member);
        let mut train = self.preset(data);
        self.apply(&mut model, &mut train);
        train.seed = seed;
        (model, train)
    }

    fn preset(&self, data: &Dataset) -> TrainConfig {
        match self.preset.unwrap_or(Preset::Default) {
            Preset::Default => TrainConfig::for_users(data.train.users()),
            Preset::Paper => TrainConfig::paper(),
            Preset::LargeBatch => TrainConfig::large_batch(),
        }
    }

    fn apply(&self, model: &mut ModelConfig, train: &mut TrainConfig) {
        set(&mut model.hidden, self.hidden.as_ref().map(|hidden| &hidden.0));
        set(&mut model.latent, self.latent.as_ref());
        set(&mut model.curve, self.curve.as_ref());
        set(&mut model.confidence_seen, self.confidence_seen.as_ref());
        set(&mut model.confidence_unseen, self.confidence_unseen.as_ref());
        set(&mut train.epochs, self.epochs.as_ref());
        set(&mut train.batch, self.batch.as_ref());
        set(&mut train.lr, self.lr.as_ref());
        set(&mut train.lr_scaling, self.lr_scaling.as_ref());
        set(&mut train.lr_batch, self.lr_batch.as_ref());
        set(&mut train.warmup, self.warmup.as_ref());
        set(&mut train.beta1, self.beta1.as_ref());
        set(&mut train.beta2, self.beta2.as_ref());
        set(&mut train.eps, self.eps.as_ref());
        set(&mut train.l2, self.l2.as_ref());
        set(&mut train.dropout, self.dropout.as_ref());
        set(&mut train.kl_cap, self.kl_cap.as_ref());
        set(&mut train.kl_steps, self.kl_steps.as_ref());
        set(&mut train.metric, self.metric.map(|metric| metric.to_string()).as_ref());
        set(&mut train.validate_every, self.validate_every.as_ref());
        set(&mut train.patience, self.patience.as_ref());
        set(&mut train.checkpoint_seconds, self.checkpoint_seconds.as_ref());
    }

    /// The configuration of a run that goes on: as it was, but it may last longer.
    fn resumed(&self, card: &Card, data: &Dataset, seed: Option<u64>) -> Result<(ModelConfig, TrainConfig)> {
        let mut model = card.model.clone();
        set(&mut model.member, self.member.as_ref());
        let mut train = match self.preset {
            Some(_) => self.preset(data),
            None => card.train.clone(),
        };
        self.apply(&mut model, &mut train);
        train.seed = seed.unwrap_or(card.train.seed);
        let TrainConfig { epochs, patience, checkpoint_seconds, .. } = train;
        let was = TrainConfig { epochs, patience, checkpoint_seconds, ..card.train.clone() };
        if model != card.model || train != was {
            return Err(Error::usage(
                "a run goes on with the settings it began with: with --resume only --epochs, --patience and \
                 --checkpoint-seconds may change; leave the others out, or begin a new run",
            ));
        }
        Ok((model, train))
    }
}

fn set<T: Clone>(setting: &mut T, given: Option<&T>) {
    if let Some(given) = given {
        setting.clone_from(given);
    }
}

/// The threshold that a data set was prepared with, where it says so.
fn threshold(data: &Path) -> Result<Option<Threshold>> {
    let made = prepared::Manifest::read(data)?.made;
    Ok(made.pointer("/options/threshold").and_then(|threshold| serde_json::from_value(threshold.clone()).ok()))
}

/// A run: what is trained on what, and where it goes.
pub(crate) struct Job<'a> {
    pub(crate) data: &'a Dataset,
    pub(crate) device: &'a Device,
    pub(crate) folder: ModelFolder,
    pub(crate) model: ModelConfig,
    pub(crate) train: TrainConfig,
    /// Where the training data lie.
    pub(crate) placement: Placement,
    /// What the data were prepared with.
    pub(crate) threshold: Option<Threshold>,
}

impl Job<'_> {
    /// Trains to the end, or to the first interrupt; `resumed` is what there is of a run that goes on.
    pub(crate) fn run(
        &self,
        resumed: Option<(Card, Option<Snapshot>)>,
        force: bool,
        context: &Context,
        format: Format,
    ) -> Done<(Card, Ending)> {
        self.train.check()?;
        let plan = Plan::new(self.device, &self.model, &self.train, self.data, self.placement)?;
        announce(&plan, self, context);
        let (card, snapshot) = resumed.map_or((None, None), |(card, snapshot)| (Some(card), snapshot));
        let after = snapshot.as_ref().map(|snapshot| snapshot.progress.epoch);
        // The folder is touched only once it is known that the run can begin.
        let mut trainer = Trainer::placed(self.device, &self.model, &self.train, self.data, self.placement, snapshot)?;
        let mut card = match card {
            Some(card) => Card { train: self.train.clone(), ending: None, ..card },
            None => Card { threshold: self.threshold, ..self.begin(force)? },
        };
        self.folder.write_card(&card)?;
        write_text(&self.folder.path().join(run_file::NAME), &context.settings.text("train"))?;
        match after {
            Some(epoch) if epoch >= self.train.epochs => context.ui.warn(format_args!(
                "all {} epochs are done, there is nothing to go on with; more of them: --epochs N",
                self.train.epochs
            )),
            Some(epoch) => context.ui.note(format_args!("going on after epoch {epoch}")),
            None => {}
        }
        interrupt::listen()?;
        let mut watch = Watch {
            folder: &self.folder,
            log: open_log(&self.folder.path().join(LOG), after.unwrap_or(0))?,
            ui: context.ui,
            json: format == Format::Json,
            bar: bar(&context.ui, &self.train, self.data.train.users()),
            metric: &self.train.metric,
            best: None,
            failed: None,
        };
        watch.line(
            "begin",
            &json!({ "plan": plan, "model": self.model, "train": self.train, "resumed_after_epoch": after }),
        );
        let ending = trainer.run(&mut watch);
        watch.bar.finish_and_clear();
        if let Some(error) = watch.failed.take() {
            return Err(error.into());
        }
        let ending = ending?;
        card.ending = Some(ending);
        card.best = trainer.progress().best;
        self.folder.write_card(&card)?;
        let progress = trainer.progress();
        let mut end = json!({ "ending": ending, "best": card.best, "epoch": progress.epoch });
        if self.device.info().loss_scale != 1.0 {
            end["loss_scale"] = json!(progress.scale.scale);
            end["skipped"] = json!(progress.scale.skipped);
        }
        watch.line("end", &end);
        Ok((card, ending))
    }

    /// Trains as a member of a group whose root writes and shows.
    fn follow(&self) -> Done {
        interrupt::listen()?;
        let mut trainer = Trainer::placed(self.device, &self.model, &self.train, self.data, self.placement, None)?;
        match trainer.run(&mut Follower)? {
            Ending::Interrupted => Err(Stop::Interrupted),
            Ending::Complete | Ending::EarlyStop => Ok(()),
        }
    }

    /// Makes the folder of a new run.
    fn begin(&self, force: bool) -> Result<Card> {
        let card = self.folder.begin(&self.model, &self.train, self.data, force)?;
        let log = self.folder.path().join(LOG);
        match fs::remove_file(&log) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("replacing", &log, &e)),
            _ => Ok(card),
        }
    }
}

/// What the run is going to be, and what it needs.
fn announce(plan: &Plan, job: &Job<'_>, context: &Context) {
    let Job { data, model, train, .. } = job;
    let layers: Vec<_> = model.hidden.iter().map(u32::to_string).collect();
    let (down, up) = (layers.join("-"), layers.iter().rev().cloned().collect::<Vec<_>>().join("-"));
    let shape: Vec<_> = ["I", &down, &model.latent.to_string(), &up, "I"]
        .into_iter()
        .filter(|s| !s.is_empty())
        .map(String::from)
        .collect();
    let patience = match train.patience {
        0 => String::new(),
        patience => format!(", patience {patience}"),
    };
    context.ui.note(format_args!(
        "model: {} {}, {} parameters; {} users, {} items, {} events; batches of {}, at most {} epochs{patience}",
        model.member.name(),
        shape.join("-"),
        grouped(plan.parameters),
        grouped(data.train.users().into()),
        grouped(data.train.items().into()),
        grouped(data.train.events()),
        train.batch.min(data.train.users()),
        train.epochs,
    ));
    let free = plan.available.map(|free| format!(" of {} free", bytes(free))).unwrap_or_default();
    let host = match plan.host_memory {
        true => format!(", checkpoints {}", bytes(plan.host)),
        false => String::new(),
    };
    context.ui.note(format_args!(
        "memory: about {}{free} (weights {}, gradients {}, moments {}, activations {}, data {}{host})",
        bytes(plan.total()),
        bytes(plan.weights),
        bytes(plan.gradients),
        bytes(plan.moments),
        bytes(plan.activations),
        bytes(plan.data),
    ));
    if let Some(streamed) = plan.streamed {
        context.ui.note(format_args!(
            "the training data pass through {} of the device in chunks; the result is that of a run that holds them all",
            bytes(streamed)
        ));
    }
    if data.validation.is_none() {
        context.ui.warn("there is no validation part: the last epoch is the result, and nothing stops early");
    }
}

/// What a finished run came to.
pub(crate) fn summary(card: &Card, path: &Path) -> String {
    let name = &card.train.metric;
    let figure = card.best.map_or_else(
        || "without validation".into(),
        |Best { epoch, value, standard_error }| {
            let error = standard_error.map(|error| format!(" (standard error {error:.5})")).unwrap_or_default();
            format!("best epoch {epoch}, validation {name} {value:.5}{error}")
        },
    );
    format!("{}: {}, {figure}\n", path.display(), card.model.member.name())
}

/// The log, to be appended to; of a run that goes on, what came after its checkpoint is taken out.
fn open_log(path: &Path, epoch: u32) -> Result<File> {
    if epoch > 0 || path.exists() {
        let text = fs::read_to_string(path).unwrap_or_default();
        let said = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("epoch")?.as_u64();
        let stays = |line: &&str| said(line).is_none_or(|at| at <= epoch.into());
        let kept: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
        write_text(path, &kept)?;
    }
    File::options().create(true).append(true).open(path).map_err(|e| Error::io("writing", path, &e))
}

fn bar(ui: &Ui, train: &TrainConfig, users: u32) -> ProgressBar {
    if !ui.is_live() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::from(train.epochs) * u64::from(users));
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

/// What a member that is not the root has to say: whether it was interrupted.
struct Follower;

impl Observer for Follower {
    fn stop(&mut self) -> bool {
        interrupt::asked()
    }
}

/// Shows, logs and saves a run while it goes on.
struct Watch<'a> {
    folder: &'a ModelFolder,
    log: File,
    ui: Ui,
    json: bool,
    bar: ProgressBar,
    metric: &'a str,
    best: Option<Best>,
    /// What went wrong where the trainer cannot be told.
    failed: Option<Error>,
}

impl Watch<'_> {
    /// An event, to the log and, where asked for, to standard output. A closed pipe does not stop a
    /// run: its result is the folder.
    fn line(&mut self, event: &str, value: &impl Serialize) {
        let mut all = json!({ "event": event });
        if let (Some(all), Ok(serde_json::Value::Object(more))) = (all.as_object_mut(), serde_json::to_value(value)) {
            all.extend(more);
        }
        let line = format!("{all}\n");
        if let Err(e) = self.log.write_all(line.as_bytes()) {
            self.failed.get_or_insert(Error::io("writing", &self.folder.path().join(LOG), &e));
        }
        if self.json
            && let Err(stop) = print(line)
        {
            self.json = false;
            if let Stop::Failed(error) = stop {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn figure(&self) -> String {
        self.best.map_or_else(String::new, |best| format!(", {} {:.5}", self.metric, best.value))
    }
}

impl Observer for Watch<'_> {
    fn pace(&mut self, pace: &Pace) {
        let done = u64::from(pace.epoch - 1) * u64::from(pace.of_users) + u64::from(pace.users);
        self.bar.set_prefix(format!("epoch {}/{}", pace.epoch, pace.epochs));
        self.bar.set_message(format!("{:.0} users/s, loss {:.3}{}", pace.users_per_second, pace.loss, self.figure()));
        self.bar.set_position(done);
    }

    fn epoch(&mut self, report: &EpochReport) {
        self.line("epoch", report);
        self.best = report.validation.or(self.best);
        let figure = if report.validation.is_some() { self.figure() } else { String::new() };
        let mark = if report.is_best { " (best)" } else { "" };
        let EpochReport { epoch, nll, kl, users_per_second, skipped, loss_scale, .. } = report;
        let scale = loss_scale.map_or_else(String::new, |scale| format!(", loss scale {scale}, {skipped} skipped"));
        let text =
            format!("epoch {epoch}: loss {nll:.3}, KL {kl:.3}{figure}{mark}, {users_per_second:.0} users/s{scale}");
        if self.bar.is_hidden() {
            self.ui.note(text);
        } else if self.ui.details {
            self.bar.println(text);
        }
    }

    fn checkpoint(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.folder.write_run(snapshot)
    }

    fn stop(&mut self) -> bool {
        self.failed.is_some() || interrupt::asked()
    }
}
