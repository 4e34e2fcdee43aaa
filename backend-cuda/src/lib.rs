//! The backend for NVIDIA devices.
//!
//! Nothing of CUDA is needed to build this: the driver and cuBLASLt are opened when a [`Cuda`] is, and the kernels
//! are compiled ahead (see [`blob`]). Mixed precision is that of Micikevicius et al. 2018: operations read half
//! copies of the weights and store activations, logits and their gradients in half; every sum, every loss, the masters,
//! their gradients and moments are single precision; the loss scale lives on the device.
//!
//! Calls are queued and return at once. A second queue carries large uploads, so that the next part of the data
//! is on its way while the device computes on this one.

pub mod blob;
mod clock;
mod driver;
mod group;
mod kernels;
mod libraries;
mod memory;
mod nccl;
mod precision;
mod products;
mod survey;
mod transfer;
mod ops {
    pub(crate) mod adam;
    pub(crate) mod encode_sparse;
    pub(crate) mod likelihood;
    pub(crate) mod linear;
    pub(crate) mod sample_latent;
    pub(crate) mod top_k;
}

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use clock::Clock;
use group::Member;
use kernels::Kernels;
use memory::{Staging, Table};
use nccl::Nccl;
use products::{Products, WORKSPACE};
use vaecf_core::{
    Error, Kind,
    backend::{
        Backend, Buf, Ceilings, Curve, Fault, Graph, Host, HostMut, Info, Invitation, Likelihood, Mark, Master, Mat,
        Noise, Result, Role, Rows, ScaleState, Seat,
    },
    math::SingleStep,
    random,
};

use crate::driver::{Context, Driver, Memory, Recording, Stream, Version};
pub use crate::{
    driver::Absent,
    precision::Precision,
    survey::{Found, Survey, sums, survey},
};

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which device, from 0.
    pub device: u32,
    /// How it computes.
    pub precision: Precision,
    /// A folder in which the driver's library, cuBLASLt and NCCL are looked for, and nowhere else.
    pub libraries: Option<PathBuf>,
    /// Multiply with this crate's own kernels even where cuBLASLt is there.
    pub own_products: bool,
}

/// The loss scale that a run in half precision begins with, and the finite updates after which it doubles. The
/// gradient of a logit is between -1 and the user's events, not divided by the batch: there is no need to begin
/// higher, where the first updates would all be skipped.
const LOSS_SCALE: f32 = 1_024.0;
const GROWTH: u32 = 2_000;

/// Elements to which rows are aligned: vectors of 16 bytes, in half and in single precision.
const ALIGN: u32 = 8;

/// A device of NVIDIA.
#[derive(Debug)]
pub struct Cuda {
    // In the order in which they are dropped: what uses a thing before the thing.
    recorded: Rc<RefCell<Vec<Recorded>>>,
    capturing: Option<Uses>,
    /// This device's place in a group, where it has joined one.
    member: Option<Rc<Member>>,
    nccl: Option<Nccl>,
    libraries: Option<PathBuf>,
    products: Option<Products>,
    /// Why cuBLASLt is not used, where it is not.
    without: Option<String>,
    clock: Clock,
    table: Table,
    staging: Staging,
    kernels: Kernels,
    /// Which rows hold an item, as bits; and each row's factor.
    marks: Scratch,
    factors: Scratch,
    /// Sums of stretches of rows, or of shares of a product.
    partial: Scratch,
    /// What the two kernels of an update share.
    verdict: Memory,
    main: Stream,
    /// Carries large uploads.
    second: Stream,
    context: Rc<Context>,
    driver: Driver,
    precision: Precision,
}

/// A recording and what it uses.
#[derive(Debug)]
struct Recorded {
    /// None where it has sums in a group that was left.
    recording: Option<Recording>,
    uses: Uses,
}

/// What a recording uses.
#[derive(Debug, Default)]
struct Uses {
    bufs: Vec<Buf>,
    /// Whether there are sums over the group in it.
    sums: bool,
}

// SAFETY: all that is shared within a `Cuda` is shared within it alone, so it moves as a whole; each call makes the
// device's context that of the calling thread (`Cuda::enter`, and `drop` of what `driver` gives out).
unsafe impl Send for Cuda {}

/// Memory between kernels. It grows and never shrinks, and what was outgrown is kept, because a recording may use it.
#[derive(Debug, Default)]
struct Scratch {
    memory: Vec<Memory>,
}

