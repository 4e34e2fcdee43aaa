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

use crate::{
    backend::{Graph, ScaleState},
    config::{ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    error::{Error, Result},
    evaluate::{Judge, Options},
    feed::Feed,
    group::Group,
    matrix::Matrix,
    metrics::Metric,
    model::{Model, NoiseConfig, RunState, Workspace},
    popularity::Popularity,
    schedule,
    tensors::Tensors,
};

mod plan;
mod watch;

pub use self::{
    plan::Plan,
    watch::{Best, Ending, EpochReport, Observer, Pace, Progress, Snapshot},
};
pub use crate::feed::Placement;

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
        let make = || {
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
            let settings = || format!("{} {model_config:?} {config:?}", env!("CARGO_PKG_VERSION")).into_bytes();
            group.agree("version and settings", settings)?;
            group.agree("the data", || fingerprint(data))?;
            let snapshot = if group.is_root() { snapshot } else { None };
            let metric: Metric = config.metric.parse()?;
            let model = match &snapshot {
                Some(snapshot) => Model::load_alone(device, model_config, data.train.items(), &snapshot.weights)?,
                None if group.is_root() => Model::random(device, model_config, data.train.items(), config.seed)?,
                // The weights are the root's.
                None => Model::blank(device, model_config, data.train.items())?,
            };
            let batch = config.batch.min(users);
            let feed = Feed::new(device, &data.train, config, batch, plan.streamed)?;
            let space = Workspace::new(&model, batch.div_ceil(group.world()), 0)?;
            let run = RunState::new(&model, &space, 2 * users)?;
            let judge = match &data.validation {
                Some(part) => {
                    Some(Judge::new(&model, part, &Popularity::of(&data.train), &[metric], Options::default())?)
                }
                None => None,
            };
            // A recording holds one set of buffers, and members may turn to the other at different batches.
            let captures = device.captures_steps() && (group.world() == 1 || plan.streamed.is_none());
            let captures = group.all_gather(&[captures.into()])?.iter().all(|can| *can == [1]);
            let mut trainer = Self {
                config: config.clone(),
                model,
                users,
                batch,
                captures,
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
            if let Some(snapshot) = snapshot {
                trainer.resume(snapshot)?;
            }
            trainer.share()?;
            Ok(trainer)
        };
        // The others are told before the device goes, which may have to wait for theirs.
        make().map_err(|error| device.group().report(error))
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
            self.progress = self.group.from_root(|| Ok(self.progress.clone()))?;
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
            if self.group.from_root(|| Ok(saved.elapsed().as_secs_f64() >= self.config.checkpoint_seconds))? {
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
