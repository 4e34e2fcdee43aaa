//! What is trained and how: the model's shape, the run's settings, the presets.

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Curve, Likelihood, LikelihoodKind},
    error::{Error, Result},
};

/// A member of the family: which likelihood, and whether the latent layer is a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Member {
    /// Multinomial likelihood, Gaussian latent layer with KL term (Liang et al. 2018).
    #[default]
    MultVae,
    /// Multinomial likelihood, no sampling, no KL term: the denoising autoencoder of the same paper.
    MultDae,
    /// Squared error with confidence weights, Gaussian latent layer with KL term.
    GaussianVae,
    /// Bernoulli likelihood, Gaussian latent layer with KL term.
    LogisticVae,
}

impl Member {
    /// All members.
    pub const ALL: [Self; 4] = [Self::MultVae, Self::MultDae, Self::GaussianVae, Self::LogisticVae];

    /// Whether the latent layer is sampled, with a KL term.
    pub fn is_variational(self) -> bool {
        self != Self::MultDae
    }

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultVae => "mult-vae",
            Self::MultDae => "mult-dae",
            Self::GaussianVae => "gaussian-vae",
            Self::LogisticVae => "logistic-vae",
        }
    }
}

/// The shape of a model. With it, the number of items and a weights file, a model is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Member of the family.
    pub member: Member,
    /// Units of the encoder's hidden layers, from the input on; the decoder mirrors them. May be empty.
    pub hidden: Vec<u32>,
    /// Units of the latent layer.
    pub latent: u32,
    /// Curve of the hidden layers (and of `mult-dae`'s latent layer).
    pub curve: Curve,
    /// Confidence of seen items; `gaussian-vae` only.
    pub confidence_seen: f32,
    /// Confidence of unseen items; `gaussian-vae` only.
    pub confidence_unseen: f32,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::of(Member::MultVae)
    }
}

/// More units in one layer than any use has, and few enough that no product of two sizes overflows.
const MAX_UNITS: u32 = 1 << 20;

impl ModelConfig {
    /// The paper's shape: `I-600-200-600-I`, and `I-200-I` for the denoising autoencoder.
    pub fn of(member: Member) -> Self {
        Self {
            member,
            hidden: if member.is_variational() { vec![600] } else { vec![] },
            latent: 200,
            curve: Curve::Tanh,
            confidence_seen: 1.0,
            confidence_unseen: 0.1,
        }
    }

    /// Refuses what cannot be a model.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<()> {
        for &units in self.hidden.iter().chain([&self.latent]) {
            if units == 0 || units > MAX_UNITS {
                return Err(Error::usage(format!("a layer of {units} units: a layer has 1 to {MAX_UNITS} units")));
            }
        }
        let (seen, unseen) = (self.confidence_seen, self.confidence_unseen);
        if !(seen.is_finite() && unseen.is_finite() && seen > 0.0 && unseen >= 0.0) {
            return Err(Error::usage(format!(
                "confidences of {seen} (seen) and {unseen} (unseen): the first must be above 0, the second at least 0"
            )));
        }
        Ok(())
    }

    /// The likelihood with its constants.
    pub fn likelihood(&self) -> Likelihood {
        let kind = match self.member {
            Member::MultVae | Member::MultDae => LikelihoodKind::Multinomial,
            Member::GaussianVae => LikelihoodKind::Gaussian,
            Member::LogisticVae => LikelihoodKind::Logistic,
        };
        Likelihood { kind, seen: self.confidence_seen, unseen: self.confidence_unseen }
    }
}

/// How the learning rate follows the users of a batch, which grow with the devices that share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// Not at all.
    #[default]
    None,
    /// In proportion (Goyal et al. 2017, section 2.1).
    Linear,
    /// With the square root (Krizhevsky 2014, section 5).
    Sqrt,
}

