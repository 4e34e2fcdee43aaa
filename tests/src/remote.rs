//! A device on a backend that is only lent: the model and the trainer own their device, and do so on a
//! thread of their own, which sends each call to the thread that holds the backend.

use std::{
    sync::mpsc::{Sender, channel},
    thread,
};

use vaecf_core::{
    backend::{
        Backend, Buf, Ceilings, Curve, Decode, Fault, Graph, Host, HostMut, Info, Invitation, Likelihood, Mark, Mat,
        Noise, Result, Role, Rows, Seat,
    },
    device::Device,
};

/// A call on its way.
type Call = Box<dyn FnOnce(&mut dyn Backend) + Send>;

/// Runs `work` with a device on `backend`.
pub(crate) fn with_device<R: Send>(backend: &mut dyn Backend, work: impl FnOnce(&Device) -> R + Send) -> R {
    let (calls, queue) = channel::<Call>();
    thread::scope(|scope| {
        let worker = scope.spawn(move || work(&Device::new(Box::new(Remote(calls)))));
        // Ends when the device and all that lies on it are gone. A panic in here ends the worker's calls.
        queue.into_iter().for_each(|call| call(backend));
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Remote(Sender<Call>);

impl Remote {
    /// Makes a call over there, and waits for what it gives.
    fn ask<R: Send + 'static>(&self, call: impl FnOnce(&mut dyn Backend) -> R + Send + 'static) -> Result<R> {
        let (answer, answers) = channel();
        let call: Call = Box::new(move |backend| {
            // Nobody waits for the answer where the worker has panicked.
            let _ = answer.send(call(backend));
        });
        let gone = || Fault::Lost("the backend has panicked".into());
        self.0.send(call).map_err(|_| gone())?;
        answers.recv().map_err(|_| gone())
    }
}

#[rustfmt::skip]
impl Backend for Remote {
    fn info(&self) -> Info {
        self.ask(|q| q.info()).expect("a backend that can say what it is")
    }
    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> { self.ask(move |q| q.alloc(role, len))? }
    fn free(&mut self, buf: Buf) {
        // A backend that is gone has nothing to free.
        let _ = self.ask(move |q| q.free(buf));
    }
    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        match src {
            Host::F32(src) => { let src = src.to_vec(); self.ask(move |q| q.upload(dst, at, Host::F32(&src)))? }
            Host::F64(src) => { let src = src.to_vec(); self.ask(move |q| q.upload(dst, at, Host::F64(&src)))? }
            Host::U32(src) => { let src = src.to_vec(); self.ask(move |q| q.upload(dst, at, Host::U32(&src)))? }
            Host::Step(src) => { let src = *src; self.ask(move |q| q.upload(dst, at, Host::Step(&src)))? }
            Host::Scale(src) => { let src = *src; self.ask(move |q| q.upload(dst, at, Host::Scale(&src)))? }
        }
    }
    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        match dst {
            HostMut::F32(dst) => {
                let mut all = vec![0.0; dst.len()];
                dst.copy_from_slice(&self.ask(move |q| q.download(src, at, HostMut::F32(&mut all)).map(|()| all))??);
            }
            HostMut::F64(dst) => {
                let mut all = vec![0.0; dst.len()];
                dst.copy_from_slice(&self.ask(move |q| q.download(src, at, HostMut::F64(&mut all)).map(|()| all))??);
            }
            HostMut::U32(dst) => {
                let mut all = vec![0; dst.len()];
                dst.copy_from_slice(&self.ask(move |q| q.download(src, at, HostMut::U32(&mut all)).map(|()| all))??);
            }
            HostMut::Scale(dst) => {
                let mut state = *dst;
                *dst = self.ask(move |q| q.download(src, at, HostMut::Scale(&mut state)).map(|()| state))??;
            }
        }
        Ok(())
    }
    fn sync(&mut self) -> Result { self.ask(|q| q.sync())? }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, c: Curve, n: Noise, s: Buf, y: Mat) -> Result { self.ask(move |q| q.encode_sparse(x, w, b, c, n, s, y))? }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, n: Noise, s: Buf, dw: Mat, db: Mat) -> Result { self.ask(move |q| q.encode_sparse_grad(x, dy, n, s, dw, db))? }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, c: Curve, y: Mat) -> Result { self.ask(move |q| q.linear(x, w, b, c, y))? }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result { self.ask(move |q| q.linear_grad_weight(x, dy, dw, db))? }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, c: Curve, dx: Mat) -> Result { self.ask(move |q| q.linear_grad_input(dy, w, x, c, dx))? }
    fn sample_latent(&mut self, x: Rows, st: Mat, n: Noise, s: Buf, z: Mat, kl: Mat) -> Result { self.ask(move |q| q.sample_latent(x, st, n, s, z, kl))? }
    fn sample_latent_grad(&mut self, x: Rows, st: Mat, dz: Mat, n: Noise, s: Buf, sc: Buf, d: Mat) -> Result { self.ask(move |q| q.sample_latent_grad(x, st, dz, n, s, sc, d))? }
    fn likelihood(&mut self, x: Rows, k: Likelihood, l: Mat, s: Buf, sc: Buf, loss: Mat) -> Result { self.ask(move |q| q.likelihood(x, k, l, s, sc, loss))? }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, d: u64, s: Buf, sc: Buf) -> Result { self.ask(move |q| q.adam(w, dw, m, v, len, d, s, sc))? }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { self.ask(move |q| q.top_k(scores, seen, k, i, v))? }
    fn logits_rows(&self, batch: u32, items: u32) -> u32 { self.ask(move |q| q.logits_rows(batch, items)).unwrap_or(batch) }
    fn longest_list(&self) -> u64 { self.ask(|q| q.longest_list()).unwrap_or(u64::MAX) }
    fn decode_loss_grad(&mut self, x: Rows, d: Decode, k: Likelihood, s: Buf, sc: Buf, loss: Mat, dw: Mat, db: Mat, dg: Mat) -> Result { self.ask(move |q| q.decode_loss_grad(x, d, k, s, sc, loss, dw, db, dg))? }
    fn recommend(&mut self, d: Decode, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { self.ask(move |q| q.recommend(d, seen, k, i, v))? }
    fn capture_begin(&mut self) -> Result { self.ask(|q| q.capture_begin())? }
    fn capture_end(&mut self) -> Result<Graph> { self.ask(|q| q.capture_end())? }
    fn replay(&mut self, graph: Graph) -> Result { self.ask(move |q| q.replay(graph))? }
    fn mark(&mut self) -> Result<Mark> { self.ask(|q| q.mark())? }
    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> { self.ask(move |q| q.seconds(from, to))? }
    fn ceilings(&mut self) -> Result<Ceilings> { self.ask(|q| q.ceilings())? }
    fn invite(&mut self, rank: u32) -> Result<Invitation> { self.ask(move |q| q.invite(rank))? }
    fn join(&mut self, seat: Seat) -> Result { self.ask(move |q| q.join(seat))? }
    fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result { self.ask(move |q| q.all_reduce(buf, at, len))? }
    fn broadcast(&mut self, buf: Buf, len: u64, root: u32) -> Result { self.ask(move |q| q.broadcast(buf, len, root))? }
}
