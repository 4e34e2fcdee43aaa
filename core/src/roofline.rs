//! The least that each operation costs, from its shapes, and the time that it takes at a device's limits.
//!
//! Every operand counts once: what a cache saves is no cost, and what is read twice is the backend's affair. Logits of a
//! fused output layer need never be in memory, so they are none of its operands. Products alone count as FLOPs; gathers,
//! curves and sums pass unseen beside the bytes that they wait for.

use std::ops::AddAssign;

use serde::Serialize;

use crate::backend::{Ceilings, Decode, Info, Mat, Rows};

/// Floating-point operations of products, and bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Multiplications and additions of products.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Which limit an operation meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// That of memory.
    Copy,
    /// That of arithmetic.
    Products,
}

impl Cost {
    /// The seconds that it takes at the least, and the limit that says so.
    pub fn least(self, ceilings: Ceilings) -> (f64, Limit) {
        let (copy, products) = (self.bytes / ceilings.copy, self.flops / ceilings.products);
        if copy >= products { (copy, Limit::Copy) } else { (products, Limit::Products) }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Self) {
        self.flops += more.flops;
        self.bytes += more.bytes;
    }
}

/// An operation at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name in the contract.
    pub name: &'static str,
    /// Rows of the batch, or elements of the arena, and the sizes on both sides.
    pub shape: String,
    /// What it costs at the least.
    pub cost: Cost,
}

impl Call {
    fn new<const N: usize>(name: &'static str, sizes: [u32; N], flops: f64, bytes: f64) -> Self {
        Self { name, shape: sizes.map(|size| size.to_string()).join(" x "), cost: Cost { flops, bytes } }
    }
}

/// Bytes an element, and the events of a row: what shapes do not tell.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    act: f64,
    /// A weight as operations read it: the narrow copy where there is one.
    weight: f64,
    /// A weight as `adam` writes it: with its copy.
    weights: f64,
    master: f64,
    /// Mean events of a user.
    events: f64,
    /// Share of the events that dropout keeps, where it is drawn.
    keep: f64,
}

/// Cells of a matrix.
fn cells(m: Mat) -> f64 {
    f64::from(m.rows) * f64::from(m.cols)
}

/// FLOPs of a product of `[m, k]` and `[k, n]`.
fn product(m: u32, k: u32, n: u32) -> f64 {
    2.0 * f64::from(m) * f64::from(k) * f64::from(n)
}

impl Costs {
    /// Of a backend, on users of `events` events in the mean.
    pub fn new(info: &Info, events: f64) -> Self {
        let (act, weights) = (f64::from(info.act_bytes), f64::from(info.weight_bytes));
        let master = info.master.bytes() as f64;
        let weight = if weights > master { weights - master } else { weights };
        Self { act, weight, weights, master, events, keep: 1.0 }
    }

    /// With dropout that keeps this share of the events.
    #[must_use]
    pub fn keeping(self, keep: f32) -> Self {
        Self { keep: f64::from(keep), ..self }
    }

    /// Bytes of the indices of a batch.
    fn history(self, x: Rows) -> f64 {
        4.0 * self.events * f64::from(x.count)
    }

    /// `encode_sparse`: of the weights at most the rows of what is kept, each once.
    pub fn encode_sparse(self, x: Rows, w: Mat, y: Mat) -> Call {
        let rows = (self.keep * self.events * f64::from(x.count)).min(f64::from(w.rows));
        let bytes = self.history(x) + rows * f64::from(w.cols) * self.weight + cells(y) * self.act;
        Call::new("encode_sparse", [x.count, w.rows, w.cols], 0.0, bytes)
    }

    /// `encode_sparse_grad`: every cell of the gradient is written.
    pub fn encode_sparse_grad(self, x: Rows, dy: Mat, dw: Mat) -> Call {
        let bytes = self.history(x) + cells(dy) * self.act + cells(dw) * self.master;
        Call::new("encode_sparse_grad", [x.count, dw.rows, dw.cols], 0.0, bytes)
    }

    /// `linear`.
    pub fn linear(self, x: Mat, w: Mat, y: Mat) -> Call {
        let bytes = (cells(x) + cells(y)) * self.act + cells(w) * self.weight;
        Call::new("linear", [x.rows, x.cols, y.cols], product(x.rows, x.cols, y.cols), bytes)
    }

    /// `linear_grad_weight`.
    pub fn linear_grad_weight(self, x: Mat, dy: Mat, dw: Mat) -> Call {
        let bytes = (cells(x) + cells(dy)) * self.act + cells(dw) * self.master;
        Call::new("linear_grad_weight", [x.rows, dw.rows, dw.cols], product(dw.rows, x.rows, dw.cols), bytes)
    }

    /// `linear_grad_input`: the slope is taken from the output of the curve.
    pub fn linear_grad_input(self, dy: Mat, w: Mat, dx: Mat) -> Call {
        let bytes = (cells(dy) + 2.0 * cells(dx)) * self.act + cells(w) * self.weight;
        Call::new("linear_grad_input", [dy.rows, dx.cols, dy.cols], product(dy.rows, dy.cols, dx.cols), bytes)
    }

