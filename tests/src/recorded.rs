//! Captures for a backend that has none: what is called in between is kept, and called again.

use std::collections::BTreeMap;

use vaecf_core::{
    backend::{
        Backend, Buf, Ceilings, Curve, Decode, Fault, Graph, Host, HostMut, Info, Invitation, Likelihood, Mark, Mat,
        Noise, Result, Role, Rows, Seat, StepParams,
    },
    forward_backend,
};

/// A call, to be made again.
type Call<B> = Box<dyn Fn(&mut B) -> Result + Send>;

/// What a capture holds: its calls, and the steps as they were when it ended.
type Kept<B> = (Vec<Call<B>>, BTreeMap<u32, StepParams>);

/// A backend with captures made by recording.
pub struct Recorded<B> {
    inner: B,
    recording: Option<Vec<Call<B>>>,
    graphs: Vec<Kept<B>>,
    steps: BTreeMap<u32, StepParams>,
    frozen: bool,
    /// Replays so far.
    pub replays: u32,
}

impl<B: Backend> Recorded<B> {
    /// Around a backend.
    pub fn new(inner: B) -> Self {
        Self { inner, recording: None, graphs: Vec::new(), steps: BTreeMap::new(), frozen: false, replays: 0 }
    }

    /// The fault that captures are known for: the step that a replay sees is that of the capture.
    pub(crate) fn frozen(self) -> Self {
        Self { frozen: true, ..self }
    }

    fn call(&mut self, call: impl Fn(&mut B) -> Result + Send + 'static) -> Result {
        match &mut self.recording {
            Some(calls) => calls.push(Box::new(call)),
            None => call(&mut self.inner)?,
        }
        Ok(())
    }

    /// What the contract forbids inside a capture.
    fn outside(&mut self) -> Result<&mut B> {
        match self.recording {
            None => Ok(&mut self.inner),
            Some(_) => Err(Fault::Other("a capture holds operations only".into())),
        }
    }
}

#[rustfmt::skip]
impl<B: Backend + 'static> Backend for Recorded<B> {
    forward_backend! { self, self.inner; logits_rows longest_list }
    fn info(&self) -> Info { Info { capture: true, ..self.inner.info() } }
    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> { self.outside()?.alloc(role, len) }
    fn free(&mut self, buf: Buf) { self.inner.free(buf); }
    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        if let Host::Step(step) = src {
            self.steps.insert(dst.0, *step);
        }
        self.outside()?.upload(dst, at, src)
    }
    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result { self.outside()?.download(src, at, dst) }
    fn sync(&mut self) -> Result { self.outside()?.sync() }
    fn mark(&mut self) -> Result<Mark> { self.outside()?.mark() }
    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> { self.outside()?.seconds(from, to) }
    fn ceilings(&mut self) -> Result<Ceilings> { self.outside()?.ceilings() }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, c: Curve, n: Noise, s: Buf, y: Mat) -> Result { self.call(move |q| q.encode_sparse(x, w, b, c, n, s, y)) }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, n: Noise, s: Buf, dw: Mat, db: Mat) -> Result { self.call(move |q| q.encode_sparse_grad(x, dy, n, s, dw, db)) }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, c: Curve, y: Mat) -> Result { self.call(move |q| q.linear(x, w, b, c, y)) }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result { self.call(move |q| q.linear_grad_weight(x, dy, dw, db)) }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, c: Curve, dx: Mat) -> Result { self.call(move |q| q.linear_grad_input(dy, w, x, c, dx)) }
    fn sample_latent(&mut self, x: Rows, st: Mat, n: Noise, s: Buf, z: Mat, kl: Mat) -> Result { self.call(move |q| q.sample_latent(x, st, n, s, z, kl)) }
    fn sample_latent_grad(&mut self, x: Rows, st: Mat, dz: Mat, n: Noise, s: Buf, sc: Buf, d: Mat) -> Result { self.call(move |q| q.sample_latent_grad(x, st, dz, n, s, sc, d)) }
    fn likelihood(&mut self, x: Rows, k: Likelihood, l: Mat, s: Buf, sc: Buf, loss: Mat) -> Result { self.call(move |q| q.likelihood(x, k, l, s, sc, loss)) }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, d: u64, s: Buf, sc: Buf) -> Result { self.call(move |q| q.adam(w, dw, m, v, len, d, s, sc)) }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { self.call(move |q| q.top_k(scores, seen, k, i, v)) }
    fn decode_loss_grad(&mut self, x: Rows, d: Decode, k: Likelihood, s: Buf, sc: Buf, loss: Mat, dw: Mat, db: Mat, dg: Mat) -> Result { self.call(move |q| q.decode_loss_grad(x, d, k, s, sc, loss, dw, db, dg)) }
    fn recommend(&mut self, d: Decode, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { self.call(move |q| q.recommend(d, seen, k, i, v)) }
    fn invite(&mut self, rank: u32) -> Result<Invitation> { self.outside()?.invite(rank) }
    fn join(&mut self, seat: Seat) -> Result { self.outside()?.join(seat) }
    fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result { self.call(move |q| q.all_reduce(buf, at, len)) }
    fn broadcast(&mut self, buf: Buf, len: u64, root: u32) -> Result { self.outside()?.broadcast(buf, len, root) }
    fn capture_begin(&mut self) -> Result {
        match self.recording.replace(Vec::new()) {
            None => Ok(()),
            Some(_) => Err(Fault::Other("captures do not nest".into())),
        }
    }
    fn capture_end(&mut self) -> Result<Graph> {
        let calls = self.recording.take().ok_or_else(|| Fault::Other("no capture has begun".into()))?;
        self.graphs.push((calls, self.steps.clone()));
        Ok(Graph(self.graphs.len() as u32 - 1))
    }
    fn replay(&mut self, graph: Graph) -> Result {
        self.replays += 1;
        let Some((calls, steps)) = self.graphs.get(graph.0 as usize) else { return Err(Fault::Other("no such capture".into())) };
        let upload = |inner: &mut B, steps: &BTreeMap<u32, StepParams>| {
            // A buffer that is gone meanwhile is not asked for by the calls either.
            steps.iter().for_each(|(&buf, step)| drop(inner.upload(Buf(buf), 0, Host::Step(step))));
        };
        if self.frozen {
            upload(&mut self.inner, steps);
        }
        calls.iter().try_for_each(|call| call(&mut self.inner))?;
        if self.frozen {
            upload(&mut self.inner, &self.steps);
        }
        Ok(())
    }
}
