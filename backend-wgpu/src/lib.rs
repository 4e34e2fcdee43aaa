//! The backend for any GPU: compute shaders through Vulkan, Metal or DX12.
//!
//! Kernels are WGSL without subgroups, immediates or float atomics, so that the same ones can run in a browser; only those
//! of a device's own matrices, which are used where a test has found them right, ask for more. Mixed
//! precision is that of Micikevicius et al. 2018: operations read half copies of the weights and store activations,
//! logits and their gradients as packed halves, on every device; every sum, every loss, the masters, their gradients
//! and moments are single precision; the loss scale lives on the device.
//!
//! Calls are recorded and return at once; they are submitted together, and waited for by what reads.

mod batch;
mod clock;
mod context;
mod cut;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod functions;
mod kernels;
mod memory;
mod queue;
mod transfer;
mod ops {
    pub(crate) mod adam;
    pub(crate) mod encode_sparse;
    pub(crate) mod likelihood;
    pub(crate) mod linear;
    pub(crate) mod sample_latent;
    pub(crate) mod top_k;
}
mod products;

use std::path::PathBuf;

#[cfg(not(target_arch = "wasm32"))]
pub use context::survey;
pub use context::{Found, survey_async};
use vaecf_core::backend::{
    Backend, Buf, Ceilings, Curve, Decode, Fault, Graph, Host, HostMut, Info, Likelihood, Mark, Master, Mat, Noise,
    Result, Role, Rows,
};

use crate::{clock::Clock, context::Context, kernels::Kernels, memory::Table, products::Products, queue::Queue};

/// What activations, logits and the weights that operations read are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Packed halves, with a loss scale; sums are in single precision.
    F16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    fn bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// What all shaders begin with: how they see what is stored, and functions.
    fn common(self) -> String {
        let stored = match self {
            Self::F32 => include_str!("../shaders/storage_single.wgsl"),
            Self::F16 => include_str!("../shaders/storage_half.wgsl"),
        };
        [stored, include_str!("../shaders/common.wgsl"), ""].join("\n")
    }
}

/// Which adapter.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first real one; one in software where there is nothing else.
    #[default]
    Any,
    /// By its number in [`survey`].
    Number(u32),
    /// By a part of its name.
    Name(String),
}

/// Limits to keep below those of the adapter: how the cutting of matrices is tested on small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Lowered {
    /// Bytes that a shader sees of a buffer.
    pub binding: Option<u64>,
    /// Bytes of a buffer.
    pub buffer: Option<u64>,
    /// Workgroups along each side of a grid.
    pub groups: Option<u32>,
    /// Elements of a piece of a matrix.
    pub piece: Option<u64>,
}

/// A fault that is planted in a kernel: how the tests are tested.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    /// The kernel's name, or the first words of those that several variants have.
    pub kernel: String,
    /// A part of its text.
    pub what: String,
    /// Which of those that are the same; none where there is only one.
    pub which: Option<usize>,
    /// What it becomes.
    pub instead: String,
}

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which adapter.
    pub adapter: Choice,
    /// How it computes.
    pub precision: Precision,
    /// A file in which it is kept how fast the variants of a product were.
    pub tuning: Option<PathBuf>,
    /// Measure those variants on an adapter in software, too, which takes long.
    pub tune_software: bool,
    /// Limits below the adapter's.
    pub lowered: Lowered,
    #[doc(hidden)]
    pub planted: Option<Planted>,
}

/// The loss scale that a run in half precision begins with, and the finite updates after which it doubles. The
/// gradient of a logit is between -1 and the user's events, not divided by the batch: there is no need to begin
/// higher, where the first updates would all be skipped.
const LOSS_SCALE: f32 = 1_024.0;
const GROWTH: u32 = 2_000;

/// Elements to which rows are aligned: shaders read and write fours.
const ALIGN: u32 = 4;

/// A device.
#[derive(Debug)]
pub struct Wgpu {
    context: Context,
    kernels: Kernels,
    queue: Queue,
    table: Table,
    clock: Clock,
    staging: transfer::Staging,
    /// Bound where an optional list is absent.
    nothing: wgpu::Buffer,
    scratch: Scratches,
    /// Whether a gradient of this update was not finite: zero between updates.
    verdict: wgpu::Buffer,
    products: Products,
    precision: Precision,
    /// Elements of a piece of a matrix.
    piece: u64,
}

