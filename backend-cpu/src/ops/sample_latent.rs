//! The latent sample.

use rayon::prelude::*;
use vaecf_core::{
    backend::{Noise, StepParams},
    math::{self, Draw, Real},
};

use crate::{
    Exec,
    memory::{Sparse, View, ViewMut},
};

/// `z = mu + exp(logvar / 2) eps`, and the KL divergence of each row.
pub(crate) fn sample_latent<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    stats: View<'_, T>,
    noise: Noise,
    step: StepParams,
    z: &mut ViewMut<'_, T>,
    kl: &mut ViewMut<'_, T>,
) {
    z.rows_mut().zip(kl.rows_mut()).enumerate().for_each(|(r, (z, kl))| {
        let draw = Draw { noise, update: step.update, user: x.row(r).user };
        exec.wide(
            #[inline(always)]
            || kl[0] = math::sample_latent(stats.row(r), draw, z),
        );
    });
}

/// The gradient of both; `beta` weighs the divergence.
pub(crate) fn sample_latent_grad<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    stats: View<'_, T>,
    dz: View<'_, T>,
    noise: Noise,
    step: StepParams,
    beta: T,
    dstats: &mut ViewMut<'_, T>,
) {
    dstats.rows_mut().enumerate().for_each(|(r, dstats)| {
        let draw = Draw { noise, update: step.update, user: x.row(r).user };
        exec.wide(
            #[inline(always)]
            || math::sample_latent_grad(stats.row(r), draw, dz.row(r), beta, dstats),
        );
    });
}
