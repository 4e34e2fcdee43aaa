//! The CPU backend with one fault: an argument or a result of one operation changed, as kernels go wrong.

use std::collections::BTreeMap;

use vaecf_core::{
    backend::{
        Backend, Buf, Curve, Decode, Host, HostMut, Info, Likelihood, LikelihoodKind, Mark, Mat, Noise, Result, Role,
        Rows, ScaleState, StepParams,
    },
    forward_backend, random,
};
use vaecf_cpu::Cpu;

use crate::op::Op;

/// The CPU backend with one of [`FAULTS`](super::FAULTS).
pub(super) struct Mutant {
    cpu: Cpu<f32>,
    fault: (Op, &'static str),
    steps: BTreeMap<u32, [StepParams; 2]>,
    temporary: Vec<Buf>,
    /// Weights at their first use.
    kept: BTreeMap<(u32, u64), Vec<f64>>,
    calls: u32,
}

impl Mutant {
    /// A backend with a fault; with one that is not listed, it has none.
    ///
    /// # Errors
    /// Where the threads do not start.
    pub(super) fn new(fault: (Op, &'static str)) -> vaecf_core::Result<Self> {
        let cpu = Cpu::new(Some(1))?;
        Ok(Self { cpu, fault, steps: BTreeMap::new(), temporary: Vec::new(), kept: BTreeMap::new(), calls: 0 })
    }

    fn has(&self, op: Op, fault: &str) -> bool {
        self.fault == (op, fault)
    }

    fn done(&mut self, result: Result) -> Result {
        self.temporary.drain(..).for_each(|buf| self.cpu.free(buf));
        result
    }

    fn temporary(&mut self, role: Role, src: Host<'_>, len: usize) -> Result<Buf> {
        let buf = self.cpu.alloc(role, len.max(1) as u64)?;
        self.temporary.push(buf);
        self.cpu.upload(buf, 0, src)?;
        Ok(buf)
    }

    /// The cells of a matrix.
    fn read(&mut self, mat: Mat) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for row in 0..u64::from(mat.rows) {
            let mut cells = vec![0.0; mat.cols as usize];
            self.cpu.download(mat.buf, mat.offset + row * u64::from(mat.stride), HostMut::F64(&mut cells))?;
            all.extend(cells);
        }
        Ok(all)
    }

    fn write(&mut self, mat: Mat, cells: &[f64]) -> Result {
        for (row, cells) in (0_u64..).zip(cells.chunks_exact((mat.cols as usize).max(1))) {
            self.cpu.upload(mat.buf, mat.offset + row * u64::from(mat.stride), Host::F64(cells))?;
        }
        Ok(())
    }

    fn edit(&mut self, mat: Mat, edit: impl Fn(usize, f64) -> f64) -> Result {
        let cells: Vec<f64> = self.read(mat)?.into_iter().enumerate().map(|(at, x)| edit(at, x)).collect();
        self.write(mat, &cells)
    }

    /// A matrix of the same shape with other cells.
    fn instead(&mut self, role: Role, mat: Mat, cells: &[f64]) -> Result<Mat> {
        let buf = self.temporary(role, Host::F64(cells), cells.len())?;
        Ok(Mat { buf, offset: 0, stride: mat.cols, ..mat })
    }

    fn zeros(&mut self, mat: Mat) -> Result<Mat> {
        self.instead(Role::Weight, mat, &vec![0.0; (mat.rows * mat.cols) as usize])
    }

    /// The same step with something changed.
    fn step(&mut self, step: Buf, edit: impl Fn(&mut StepParams, &StepParams)) -> Result<Buf> {
        let Some([first, mut now]) = self.steps.get(&step.0).copied() else { return Ok(step) };
        edit(&mut now, &first);
        self.temporary(Role::Step, Host::Step(&now), 1)
    }

    fn unscaled(&mut self) -> Result<Buf> {
        self.temporary(Role::Scale, Host::Scale(&ScaleState::default()), 1)
    }