/// Memory between kernels, as large as it has had to be.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<wgpu::Buffer>);

impl Scratch {
    /// At least so many bytes, of unspecified content.
    pub(crate) fn at_least(&mut self, context: &Context, queue: &mut Queue, bytes: u64) -> Result<wgpu::Buffer> {
        match &self.0 {
            Some(buffer) if buffer.size() >= bytes => Ok(buffer.clone()),
            outgrown => {
                // A recording that uses it keeps it.
                if let Some(outgrown) = outgrown {
                    queue.forget(outgrown);
                }
                let most = memory::longest_list(context) * 4;
                let buffer = context.buffer(bytes.next_multiple_of(1 << 16).min(most).max(bytes))?;
                self.0 = Some(buffer.clone());
                Ok(buffer)
            }
        }
    }
}

/// What kernels hand to each other.
#[derive(Debug, Default)]
struct Scratches {
    /// Which rows of the batch hold an item, as bits.
    marks: Scratch,
    /// What is known of each row of the batch.
    rows: Scratch,
    /// Sums of stretches.
    partial: Scratch,
    /// Items that many rows of the batch hold.
    heavy: Scratch,
    /// Rankings of parts of rows: items and scores.
    candidates: [Scratch; 2],
}

impl Wgpu {
    /// Opens a device.
    ///
    /// # Errors
    /// What is missing (driver, device, memory), and what to do about it.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(options: &Options) -> vaecf_core::Result<Self> {
        pollster::block_on(Self::open_async(options))
    }

    /// The same, for where waiting is not possible: in a browser.
    ///
    /// # Errors
    /// See [`Wgpu::open`].
    pub async fn open_async(options: &Options) -> vaecf_core::Result<Self> {
        let context = Context::open(options).await?;
        let products = Products::new(&context, options).await?;
        Ok(Self::on(context, options, products)?)
    }

    /// Takes over a device.
    fn on(context: Context, options: &Options, products: Products) -> Result<Self> {
        let limits = &context.limits;
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 4;
        // Addresses within a piece are 32 bits.
        let piece = options.lowered.piece.unwrap_or(u64::MAX).min(most).min(1 << 31) / 64 * 64;
        if piece == 0 {
            return Err(Fault::Other(format!("{} has no room for a matrix", context.found.name)));
        }
        let kernels = Kernels::new(&context, options.planted.clone());
        let queue = Queue::new(&context, &kernels)?;
        let (clock, nothing, verdict) = (Clock::new(&context), context.buffer(16)?, context.buffer(16)?);
        Ok(Self {
            products,
            kernels,
            queue,
            table: Table::default(),
            clock,
            staging: transfer::Staging::default(),
            nothing,
            verdict,
            scratch: Scratches::default(),
            precision: options.precision,
            piece,
            context,
        })
    }

    /// The adapter.
    pub fn adapter(&self) -> &Found {
        &self.context.found
    }

    /// What multiplies matrices, in words: shaders, or the device's own matrices, and why not those.
    pub fn multiplies_with(&self) -> String {
        self.products.describe()
    }

    /// Issues a kernel: its name, the parts of its text behind what all have, the buffers in the order of their bindings,
    /// its parameters, and the number of workgroups.
    fn call<P: bytemuck::Pod>(
        &mut self,
        name: &str,
        parts: &[&str],
        buffers: &[&wgpu::Buffer],
        params: &P,
        groups: u64,
    ) -> Result {
        const { assert!(size_of::<P>() as u64 <= kernels::PARAMS, "parameters do not fit their place") };
        let precision = self.precision;
        let text = || precision.common() + &parts.join("\n");
        self.call_text(name, &text, buffers, bytemuck::bytes_of(params), groups)
    }

    /// The same, of any text.
    fn call_text(
        &mut self,
        name: &str,
        text: &dyn Fn() -> String,
        buffers: &[&wgpu::Buffer],
        params: &[u8],
        groups: u64,
    ) -> Result {
        if groups == 0 {
            return Ok(());
        }
        let mut kernel = self.kernels.get(&self.context, name, false, text)?;
        // A buffer is either read or written by a call, as far as the library is concerned.
        let twice = |(i, buffer): (usize, &&wgpu::Buffer)| {
            kernel.writes[i] && buffers.iter().zip(&kernel.writes).any(|(other, writes)| !writes && other == buffer)
        };
        if buffers.iter().enumerate().any(twice) {
            kernel = self.kernels.get(&self.context, name, true, text)?;
        }
        let buffers: Vec<_> = buffers.iter().map(|&buffer| buffer.clone()).collect();
        self.queue.run(&self.context, &kernel, &buffers, params, groups)
    }

    /// A matrix of activations or weights, as operations read and write it.
    fn act(&mut self, mat: Mat) -> Result<memory::Floats> {
        self.queue.used(mat.buf);
        self.table.act(mat, self.precision)
    }

    /// A matrix in single precision: gradients.
    fn single(&mut self, mat: Mat) -> Result<memory::Floats> {
        self.queue.used(mat.buf);
        self.table.single(mat)
    }

    /// A buffer that is bound as a whole: a list, the step, the loss scale. What stands for an absent one may be bound
    /// and is not looked at.
    fn whole(&mut self, buf: Buf, what: &'static str) -> Result<wgpu::Buffer> {
        if buf.is_none() && what != "steps" && what != "scales" {
            return Ok(self.nothing.clone());
        }
        self.queue.used(buf);
        let buffer = self.table.get(buf, what)?;
        match &buffer.pieces[..] {
            [whole] if buffer.kind != memory::Kind::Half => Ok(whole.clone()),
            _ => Err(Fault::Other(format!("handle {} is no list", buf.0))),
        }
    }

    /// What is written for each user: bound as a whole, because where a batch begins is in the step.
    fn losses(&mut self, mat: Mat) -> Result<wgpu::Buffer> {
        self.single(mat)?;
        self.whole(mat.buf, "floats")
    }
}

