//! What is under test.

use serde::{Deserialize, Serialize};

/// What is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Buffers: what is allocated, copied and freed.
    Memory,
    /// The operation of the same name, as the others below.
    EncodeSparse,
    /// First layer, backward.
    EncodeSparseGrad,
    /// Affine layer.
    Linear,
    /// Its weights' gradient.
    LinearGradWeight,
    /// Its input's gradient.
    LinearGradInput,
    /// The latent sample.
    SampleLatent,
    /// Its gradient.
    SampleLatentGrad,
    /// Loss and gradient of the logits.
    Likelihood,
    /// The update.
    Adam,
    /// Rankings.
    TopK,
    /// The whole output layer, for training.
    DecodeLossGrad,
    /// The whole output layer, for ranking.
    Recommend,
    /// One step of training: all of the above as the model calls them.
    Step,
    /// Runs of many steps.
    Training,
    /// Several devices that work as one: sums and what is passed on.
    Group,
}

impl Op {
    /// All of them, in the order of the contract.
    pub const ALL: [Self; 16] = [
        Self::Memory,
        Self::EncodeSparse,
        Self::EncodeSparseGrad,
        Self::Linear,
        Self::LinearGradWeight,
        Self::LinearGradInput,
        Self::SampleLatent,
        Self::SampleLatentGrad,
        Self::Likelihood,
        Self::Adam,
        Self::TopK,
        Self::DecodeLossGrad,
        Self::Recommend,
        Self::Step,
        Self::Training,
        Self::Group,
    ];

    /// The name, that of the method where it is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EncodeSparse => "encode_sparse",
            Self::EncodeSparseGrad => "encode_sparse_grad",
            Self::Linear => "linear",
            Self::LinearGradWeight => "linear_grad_weight",
            Self::LinearGradInput => "linear_grad_input",
            Self::SampleLatent => "sample_latent",
            Self::SampleLatentGrad => "sample_latent_grad",
            Self::Likelihood => "likelihood",
            Self::Adam => "adam",
            Self::TopK => "top_k",
            Self::DecodeLossGrad => "decode_loss_grad",
            Self::Recommend => "recommend",
            Self::Step => "step",
            Self::Training => "training",
            Self::Group => "group",
        }
    }

    /// The fields of [`Case`] that matter to it.
    pub(crate) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Memory => &["seed"],
            Self::EncodeSparse => &[
                "users", "items", "outer", "fill", "weights", "listed", "first", "curve", "keep", "gap", "data", "seed",
            ],
            Self::EncodeSparseGrad => {
                &["users", "items", "outer", "fill", "weights", "listed", "first", "keep", "gap", "data", "seed"]
            }
            Self::Linear => &["users", "inner", "outer", "curve", "view", "gap", "data", "seed"],
            Self::LinearGradWeight => &["users", "inner", "outer", "gap", "data", "seed"],
            Self::LinearGradInput => &["users", "inner", "outer", "curve", "gap", "data", "seed"],
            Self::SampleLatent => &["users", "outer", "listed", "first", "keep", "gap", "data", "seed"],
            Self::SampleLatentGrad => &["users", "outer", "listed", "first", "keep", "scale", "gap", "data", "seed"],
            Self::Likelihood => {
                &["users", "items", "fill", "weights", "listed", "first", "kind", "scale", "gap", "data", "seed"]
            }
            Self::Adam => &["items", "outer", "scale", "data", "seed"],
            Self::TopK => &["users", "items", "k", "fill", "listed", "first", "gap", "data", "seed"],
            Self::DecodeLossGrad => &[
                "users", "items", "inner", "fill", "weights", "listed", "first", "curve", "kind", "scale", "gap",
                "data", "seed",
            ],
            Self::Recommend => {
                &["users", "items", "inner", "k", "fill", "listed", "first", "view", "gap", "data", "seed"]
            }
            Self::Step => {
                &["member", "depth", "users", "items", "inner", "outer", "fill", "weights", "curve", "keep", "seed"]
            }
            Self::Training => &["member", "seed"],
            Self::Group => &["world", "half", "users", "items", "inner", "outer", "seed"],
        }
    }
}