    /// The batch with its rows changed. `edit` gets the user and the row; by position, where that is what
    /// noise is counted by.
    fn rows(&mut self, x: Rows, step: Buf, edit: impl Fn(u32, &mut Vec<(u32, f64)>)) -> Result<Rows> {
        let first = x.first + self.steps.get(&step.0).map_or(0, |steps| steps[1].first);
        let all = |q: &mut Cpu<f32>, buf, from: u32, len: u32| -> Result<Vec<u32>> {
            let mut all = vec![0; len as usize];
            q.download(buf, u64::from(from), HostMut::U32(&mut all))?;
            Ok(all)
        };
        let users = match x.users {
            Buf::NONE => (first..first + x.count).collect(),
            list => all(&mut self.cpu, list, first, x.count)?,
        };
        let last = users.iter().max().map_or(0, |user| user + 1);
        let (mut indptr, mut indices, mut values) = (vec![0_u32; last as usize + 1], Vec::new(), Vec::new());
        for user in 0..last {
            let bounds = all(&mut self.cpu, x.indptr, user, 2)?;
            let items = all(&mut self.cpu, x.indices, bounds[0], bounds[1] - bounds[0])?;
            let mut weights = vec![1.0; items.len()];
            if !x.values.is_none() {
                self.cpu.download(x.values, u64::from(bounds[0]), HostMut::F64(&mut weights))?;
            }
            let mut row: Vec<(u32, f64)> = items.into_iter().zip(weights).collect();
            edit(user, &mut row);
            indices.extend(row.iter().map(|(item, _)| *item));
            values.extend(row.iter().map(|(_, x)| *x));
            indptr[user as usize + 1] = indices.len() as u32;
        }
        Ok(Rows {
            indptr: self.temporary(Role::Index, Host::U32(&indptr), indptr.len())?,
            indices: self.temporary(Role::Index, Host::U32(&indices), indices.len())?,
            values: match x.values {
                Buf::NONE => Buf::NONE,
                _ => self.temporary(Role::Value, Host::F64(&values), values.len())?,
            },
            ..x
        })
    }

    fn rank(
        &mut self,
        scores: Mat,
        k: u32,
        items: Buf,
        values: Buf,
        best: impl Fn(&(u32, f64), &(u32, f64)) -> std::cmp::Ordering,
    ) -> Result {
        let cells = self.read(scores)?;
        for (row, cells) in (0_u64..).zip(cells.chunks_exact(scores.cols as usize)) {
            let mut all: Vec<(u32, f64)> = (0..).zip(cells.iter().copied()).collect();
            all.sort_by(&best);
            all.resize(k as usize, (u32::MAX, f64::NEG_INFINITY));
            let at = row * u64::from(k);
            self.cpu.upload(items, at, Host::U32(&all.iter().map(|(item, _)| *item).collect::<Vec<_>>()))?;
            self.cpu.upload(values, at, Host::F64(&all.iter().map(|(_, x)| *x).collect::<Vec<_>>()))?;
        }
        Ok(())
    }
}

impl Backend for Mutant {
    forward_backend! { self, self.cpu; download sync logits_rows mark }

    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> {
        let seconds = self.cpu.seconds(from, to)?;
        match self.fault {
            (Op::Memory, "the clock runs backwards") => Ok(-seconds),
            (Op::Memory, "seconds are milliseconds") => Ok(1e3 * seconds),
            _ => Ok(seconds),
        }
    }

    fn info(&self) -> Info {
        Info { name: "mutant".into(), ..self.cpu.info() }
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        let floats = !matches!(role, Role::Index | Role::Step | Role::Scale);
        let buf = self.cpu.alloc(role, len);
        if self.has(Op::Memory, "too large a buffer ends in a panic") {
            return Ok(buf.expect("there is enough memory"));
        }
        let buf = buf?;
        if floats && len > 4096 && self.has(Op::Memory, "large buffers are not cleared") {
            self.cpu.upload(buf, 4096, Host::F32(&[7.0]))?;
        }
        if floats && self.has(Op::Memory, "buffers begin as they were left") {
            self.cpu.upload(buf, 0, Host::F32(&vec![7.0; len as usize]))?;
        }
        Ok(buf)
    }

