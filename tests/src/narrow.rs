//! A device of half precision, on the host: what the suite's tolerances and the loss scale are tried on
//! where there is no such device.

use std::collections::BTreeMap;

use vaecf_core::{
    backend::{Backend, Buf, Curve, Host, HostMut, Info, Likelihood, Mat, Noise, Result, Role, Rows, ScaleState},
    forward_backend,
};

use crate::{compare::Float, numbers::round};

/// Finite updates after which the loss scale grows.
const GROWTH: u32 = 200;

/// Mixed precision as in Micikevicius et al. 2018: activations, logits and their gradients are rounded to
/// a narrow type whenever they are stored; weights have a master and a narrow copy, which operations
/// read; sums, losses, gradients and moments are single precision; the loss scale is dynamic.
pub struct Narrow<B> {
    inner: B,
    float: Float,
    acts: Vec<Buf>,
    copies: BTreeMap<u32, (Buf, usize)>,
    /// One of [`crate::mutants::FAULTS`]; empty where there is none.
    fault: &'static str,
}

impl<B: Backend> Narrow<B> {
    /// Half precision of 11 bits, with a loss scale.
    pub fn f16(single: B) -> Self {
        Self { inner: single, float: Float::F16, acts: Vec::new(), copies: BTreeMap::new(), fault: "" }
    }

    /// Half precision of 8 bits, whose exponents are those of single precision.
    pub fn bf16(single: B) -> Self {
        Self { float: Float::Bf16, ..Self::f16(single) }
    }

    /// The same with a fault.
    pub(crate) fn with(self, fault: &'static str) -> Self {
        Self { fault, ..self }
    }

    /// The matrix in the copy that operations read.
    fn copy(&self, mat: Mat) -> Mat {
        Mat { buf: self.copies.get(&mat.buf.0).map_or(mat.buf, |copy| copy.0), ..mat }
    }

    fn rounded(&self, src: &[f64]) -> Vec<f64> {
        src.iter().map(|&x| round(self.float, x)).collect()
    }

    /// What was written is stored in the narrow type.
    fn store(&mut self, mat: Mat) -> Result {
        let gaps = u64::from(mat.rows).saturating_sub(1) * u64::from(mat.stride);
        let mut all = vec![0.0; if mat.rows == 0 { 0 } else { (gaps + u64::from(mat.cols)) as usize }];
        self.inner.download(mat.buf, mat.offset, HostMut::F64(&mut all))?;
        let rounded = match self.fault {
            "results are cut instead of rounded" => self.cut(&all),
            "results beyond the largest are the largest" => {
                let within = |x: f64| if x.is_finite() { x.clamp(-65_504.0, 65_504.0) } else { x };
                self.rounded(&all.into_iter().map(within).collect::<Vec<_>>())
            }
            _ => self.rounded(&all),
        };
        self.inner.upload(mat.buf, mat.offset, Host::F64(&rounded))
    }

    fn refresh(&mut self, weights: Buf) -> Result {
        let Some(&(copy, len)) = self.copies.get(&weights.0) else { return Ok(()) };
        let mut all = vec![0.0; len];
        self.inner.download(weights, 0, HostMut::F64(&mut all))?;
        let rounded = match self.fault {
            "the narrow copy of the weights is cut" => self.cut(&all),
            _ => self.rounded(&all),
        };
        self.inner.upload(copy, 0, Host::F64(&rounded))
    }

    /// The next towards zero of the numbers of 11 bits.
    fn cut(&self, src: &[f64]) -> Vec<f64> {
        let cut = |x: f64| if x.is_finite() { f64::from_bits(x.to_bits() >> 42 << 42) } else { x };
        self.rounded(&src.iter().map(|&x| cut(x)).collect::<Vec<_>>())
    }
}

impl<B: Backend> Backend for Narrow<B> {
    forward_backend! { self, self.inner;
        download sync encode_sparse_grad linear_grad_weight top_k mark seconds ceilings
    }

    fn info(&self) -> Info {
        let (precision, loss_scale) = if self.float == Float::F16 { ("f16", 65_536.0) } else { ("bf16", 1.0) };
        let name = "narrow".into();
        Info { name, precision: precision.into(), act_bytes: 2, weight_bytes: 6, loss_scale, ..self.inner.info() }
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        let buf = self.inner.alloc(role, len)?;
        match role {
            Role::Weight => {
                let copy = self.inner.alloc(role, len)?;
                self.copies.insert(buf.0, (copy, len as usize));
            }
            Role::Act => self.acts.push(buf),
            _ => {}
        }
        Ok(buf)
    }

    fn free(&mut self, buf: Buf) {
        self.acts.retain(|act| *act != buf);
        if let Some((copy, _)) = self.copies.remove(&buf.0) {
            self.inner.free(copy);
        }
        self.inner.free(buf);
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        let narrow = match src {
            Host::F32(src) => self.rounded(&src.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
            Host::F64(src) => self.rounded(src),
            other => return self.inner.upload(dst, at, other),
        };
        if self.acts.contains(&dst) {
            return self.inner.upload(dst, at, Host::F64(&narrow));
        }
        self.inner.upload(dst, at, src)?;
        match self.copies.get(&dst.0) {
            Some(&(copy, _)) => self.inner.upload(copy, at, Host::F64(&narrow)),
            None => Ok(()),
        }
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        self.inner.encode_sparse(x, self.copy(w), self.copy(b), curve, noise, step, y)?;
        self.store(y)
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        self.inner.linear(x, self.copy(w), self.copy(b), curve, y)?;
        self.store(y)
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        self.inner.linear_grad_input(dy, self.copy(w), x, curve, dx)?;
        self.store(dx)
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        self.inner.sample_latent(x, stats, noise, step, z, kl)?;
        self.store(z)
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
        self.inner.sample_latent_grad(x, stats, dz, noise, step, scale, dstats)?;
        self.store(dstats)
    }

    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        self.inner.likelihood(x, kind, logits, step, scale, loss)?;
        if self.fault == "losses are narrow" {
            self.store(loss)?;
        }
        self.store(logits)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        self.inner.adam(w, dw, m, v, len, decayed, step, scale)?;
        match self.fault {
            "the narrow copy of the weights is that of the start" => {}
            "masters are narrow" => {
                self.store(Mat { buf: w, rows: 1, cols: len as u32, stride: len as u32, offset: 0 })?;
                self.refresh(w)?;
            }
            _ => self.refresh(w)?,
        }
        if self.float != Float::F16 {
            return Ok(());
        }
        let mut state = ScaleState::default();
        self.inner.download(scale, 0, HostMut::Scale(&mut state))?;
        match (state.finite, state.good) {
            (0, _) if self.fault == "the loss scale never falls" => {}
            (0, _) => (state.scale, state.good) = (state.scale / 2.0, 0),
            (_, GROWTH..) if self.fault == "the loss scale never grows" => {}
            (_, GROWTH..) => (state.scale, state.good) = (state.scale * 2.0, 0),
            _ => {}
        }
        self.inner.upload(scale, 0, Host::Scale(&state))
    }
}
