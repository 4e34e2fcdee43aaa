//! The backend that runs on the host's cores.
//!
//! [`Cpu<f32>`] is the product and [`Cpu<f64>`] the reference: one text, generic over the float. Matrix
//! products are those of the `gemm` crate, everything else is a pass over rows with the mathematics of
//! `vaecf_core::math`. Each value is computed by one thread in a fixed order, so results do not
//! depend on the number of threads.
//!
//! Training and asking, without a file:
//!
//! ```
//! use vaecf_core::{config::{ModelConfig, TrainConfig}, dataset::Dataset, device::Device, matrix::Matrix,
//!     popularity::Popularity, recommend::{Catalogue, Recommender}, trainer::Trainer};
//! use vaecf_cpu::Cpu;
//!
//! // Whoever has tea has milk, and whoever has coffee has sugar.
//! let items = ["tea", "milk", "coffee", "sugar"].into_iter().collect();
//! let train = Matrix::from_rows(4, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3]])?;
//! let users = (0..train.users()).map(|user| user.to_string()).collect();
//! let data = Dataset::new(train, None, None, items, users)?;
//!
//! let device = Device::new(Box::new(Cpu::<f32>::new(None)?));
//! let model = ModelConfig { hidden: vec![16], latent: 4, ..ModelConfig::default() };
//! let settings = TrainConfig { lr: 0.01, ..TrainConfig::paper() };
//! let mut trainer = Trainer::new(&device, &model, &settings, &data, None)?;
//! trainer.run(&mut ())?;
//! let model = trainer.into_best()?;
//!
//! let popularity = Popularity::of(&data.train);
//! let (mask_history, k, users_at_once) = (true, 1, 1);
//! let recommender = Recommender::new(&model, &popularity, Catalogue::default(), mask_history, k, users_at_once)?;
//! let best = recommender.recommend(&Matrix::from_rows(4, [[0]])?)?;
//! assert_eq!(data.items.name(best[0].items[0].0), "milk");
//! # Ok::<(), vaecf_core::Error>(())
//! ```

mod ceilings;
mod clock;
mod gemm;
mod memory;
mod ops {
    pub(crate) mod adam;
    pub(crate) mod decode;
    pub(crate) mod encode_sparse;
    pub(crate) mod likelihood;
    pub(crate) mod linear;
    pub(crate) mod sample_latent;
    pub(crate) mod top_k;
}

use clock::Clock;
use memory::{Span, Sparse, Table};
use ops::{decode, encode_sparse, top_k};
use rayon::{ThreadPool, ThreadPoolBuilder};
use vaecf_core::{
    Error, Kind,
    backend::{
        Backend, Buf, Ceilings, Curve, Decode, Fault, Host, HostMut, Info, Likelihood, Mark, Master, Mat, Noise,
        Result, Role, Rows, ScaleState, StepParams,
    },
    math::Real,
};

/// Users whose logits are held at once: the products are as fast as with any larger number.
const BLOCK: usize = 512;

/// Bytes that a block of logits may take up where the catalogue is huge.
const BLOCK_BYTES: usize = 1 << 28;

/// Elements to which rows are aligned: one cache line of f32.
const ALIGN: u32 = 16;

/// How an operation runs: on the widest vectors that the machine has, on this many threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exec {
    arch: pulp::Arch,
    pub(crate) threads: usize,
}

impl Exec {
    /// Runs a loop compiled for the vectors of this machine. The loop and all it calls must be
    /// `#[inline(always)]`: what is not inlined stays compiled for the smallest vectors.
    #[inline(always)]
    pub(crate) fn wide<R>(self, body: impl FnOnce() -> R) -> R {
        self.arch.dispatch(body)
    }
}

/// The host's cores, in the precision `T`.
#[derive(Debug)]
pub struct Cpu<T: Real> {
    pool: ThreadPool,
    exec: Exec,
    device: String,
    handles: u32,
    floats: Table<T>,
    indices: Table<u32>,
    steps: Table<StepParams>,
    scales: Table<ScaleState>,
    transpose: encode_sparse::Transpose<T>,
    decode: decode::Scratch<T>,
    clock: Clock,
}