    fn free(&mut self, buf: Buf) {
        if !self.has(Op::Memory, "a freed buffer lives on") {
            self.cpu.free(buf);
        }
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        if let Host::Step(step) = src {
            self.steps.entry(dst.0).or_insert([*step; 2])[1] = *step;
        }
        let at = if self.has(Op::Memory, "an upload begins at the buffer's start") { 0 } else { at };
        match src {
            Host::F64(src) if self.has(Op::Memory, "numbers are cut instead of rounded") => {
                let cut = |x: f64| if x.is_finite() { f64::from_bits(x.to_bits() & !((1 << 29) - 1)) } else { x };
                self.cpu.upload(dst, at, Host::F64(&src.iter().map(|&x| cut(x)).collect::<Vec<_>>()))
            }
            src => self.cpu.upload(dst, at, src),
        }
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        let faulty = self.fault;
        let here = |fault: &str| faulty == (Op::EncodeSparse, fault);
        let (mut x, mut w, mut noise, mut at) = (x, w, noise, step);
        if here("rows begin one event late") {
            x = self.rows(x, step, |_, row| drop(row.drain(..row.len().min(1))))?;
        } else if here("rows end one event early") {
            x = self.rows(x, step, |_, row| row.truncate(row.len().saturating_sub(1)))?;
        } else if here("items are counted in 16 bits") {
            x = self.rows(x, step, |_, row| row.iter_mut().for_each(|(item, _)| *item &= 0xffff))?;
        } else if here("the kept are not scaled up") {
            let cells: Vec<f64> = self.read(w)?.iter().map(|w| w * f64::from(noise.keep)).collect();
            w = self.instead(Role::Weight, w, &cells)?;
        } else if here("the norm is that of what was kept") {
            let update = self.steps.get(&step.0).map_or(0, |steps| steps[1].update);
            let threshold = random::threshold(noise.keep);
            let kept = |user, item| random::keeps(noise.seed, noise.stream, update, user, item, threshold);
            x = self.rows(x, step, |user, row| row.retain(|(item, _)| kept(user, *item)))?;
        } else if here("noise is counted by position") {
            let order = self.rows(x, step, |_, _| {})?;
            let first = x.first + self.steps.get(&step.0).map_or(0, |steps| steps[1].first);
            if !x.users.is_none() {
                let mut users = vec![0; x.count as usize];
                self.cpu.download(x.users, u64::from(first), HostMut::U32(&mut users))?;
                let (mut indptr, mut indices) = (vec![0_u32; first as usize + 1], Vec::new());
                for user in users {
                    let mut bounds = [0; 2];
                    self.cpu.download(order.indptr, u64::from(user), HostMut::U32(&mut bounds))?;
                    let mut items = vec![0; (bounds[1] - bounds[0]) as usize];
                    self.cpu.download(order.indices, u64::from(bounds[0]), HostMut::U32(&mut items))?;
                    indices.extend(items);
                    indptr.push(indices.len() as u32);
                }
                let indptr = self.temporary(Role::Index, Host::U32(&indptr), indptr.len())?;
                let indices = self.temporary(Role::Index, Host::U32(&indices), indices.len())?;
                x = Rows { indptr, indices, values: Buf::NONE, users: Buf::NONE, ..x };
            }
        } else if here("lists of users are read in 16 bits") && !x.users.is_none() {
            let len = x.first + self.steps.get(&step.0).map_or(0, |steps| steps[1].first) + x.count;
            let mut users = vec![0; len as usize];
            self.cpu.download(x.users, 0, HostMut::U32(&mut users))?;
            users.iter_mut().for_each(|user| *user &= 0xffff);
            x.users = self.temporary(Role::Index, Host::U32(&users), users.len())?;
        } else if here("noise is that of the step before") {
            at = self.step(step, |now, _| now.update -= 1)?;
        } else if here("noise is that of the first step") {
            at = self.step(step, |now, first| now.update = first.update)?;
        } else if here("half of the seed is ignored") {
            noise.seed &= 0xffff_ffff;
        } else if here("weights of events are ignored") {
            x.values = Buf::NONE;
        } else if here("the step's window is ignored") {
            at = self.step(step, |now, _| now.first = 0)?;
        } else if here("rows without events stay as they were") {
            let before = self.read(y)?;
            self.cpu.encode_sparse(x, w, b, curve, noise, at, y)?;
            let bias = self.read(b)?;
            let sets = self.read(y)?;
            // A row that is nothing but the bias had no events.
            let zero = |curve: Curve, b: f64| match curve {
                Curve::Identity => b,
                Curve::Tanh => b.tanh(),
                Curve::Relu => b.max(0.0),
            };
            let width = y.cols as usize;
            let kept: Vec<f64> = sets
                .chunks_exact(width)
                .zip(before.chunks_exact(width))
                .flat_map(|(row, old)| {
                    let empty = row.iter().zip(&bias).all(|(y, &b)| (y - zero(curve, b)).abs() < 1e-6);
                    if empty { old.to_vec() } else { row.to_vec() }
                })
                .collect();
            let result = self.write(y, &kept);
            return self.done(result);
        }
        let result = self.cpu.encode_sparse(x, w, b, curve, noise, at, y);
        self.done(result)
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        let mut noise = noise;
        if self.has(Op::EncodeSparseGrad, "another mask than before") {
            noise.stream += 1;
        }
        let before = self.read(dw)?;
        let result = self.cpu.encode_sparse_grad(x, dy, noise, step, dw, db);
        if self.has(Op::EncodeSparseGrad, "items outside the batch keep their gradient") {
            self.edit(dw, |at, x| if x == 0.0 { before[at] } else { x })?;
        } else if self.has(Op::EncodeSparseGrad, "the order of the sum is left to chance") {
            self.calls += 1;
            let off = if self.calls.is_multiple_of(2) { 1.0 + 1e-7 } else { 1.0 };
            self.edit(dw, |_, x| x * off)?;
        }
        self.done(result)
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        let faulty = self.fault;
        let here = |fault: &str| faulty == (Op::Linear, fault);
        let (mut x, mut w, mut b, mut curve, mut to) = (x, w, b, curve, y);
        if here("weights are those of the first use") {
            let cells = self.read(w)?;
            let kept = self.kept.entry((w.buf.0, w.offset)).or_insert(cells).clone();
            if kept.len() == (w.rows * w.cols) as usize {
                w = self.instead(Role::Weight, w, &kept)?;
            }
        } else if here("the bias is dropped") {
            b = self.zeros(b)?;
        } else if here("the last column is skipped") {
            (w.cols, b.cols, to.cols) = (w.cols - 1, b.cols - 1, to.cols - 1);
        } else if here("the last row is skipped") {
            (x.rows, to.rows) = (x.rows.saturating_sub(1), to.rows.saturating_sub(1));
        } else if here("the curve is left out") {
            curve = Curve::Identity;
        } else if here("rows are read without their stride") {
            x.stride = x.cols;
        } else if here("sums are half precision") {
            self.cpu.linear(x, w, b, Curve::Identity, to)?;
            let half = |x: f64| half::f16::from_f64(x).to_f64();
            let apply = |a: f64| match curve {
                Curve::Identity => a,
                Curve::Tanh => a.tanh(),
                Curve::Relu => a.max(0.0),
            };
            self.edit(to, |_, a| apply(half(a)))?;
            return Ok(());
        }
        let result = self.cpu.linear(x, w, b, curve, to);
        if here("the second tile both ways is wrong") {
            let width = y.cols as usize;
            self.edit(y, |at, y| if at / width >= 64 && at % width >= 64 { 1.5 * y } else { y })?;
        } else if here("the sign is flipped") {
            self.edit(y, |_, y| -y)?;
        } else if here("a curve takes what is not a number for zero") && curve == Curve::Relu {
            self.edit(y, |_, y| if y.is_nan() { 0.0 } else { y })?;
        } else if here("padding is written") && y.stride > y.cols && y.rows > 1 {
            self.cpu.upload(y.buf, y.offset + u64::from(y.cols), Host::F32(&[1.0]))?;
        } else if here("an element before the output is written") && y.offset > 0 {
            self.cpu.upload(y.buf, y.offset - 1, Host::F32(&[1.0]))?;
        } else if here("an input is overwritten") && x.rows > 0 {
            self.cpu.upload(x.buf, x.offset, Host::F32(&[9.0]))?;
        }
        self.done(result)
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        let before = self.read(dw)?;
        let less = u32::from(self.has(Op::LinearGradWeight, "the last row of the batch is left out"));
        let top = |m: Mat| m.top(m.rows.saturating_sub(less));
        let result = self.cpu.linear_grad_weight(top(x), top(dy), dw, db);
        if self.has(Op::LinearGradWeight, "the gradient is added to what was there") {
            self.edit(dw, |at, x| x + before[at])?;
        } else if self.has(Op::LinearGradWeight, "the bias has no gradient") {
            self.edit(db, |_, _| 0.0)?;
        }
        self.done(result)
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let (mut x, mut curve) = (x, curve);
        if self.has(Op::LinearGradInput, "the curve's slope is left out") {
            curve = Curve::Identity;
        } else if self.has(Op::LinearGradInput, "the slope is taken of the wrong argument") {
            let cells: Vec<f64> = self.read(x)?.iter().map(|x| x.tanh()).collect();
            x = self.instead(Role::Act, x, &cells)?;
        }
        let result = self.cpu.linear_grad_input(dy, w, x, curve, dx);
        self.done(result)
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        let (mut stats, mut noise, mut out) = (stats, noise, kl);
        if self.has(Op::SampleLatent, "inference is noisy") {
            noise.keep = 1.0;
        } else if self.has(Op::SampleLatent, "the deviation is the variance") {
            let k = z.cols as usize;
            let cells: Vec<f64> = self
                .read(stats)?
                .iter()
                .enumerate()
                .map(|(at, x)| if at % (2 * k) < k { *x } else { 2.0 * x })
                .collect();
            stats = self.instead(Role::Act, stats, &cells)?;
        } else if self.has(Op::SampleLatent, "divergences land at the batch's position") {
            let cells = self.read(kl)?;
            out = self.instead(Role::Value, kl, &cells)?;
        }
        let result = self.cpu.sample_latent(x, stats, noise, step, z, out);
        if result.is_err() && self.has(Op::SampleLatent, "a handle that is wrong is no error") {
            return self.done(Ok(()));
        }
        let first = u64::from(x.first) + u64::from(self.steps.get(&step.0).map_or(0, |steps| steps[1].first));
        if self.has(Op::SampleLatent, "the divergence is not halved") {
            self.edit(Mat { offset: kl.offset + first, rows: x.count, ..kl }, |_, x| 2.0 * x)?;
        } else if self.has(Op::SampleLatent, "divergences land at the batch's position") {
            let cells = self.read(Mat { offset: first, rows: x.count, ..out })?;
            self.write(kl.top(x.count), &cells)?;
        }
        self.done(result)
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
        let (mut at, mut scale) = (step, scale);
        if self.has(Op::SampleLatentGrad, "other noise than before") {
            at = self.step(step, |now, _| now.update += 1)?;
        } else if self.has(Op::SampleLatentGrad, "the divergence is not scaled") {
            scale = self.unscaled()?;
        }
        let result = self.cpu.sample_latent_grad(x, stats, dz, noise, at, scale, dstats);
        self.done(result)
    }

    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        let (mut x, mut kind, mut scale, mut logits) = (x, kind, scale, logits);
        let faulty = self.fault;
        let here = |fault: &str| faulty == (Op::Likelihood, fault);
        if here("the last item is left out") && logits.cols > 1 {
            let last = logits.cols - 1;
            x = self.rows(x, step, |_, row| row.retain(|(item, _)| *item != last))?;
            logits.cols = last;
        } else if here("the loss scale is left out") {
            scale = self.unscaled()?;
        } else if here("weights of events are ignored") {
            x.values = Buf::NONE;
        } else if here("confidences are swapped") {
            (kind.seen, kind.unseen) = (kind.unseen, kind.seen);
        } else if here("logits that are not numbers are left out") {
            self.edit(logits, |_, f| if f.is_nan() { -60.0 } else { f })?;
        } else if here("the softmax does not subtract its maximum") && kind.kind == LikelihoodKind::Multinomial {
            // Where an exponential is infinite, so is the sum: the gradient is not a number.
            let cells = self.read(logits)?;
            let result = self.cpu.likelihood(x, kind, logits, step, scale, loss);
            self.edit(logits, |at, df| df + 0.0 * f64::from((cells[at] as f32).exp()))?;
            return self.done(result);
        }
        let result = self.cpu.likelihood(x, kind, logits, step, scale, loss);
        if kind.kind == LikelihoodKind::Gaussian && here("squared errors stop at item 200") {
            let width = logits.cols as usize;
            self.edit(logits, |at, df| if at % width >= 200 { 0.0 } else { df })?;
        }
        self.done(result)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        let faulty = self.fault;
        let here = |fault: &str| faulty == (Op::Adam, fault);
        let (mut len, mut decayed, mut at, mut by, mut gradient) = (len, decayed, step, scale, dw);
        let mut before = ScaleState::default();
        self.cpu.download(scale, 0, HostMut::Scale(&mut before))?;
        if here("weights do not decay") {
            decayed = 0;
        } else if here("biases decay, too") {
            decayed = len;
        } else if here("moments are not corrected") {
            at = self.step(step, |now, _| (now.correction1, now.correction2) = (1.0, 1.0))?;
        } else if here("the two decays are swapped") {
            at = self.step(step, |now, _| (now.beta1, now.beta2) = (now.beta2, now.beta1))?;
        } else if here("the gradient is a sum") {
            at = self.step(step, |now, _| now.grad_factor = 1.0)?;
        } else if here("epsilon is left out") {
            at = self.step(step, |now, _| now.eps = 0.0)?;
        } else if here("the loss scale stays in") {
            by = self.unscaled()?;
        } else if here("the last element is skipped") {
            (len, decayed) = (len - 1, decayed.min(len - 1));
        } else if here("what is not finite is taken for zero") {
            let mut all = vec![0.0; len as usize];
            self.cpu.download(dw, 0, HostMut::F64(&mut all))?;
            all.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
            gradient = self.temporary(Role::Grad, Host::F64(&all), all.len())?;
        }
        if here("threads reach 16 million elements") {
            (len, decayed) = (len.min(65_535 * 256), decayed.min(65_535 * 256));
        } else if here("only the start is looked at for what is not finite") && len > 65_536 {
            let mut rest = vec![0.0; len as usize - 65_536];
            self.cpu.download(dw, 65_536, HostMut::F64(&mut rest))?;
            rest.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
            let mut all = vec![0.0; 65_536];
            self.cpu.download(dw, 0, HostMut::F64(&mut all))?;
            all.extend(rest);
            gradient = self.temporary(Role::Grad, Host::F64(&all), all.len())?;
        }
        let result = self.cpu.adam(w, gradient, m, v, len, decayed, at, by);
        let mut after = ScaleState::default();
        self.cpu.download(by, 0, HostMut::Scale(&mut after))?;
        if self.has(Op::Adam, "an update is never good again") {
            after.finite = after.finite.min(before.finite);
            self.cpu.upload(scale, 0, Host::Scale(&after))?;
        } else if self.has(Op::Adam, "skipped updates are counted to one") {
            after.skipped = after.skipped.min(1);
            self.cpu.upload(scale, 0, Host::Scale(&after))?;
        }
        if self.has(Op::Adam, "skipped updates are not counted") {
            self.cpu.upload(scale, 0, Host::Scale(&before))?;
        }
        self.done(result)
    }

    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let mut seen = seen;
        if self.has(Op::TopK, "the history is not masked") {
            (seen.indptr, seen.indices) = (Buf::NONE, Buf::NONE);
        } else if seen.indptr.is_none() || seen.count == 0 {
            // Where nothing is masked, a ranking is a sort.
            if self.has(Op::TopK, "ties go to the larger item") {
                return self.rank(scores, k, items, values, |a, b| {
                    let worth = |x: f64| if x.is_nan() { f64::NEG_INFINITY } else { x + 0.0 };
                    a.1.is_nan().cmp(&b.1.is_nan()).then(worth(b.1).total_cmp(&worth(a.1))).then(b.0.cmp(&a.0))
                });
            }
            if self.has(Op::TopK, "what is not a number comes first") {
                return self.rank(scores, k, items, values, |a, b| {
                    let worth = |x: f64| if x.is_nan() { f64::INFINITY } else { x + 0.0 };
                    b.1.is_nan().cmp(&a.1.is_nan()).then(worth(b.1).total_cmp(&worth(a.1))).then(a.0.cmp(&b.0))
                });
            }
        }
        let result = self.cpu.top_k(scores, seen, k, items, values);
        let len = u64::from(scores.rows) * u64::from(k);
        if self.has(Op::TopK, "missing items are item 0") {
            let mut all = vec![0; len as usize];
            self.cpu.download(items, 0, HostMut::U32(&mut all))?;
            all.iter_mut().filter(|item| **item == u32::MAX).for_each(|item| *item = 0);
            self.cpu.upload(items, 0, Host::U32(&all))?;
        } else if self.has(Op::TopK, "one item too many is written") {
            self.cpu.upload(items, len, Host::U32(&[7]))?;
        }
        self.done(result)
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
        let mut decode = decode;
        let mut scale = scale;
        if self.has(Op::DecodeLossGrad, "the fused slope is left out") {
            decode.curve = Curve::Identity;
        } else if self.has(Op::DecodeLossGrad, "the fused scale is left out beyond 640 items") && decode.w.cols > 640 {
            scale = self.unscaled()?;
        }
        let result = self.cpu.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg);
        if dg.rows > 512
            && dw.cols > 640
            && self.has(Op::DecodeLossGrad, "the second block is wrong in the second chunk")
        {
            let width = dg.cols as usize;
            self.edit(dg, |at, x| if at >= 512 * width { 1.01 * x } else { x })?;
        } else if self.has(Op::DecodeLossGrad, "the fused bias has no gradient") {
            self.edit(db, |_, _| 0.0)?;
        } else if self.has(Op::DecodeLossGrad, "the second block is that of the first") && dg.rows > 64 {
            let cells = self.read(dg)?;
            let width = dg.cols as usize;
            self.edit(dg, |at, x| if at >= 64 * width { cells[at - 64 * width] } else { x })?;
        }
        self.done(result)
    }

    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let mut decode = decode;
        if self.has(Op::Recommend, "the fused bias is dropped") {
            decode.b = self.zeros(decode.b)?;
        } else if self.has(Op::Recommend, "the last item is never recommended") && decode.w.cols > 1 {
            let cols = decode.w.cols - 1;
            (decode.w.cols, decode.b.cols, decode.logits.cols) = (cols, cols, cols);
            // Where it is seen it would be missed.
            if !seen.indptr.is_none() {
                let kept = self.rows(seen, Buf::NONE, |_, row| row.retain(|(item, _)| *item < cols))?;
                let result = self.cpu.recommend(decode, kept, k, items, values);
                return self.done(result);
            }
        }
        let result = self.cpu.recommend(decode, seen, k, items, values);
        self.done(result)
    }
}
