//! The memory of a run, before it begins.

use serde::Serialize;

use crate::{
    config::{ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    error::{Error, Result},
    evaluate,
    feed::{self, Placement},
    layout::{Layout, padded},
};

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
        let master = info.master.bytes();
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
