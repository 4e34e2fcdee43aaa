//! The operations, with every shape checked once.

use std::sync::MutexGuard;

use super::{Device, Known, State, bug};
use crate::{
    backend::{Buf, Curve, Decode, Graph, Likelihood, Mat, Noise, Role, Rows},
    error::Result,
};

/// The operations of [`Backend`](crate::backend::Backend) with their arguments checked.
pub struct Queue<'a> {
    pub(super) state: MutexGuard<'a, State>,
    pub(super) device: &'a Device,
}

/// What one operation needs to be true, gathered and then told at once.
struct Check<'a> {
    state: &'a State,
    op: &'static str,
    fault: Option<String>,
}

impl<'a> Check<'a> {
    fn need(mut self, holds: bool, what: impl FnOnce() -> String) -> Self {
        if !holds && self.fault.is_none() {
            self.fault = Some(what());
        }
        self
    }

    fn known(&self, buf: Buf) -> Option<&'a Known> {
        self.state.live.get(&buf)
    }

    /// A live buffer of the role with at least `len` elements.
    fn buffer(self, buf: Buf, roles: &[Role], len: u64) -> Self {
        let known = self.known(buf);
        let fits = known.is_some_and(|k| roles.contains(&k.role) && len <= k.len);
        let have = known.map_or("no live buffer".to_owned(), |k| format!("{:?}[{}]", k.role, k.len));
        self.need(fits, || format!("wanted {roles:?}[{len}], got {have}"))
    }

    /// A matrix of a shape, inside its buffer.
    fn mat(self, m: Mat, roles: &[Role], rows: u32, cols: u32) -> Self {
        let shape = m.rows == rows && m.cols == cols && m.stride >= m.cols;
        let last = u64::from(m.rows).saturating_sub(1).saturating_mul(u64::from(m.stride));
        let end = if m.rows == 0 { m.offset } else { m.offset.saturating_add(last).saturating_add(u64::from(m.cols)) };
        let align = self.state.align;
        // Per-user outputs have rows of one number.
        let aligned = roles == [Role::Value]
            || m.offset.is_multiple_of(align.into()) && (m.rows < 2 || m.stride.is_multiple_of(align));
        self.need(shape, || format!("wanted a matrix {rows} x {cols}, got {m:?}"))
            .need(aligned, || format!("rows that begin at multiples of {align}, got {m:?}"))
            .buffer(m.buf, roles, end)
    }

    /// A window of rows inside its user list or matrix.
    fn rows(self, x: Rows, step: Option<Buf>) -> Self {
        let first = step.and_then(|s| self.known(s)).map_or(0, |k| k.first);
        let end = u64::from(x.first) + u64::from(first) + u64::from(x.count);
        let index = &[Role::Index];
        let this = if x.users.is_none() {
            self.buffer(x.indptr, index, end + 1)
        } else {
            self.buffer(x.users, index, end).buffer(x.indptr, index, 1)
        };
        let this = this.buffer(x.indices, index, 0);
        if x.values.is_none() { this } else { this.buffer(x.values, &[Role::Value], 0) }
    }

    /// Step and scale buffers.
    fn step(self, step: Buf) -> Self {
        self.buffer(step, &[Role::Step], 1)
    }

    fn scale(self, scale: Buf) -> Self {
        self.buffer(scale, &[Role::Scale], 1)
    }

    /// A per-user output: rows up to the end of the window.
    fn per_user(self, out: Mat, x: Rows, step: Buf) -> Self {
        let first = self.known(step).map_or(0, |k| k.first);
        let end = u64::from(x.first) + u64::from(first) + u64::from(x.count);
        self.need(u64::from(out.rows) >= end, || format!("{end} users, room for {}", out.rows)).mat(
            out,
            &[Role::Value],
            out.rows,
            1,
        )
    }

    fn done(self) -> Result<()> {
        match self.fault {
            None => Ok(()),
            Some(fault) => Err(bug(format!("{}: {fault}", self.op))),
        }
    }
}

const WEIGHT: &[Role] = &[Role::Weight];
const GRAD: &[Role] = &[Role::Grad];
const ACT: &[Role] = &[Role::Act];