impl Scratch {
    /// Address of at least so many bytes.
    fn at_least(&mut self, context: &Rc<Context>, bytes: u64) -> Result<u64> {
        match self.memory.last() {
            Some(memory) if memory.bytes >= bytes => Ok(memory.at()),
            _ => {
                let memory = context.alloc(bytes.next_multiple_of(1 << 16))?;
                let at = memory.at();
                self.memory.push(memory);
                Ok(at)
            }
        }
    }
}

impl Cuda {
    /// Opens a device.
    ///
    /// # Errors
    /// What is missing (driver, device, memory), and what to do about it.
    pub fn open(options: &Options) -> vaecf_core::Result<Self> {
        let device_error = |what: String| Error::new(Kind::Device, what);
        let folder = options.libraries.as_deref();
        let driver = Driver::open(folder).map_err(|absent| device_error(absent.to_string()))?;
        if options.device >= driver.devices {
            let (asked, there) = (options.device, driver.devices);
            let plural = if there == 1 { "one device, 0".to_owned() } else { format!("devices 0 to {}", there - 1) };
            return Err(Error::usage(format!("--device {asked}: the NVIDIA driver has {plural}")));
        }
        Ok(Self::on(driver, options, folder)?)
    }

    fn on(driver: Driver, options: &Options, folder: Option<&Path>) -> Result<Self> {
        let context = Context::open(options.device)?;
        let (properties, precision) = (&context.properties, options.precision);
        if let Some(why) = survey::too_old(properties) {
            return Err(Fault::Other(why));
        }
        if properties.major < 8 && matches!(precision, Precision::Bf16 | Precision::Tf32) {
            return Err(Fault::Other(format!(
                "{} has compute capability {}.{} and cannot compute in {}: choose --precision f16 or f32",
                properties.name,
                properties.major,
                properties.minor,
                precision.name()
            )));
        }
        let (main, second) = (context.stream()?, context.stream()?);
        let verdict = context.alloc(16)?;
        main.fill(verdict.at(), 0, 16)?;
        let opened = if options.own_products {
            Err("its use was declined".to_owned())
        } else {
            Products::open(folder, driver.version as u32 / 1000, precision, || context.alloc(WORKSPACE))
        };
        let (products, without) = match opened {
            Ok(products) => (Some(products), None),
            Err(why) => (None, Some(why)),
        };
        Ok(Self {
            recorded: Rc::default(),
            capturing: None,
            member: None,
            nccl: None,
            libraries: folder.map(Path::to_owned),
            products,
            without,
            clock: Clock::default(),
            table: Table::default(),
            staging: Staging::default(),
            kernels: Kernels::load(&context)?,
            marks: Scratch::default(),
            factors: Scratch::default(),
            partial: Scratch::default(),
            verdict,
            main,
            second,
            driver,
            precision,
            context,
        })
    }

    /// What multiplies matrices: cuBLASLt with its version, or this crate's kernels and why.
    pub fn multiplies_with(&self) -> String {
        match (&self.products, &self.without) {
            (Some(products), _) => products.version(),
            (None, Some(why)) => format!("own kernels ({why})"),
            (None, None) => "own kernels".into(),
        }
    }

    fn enter(&self) -> Result {
        self.context.enter()
    }

    /// The name of a kernel for what things are stored in.
    fn named(&self, kernel: &str) -> String {
        format!("{kernel}_{}", self.precision.storage())
    }

    /// Notes that a recording uses a buffer.
    fn used(&mut self, buf: Buf) {
        if let Some(uses) = self.capturing.as_mut().filter(|uses| !uses.bufs.contains(&buf)) {
            uses.bufs.push(buf);
        }
    }

    /// Address of a matrix of activations or weights, as operations read and write it.
    fn act(&mut self, mat: Mat) -> Result<u64> {
        self.used(mat.buf);
        let half = self.precision.is_half();
        let (at, is_half) = self.table.mat(mat, &self.main)?.read();
        if half != is_half {
            return Err(Fault::Other(format!("handle {} is not of activations or weights", mat.buf.0)));
        }
        Ok(at + mat.offset * u64::from(self.precision.bytes()))
    }

    /// Address of a matrix in single precision: gradients, losses.
    fn single(&mut self, mat: Mat) -> Result<u64> {
        self.used(mat.buf);
        Ok(self.table.mat(mat, &self.main)?.in_single(mat.buf)? + 4 * mat.offset)
    }