impl LrScaling {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Linear, Self::Sqrt];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Sqrt => "sqrt",
        }
    }
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seed of everything random: initial weights, order, dropout, latent noise.
    pub seed: u64,
    /// Users per update.
    pub batch: u32,
    /// Epochs at the most.
    pub epochs: u32,
    /// Learning rate.
    pub lr: f64,
    /// How it follows the batch.
    pub lr_scaling: LrScaling,
    /// Users of the batch that `lr` is meant for, where it follows the batch.
    pub lr_batch: u32,
    /// Updates over which the learning rate rises from 0 to what it is from then on; 0 begins with all of it.
    pub warmup: u32,
    /// Adam: decay of the first moment.
    pub beta1: f64,
    /// Adam: decay of the second moment.
    pub beta2: f64,
    /// Adam: added to the root of the second moment.
    pub eps: f64,
    /// `l2 / 2` times the sum of squared weights (not biases) is added to the loss.
    pub l2: f64,
    /// Probability that an input event is dropped.
    pub dropout: f64,
    /// Largest weight of the KL term.
    pub kl_cap: f64,
    /// Updates over which that weight would rise from 0 to 1: `beta(t) = min(kl_cap, t / kl_steps)`.
    pub kl_steps: f64,
    /// Epochs between validations.
    pub validate_every: u32,
    /// What validation looks at, and the best checkpoint is best at.
    pub metric: String,
    /// Validations without a better figure after which training stops; 0 never stops early.
    pub patience: u32,
    /// Seconds between checkpoints of a run; one is always written at its end.
    pub checkpoint_seconds: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self::paper()
    }
}

impl TrainConfig {
    /// The published settings (Liang et al. 2018, section 4.3, and their code).
    pub fn paper() -> Self {
        Self {
            seed: 98765,
            batch: 500,
            epochs: 200,
            lr: 1e-3,
            lr_scaling: LrScaling::None,
            lr_batch: 500,
            warmup: 0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            l2: 0.0,
            dropout: 0.5,
            kl_cap: 0.2,
            kl_steps: 200_000.0,
            validate_every: 1,
            metric: "ndcg@100".into(),
            patience: 0,
            checkpoint_seconds: 30.0,
        }
    }

    /// The settings behind the published multi-GPU figures: few, large updates. Its KL weight
    /// reaches the cap of 0.1 after 15,000 updates.
    pub fn large_batch() -> Self {
        Self { batch: 24_576, epochs: 400, lr: 4e-3, beta2: 0.9, kl_cap: 0.1, kl_steps: 150_000.0, ..Self::paper() }
    }

    /// Settings for a data set of so many training users: about a hundred updates an epoch, a KL weight
    /// that reaches its cap after forty epochs, and an end where validation stays behind for fifteen.
    pub fn for_users(users: u32) -> Self {
        let batch = (users / 100).clamp(50, 500);
        let updates = users.div_ceil(batch);
        let kl_cap = 0.2;
        Self { batch, kl_cap, kl_steps: 40.0 * f64::from(updates) / kl_cap, patience: 15, ..Self::paper() }
    }

    /// Refuses what cannot be trained.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |name: &str, value: f64, may: &str| Err(Error::usage(format!("{name} of {value}: it must be {may}")));
        let unit = |x: f64| (0.0..1.0).contains(&x);
        match self {
            c if c.batch == 0 => refuse("a batch", 0.0, "at least 1"),
            c if c.epochs == 0 => refuse("a number of epochs", 0.0, "at least 1"),
            c if c.validate_every == 0 => refuse("a validation interval", 0.0, "at least 1 epoch"),
            c if !(c.lr > 0.0 && c.lr.is_finite()) => refuse("a learning rate", c.lr, "above 0"),
            c if c.lr_batch == 0 => refuse("a batch that the learning rate is meant for", 0.0, "at least 1"),
            c if !unit(c.beta1) => refuse("beta1", c.beta1, "at least 0 and below 1"),
            c if !unit(c.beta2) => refuse("beta2", c.beta2, "at least 0 and below 1"),
            c if !(c.eps > 0.0 && c.eps.is_finite()) => refuse("eps", c.eps, "above 0"),
            c if !(c.l2 >= 0.0 && c.l2.is_finite()) => refuse("l2", c.l2, "at least 0"),
            c if !unit(c.dropout) => refuse("a dropout", c.dropout, "at least 0 and below 1"),
            c if !(c.kl_cap >= 0.0 && c.kl_cap.is_finite()) => refuse("a KL cap", c.kl_cap, "at least 0"),
            c if !(c.kl_steps >= 0.0 && c.kl_steps.is_finite()) => refuse("KL steps", c.kl_steps, "at least 0"),
            c if c.checkpoint_seconds.is_nan() || c.checkpoint_seconds < 0.0 => {
                refuse("a checkpoint interval", c.checkpoint_seconds, "at least 0")
            }
            _ => Ok(()),
        }
    }
}