/// Each method is the operation of the same name in [`Backend`](crate::backend::Backend), where it is described.
///
/// # Errors
/// A wrong shape is reported as a bug; otherwise what the backend reports.
#[allow(missing_docs, clippy::missing_errors_doc, reason = "described in Backend")]
impl Queue<'_> {
    fn check(&self, op: &'static str) -> Check<'_> {
        Check { state: &self.state, op, fault: None }
    }

    pub fn encode_sparse(
        &mut self,
        x: Rows,
        w: Mat,
        b: Mat,
        curve: Curve,
        noise: Noise,
        step: Buf,
        y: Mat,
    ) -> Result<()> {
        self.check("encode_sparse")
            .step(step)
            .rows(x, Some(step))
            .mat(w, WEIGHT, w.rows, y.cols)
            .mat(b, WEIGHT, 1, y.cols)
            .mat(y, ACT, x.count, y.cols)
            .done()?;
        Ok(self.state.backend.encode_sparse(x, w, b, curve, noise, step, y)?)
    }

    pub fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result<()> {
        self.check("encode_sparse_grad")
            .step(step)
            .rows(x, Some(step))
            .mat(dy, ACT, x.count, dy.cols)
            .mat(dw, GRAD, dw.rows, dy.cols)
            .mat(db, GRAD, 1, dy.cols)
            .done()?;
        Ok(self.state.backend.encode_sparse_grad(x, dy, noise, step, dw, db)?)
    }

    pub fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result<()> {
        self.check("linear")
            .mat(x, ACT, y.rows, w.rows)
            .mat(w, WEIGHT, w.rows, y.cols)
            .mat(b, WEIGHT, 1, y.cols)
            .mat(y, ACT, y.rows, y.cols)
            .done()?;
        Ok(self.state.backend.linear(x, w, b, curve, y)?)
    }

    pub fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result<()> {
        self.check("linear_grad_weight")
            .mat(x, ACT, dy.rows, dw.rows)
            .mat(dy, ACT, dy.rows, dw.cols)
            .mat(dw, GRAD, dw.rows, dw.cols)
            .mat(db, GRAD, 1, dw.cols)
            .done()?;
        Ok(self.state.backend.linear_grad_weight(x, dy, dw, db)?)
    }

    pub fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result<()> {
        self.check("linear_grad_input")
            .mat(dy, ACT, dx.rows, w.cols)
            .mat(w, WEIGHT, dx.cols, w.cols)
            .mat(x, ACT, dx.rows, dx.cols)
            .mat(dx, ACT, dx.rows, dx.cols)
            .done()?;
        Ok(self.state.backend.linear_grad_input(dy, w, x, curve, dx)?)
    }

    pub fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result<()> {
        self.check("sample_latent")
            .step(step)
            .rows(x, Some(step))
            .mat(stats, ACT, x.count, 2 * z.cols)
            .mat(z, ACT, x.count, z.cols)
            .per_user(kl, x, step)
            .done()?;
        Ok(self.state.backend.sample_latent(x, stats, noise, step, z, kl)?)
    }

    pub fn sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        noise: Noise,
        step: Buf,
        scale: Buf,
        dstats: Mat,
    ) -> Result<()> {
        self.check("sample_latent_grad")
            .step(step)
            .scale(scale)
            .rows(x, Some(step))
            .mat(stats, ACT, x.count, 2 * dz.cols)
            .mat(dz, ACT, x.count, dz.cols)
            .mat(dstats, ACT, x.count, 2 * dz.cols)
            .done()?;
        Ok(self.state.backend.sample_latent_grad(x, stats, dz, noise, step, scale, dstats)?)
    }

    pub fn adam(
        &mut self,
        w: Buf,
        dw: Buf,
        m: Buf,
        v: Buf,
        len: u64,
        decayed: u64,
        step: Buf,
        scale: Buf,
    ) -> Result<()> {
        self.check("adam")
            .buffer(w, WEIGHT, len)
            .buffer(dw, GRAD, len)
            .buffer(m, &[Role::Moment], len)
            .buffer(v, &[Role::Moment], len)
            .need(decayed <= len, || format!("{decayed} of {len} elements decay"))
            .step(step)
            .scale(scale)
            .done()?;
        Ok(self.state.backend.adam(w, dw, m, v, len, decayed, step, scale)?)
    }

    pub fn decode_loss_grad(
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
    ) -> Result<()> {
        let Decode { g, w, .. } = decode;
        self.decode("decode_loss_grad", x.count, decode)
            .step(step)
            .scale(scale)
            .rows(x, Some(step))
            .per_user(loss, x, step)
            .mat(dw, GRAD, w.rows, w.cols)
            .mat(db, GRAD, 1, w.cols)
            .mat(dg, ACT, g.rows, g.cols)
            .done()?;
        Ok(self.state.backend.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg)?)
    }

    pub fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result<()> {
        let room = u64::from(decode.g.rows) * u64::from(k);
        let check = self.decode("recommend", decode.g.rows, decode).buffer(items, &[Role::Index], room).buffer(
            values,
            &[Role::Value],
            room,
        );
        let check = if seen.indptr.is_none() { check } else { check.rows(seen, None) };
        check.need(seen.count == decode.g.rows, || format!("{} rows of seen items", seen.count)).done()?;
        Ok(self.state.backend.recommend(decode, seen, k, items, values)?)
    }

    fn decode(&self, op: &'static str, batch: u32, decode: Decode) -> Check<'_> {
        let Decode { g, w, b, logits, .. } = decode;
        let rows = self.state.backend.logits_rows(batch, w.cols).clamp(1, batch.max(1));
        self.check(op)
            .mat(g, ACT, batch, w.rows)
            .mat(w, WEIGHT, w.rows, w.cols)
            .mat(b, WEIGHT, 1, w.cols)
            .mat(logits, ACT, logits.rows, w.cols)
            .need(logits.rows >= rows.min(batch), || format!("{} rows of logits, wanted {rows}", logits.rows))
    }

    /// Sums over the group; of a world of one, nothing at all.
    pub fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result<()> {
        self.check("all_reduce").buffer(buf, GRAD, at.saturating_add(len)).done()?;
        self.device.sum(&mut *self.state.backend, buf, at..at + len)
    }

    pub fn capture_begin(&mut self) -> Result<()> {
        Ok(self.state.backend.capture_begin()?)
    }

    pub fn capture_end(&mut self) -> Result<Graph> {
        Ok(self.state.backend.capture_end()?)
    }

    pub fn replay(&mut self, graph: Graph) -> Result<()> {
        Ok(self.state.backend.replay(graph)?)
    }
}
