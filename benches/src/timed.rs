//! A backend that times every operation of the one it wraps: by marks in its queue, so that nothing waits, or, where
//! it has none, by the host's clock, waiting after each.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use vaecf_core::{
    backend::{Backend, Buf, Curve, Decode, Info, Likelihood, MARKS, Mark, Mat, Noise, Result, Rows},
    forward_backend,
    roofline::{Call, Costs},
};

/// What each operation took, in the order of the first calls; complete after a `sync`.
pub type Times = Arc<Mutex<Vec<Time>>>;

/// An operation at one shape.
#[derive(Clone, Debug)]
pub struct Time {
    /// What it is, and what it costs at the least.
    pub call: Call,
    /// Seconds of each time that it was called.
    pub seconds: Vec<f64>,
}

/// Forwards everything and keeps the time.
pub struct Timed<B> {
    inner: B,
    costs: Costs,
    marks: bool,
    times: Times,
    /// Calls whose time is not known yet, by their place among the times.
    pending: Vec<(usize, Mark, Mark)>,
}

impl<B: Backend> Timed<B> {
    /// Wraps a backend; the times can be read while it lives. `events` is the mean number of a user's events.
    pub fn new(mut inner: B, events: f64) -> (Self, Times) {
        let times = Times::default();
        let (costs, marks) = (Costs::new(&inner.info(), events), inner.mark().is_ok());
        (Self { inner, costs, marks, times: Arc::clone(&times), pending: Vec::new() }, times)
    }

    fn time(&mut self, call: Call, op: impl FnOnce(&mut B) -> Result) -> Result {
        let place = {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.iter().position(|time| time.call == call).unwrap_or_else(|| {
                times.push(Time { call, seconds: Vec::new() });
                times.len() - 1
            })
        };
        if self.marks {
            let from = self.inner.mark()?;
            op(&mut self.inner)?;
            self.pending.push((place, from, self.inner.mark()?));
            return if 2 * self.pending.len() < MARKS { Ok(()) } else { self.settle() };
        }
        let start = Instant::now();
        op(&mut self.inner)?;
        self.inner.sync()?;
        self.keep(place, start.elapsed().as_secs_f64());
        Ok(())
    }

    fn keep(&self, place: usize, seconds: f64) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(time) = times.get_mut(place) {
            time.seconds.push(seconds);
        }
    }

    /// Asks for all times that are not known yet.
    fn settle(&mut self) -> Result {
        for (place, from, to) in std::mem::take(&mut self.pending) {
            let seconds = self.inner.seconds(from, to)?;
            self.keep(place, seconds);
        }
        Ok(())
    }
}

impl<B: Backend> Backend for Timed<B> {
    forward_backend! { self, self.inner;
        alloc free upload download logits_rows scratch longest_list mark seconds ceilings invite join all_reduce broadcast
        lend
    }

    /// Marks have no place in a capture, so that none is offered.
    fn info(&self) -> Info {
        Info { capture: false, ..self.inner.info() }
    }

    fn sync(&mut self) -> Result {
        self.inner.sync()?;
        self.settle()
    }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        let call = self.costs.keeping(noise.keep).encode_sparse(x, w, y);
        self.time(call, |i| i.encode_sparse(x, w, b, curve, noise, step, y))
    }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        let call = self.costs.encode_sparse_grad(x, dy, dw);
        self.time(call, |i| i.encode_sparse_grad(x, dy, noise, step, dw, db))
    }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        let call = self.costs.linear(x, w, y);
        self.time(call, |i| i.linear(x, w, b, curve, y))
    }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        let call = self.costs.linear_grad_weight(x, dy, dw);
        self.time(call, |i| i.linear_grad_weight(x, dy, dw, db))
    }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let call = self.costs.linear_grad_input(dy, w, dx);
        self.time(call, |i| i.linear_grad_input(dy, w, x, curve, dx))
    }
    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        let call = self.costs.sample_latent(stats, z);
        self.time(call, |i| i.sample_latent(x, stats, noise, step, z, kl))
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
        let call = self.costs.sample_latent_grad(stats, dz);
        self.time(call, |i| i.sample_latent_grad(x, stats, dz, noise, step, scale, dstats))
    }
    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        let call = self.costs.likelihood(x, logits);
        self.time(call, |i| i.likelihood(x, kind, logits, step, scale, loss))
    }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        let call = self.costs.adam(len);
        self.time(call, |i| i.adam(w, dw, m, v, len, decayed, step, scale))
    }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let call = self.costs.top_k(scores, seen, k);
        self.time(call, |i| i.top_k(scores, seen, k, items, values))
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
        let call = self.costs.decode_loss_grad(x, decode);
        self.time(call, |i| i.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg))
    }
    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let call = self.costs.recommend(decode, seen, k);
        self.time(call, |i| i.recommend(decode, seen, k, items, values))
    }
}