impl Backend for Wgpu {
    fn info(&self) -> Info {
        let found = &self.context.found;
        let software = if found.software { ", in software" } else { "" };
        // Whether the device's own matrices are used is said where they might be.
        let multiplies = match self.multiplies_with() {
            plain if plain == products::PLAIN => String::new(),
            told => format!(", {told}"),
        };
        Info {
            name: "wgpu".into(),
            device: format!("{}, {}, {}{software}{multiplies}", found.name, found.through, found.driver),
            precision: self.precision.name().into(),
            master: Master::F32,
            memory: self.context.memory(),
            host_memory: found.host_memory,
            act_bytes: self.precision.bytes(),
            weight_bytes: if self.precision == Precision::F16 { 6 } else { 4 },
            align: ALIGN,
            loss_scale: if self.precision == Precision::F16 { LOSS_SCALE } else { 1.0 },
            deterministic: true,
            capture: true,
        }
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        match self.table.alloc(&self.context, self.precision, self.piece, role, len) {
            // What was freed is given back when the work that used it is known to be done.
            Err(Fault::OutOfMemory { .. }) if !self.queue.records() => {
                self.sync()?;
                self.table.alloc(&self.context, self.precision, self.piece, role, len)
            }
            allocated => allocated,
        }
    }

    fn free(&mut self, buf: Buf) {
        if let Some(buffer) = self.table.remove(buf) {
            buffer.pieces.iter().chain(&buffer.copy).for_each(|piece| self.queue.forget(piece));
            self.queue.freed(buf);
        }
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        self.send(dst, at, src)
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        if cfg!(target_arch = "wasm32") {
            return Err(Fault::Other("in a browser, use Wgpu::download_async".into()));
        }
        pollster::block_on(self.download_async(src, at, dst))
    }

    fn sync(&mut self) -> Result {
        if cfg!(target_arch = "wasm32") {
            return Err(Fault::Other("in a browser, use Wgpu::sync_async".into()));
        }
        pollster::block_on(self.sync_async())
    }

