//! Epochs: batch, step, validation, early stopping; and how a run goes on where it stopped.
//!
//! The trainer prints nothing, writes no file and reads no clock but for the pace of its reports: all
//! of that is its caller's, through [`Observer`].

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Graph, Master, ScaleState},
    config::{ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    error::{Error, Result},
    evaluate::{self, Judge, Options},
    feed::{self, Feed},
    group::Group,
    layout::{Layout, padded},
    matrix::Matrix,
    metrics::Metric,
    model::{Model, NoiseConfig, RunState, Workspace},
    popularity::Popularity,
    schedule,
    tensors::Tensors,
};

pub use crate::feed::Placement;

/// Bytes a run needs on its device, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Parameters of the model, without padding.
    pub parameters: u64,
    /// Bytes of weights, with their half copies.
    pub weights: u64,
    /// Bytes of the gradient arena.
    pub gradients: u64,
    /// Bytes of Adam's moments.
    pub moments: u64,
    /// Bytes of activations, their gradients, the logits scratch, and what operations take beside.
    pub activations: u64,
    /// Bytes of the histories, the order of users and their losses.
    pub data: u64,
    /// Bytes among these of the two sets of buffers that the training histories pass through in chunks; none where
    /// all of them lie on the device.
    pub streamed: Option<u64>,
    /// Bytes of the host's copies: the best weights, and what a checkpoint holds while it is written.
    pub host: u64,
    /// Whether these count against `available`: the device has no memory of its own.
    pub host_memory: bool,
    /// Bytes the device has left, where known.
    pub available: Option<u64>,
}

