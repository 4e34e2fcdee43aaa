//! What is known of a run from outside: where it stands, how fast it goes, how it ended; and who is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{backend::ScaleState, error::Result, tensors::Tensors};

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