    fn scratch(&self, batch: u32, items: u32, units: u32) -> u64 {
        let [batch, items, units] = [batch, items, units].map(|n| u64::from(n).next_multiple_of(4));
        // None of them is larger than a piece, and each only as large as it has had to be.
        let piece = 4 * self.piece;
        let marks = (4 * items * batch.div_ceil(32)).min(piece) + (8 * (items + 1)).min(piece);
        // What is known of each chunk of a row's items, twice; parts of a product; rankings of chunks.
        let chunks = 2 * (16 * batch * items.div_ceil(ops::likelihood::CHUNK.into())).min(piece);
        let parts = (4 * batch * units * 64).min(4 * ops::linear::PARTS).min(piece);
        let rankings = if items > ops::top_k::CHUNK.into() { 2 * (4 * batch * items).min(piece) } else { 0 };
        marks + chunks.max(16 * batch) + parts + rankings + (1 << 20)
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        self.op_encode_sparse(x, w, b, curve, noise, step, y)
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        self.op_encode_sparse_grad(x, dy, noise, step, dw, db)
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        self.op_linear(x, w, b, curve, y)
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        self.op_linear_grad_weight(x, dy, dw, db, false)
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        self.op_linear_grad_input(dy, w, x, curve, dx)
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        self.op_sample_latent(x, stats, noise, step, z, kl)
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
        self.op_sample_latent_grad(x, stats, dz, noise, step, scale, dstats)
    }

    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        self.op_likelihood(x, kind, logits, step, scale, loss)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        self.op_adam(w, dw, m, v, len, decayed, step, scale)
    }

    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        self.op_top_k(scores, seen, k, items, values, 0)
    }

    /// As many as lie in one piece, so that none of them is cut.
    fn logits_rows(&self, batch: u32, items: u32) -> u32 {
        let row = u64::from(items.next_multiple_of(ALIGN)).max(1);
        batch.min((self.piece / row).clamp(1, u32::MAX.into()) as u32)
    }

    fn longest_list(&self) -> u64 {
        memory::longest_list(&self.context)
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
        let (mut from, all) = (0, g.rows);
        loop {
            let rows = logits.rows.max(1).min(g.rows - from);
            let (g, dg, logits) = (window(g, from, rows), window(dg, from, rows), logits.top(rows));
            let x = Rows { first: x.first + from, count: rows, ..x };
            self.op_linear(g, w, b, Curve::Identity, logits)?;
            self.op_likelihood(x, kind, logits, step, scale, loss)?;
            self.op_linear_grad_weight(g, logits, dw, db, from > 0)?;
            self.op_linear_grad_input(logits, w, g, curve, dg)?;
            from += rows;
            // Also where there are no rows: gradients of nothing are zeros.
            if from == all {
                return Ok(());
            }
        }
    }

    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        let Decode { g, w, b, logits, .. } = decode;
        let mut from = 0;
        while from < g.rows {
            let rows = logits.rows.max(1).min(g.rows - from);
            let (g, logits) = (window(g, from, rows), logits.top(rows));
            let seen = Rows { first: seen.first + from, count: rows, ..seen };
            self.op_linear(g, w, b, Curve::Identity, logits)?;
            self.op_top_k(logits, seen, k, items, values, from)?;
            from += rows;
        }
        Ok(())
    }

    fn capture_begin(&mut self) -> Result {
        self.queue.record(&self.context)
    }

    fn capture_end(&mut self) -> Result<Graph> {
        self.queue.end(&self.context, &self.kernels).map(Graph)
    }

    fn replay(&mut self, graph: Graph) -> Result {
        self.queue.replay(&self.context, graph.0)
    }

    fn mark(&mut self) -> Result<Mark> {
        self.clock.mark(&self.context, &mut self.queue)
    }

    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> {
        if cfg!(target_arch = "wasm32") {
            return Err(Fault::Unsupported("seconds"));
        }
        pollster::block_on(self.seconds_async(from, to))
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        self.measure_ceilings()
    }
}

/// Rows `from..from + rows` of a matrix.
fn window(mat: Mat, from: u32, rows: u32) -> Mat {
    Mat { rows, offset: mat.offset + u64::from(from) * u64::from(mat.stride), ..mat }
}

impl Drop for Wgpu {
    fn drop(&mut self) {
        // What was issued is carried out, as it would be by any other backend.
        self.queue.submit(&self.context);
    }
}