impl Plan {
    /// The plan of training on a data set.
    ///
    /// # Errors
    /// Where the configuration cannot be a model, the data are to be streamed through less than two batches take, or
    /// the device's lists are too short for what is asked.
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        train: &TrainConfig,
        data: &Dataset,
        placement: Placement,
    ) -> Result<Self> {
        // Of a batch a member has a share.
        let batch = train.batch.min(data.train.users()).div_ceil(device.group().world());
        let validation = data.validation.as_ref().map(|p| &p.history);
        let rows = |m: &crate::matrix::Matrix| {
            4 * (m.events() * if m.values().is_some() { 2 } else { 1 } + u64::from(m.users()) + 1)
        };
        // Validation ranks with a workspace of its own.
        let judged = validation.map_or(0, |m| evaluate::BATCH.min(m.users()));
        let mut plan = Self::bare(device, config, data.train.items(), data.train.users(), batch, judged)?;
        plan.data += validation.map_or(0, rows);
        let left = plan.available.map(|available| available.saturating_sub(plan.total()));
        let (bytes, streamed) = feed::place(placement, device.info(), device.longest_list(), &data.train, batch, left)?;
        plan.data += bytes;
        plan.streamed = streamed.then_some(bytes);
        Ok(plan)
    }

    /// The plan without the histories: of shares of `batch` users in training, and rankings of `judged` users at once.
    pub(crate) fn bare(
        device: &Device,
        config: &ModelConfig,
        items: u32,
        users: u32,
        batch: u32,
        judged: u32,
    ) -> Result<Self> {
        let info = device.info();
        let layout = Layout::new(config, items, info.align)?;
        let master = match info.master {
            Master::F32 => 4,
            Master::F64 => 8,
        };
        let wide = |n: u32| u64::from(padded(n, info.align));
        // Every layer's output but the last, with its gradient; the latent sample likewise.
        let units: u64 = layout.layers().map(|l| wide(l.weight.cols)).sum::<u64>() - wide(items) + wide(config.latent);
        let logits = |batch: u32| u64::from(device.logits_rows(batch, items)) * wide(items);
        let act = (2 * u64::from(batch) + u64::from(judged)) * units
            + logits(batch)
            + if judged > 0 { logits(judged) } else { 0 };
        let inner = layout.layers().map(|l| l.weight.cols).filter(|&cols| cols != items).max();
        let scratch = device.scratch(batch, items, inner.unwrap_or(0).max(config.latent));
        // What is the host's is shared with the members beside this one.
        let share = if info.host_memory { u64::from(device.group().neighbours()) } else { 1 };
        Ok(Self {
            parameters: layout.count(),
            weights: layout.len * u64::from(info.weight_bytes),
            gradients: layout.len * master,
            moments: 2 * layout.len * master,
            activations: act * u64::from(info.act_bytes) + scratch,
            data: 2 * u64::from(users) * (4 + 2 * master),
            streamed: None,
            // Best weights; weights, two moments.
            host: 4 * layout.count() * master,
            host_memory: info.host_memory,
            available: device.memory().map(|memory| memory / share),
        })
    }

    /// All bytes on the device together.
    pub fn total(&self) -> u64 {
        let host = if self.host_memory { self.host } else { 0 };
        self.weights + self.gradients + self.moments + self.activations + self.data + host
    }

    /// Refuses a run that cannot fit.
    ///
    /// # Errors
    /// Says what is needed, what there is, and what would help.
    pub fn check(&self) -> Result<()> {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match self.available {
            Some(available) if self.total() > available => Err(Error::new(
                crate::error::Kind::Device,
                format!(
                    "this run needs {:.2} GiB ({:.2} for the model and its moments, {:.2} for activations, {:.2} for data, \
                     {:.2} for checkpoints) and {:.2} GiB are free: use a smaller batch, fewer hidden units, or a threshold that keeps fewer items",
                    gib(self.total()),
                    gib(self.weights + self.gradients + self.moments),
                    gib(self.activations),
                    gib(self.data),
                    gib(if self.host_memory { self.host } else { 0 }),
                    gib(available)
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The best validation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The epoch after which it was measured, from 1.
    pub epoch: u32,
    /// The figure.
    pub value: f64,
    /// Its standard error over users; none where the metric is no mean over users.
    pub standard_error: Option<f64>,
}

/// Where a run stands. With the weights and moments of the same moment, it can go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub update: u32,
    /// Epochs completed.
    pub epoch: u32,
    /// Batches done of the epoch under way.
    pub batch: u32,
    /// Sum of the negative log-likelihoods of the users seen in it, in order.
    pub nll: f64,
    /// Sum of their KL divergences, in order.
    pub kl: f64,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Validations since then.
    pub stale: u32,
    /// The loss scale.
    pub scale: ScaleState,
}

/// A run, frozen: enough to go on as if it had never stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Where it stands.
    pub progress: Progress,
    /// The weights now.
    pub weights: Tensors,
    /// Adam's moments.
    pub moments: [Tensors; 2],
    /// The weights of the best validation, where there was one.
    pub best: Option<Arc<Tensors>>,
}

/// A look at a run that is under way.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pace {
    /// The epoch under way, from 1.
    pub epoch: u32,
    /// Epochs at the most.
    pub epochs: u32,
    /// Users of this epoch already seen.
    pub users: u32,
    /// Users in an epoch.
    pub of_users: u32,
    /// Mean loss per user (negative log-likelihood plus weighted KL divergence) of the latest batches.
    pub loss: f64,
    /// Users per second since the last look.
    pub users_per_second: f64,
}

/// A completed epoch.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EpochReport {
    /// Which one, from 1.
    pub epoch: u32,
    /// Updates done so far.
    pub update: u32,
    /// Mean negative log-likelihood per user.
    pub nll: f64,
    /// Mean KL divergence per user.
    pub kl: f64,
    /// The KL term's weight at the epoch's end.
    pub kl_weight: f64,
    /// Updates skipped so far because a gradient was not finite.
    pub skipped: u32,
    /// The loss scale at the epoch's end; none where the backend does not scale.
    pub loss_scale: Option<f32>,
    /// Seconds of training, validation left out.
    pub seconds: f64,
    /// Users per second of training.
    pub users_per_second: f64,
    /// The validation after it, where there was one.
    pub validation: Option<Best>,
    /// Whether that validation is the best so far.
    pub is_best: bool,
}

/// What a run tells its caller. Everything has a default that does nothing.
pub trait Observer {
    /// A few times a second.
    fn pace(&mut self, _pace: &Pace) {}

    /// After every epoch.
    fn epoch(&mut self, _report: &EpochReport) {}

    /// From time to time, when the run stops, and at its end: keep this to be able to go on.
    ///
    /// # Errors
    /// An error stops the run.
    fn checkpoint(&mut self, _snapshot: &Snapshot) -> Result<()> {
        Ok(())
    }