    /// A buffer of one element: the step, the loss scale.
    fn one(&mut self, buf: Buf, what: &'static str) -> Result<u64> {
        self.used(buf);
        Ok(self.table.range(buf, 0, 1, what, &self.main)?.master())
    }

    fn step(&mut self, buf: Buf) -> Result<u64> {
        self.one(buf, "steps")
    }

    fn scale(&mut self, buf: Buf) -> Result<u64> {
        self.one(buf, "scales")
    }

    /// Address of a list, zero where there is none.
    fn list(&mut self, buf: Buf, what: &'static str) -> Result<u64> {
        if buf.is_none() {
            return Ok(0);
        }
        self.used(buf);
        let buffer = self.table.lend(buf, what, &self.main)?;
        if what == "floats" { buffer.in_single(buf) } else { Ok(buffer.master()) }
    }

    fn rows(&mut self, x: Rows) -> Result<kernels::Rows> {
        Ok(kernels::Rows {
            indptr: self.list(x.indptr, "indices")?,
            indices: self.list(x.indices, "indices")?,
            values: self.list(x.values, "floats")?,
            users: self.list(x.users, "indices")?,
            first: x.first,
            count: x.count,
        })
    }
}

fn noise(noise: Noise) -> kernels::Noise {
    kernels::Noise {
        seed: [noise.seed as u32, (noise.seed >> 32) as u32],
        stream: noise.stream,
        keep: noise.keep,
        inverse_keep: noise.keep.recip(),
        threshold: random::threshold(noise.keep),
    }
}

impl Backend for Cuda {
    fn info(&self) -> Info {
        let memory = self.enter().and_then(|()| self.context.free_memory()).ok();
        let properties = &self.context.properties;
        let cuda = Version(self.driver.version);
        Info {
            name: "cuda".into(),
            device: format!("{}, CUDA {cuda}, {}", properties.name, self.multiplies_with()),
            precision: self.precision.name().into(),
            master: Master::F32,
            memory,
            host_memory: false,
            act_bytes: self.precision.bytes(),
            weight_bytes: if self.precision.is_half() { 6 } else { 4 },
            align: ALIGN,
            loss_scale: if self.precision == Precision::F16 { LOSS_SCALE } else { 1.0 },
            deterministic: true,
            capture: true,
        }
    }

    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> {
        self.enter()?;
        self.table.alloc(&self.context, &self.main, self.precision, role, len)
    }

    fn free(&mut self, buf: Buf) {
        // Memory is given back by a call that waits for all work.
        let _ = (self.enter(), self.finish_sums());
        self.table.remove(buf, [&self.main, &self.second]);
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        self.enter()?;
        match src {
            Host::F32(src) if self.table.is_plain(dst) => self.send_as_it_is(dst, at, src, "floats"),
            Host::F32(src) => self.upload_floats(dst, at, src.len(), |i| f64::from(src[i])),
            Host::F64(src) => self.upload_floats(dst, at, src.len(), |i| src[i]),
            Host::U32(src) => self.send_as_it_is(dst, at, src, "indices"),
            Host::Step(src) => {
                let to = self.table.range(dst, at, 1, "steps", &self.main)?.master();
                self.main.send_few(bytemuck::bytes_of(&SingleStep::new(src)), to)
            }
            Host::Scale(src) => {
                let to = self.table.range(dst, at, 1, "scales", &self.main)?.master();
                self.main.send_few(bytemuck::bytes_of(src), to)
            }
        }
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        self.enter()?;
        match dst {
            HostMut::F32(dst) => self.download_floats(src, at, dst.len(), |from, values| {
                dst[from..from + values.len()].copy_from_slice(values);
            }),
            HostMut::F64(dst) => self.download_floats(src, at, dst.len(), |from, values| {
                dst[from..].iter_mut().zip(values).for_each(|(to, &x)| *to = f64::from(x));
            }),
            HostMut::U32(dst) => {
                let ready = self.table.ready(src);
                let from = self.table.range(src, at, dst.len() as u64, "indices", &self.main)?.master() + 4 * at;
                self.fetch(src, ready, from, dst.len(), 4, |first, bytes| {
                    bytemuck::cast_slice_mut(&mut dst[first..first + bytes.len() / 4]).copy_from_slice(bytes);
                })
            }
            HostMut::Scale(dst) => {
                let from = self.table.range(src, at, 1, "scales", &self.main)?.master();
                let bytes = size_of::<ScaleState>();
                self.fetch(src, None, from, 1, bytes, |_, bytes| {
                    bytemuck::bytes_of_mut(dst).copy_from_slice(bytes);
                })
            }
        }
    }

