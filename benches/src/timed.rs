//! A backend that times every operation of the one it wraps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use vaecf_core::{
    backend::{Backend, Buf, Curve, Decode, Likelihood, Mat, Noise, Result, Rows},
    forward_backend,
};

/// Calls, total time and FLOPs by operation.
pub type Times = Arc<Mutex<BTreeMap<&'static str, Time>>>;

/// What one operation took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    /// Calls.
    pub calls: u32,
    /// Wall time of all calls, to the end of their work.
    pub total: Duration,
    /// Multiplications and additions of all calls; 0 where memory is the limit.
    pub flops: f64,
}

/// Forwards everything, waits after each operation, and keeps the time.
pub struct Timed<B> {
    inner: B,
    times: Times,
}

impl<B: Backend> Timed<B> {
    /// Wraps a backend; the times can be read while it lives.
    pub fn new(inner: B) -> (Self, Times) {
        let times = Times::default();
        (Self { inner, times: Arc::clone(&times) }, times)
    }

    fn time(&mut self, name: &'static str, flops: f64, op: impl FnOnce(&mut B) -> Result) -> Result {
        let start = Instant::now();
        op(&mut self.inner)?;
        self.inner.sync()?;
        let took = start.elapsed();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let time = times.entry(name).or_default();
        time.calls += 1;
        time.total += took;
        time.flops += flops;
        Ok(())
    }
}

/// FLOPs of a product of `[m, k]` and `[k, n]`.
fn product(m: u32, k: u32, n: u32) -> f64 {
    2.0 * f64::from(m) * f64::from(k) * f64::from(n)
}

impl<B: Backend> Backend for Timed<B> {
    forward_backend! { self, self.inner;
        info alloc free upload download sync logits_rows
        capture_begin capture_end replay join all_reduce broadcast
    }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        self.time("encode_sparse", 0.0, |i| i.encode_sparse(x, w, b, curve, noise, step, y))
    }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        self.time("encode_sparse_grad", 0.0, |i| i.encode_sparse_grad(x, dy, noise, step, dw, db))
    }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        self.time("linear", product(x.rows, x.cols, y.cols), |i| i.linear(x, w, b, curve, y))
    }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        self.time("linear_grad_weight", product(dw.rows, x.rows, dw.cols), |i| i.linear_grad_weight(x, dy, dw, db))
    }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let flops = product(dy.rows, dy.cols, dx.cols);
        self.time("linear_grad_input", flops, |i| i.linear_grad_input(dy, w, x, curve, dx))
    }
    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        self.time("sample_latent", 0.0, |i| i.sample_latent(x, stats, noise, step, z, kl))
    }
    fn sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        noise: Noise,
        step: Buf,
        scale: Buf,
        dstats: Mat,
    ) -> Result {
        self.time("sample_latent_grad", 0.0, |i| i.sample_latent_grad(x, stats, dz, noise, step, scale, dstats))
    }
    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        self.time("likelihood", 0.0, |i| i.likelihood(x, kind, logits, step, scale, loss))
    }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        self.time("adam", 0.0, |i| i.adam(w, dw, m, v, len, decayed, step, scale))
    }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        self.time("top_k", 0.0, |i| i.top_k(scores, seen, k, items, values))
    }
    fn decode_loss_grad(
        &mut self,
        x: Rows,
        decode: Decode,
        kind: Likelihood,
        step: Buf,
        scale: Buf,
        loss: Mat,
        dw: Mat,
        db: Mat,
        dg: Mat,
    ) -> Result {
        let flops = 3.0 * product(x.count, decode.g.cols, decode.w.cols);
        self.time("decode_loss_grad", flops, |i| i.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg))
    }
    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let flops = product(decode.g.rows, decode.g.cols, decode.w.cols);
        self.time("recommend", flops, |i| i.recommend(decode, seen, k, items, values))
    }
}