    /// Whether the run should stop after this batch, with a checkpoint. Asked before every batch, in a group a few times
    /// a second.
    fn stop(&mut self) -> bool {
        false
    }
}

/// An observer that only watches the run end.
impl Observer for () {}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// All epochs are done.
    Complete,
    /// Validation had not improved for as long as the patience lasts.
    EarlyStop,
    /// The observer asked for it.
    Interrupted,
}

/// What tells one data set from another: its shape and a checksum of all that training and validation look at.
fn fingerprint(data: &Dataset) -> Vec<u8> {
    let parts = data.validation.iter().flat_map(|part| [&part.history, &part.target]);
    let sums = [&data.train].into_iter().chain(parts).map(Matrix::checksum);
    let shape = [data.train.users(), data.train.items()];
    shape.into_iter().chain(sums).flat_map(u32::to_le_bytes).collect()
}

/// How many times longer than anything else a checkpoint may take.
const WRITES: u32 = 10;

/// Seconds between looks at a run.
const LOOK: Duration = Duration::from_millis(250);

/// A training run.
pub struct Trainer {
    config: TrainConfig,
    model: Model,
    users: u32,
    /// Users of a batch of the whole group.
    batch: u32,
    group: Group,
    feed: Feed,
    space: Workspace,
    run: RunState,
    judge: Option<Judge>,
    metric: Metric,
    progress: Progress,
    best: Option<Arc<Tensors>>,
    /// Position in the epoch up to which losses are summed in `progress`.
    counted: u32,
    /// Time and users of training since the observer was last shown the pace.
    looked: (Duration, u32),
    /// Batches until the members of the group next agree on how to go on, and how many lie between two such moments.
    ahead: u32,
    stride: u32,
    /// Whether steps are captured: the device can, and where the sums over the group are part of them, each member
    /// replays when the others do.
    captures: bool,
    /// The step by the set of buffers that its data lie in and the users of its batch, on devices that can capture
    /// it; none where it has been run once and not yet captured.
    graphs: BTreeMap<(usize, u32), Option<Graph>>,
}

impl Trainer {
    /// A new run, or, with a snapshot, the rest of an old one. Everything is allocated here. In a group all members make
    /// the same call; only the root's snapshot counts, and may be of a run of another number of members.
    ///
    /// # Errors
    /// Where the configuration cannot be trained, the data set is empty, the snapshot belongs to
    /// another model, members were given other data or settings, or the device has no room.
    pub fn new(
        device: &Device,
        model_config: &ModelConfig,
        config: &TrainConfig,
        data: &Dataset,
        snapshot: Option<Snapshot>,
    ) -> Result<Self> {
        Self::placed(device, model_config, config, data, Placement::Auto, snapshot)
    }

    /// The same, with the training data where the caller wants them.
    ///
    /// # Errors
    /// Also where the data cannot lie there.
    pub fn placed(
        device: &Device,
        model_config: &ModelConfig,
        config: &TrainConfig,
        data: &Dataset,
        placement: Placement,
        snapshot: Option<Snapshot>,
    ) -> Result<Self> {
        Self::make(device, model_config, config, data, placement, snapshot)
            .map_err(|error| device.group().report(error))
    }