    /// `sample_latent`.
    pub fn sample_latent(self, stats: Mat, z: Mat) -> Call {
        let bytes = (cells(stats) + cells(z)) * self.act + f64::from(z.rows) * self.master;
        Call::new("sample_latent", [z.rows, z.cols], 0.0, bytes)
    }

    /// `sample_latent_grad`.
    pub fn sample_latent_grad(self, stats: Mat, dz: Mat) -> Call {
        Call::new("sample_latent_grad", [dz.rows, dz.cols], 0.0, (2.0 * cells(stats) + cells(dz)) * self.act)
    }

    /// `likelihood`: logits are read and written.
    pub fn likelihood(self, x: Rows, logits: Mat) -> Call {
        let bytes = self.history(x) + 2.0 * cells(logits) * self.act + f64::from(x.count) * self.master;
        Call::new("likelihood", [x.count, logits.cols], 0.0, bytes)
    }

    /// `adam`: reads weight, gradient and two moments, writes all but the gradient.
    pub fn adam(self, len: u64) -> Call {
        let cost = Cost { flops: 0.0, bytes: len as f64 * (6.0 * self.master + self.weights) };
        Call { name: "adam", shape: len.to_string(), cost }
    }

    /// `top_k`.
    pub fn top_k(self, scores: Mat, seen: Rows, k: u32) -> Call {
        let ranked = f64::from(scores.rows) * f64::from(k) * (4.0 + self.master);
        let bytes = cells(scores) * self.act + self.history(seen) + ranked;
        Call::new("top_k", [scores.rows, scores.cols], 0.0, bytes)
    }

    /// `decode_loss_grad`: three products.
    pub fn decode_loss_grad(self, x: Rows, decode: Decode) -> Call {
        let Decode { g, w, .. } = decode;
        let bytes = self.history(x) + 2.0 * cells(g) * self.act + cells(w) * (self.weight + self.master);
        let flops = 3.0 * product(x.count, g.cols, w.cols);
        Call::new("decode_loss_grad", [x.count, g.cols, w.cols], flops, bytes)
    }

    /// `recommend`.
    pub fn recommend(self, decode: Decode, seen: Rows, k: u32) -> Call {
        let Decode { g, w, .. } = decode;
        let ranked = f64::from(g.rows) * f64::from(k) * (4.0 + self.master);
        let bytes = cells(g) * self.act + cells(w) * self.weight + self.history(seen) + ranked;
        Call::new("recommend", [g.rows, g.cols, w.cols], product(g.rows, g.cols, w.cols), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Buf, Curve, Master};

    fn mat(rows: u32, cols: u32) -> Mat {
        Mat { buf: Buf(1), rows, cols, stride: cols, offset: 0 }
    }

    fn info(act_bytes: u32, weight_bytes: u32) -> Info {
        Info {
            name: "a device".into(),
            device: "of paper".into(),
            precision: "f32".into(),
            master: Master::F32,
            memory: None,
            host_memory: false,
            act_bytes,
            weight_bytes,
            align: 1,
            loss_scale: 1.0,
            deterministic: true,
            capture: false,
        }
    }

    /// The published shape: Adam's 686 MB, and the 74.7 MFLOP a user of which the output layer has 97 %.
    #[test]
    fn the_costs_of_the_published_model_are_those_on_paper() {
        let (hidden, items, users) = (600, 20_108, 500);
        let (single, half) = (Costs::new(&info(4, 4), 73.0), Costs::new(&info(2, 6), 73.0));
        let x = Rows { indptr: Buf(1), indices: Buf(1), values: Buf::NONE, users: Buf(1), first: 0, count: users };
        assert!((single.adam(24_510_000).cost.bytes / 1e6 - 686.0).abs() < 1.0);
        let (g, w, b, logits) = (mat(users, hidden), mat(hidden, items), mat(1, items), mat(users, items));
        let decode = Decode { g, w, b, curve: Curve::Tanh, logits };
        let output = single.decode_loss_grad(x, decode).cost;
        assert!((output.flops / f64::from(users) / 1e6 - 72.4).abs() < 0.1);
        // Weights are read as the narrow copy, and their gradient is written in full.
        let weights = f64::from(hidden) * f64::from(items);
        let saved = output.bytes - half.decode_loss_grad(x, decode).cost.bytes;
        assert_eq!(saved, 2.0 * (weights + 2.0 * f64::from(users) * f64::from(hidden)));
        // What dropout leaves out is not read, and no weight is read twice.
        let of = |keep, count| {
            single.keeping(keep).encode_sparse(Rows { count, ..x }, mat(items, hidden), mat(0, 600)).cost.bytes
        };
        assert_eq!(of(0.5, 2) - 4.0 * 146.0, 73.0 * 600.0 * 4.0);
        assert_eq!(of(1.0, 20_000) - 4.0 * 73.0 * 20_000.0, weights * 4.0);
    }

    #[test]
    fn the_limit_is_the_one_that_takes_longer() {
        let ceilings = Ceilings { copy: 100.0, products: 1000.0 };
        assert_eq!(Cost { flops: 100.0, bytes: 20.0 }.least(ceilings), (0.2, Limit::Copy));
        assert_eq!(Cost { flops: 500.0, bytes: 20.0 }.least(ceilings), (0.5, Limit::Products));
    }
}