impl<T: Real> Cpu<T> {
    /// A backend of its own threads, as many as the machine offers where no number is given.
    ///
    /// # Errors
    /// Where the threads cannot be started, or are none.
    pub fn new(threads: Option<usize>) -> vaecf_core::Result<Self> {
        if threads == Some(0) {
            return Err(Error::usage("0 threads: the CPU backend needs at least 1"));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("vaecf-cpu-{i}"))
            .build()
            .map_err(|e| Error::new(Kind::Device, format!("the threads of the CPU backend did not start: {e}")))?;
        let threads = pool.current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        Ok(Self {
            device: format!("{}, {threads} thread{plural}", processor()),
            exec: Exec { arch: pulp::Arch::new(), threads },
            pool,
            handles: 0,
            floats: Table::new("floats"),
            indices: Table::new("indices"),
            steps: Table::new("steps"),
            scales: Table::new("scales"),
            transpose: encode_sparse::Transpose::new(),
            decode: decode::Scratch::new(),
            clock: Clock::new(),
        })
    }

    /// The row starts, items and users of a window, to be borrowed.
    fn index(&self, rows: Rows) -> Result<[Span; 3]> {
        Ok([self.indices.whole(rows.indptr)?, self.indices.whole(rows.indices)?, self.indices.whole(rows.users)?])
    }
}