    fn make(
        device: &Device,
        model_config: &ModelConfig,
        config: &TrainConfig,
        data: &Dataset,
        placement: Placement,
        snapshot: Option<Snapshot>,
    ) -> Result<Self> {
        config.check()?;
        let users = data.train.users();
        if users == 0 || data.train.events() == 0 {
            return Err(Error::data("the training part is empty: no user has an event"));
        }
        if model_config.member == crate::config::Member::LogisticVae
            && data.train.values().is_some_and(|v| v.iter().any(|&x| x > 1.0))
        {
            return Err(Error::data("logistic-vae needs weights between 0 and 1; this data set has larger ones"));
        }
        // Two epochs' orders and losses are lists on the device.
        let most = device.longest_list().min(u32::MAX.into()) / 2;
        if u64::from(users) > most {
            return Err(Error::data(format!("{users} users are more than can be trained on: the limit is {most}")));
        }
        let group = device.group().clone();
        let plan = Plan::new(device, model_config, config, data, placement)?;
        plan.check()?;
        let settings = serde_json::to_vec(&(model_config, config)).map_err(|e| Error::failure(e.to_string()))?;
        group.agree("version and settings", &[env!("CARGO_PKG_VERSION").as_bytes(), &settings].concat())?;
        group.agree("the data", &fingerprint(data))?;
        let snapshot = if group.is_root() { snapshot } else { None };
        let metric: Metric = config.metric.parse()?;
        let model = match &snapshot {
            Some(snapshot) => Model::load_alone(device, model_config, data.train.items(), &snapshot.weights)?,
            None => Model::random(device, model_config, data.train.items(), config.seed)?,
        };
        let batch = config.batch.min(users);
        let feed = Feed::new(device, &data.train, config, batch, plan.streamed)?;
        let space = Workspace::new(&model, batch.div_ceil(group.world()), 0)?;
        let run = RunState::new(&model, &space, 2 * users)?;
        let judge = match &data.validation {
            Some(part) => Some(Judge::new(&model, part, &Popularity::of(&data.train), &[metric], Options::default())?),
            None => None,
        };
        let mut trainer = Self {
            config: config.clone(),
            model,
            users,
            batch,
            // A recording holds one set of buffers, and members may turn to the other at different batches.
            captures: device.captures_steps() && (group.world() == 1 || plan.streamed.is_none()),
            group,
            feed,
            space,
            run,
            judge,
            metric,
            progress: Progress {
                scale: ScaleState { scale: device.info().loss_scale, ..ScaleState::default() },
                ..Progress::default()
            },
            best: None,
            counted: 0,
            looked: (Duration::ZERO, 0),
            ahead: 0,
            stride: 1,
            graphs: BTreeMap::new(),
        };
        trainer.captures = trainer.group.all_gather(&[u8::from(trainer.captures)])?.iter().all(|can| *can == [1]);
        if let Some(snapshot) = snapshot {
            trainer.resume(snapshot)?;
        }
        trainer.share()?;
        Ok(trainer)
    }

    /// Takes up an old run.
    fn resume(&mut self, snapshot: Snapshot) -> Result<()> {
        let info = self.model.device().info();
        if snapshot.weights.master() != Some(info.master) {
            return Err(Error::usage(format!(
                "the run began in another precision than {}; go on with the one it began with (--precision)",
                info.precision
            )));
        }
        self.run.set_moments(&self.model, &snapshot.moments)?;
        // Nothing computes with the best weights, but they become the result.
        snapshot.best.as_ref().map(|best| best.scatter(self.model.layout())).transpose()?;
        if snapshot.progress.batch.saturating_mul(self.batch) >= self.users && snapshot.progress.batch > 0 {
            return Err(Error::data("the checkpoint stands beyond the end of an epoch: it belongs to another run"));
        }
        self.progress = snapshot.progress;
        self.best = snapshot.best;
        Ok(())
    }

    /// Where the root's run stands becomes where all members' do, down to the bits of the weights.
    fn share(&mut self) -> Result<()> {
        if self.group.world() > 1 {
            self.progress = self.group.told(|| Ok(self.progress.clone()))?;
            self.model.share_weights()?;
            self.run.share_moments(&self.model)?;
        }
        self.run.set_scale(&self.progress.scale)?;
        self.counted = self.progress.batch.saturating_mul(self.batch);
        Ok(())
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where the run stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Trains until all epochs are done, patience is lost, or the observer stops it. In a group only the root's observer
    /// is shown anything and given checkpoints; any member's may ask to stop.
    ///
    /// # Errors
    /// What the device or the observer reports; a loss that is not finite.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Ending> {
        self.train(observer).map_err(|error| self.group.report(error))
    }

    fn train(&mut self, observer: &mut dyn Observer) -> Result<Ending> {
        let mut saved = Instant::now();
        let ending = loop {
            if self.progress.epoch >= self.config.epochs {
                break Ending::Complete;
            }
            if self.config.patience > 0 && self.progress.stale >= self.config.patience {
                break Ending::EarlyStop;
            }
            if self.epoch(observer)?.is_break() {
                break Ending::Interrupted;
            }
            if self.group.told(|| Ok(saved.elapsed().as_secs_f64() >= self.config.checkpoint_seconds))? {
                self.save(observer)?;
                saved = Instant::now();
            }
        };
        self.save(observer)?;
        Ok(ending)
    }

