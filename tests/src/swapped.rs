//! A backend whose calls get one handle instead of another.

use vaecf_core::{
    backend::{Backend, Buf, Curve, Decode, Likelihood, Mat, Noise, Result, Rows},
    forward_backend,
};

/// Wherever an operation names `from`, it gets `to`.
pub(crate) struct Swapped<'a> {
    pub(crate) inner: &'a mut dyn Backend,
    pub(crate) from: Buf,
    pub(crate) to: Buf,
    /// Whether an operation has named it.
    pub(crate) named: bool,
}

impl Swapped<'_> {
    fn buf(&mut self, buf: Buf) -> Buf {
        self.named |= buf == self.from;
        if buf == self.from { self.to } else { buf }
    }

    fn mat(&mut self, mat: Mat) -> Mat {
        Mat { buf: self.buf(mat.buf), ..mat }
    }

    fn rows(&mut self, x: Rows) -> Rows {
        let [indptr, indices, values, users] = [x.indptr, x.indices, x.values, x.users].map(|buf| self.buf(buf));
        Rows { indptr, indices, values, users, ..x }
    }

    fn decode(&mut self, d: Decode) -> Decode {
        let [g, w, b, logits] = [d.g, d.w, d.b, d.logits].map(|mat| self.mat(mat));
        Decode { g, w, b, logits, ..d }
    }
}

#[rustfmt::skip]
impl Backend for Swapped<'_> {
    forward_backend! { self, self.inner; info alloc free upload download sync logits_rows longest_list }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, c: Curve, n: Noise, s: Buf, y: Mat) -> Result { let (x, w, b, s, y) = (self.rows(x), self.mat(w), self.mat(b), self.buf(s), self.mat(y)); self.inner.encode_sparse(x, w, b, c, n, s, y) }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, n: Noise, s: Buf, dw: Mat, db: Mat) -> Result { let (x, dy, s, dw, db) = (self.rows(x), self.mat(dy), self.buf(s), self.mat(dw), self.mat(db)); self.inner.encode_sparse_grad(x, dy, n, s, dw, db) }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, c: Curve, y: Mat) -> Result { let (x, w, b, y) = (self.mat(x), self.mat(w), self.mat(b), self.mat(y)); self.inner.linear(x, w, b, c, y) }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result { let (x, dy, dw, db) = (self.mat(x), self.mat(dy), self.mat(dw), self.mat(db)); self.inner.linear_grad_weight(x, dy, dw, db) }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, c: Curve, dx: Mat) -> Result { let (dy, w, x, dx) = (self.mat(dy), self.mat(w), self.mat(x), self.mat(dx)); self.inner.linear_grad_input(dy, w, x, c, dx) }
    fn sample_latent(&mut self, x: Rows, st: Mat, n: Noise, s: Buf, z: Mat, kl: Mat) -> Result { let (x, st, s, z, kl) = (self.rows(x), self.mat(st), self.buf(s), self.mat(z), self.mat(kl)); self.inner.sample_latent(x, st, n, s, z, kl) }
    fn sample_latent_grad(&mut self, x: Rows, st: Mat, dz: Mat, n: Noise, s: Buf, sc: Buf, d: Mat) -> Result { let (x, st, dz, s, sc, d) = (self.rows(x), self.mat(st), self.mat(dz), self.buf(s), self.buf(sc), self.mat(d)); self.inner.sample_latent_grad(x, st, dz, n, s, sc, d) }
    fn likelihood(&mut self, x: Rows, k: Likelihood, l: Mat, s: Buf, sc: Buf, loss: Mat) -> Result { let (x, l, s, sc, loss) = (self.rows(x), self.mat(l), self.buf(s), self.buf(sc), self.mat(loss)); self.inner.likelihood(x, k, l, s, sc, loss) }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, d: u64, s: Buf, sc: Buf) -> Result { let (w, dw, m, v, s, sc) = (self.buf(w), self.buf(dw), self.buf(m), self.buf(v), self.buf(s), self.buf(sc)); self.inner.adam(w, dw, m, v, len, d, s, sc) }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { let (scores, seen, i, v) = (self.mat(scores), self.rows(seen), self.buf(i), self.buf(v)); self.inner.top_k(scores, seen, k, i, v) }
    fn decode_loss_grad(&mut self, x: Rows, d: Decode, k: Likelihood, s: Buf, sc: Buf, loss: Mat, dw: Mat, db: Mat, dg: Mat) -> Result { let (x, d, s, sc, loss, dw, db, dg) = (self.rows(x), self.decode(d), self.buf(s), self.buf(sc), self.mat(loss), self.mat(dw), self.mat(db), self.mat(dg)); self.inner.decode_loss_grad(x, d, k, s, sc, loss, dw, db, dg) }
    fn recommend(&mut self, d: Decode, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { let (d, seen, i, v) = (self.decode(d), self.rows(seen), self.buf(i), self.buf(v)); self.inner.recommend(d, seen, k, i, v) }
}