/// The processor as its maker calls it.
fn processor() -> String {
    let listed = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = listed.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// Bytes that can still be had without swapping, where the system tells.
fn available_memory() -> Option<u64> {
    let listed = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = listed.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// The rows of a per-user output that a window writes.
fn window(mat: Mat, first: u64, rows: u32) -> Mat {
    Mat { offset: mat.offset + first * u64::from(mat.stride), rows, ..mat }
}

/// The first row of a window in an operation that takes the step.
fn first(rows: Rows, step: &StepParams) -> u64 {
    u64::from(rows.first) + u64::from(step.first)
}

/// Where the `k` best items of each row go, and their scores.
fn ranking(items: Buf, values: Buf, rows: u32, k: u32) -> (Span, Mat) {
    let span = Span { buf: items, start: 0, len: u64::from(rows) * u64::from(k) };
    (span, Mat { buf: values, rows, cols: k, stride: k, offset: 0 })
}

impl<T: Real> Backend for Cpu<T> {
    fn info(&self) -> Info {
        let bytes = size_of::<T>() as u32;
        Info {
            name: "cpu".into(),
            device: self.device.clone(),
            precision: format!("f{}", 8 * bytes),
            master: T::MASTER,
            memory: available_memory(),
            host_memory: true,
            act_bytes: bytes,
            weight_bytes: bytes,
            align: ALIGN,
            loss_scale: 1.0,
            deterministic: true,
            capture: false,
        }
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        let size = match role {
            Role::Weight | Role::Grad | Role::Moment | Role::Act | Role::Value => size_of::<T>(),
            Role::Index => size_of::<u32>(),
            Role::Step => size_of::<StepParams>(),
            Role::Scale => size_of::<ScaleState>(),
        };
        let wanted = len.saturating_mul(size as u64);
        // The system promises memory that it does not have, and ends the process that uses it.
        let promised = available_memory().is_none_or(|available| wanted <= available);
        let handle = self.handles.checked_add(1).ok_or_else(|| Fault::Other("out of buffer handles".into()))?;
        usize::try_from(len)
            .ok()
            .filter(|_| promised)
            .and_then(|len| match role {
                Role::Weight | Role::Grad | Role::Moment | Role::Act | Role::Value => self.floats.insert(handle, len),
                Role::Index => self.indices.insert(handle, len),
                Role::Step => self.steps.insert(handle, len),
                Role::Scale => self.scales.insert(handle, len),
            })
            .ok_or_else(|| Fault::OutOfMemory { device: self.device.clone(), wanted })?;
        self.handles = handle;
        Ok(Buf(handle))
    }

    fn free(&mut self, buf: Buf) {
        self.floats.remove(buf);
        self.indices.remove(buf);
        self.steps.remove(buf);
        self.scales.remove(buf);
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        match src {
            Host::F32(src) => {
                let dst = self.floats.range(dst, at, src.len())?;
                dst.iter_mut().zip(src).for_each(|(d, &s)| *d = T::of(f64::from(s)));
            }
            Host::F64(src) => {
                let dst = self.floats.range(dst, at, src.len())?;
                dst.iter_mut().zip(src).for_each(|(d, &s)| *d = T::of(s));
            }
            Host::U32(src) => self.indices.range(dst, at, src.len())?.copy_from_slice(src),
            Host::Step(src) => self.steps.range(dst, at, 1)?[0] = *src,
            Host::Scale(src) => self.scales.range(dst, at, 1)?[0] = *src,
        }
        Ok(())
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        match dst {
            HostMut::F32(dst) => {
                let src = self.floats.range(src, at, dst.len())?;
                dst.iter_mut().zip(src).for_each(|(d, s)| *d = s.wide() as f32);
            }
            HostMut::F64(dst) => {
                let src = self.floats.range(src, at, dst.len())?;
                dst.iter_mut().zip(src).for_each(|(d, s)| *d = s.wide());
            }
            HostMut::U32(dst) => dst.copy_from_slice(self.indices.range(src, at, dst.len())?),
            HostMut::Scale(dst) => *dst = self.scales.range(src, at, 1)?[0],
        }
        Ok(())
    }

    fn sync(&mut self) -> Result {
        Ok(())
    }

    fn lend(&mut self, buf: Buf, at: u64, len: u64) -> Option<HostMut<'_>> {
        let values = self.floats.range(buf, at, usize::try_from(len).ok()?).ok()?;
        Some(match T::MASTER {
            Master::F32 => HostMut::F32(bytemuck::cast_slice_mut(values)),
            Master::F64 => HostMut::F64(bytemuck::cast_slice_mut(values)),
        })
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        let step = self.steps.one(step)?;
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([w, b, values], [mut y]) = self.floats.views([w, b, values], [y])?;
        let x = Sparse::new(x, first(x, &step), index, values)?;
        self.pool.install(|| encode_sparse::encode_sparse(self.exec, x, w, b, curve, noise, step, &mut y));
        Ok(())
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        let step = self.steps.one(step)?;
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([dy, values], [mut dw, mut db]) = self.floats.views([dy, values], [dw, db])?;
        let x = Sparse::new(x, first(x, &step), index, values)?;
        let (exec, scratch) = (self.exec, &mut self.transpose);
        self.pool.install(|| {
            encode_sparse::encode_sparse_grad(exec, x, dy, noise, step, scratch, &mut dw, &mut db);
        });
        Ok(())
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        let ([x, w, b], [mut y]) = self.floats.views([x, w, b], [y])?;
        self.pool.install(|| ops::linear::linear(self.exec, x, w, b, curve, &mut y));
        Ok(())
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        let ([x, dy], [mut dw, mut db]) = self.floats.views([x, dy], [dw, db])?;
        self.pool.install(|| ops::linear::linear_grad_weight(self.exec, x, dy, &mut dw, &mut db));
        Ok(())
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let ([dy, w, x], [mut dx]) = self.floats.views([dy, w, x], [dx])?;
        self.pool.install(|| ops::linear::linear_grad_input(self.exec, dy, w, x, curve, &mut dx));
        Ok(())
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        let step = self.steps.one(step)?;
        let from = first(x, &step);
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([stats, values], [mut z, mut kl]) = self.floats.views([stats, values], [z, window(kl, from, x.count)])?;
        let x = Sparse::new(x, from, index, values)?;
        self.pool.install(|| ops::sample_latent::sample_latent(self.exec, x, stats, noise, step, &mut z, &mut kl));
        Ok(())
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
        let step = self.steps.one(step)?;
        let beta = T::of(step.beta * f64::from(self.scales.one(scale)?.scale));
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([stats, dz, values], [mut dstats]) = self.floats.views([stats, dz, values], [dstats])?;
        let x = Sparse::new(x, first(x, &step), index, values)?;
        self.pool.install(|| {
            ops::sample_latent::sample_latent_grad(self.exec, x, stats, dz, noise, step, beta, &mut dstats);
        });
        Ok(())
    }

    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        let step = self.steps.one(step)?;
        let scale = T::of(f64::from(self.scales.one(scale)?.scale));
        let from = first(x, &step);
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([values], [mut logits, mut loss]) = self.floats.views([values], [logits, window(loss, from, x.count)])?;
        let x = Sparse::new(x, from, index, values)?;
        self.pool.install(|| ops::likelihood::likelihood(self.exec, x, kind, scale, &mut logits, &mut loss));
        Ok(())
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        if decayed > len {
            return Err(Fault::Other(format!("{decayed} of {len} weights cannot decay")));
        }
        let step = self.steps.one(step)?;
        let mut state = self.scales.one(scale)?;
        let span = |buf| Span { buf, start: 0, len };
        let ([dw], [w, m, v]) = self.floats.borrow([span(dw)], [span(w), span(m), span(v)])?;
        self.pool.install(|| ops::adam::adam(self.exec, w, dw, m, v, decayed as usize, &step, &mut state));
        self.scales.range(scale, 0, 1)?[0] = state;
        Ok(())
    }

    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let (ranked, values) = ranking(items, values, scores.rows, k);
        let (index, [items]) = self.indices.borrow(self.index(seen)?, [ranked])?;
        let weights = self.floats.row(seen.values)?;
        let ([scores, weights], [values]) = self.floats.views([scores, weights], [values])?;
        let seen = Sparse::new(seen, seen.first.into(), index, weights)?;
        let (exec, scratch) = (self.exec, &mut self.decode.best);
        self.pool.install(|| top_k::top_k(exec, scores, seen, k as usize, scratch, items, values.data));
        Ok(())
    }

    fn logits_rows(&self, batch: u32, items: u32) -> u32 {
        let fit = BLOCK_BYTES / (size_of::<T>() * items.max(1) as usize);
        batch.min(fit.clamp(1, BLOCK) as u32)
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
        let Decode { g, w, b, curve, logits } = decode;
        let logits = logits.top(logits.rows.min(self.logits_rows(g.rows, w.cols)));
        let step = self.steps.one(step)?;
        let scale = T::of(f64::from(self.scales.one(scale)?.scale));
        let from = first(x, &step);
        let (index, []) = self.indices.borrow(self.index(x)?, [])?;
        let values = self.floats.row(x.values)?;
        let ([g, w, b, values], [logits, mut loss, mut dw, mut db, mut dg]) =
            self.floats.views([g, w, b, values], [logits, window(loss, from, x.count), dw, db, dg])?;
        let x = Sparse::new(x, from, index, values)?;
        let layer = decode::Layer { g, w, b, curve, logits };
        let (exec, scratch) = (self.exec, &mut self.decode);
        self.pool.install(|| {
            decode::decode_loss_grad(exec, x, layer, kind, scale, scratch, &mut loss, &mut dw, &mut db, &mut dg);
        });
        Ok(())
    }

    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let Decode { g, w, b, curve, logits } = decode;
        let logits = logits.top(logits.rows.min(self.logits_rows(g.rows, w.cols)));
        let (ranked, values) = ranking(items, values, g.rows, k);
        let (index, [items]) = self.indices.borrow(self.index(seen)?, [ranked])?;
        let weights = self.floats.row(seen.values)?;
        let ([g, w, b, weights], [logits, values]) = self.floats.views([g, w, b, weights], [logits, values])?;
        let seen = Sparse::new(seen, seen.first.into(), index, weights)?;
        let layer = decode::Layer { g, w, b, curve, logits };
        let (exec, scratch) = (self.exec, &mut self.decode);
        self.pool.install(|| decode::recommend(exec, layer, seen, k as usize, scratch, items, values.data));
        Ok(())
    }

    fn mark(&mut self) -> Result<Mark> {
        Ok(self.clock.mark())
    }

    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> {
        self.clock.seconds(from, to)
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        ceilings::ceilings::<T>(&self.pool)
    }
}