    /// A checkpoint, which the root writes. Nobody goes on before it is there, and it may take its time.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.group.is_root() {
            observer.checkpoint(&self.snapshot()?)?;
        }
        self.group.waiting(WRITES * self.group.limit()).barrier()
    }

    /// Puts the weights of the best validation in place, on every member; without validation, the last ones stay.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn into_best(self) -> Result<Model> {
        if let Some(best) = &self.best {
            self.model.set_weights(best)?;
        }
        self.model.share_weights()?;
        Ok(self.model)
    }

    /// The run, frozen.
    ///
    /// # Errors
    /// What the device reports.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        self.progress.scale = self.run.scale()?;
        Ok(Snapshot {
            progress: self.progress.clone(),
            weights: self.model.weights()?,
            moments: self.run.moments(&self.model)?,
            best: self.best.clone(),
        })
    }

    /// Half of the order and loss buffers that an epoch uses: the next epoch's order is uploaded while this one
    /// runs.
    fn base(&self) -> u32 {
        (self.progress.epoch % 2) * self.users
    }

    /// Whether the run is to stop before the next batch. A member asks its observer before every batch if it is alone,
    /// and else a few times a second, when all of them agree on it and on when to do so again.
    fn stops(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        if self.ahead > 0 {
            self.ahead -= 1;
            return Ok(false);
        }
        let said = [&[u8::from(observer.stop())], &self.stride.to_le_bytes()[..]].concat();
        let all = self.group.all_gather(&said)?;
        let stride = all[0].get(1..).and_then(|bytes| bytes.try_into().ok()).map_or(1, u32::from_le_bytes);
        self.ahead = stride.max(1) - 1;
        Ok(all.iter().any(|said| said.first() == Some(&1)))
    }

    fn epoch(&mut self, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let (users, batch) = (self.users, self.batch);
        let (start, from) = (Instant::now(), self.progress.batch * batch);
        let mut clock = start;
        for first in (from..users).step_by(batch as usize) {
            if self.stops(observer)? {
                self.count_losses(first)?;
                return Ok(ControlFlow::Break(()));
            }
            let count = batch.min(users - first);
            let update = self.progress.update.checked_add(1).ok_or_else(|| Error::usage("too many updates"))?;
            self.learn(update, first, count)?;
            self.progress.update = update;
            self.progress.batch += 1;

            // In mid-epoch the device has enough to do while the host makes the next order and sends it.
            if first + count >= users / 2 && self.progress.epoch + 1 < self.config.epochs {
                self.feed.arrange(self.progress.epoch + 1)?;
            }

            self.looked = (self.looked.0 + clock.elapsed(), self.looked.1 + count);
            clock = Instant::now();
            // Members have clocks of their own, and look when they have agreed to.
            let alone = self.group.world() == 1;
            if if alone { self.looked.0 >= LOOK } else { self.ahead == 0 } {
                let before = (self.progress.nll, self.progress.kl, self.counted);
                self.count_losses(first + count)?;
                let n = f64::from(self.counted - before.2);
                let kl_weight = schedule::kl_weight(&self.config, update);
                let (time, users_seen) = std::mem::take(&mut self.looked);
                if !alone {
                    // The next look is as far away, or twice as far at the most.
                    let time = time + clock.elapsed();
                    let wanted = f64::from(self.stride) * LOOK.as_secs_f64() / time.as_secs_f64().max(1e-9);
                    self.stride = wanted.clamp(1.0, 2.0 * f64::from(self.stride)) as u32;
                }
                if self.group.is_root() {
                    observer.pace(&Pace {
                        epoch: self.progress.epoch + 1,
                        epochs: self.config.epochs,
                        users: first + count,
                        of_users: users,
                        loss: (self.progress.nll - before.0 + kl_weight * (self.progress.kl - before.1)) / n,
                        users_per_second: f64::from(users_seen) / time.as_secs_f64(),
                    });
                }
            }
        }
        self.count_losses(users)?;
        let scale = self.run.scale()?;
        let seconds = start.elapsed().as_secs_f64();
        let n = f64::from(users);
        let mut report = EpochReport {
            epoch: self.progress.epoch + 1,
            update: self.progress.update,
            nll: self.progress.nll / n,
            kl: self.progress.kl / n,
            kl_weight: schedule::kl_weight(&self.config, self.progress.update),
            skipped: scale.skipped,
            loss_scale: (self.model.device().info().loss_scale != 1.0).then_some(scale.scale),
            seconds,
            users_per_second: f64::from(users - from) / seconds,
            validation: None,
            is_best: false,
        };
        self.progress = Progress {
            epoch: self.progress.epoch + 1,
            batch: 0,
            nll: 0.0,
            kl: 0.0,
            ..std::mem::take(&mut self.progress)
        };
        self.counted = 0;
        if report.epoch.is_multiple_of(self.config.validate_every) || report.epoch == self.config.epochs {
            self.validate(&mut report)?;
        }
        if self.group.is_root() {
            observer.epoch(&report);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One update, on the batch of `count` users at position `first` of the epoch, of which this member has a share.
    /// Batches of one size in one set of buffers issue the same calls, so these are captured where that is possible.
    fn learn(&mut self, update: u32, first: u32, count: u32) -> Result<()> {
        let noise = NoiseConfig { seed: self.config.seed, dropout: self.config.dropout };
        let (rows, set) = self.feed.rows(self.progress.epoch, self.config.epochs, first, count)?;
        self.space.set_step(&schedule::step(&self.config, update, self.base() + first, count))?;
        let device = self.model.device().clone();
        let mut queue = device.queue();
        if !self.captures {
            return self.model.learn(&mut queue, rows, noise, &self.space, &self.run);
        }
        let graph = match self.graphs.get(&(set, count)) {
            // The first time it is only run, so that whatever a device prepares with the first call is prepared.
            None => {
                self.graphs.insert((set, count), None);
                return self.model.learn(&mut queue, rows, noise, &self.space, &self.run);
            }
            Some(Some(graph)) => *graph,
            Some(None) => {
                queue.capture_begin()?;
                let issued = self.model.learn(&mut queue, rows, noise, &self.space, &self.run);
                // Ended whatever came of it: within a recording a device does nothing else.
                let graph = queue.capture_end();
                issued?;
                let graph = graph?;
                self.graphs.insert((set, count), Some(graph));
                graph
            }
        };
        queue.replay(graph)
    }

    /// Adds the losses up to position `to` of the epoch to the sums, in order. A member's device has those of its own
    /// shares and zeros between, so the sum over the group is all of them.
    fn count_losses(&mut self, to: u32) -> Result<()> {
        let from = std::mem::replace(&mut self.counted, to);
        let (mut nll, mut kl) = self.run.losses(self.base() + from, to - from)?;
        self.group.sum(&mut nll)?;
        self.group.sum(&mut kl)?;
        for (nll, kl) in nll.iter().zip(&kl) {
            self.progress.nll += nll;
            self.progress.kl += kl;
        }
        // All members have the same sums; one is enough to say so.
        if (self.progress.nll + self.progress.kl).is_finite() || !self.group.is_root() {
            return Ok(());
        }
        Err(Error::failure(format!(
            "the loss is not finite in epoch {} (update {}): training diverged; begin a new run with a smaller \
             learning rate",
            self.progress.epoch + 1,
            self.progress.update
        )))
    }

    fn validate(&mut self, report: &mut EpochReport) -> Result<()> {
        let Some(judge) = &self.judge else { return Ok(()) };
        let evaluation = judge.evaluate(&self.model)?;
        let measured = evaluation.metrics.first().and_then(|m| Some((m.value?, m.standard_error)));
        let Some((value, standard_error)) = measured else { return Ok(()) };
        let now = Best { epoch: report.epoch, value, standard_error };
        report.validation = Some(now);
        report.is_best = self.progress.best.is_none_or(|best| match self.metric.measure().smaller_is_better() {
            true => value < best.value,
            false => value > best.value,
        });
        if report.is_best {
            self.progress.best = Some(now);
            self.progress.stale = 0;
            if self.group.is_root() {
                self.best = Some(Arc::new(self.model.weights()?));
            }
        } else {
            self.progress.stale += 1;
        }
        Ok(())
    }
}
