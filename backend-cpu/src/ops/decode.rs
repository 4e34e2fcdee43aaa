//! The output layer with what follows it, in blocks of users: no matrix of batch times items is held.

use vaecf_core::{
    backend::{Curve, Likelihood},
    math::Real,
};

use crate::{
    Exec,
    gemm::multiply,
    memory::{Sparse, View, ViewMut},
    ops::{
        likelihood::likelihood,
        linear::{linear, linear_grad_input, linear_grad_weight},
        top_k::{Candidates, top_k},
    },
};

/// The output layer.
#[derive(Debug)]
pub(crate) struct Layer<'a, T> {
    /// Its input `[B, H]`, which `curve` gave.
    pub(crate) g: View<'a, T>,
    pub(crate) w: View<'a, T>,
    pub(crate) b: View<'a, T>,
    pub(crate) curve: Curve,
    /// One block of logits.
    pub(crate) logits: ViewMut<'a, T>,
}

impl<T: Real> Layer<'_, T> {
    /// The blocks of a batch, as (first row, rows): as few as the scratch allows, and evenly long.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let batch = self.g.rows;
        let rows = batch.div_ceil(batch.div_ceil(self.logits.rows.max(1)).max(1)).max(1);
        (0..batch).step_by(rows).map(move |from| (from, rows.min(batch - from)))
    }
}

/// Output layer, likelihood and all gradients.
#[allow(clippy::too_many_arguments, reason = "an operation takes what it reads and writes")]
pub(crate) fn decode_loss_grad<T: Real>(
    exec: Exec,
    x: Sparse<'_, T>,
    mut layer: Layer<'_, T>,
    kind: Likelihood,
    scale: T,
    loss: &mut ViewMut<'_, T>,
    dw: &mut ViewMut<'_, T>,
    db: &mut ViewMut<'_, T>,
    dg: &mut ViewMut<'_, T>,
) {
    let (w, b, curve) = (layer.w, layer.b, layer.curve);
    if layer.g.rows == 0 {
        linear_grad_weight(exec, layer.g, layer.logits.block(0, 0).view(), false, dw, db);
    }
    for (from, rows) in layer.blocks() {
        let g = layer.g.block(from, rows);
        let mut logits = layer.logits.block(0, rows);
        multiply(&mut logits, false, g.plain(), w.plain(), exec.threads);
        likelihood(exec, x.block(from, rows), kind, b.row(0), scale, &mut logits, &mut loss.block(from, rows));
        linear_grad_weight(exec, g, logits.view(), from > 0, dw, db);
        linear_grad_input(exec, logits.view(), w, g, curve, &mut dg.block(from, rows));
    }
}

/// Output layer and the best items.
pub(crate) fn recommend<T: Real>(
    exec: Exec,
    mut layer: Layer<'_, T>,
    seen: Sparse<'_, T>,
    k: usize,
    scratch: &mut [Candidates<T>],
    items: &mut [u32],
    values: &mut [T],
) {
    for (from, rows) in layer.blocks() {
        let mut logits = layer.logits.block(0, rows);
        linear(exec, layer.g.block(from, rows), layer.w, layer.b, Curve::Identity, &mut logits);
        let range = from * k..(from + rows) * k;
        let (items, values) = (&mut items[range.clone()], &mut values[range]);
        top_k(exec, logits.view(), seen.block(from, rows), k, scratch, items, values);
    }
}
