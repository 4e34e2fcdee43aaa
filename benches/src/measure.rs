//! Medians, and the users per second of training and inference.

use std::{ops::Range, time::Instant};

use serde::Serialize;
use vaecf_core::{
    Error, Result,
    backend::Graph,
    config::{ModelConfig, TrainConfig},
    device::{Device, DeviceMatrix, UserList},
    group::share,
    matrix::Matrix,
    model::{Model, NoiseConfig, RunState, Workspace},
    popularity::Popularity,
    random::{self, stream},
    recommend::{Catalogue, Recommender},
    schedule,
};

/// The middle of several measurements, and how far they spread.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Median {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Median {
    /// The median of some measurements; NaN of none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().wrapping_sub(1)) }
    }
}

/// A model ready to train and to rank on given histories.
pub struct Bench {
    model: Model,
    data: DeviceMatrix,
    order: UserList,
    space: Workspace,
    /// Two, so that one is computed while the other is read.
    ranking: [Workspace; 2],
    run: RunState,
    config: TrainConfig,
    batch: u32,
    /// The part of a batch that falls to this member of the device's group.
    part: Range<u32>,
    k: u32,
    update: u32,
    graph: Option<Graph>,
}

impl Bench {
    /// A fresh model on a device, for batches of `batch` users. Members of a group do the same at the same time, each on
    /// its part of the batches in training, and for itself in inference.
    ///
    /// # Errors
    /// What the device reports, or that its lists are too short.
    pub fn new(device: &Device, matrix: &Matrix, config: &ModelConfig, batch: u32, k: u32) -> Result<Self> {
        let train = TrainConfig { batch, ..TrainConfig::paper() };
        let model = Model::random(device, config, matrix.items(), train.seed)?;
        let data = device.matrix(matrix)?;
        let order = device.user_list(matrix.users(), &data)?;
        order.write(0, &random::permutation(train.seed, stream::ORDER, 0, matrix.users()))?;
        let part = share(batch, device.group().rank(), device.group().world());
        let space = Workspace::new(&model, part.end - part.start, 0)?;
        let ranking = [Workspace::new(&model, batch, k)?, Workspace::new(&model, batch, k)?];
        if ranking[0].batch() < batch {
            return Err(Error::usage(format!(
                "{k} items for each of {batch} users are more than one list on {} holds: use a smaller batch or k",
                device.info().device
            )));
        }
        let run = RunState::new(&model, &space, matrix.users())?;
        Ok(Self { model, data, order, space, ranking, run, config: train, batch, part, k, update: 0, graph: None })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where the next batch begins.
    fn next(&mut self) -> u32 {
        self.update += 1;
        let batches = (self.data.users() / self.batch).max(1);
        (self.update % batches) * self.batch
    }

    /// Seconds of a training step, the mean of `steps` that are issued without waiting; `replayed` captures a step
    /// first, where the device can, and then issues that.
    ///
    /// # Errors
    /// What the device reports.
    pub fn train(&mut self, steps: usize, replayed: bool) -> Result<f64> {
        let noise = NoiseConfig { seed: self.config.seed, dropout: self.config.dropout };
        let device = self.model.device().clone();
        let rows = self.data.listed(&self.order, self.part.start, self.part.end - self.part.start);
        if replayed && self.graph.is_none() {
            let mut queue = device.queue();
            // What a device prepares with a first call is no part of a recording.
            self.model.learn(&mut queue, rows, noise, &self.space, &self.run)?;
            queue.capture_begin()?;
            self.model.learn(&mut queue, rows, noise, &self.space, &self.run)?;
            self.graph = Some(queue.capture_end()?);
        }
        device.sync()?;
        let start = Instant::now();
        for _ in 0..steps {
            let first = self.next();
            self.space.set_step(&schedule::step(&self.config, self.update, first, self.batch))?;
            let mut queue = device.queue();
            match self.graph.filter(|_| replayed) {
                Some(graph) => queue.replay(graph)?,
                None => self.model.learn(&mut queue, rows, noise, &self.space, &self.run)?,
            }
        }
        device.sync()?;
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    }

    /// Seconds to encode, decode, mask and rank a batch, the mean of `batches`, all results on the host; each
    /// batch is issued before the one before it is read.
    ///
    /// # Errors
    /// What the device reports.
    pub fn infer(&mut self, batches: usize) -> Result<f64> {
        self.model.device().sync()?;
        let start = Instant::now();
        for turn in 0..=batches {
            if turn < batches {
                let (first, space) = (self.next(), &self.ranking[turn % 2]);
                self.model.begin_rank(&self.data, Some(&self.data), first, self.batch, self.k, space)?;
            }
            if turn > 0 {
                self.ranking[(turn - 1) % 2].rankings(self.batch, self.k)?;
            }
        }
        Ok(start.elapsed().as_secs_f64() / batches as f64)
    }
}

/// How long one user waits.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Calls that were timed.
    pub calls: usize,
    /// Median, in seconds.
    pub p50: f64,
    /// Of 100 calls one takes longer, in seconds.
    pub p99: f64,
}

/// Seconds from one history to its `k` recommendations, of many calls for about `seconds` in all; the model stays
/// on the device.
///
/// # Errors
/// What the device reports.
pub fn latency(model: &Model, matrix: &Matrix, k: u32, seconds: f64) -> Result<Latency> {
    let popularity = Popularity::of(matrix);
    let recommender = Recommender::new(model, &popularity, Catalogue::default(), true, k, 1)?;
    let histories: Vec<Matrix> = (0..matrix.users().min(1000)).map(|user| matrix.select(&[user])).collect();
    for history in histories.iter().take(10) {
        recommender.recommend(history)?;
    }
    let (mut times, begin) = (Vec::new(), Instant::now());
    for history in histories.iter().cycle() {
        let start = Instant::now();
        recommender.recommend(history)?;
        times.push(start.elapsed().as_secs_f64());
        if begin.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    Ok(Latency { calls: times.len(), p50: at(0.5), p99: at(0.99) })
}
