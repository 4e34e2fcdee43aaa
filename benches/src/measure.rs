//! Medians, and the users per second of training and inference.

use std::time::Instant;

use serde::Serialize;
use vaecf_core::{
    Result,
    config::{ModelConfig, TrainConfig},
    device::Device,
    matrix::Matrix,
    model::{Model, NoiseConfig, RunState, Workspace},
    random::{self, stream},
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
    data: vaecf_core::device::DeviceMatrix,
    order: vaecf_core::device::UserList,
    space: Workspace,
    ranking: Workspace,
    run: RunState,
    config: TrainConfig,
    batch: u32,
    k: u32,
    update: u32,
}

impl Bench {
    /// A fresh model on a device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(device: &Device, matrix: &Matrix, config: &ModelConfig, batch: u32, k: u32) -> Result<Self> {
        let train = TrainConfig { batch, ..TrainConfig::paper() };
        let model = Model::random(device, config, matrix.items(), train.seed)?;
        let data = device.matrix(matrix)?;
        let order = device.user_list(matrix.users(), &data)?;
        order.write(0, &random::permutation(train.seed, stream::ORDER, 0, matrix.users()))?;
        let space = Workspace::new(&model, batch, 0)?;
        let ranking = Workspace::new(&model, batch, k)?;
        let run = RunState::new(&model, &space, matrix.users())?;
        Ok(Self { model, data, order, space, ranking, run, config: train, batch, k, update: 0 })
    }

    /// FLOPs of one training step: two per weight and user forward, twice that backward, with only
    /// the events of the batch counted in the first layer.
    pub fn flops(&self) -> f64 {
        let events = self.events_per_user();
        let layers = self.model.layout().layers().map(|l| f64::from(l.weight.rows) * f64::from(l.weight.cols));
        let first = self.model.layout().encoder.first().map_or(0.0, |l| f64::from(l.weight.cols));
        let dense: f64 = layers.skip(1).sum();
        f64::from(self.batch) * (6.0 * dense + 4.0 * events * first)
    }

    fn events_per_user(&self) -> f64 {
        self.data.events() as f64 / f64::from(self.data.users())
    }

    /// Seconds of one training step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn train(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.update += 1;
        let batches = (self.data.users() / self.batch).max(1);
        let first = (self.update % batches) * self.batch;
        self.space.set_step(&schedule::step(&self.config, self.update, first, self.batch))?;
        let noise = NoiseConfig { seed: self.config.seed, dropout: self.config.dropout };
        let device = self.model.device().clone();
        let rows = self.data.listed(&self.order, 0, self.batch);
        self.model.learn(&mut device.queue(), rows, noise, &self.space, &self.run)?;
        device.sync()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds to encode, decode, mask and rank one batch, results on the host.
    ///
    /// # Errors
    /// What the device reports.
    pub fn infer(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.update += 1;
        let batches = (self.data.users() / self.batch).max(1);
        let first = (self.update % batches) * self.batch;
        self.model.rank(&self.data, Some(&self.data), first, self.batch, self.k, &self.ranking)?;
        Ok(start.elapsed().as_secs_f64())
    }
}