    fn sync(&mut self) -> Result {
        self.enter()?;
        self.second.sync()?;
        self.sync_group()?;
        self.main.sync()
    }

    fn scratch(&self, batch: u32, items: u32, units: u32) -> u64 {
        let [batch, items, units] = [batch, items, units].map(u64::from);
        let marks = 4 * items * batch.div_ceil(32) + 4 * (items + 1) + 4 * batch;
        // A product before its curve, shares of one, or sums of stretches of rows: one after the other.
        let product = 4 * batch * units.next_multiple_of(8);
        let shares = if self.products.is_some() { 0 } else { ops::linear::SHARES };
        let sums = 4 * items.max(units) * batch.div_ceil(256).min(512);
        // Memory comes in rounded pieces.
        marks + product.max(shares).max(sums) + (1 << 20)
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> Result {
        self.enter()?;
        self.op_encode_sparse(x, w, b, curve, noise, step, y)
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> Result {
        self.enter()?;
        self.op_encode_sparse_grad(x, dy, noise, step, dw, db)
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        self.enter()?;
        self.op_linear(x, w, b, curve, y)
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        self.enter()?;
        self.op_linear_grad_weight(x, dy, dw, db)
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        self.enter()?;
        self.op_linear_grad_input(dy, w, x, curve, dx)
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> Result {
        self.enter()?;
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
        self.enter()?;
        self.op_sample_latent_grad(x, stats, dz, noise, step, scale, dstats)
    }

    fn likelihood(&mut self, x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> Result {
        self.enter()?;
        self.op_likelihood(x, kind, logits, step, scale, loss)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        self.enter()?;
        self.op_adam(w, dw, m, v, len, decayed, step, scale)
    }

    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> Result {
        self.enter()?;
        self.op_top_k(scores, seen, k, items, values)
    }

    fn capture_begin(&mut self) -> Result {
        self.enter()?;
        // What was sent or summed before is no part of the recording.
        self.table.settle(None, &self.main)?;
        self.main.begin_capture()?;
        self.capturing = Some(Uses::default());
        Ok(())
    }

    fn capture_end(&mut self) -> Result<Graph> {
        self.enter()?;
        let uses = self.capturing.take().ok_or_else(|| Fault::Other("no recording was begun".into()))?;
        // Sums that nothing has waited for end within the recording, too.
        self.table.settle_sums(&self.main)?;
        let recording = Some(self.main.end_capture()?);
        let mut recorded = self.recorded.borrow_mut();
        recorded.push(Recorded { recording, uses });
        Ok(Graph(recorded.len() as u32))
    }

    fn replay(&mut self, graph: Graph) -> Result {
        self.enter()?;
        let at = (graph.0 as usize).wrapping_sub(1);
        let sums = self.recorded.borrow().get(at).is_some_and(|recorded| recorded.uses.sums);
        if sums {
            self.before_recorded_sums()?;
        }
        match self.recorded.borrow().get(at) {
            Some(Recorded { recording: Some(recording), uses }) => {
                self.table.settle(Some(&uses.bufs), &self.main)?;
                self.main.replay(recording)?;
            }
            Some(_) => return Err(Fault::Other(format!("recording {} is of a group that was left", graph.0))),
            None => return Err(Fault::Other(format!("{} is no recording", graph.0))),
        }
        if sums { self.after_recorded_sums() } else { Ok(()) }
    }

    fn mark(&mut self) -> Result<Mark> {
        self.enter()?;
        self.table.settle_sums(&self.main)?;
        self.clock.mark(&self.context, &self.main)
    }

    fn seconds(&mut self, from: Mark, to: Mark) -> Result<f64> {
        self.enter()?;
        self.clock.seconds(from, to)
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        self.enter()?;
        self.measure_ceilings()
    }

    fn invite(&mut self, rank: u32) -> Result<Invitation> {
        self.enter()?;
        self.op_invite(rank)
    }

    fn join(&mut self, seat: Seat) -> Result {
        self.enter()?;
        self.op_join(seat)
    }

    fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result {
        self.enter()?;
        self.op_all_reduce(buf, at, len)
    }

    fn broadcast(&mut self, buf: Buf, len: u64, root: u32) -> Result {
        self.enter()?;
        self.op_broadcast(buf, len, root)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing is given back that the device still copies from or to, or that others wait for.
        let _ = (self.sync(), self.leave_group());
    }
}
