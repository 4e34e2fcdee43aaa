//! What changes from update to update: annealing, Adam's bias corrections, the window of users.

use crate::{
    backend::StepParams,
    config::{LrScaling, TrainConfig},
};

/// The weight of the KL term in update `t`, counted from 1: `min(cap, t / steps)`.
pub fn kl_weight(config: &TrainConfig, update: u32) -> f64 {
    if config.kl_steps > 0.0 { config.kl_cap.min(f64::from(update) / config.kl_steps) } else { config.kl_cap }
}

/// The learning rate of update `t`, counted from 1: as it follows the batch, and after the warm-up, during which it
/// rises by the same amount with every update (Goyal et al. 2017, section 2.2, from 0).
pub fn learning_rate(config: &TrainConfig, update: u32) -> f64 {
    let larger = f64::from(config.batch) / f64::from(config.lr_batch);
    let factor = match config.lr_scaling {
        LrScaling::None => 1.0,
        LrScaling::Linear => larger,
        LrScaling::Sqrt => larger.sqrt(),
    };
    let risen = if config.warmup > 0 { (f64::from(update) / f64::from(config.warmup)).min(1.0) } else { 1.0 };
    config.lr * factor * risen
}

/// The step buffer of update `t`, whose batch of `users` starts at position `first`.
pub fn step(config: &TrainConfig, update: u32, first: u32, users: u32) -> StepParams {
    let t = f64::from(update);
    StepParams {
        update,
        first,
        lr: learning_rate(config, update),
        beta: kl_weight(config, update),
        grad_factor: 1.0 / f64::from(users),
        l2: config.l2,
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        correction1: 1.0 - config.beta1.powf(t),
        correction2: 1.0 - config.beta2.powf(t),
    }
}

/// The step buffer of inference: only the window counts.
pub fn inference(first: u32) -> StepParams {
    StepParams { first, ..bytemuck::Zeroable::zeroed() }
}
