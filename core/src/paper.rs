//! A device of paper: it computes nothing, and writes down what it would have to. What a step costs is so told by the
//! very calls that a step makes, on any device and at any size.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    backend::{
        self, Backend, Buf, Curve, Decode, Host, HostMut, Info, Invitation, Likelihood, Master, Mat, Noise, Role, Rows,
        Seat,
    },
    config::ModelConfig,
    device::Device,
    error::Result,
    forward_backend,
    matrix::Matrix,
    model::{Model, NoiseConfig, RunState, Workspace},
    roofline::{Call, Costs},
};

/// What a device is called upon to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// An operation.
    Call(Call),
    /// The sum over a group of so many elements of the gradient, from one of them on.
    Sum {
        /// The first.
        at: u64,
        /// How many.
        len: u64,
    },
}

/// What was written down, in the order of the calls.
pub type Sheet = Arc<Mutex<Vec<Entry>>>;

/// What a device of its own memory says of itself that works in this precision: half the bytes, and masters beside them,
/// in `f16` and `bf16`.
pub fn info(device: &str, precision: &str) -> Info {
    let (master, act_bytes, weight_bytes) = match precision {
        "f16" | "bf16" => (Master::F32, 2, 6),
        "f64" => (Master::F64, 8, 8),
        _ => (Master::F32, 4, 4),
    };
    Info {
        name: "paper".into(),
        device: device.into(),
        precision: precision.into(),
        master,
        memory: None,
        host_memory: false,
        act_bytes,
        weight_bytes,
        align: 8,
        loss_scale: 1.0,
        deterministic: true,
        capture: true,
    }
}

/// A device of paper like the one that says this of itself, on users of `events` events in the mean, and its sheet. One
/// that is `fused` keeps the logits of the output layer out of memory.
pub fn paper(info: &Info, events: f64, fused: bool) -> (Box<dyn Backend>, Sheet) {
    let sheet = Sheet::default();
    let paper = Paper { info: info.clone(), costs: Costs::new(info, events), handles: 0, sheet: Arc::clone(&sheet) };
    (if fused { Box::new(Fused(paper)) } else { Box::new(paper) }, sheet)
}

/// What is written down by now; the sheet is empty after it.
pub fn take(sheet: &Sheet) -> Vec<Entry> {
    std::mem::take(&mut *sheet.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a member of a group does in a training step, on its share of the batch: `users` users of `events` events in
/// the mean.
///
/// # Errors
/// Where the configuration cannot be a model of so many items.
pub fn step(
    info: &Info,
    fused: bool,
    config: &ModelConfig,
    items: u32,
    users: u32,
    events: f64,
    dropout: f64,
) -> Result<Vec<Entry>> {
    let (paper, sheet) = paper(info, events, fused);
    let device = Device::alone_in_group(paper)?;
    let model = Model::blank(&device, config, items)?;
    let space = Workspace::new(&model, users, 0)?;
    let run = RunState::new(&model, &space, users)?;
    let histories = device.matrix(&Matrix::new(items, vec![0; users as usize + 1], Vec::new(), None)?)?;
    take(&sheet);
    let noise = NoiseConfig { seed: 0, dropout };
    model.learn(&mut device.queue(), histories.window(0, users), noise, &space, &run)?;
    Ok(take(&sheet))
}

/// One whose logits are in memory: the output layer is what the contract makes of it.
struct Paper {
    info: Info,
    costs: Costs,
    handles: u32,
    sheet: Sheet,
}

impl Paper {
    fn note(&self, entry: Entry) -> backend::Result {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(())
    }

    fn call(&self, call: Call) -> backend::Result {
        self.note(Entry::Call(call))
    }
}

impl Backend for Paper {
    fn info(&self) -> Info {
        self.info.clone()
    }
    fn alloc(&mut self, _: Role, _: u64) -> backend::Result<Buf> {
        self.handles += 1;
        Ok(Buf(self.handles))
    }
    fn free(&mut self, _: Buf) {}
    fn upload(&mut self, _: Buf, _: u64, _: Host<'_>) -> backend::Result {
        Ok(())
    }
    fn download(&mut self, _: Buf, _: u64, _: HostMut<'_>) -> backend::Result {
        Ok(())
    }
    fn sync(&mut self) -> backend::Result {
        Ok(())
    }
    fn encode_sparse(&mut self, x: Rows, w: Mat, _: Mat, _: Curve, noise: Noise, _: Buf, y: Mat) -> backend::Result {
        self.call(self.costs.keeping(noise.keep).encode_sparse(x, w, y))
    }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, _: Noise, _: Buf, dw: Mat, _: Mat) -> backend::Result {
        self.call(self.costs.encode_sparse_grad(x, dy, dw))
    }
    fn linear(&mut self, x: Mat, w: Mat, _: Mat, _: Curve, y: Mat) -> backend::Result {
        self.call(self.costs.linear(x, w, y))
    }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, _: Mat) -> backend::Result {
        self.call(self.costs.linear_grad_weight(x, dy, dw))
    }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, _: Mat, _: Curve, dx: Mat) -> backend::Result {
        self.call(self.costs.linear_grad_input(dy, w, dx))
    }
    fn sample_latent(&mut self, _: Rows, stats: Mat, _: Noise, _: Buf, z: Mat, _: Mat) -> backend::Result {
        self.call(self.costs.sample_latent(stats, z))
    }
    fn sample_latent_grad(
        &mut self,
        _: Rows,
        stats: Mat,
        dz: Mat,
        _: Noise,
        _: Buf,
        _: Buf,
        _: Mat,
    ) -> backend::Result {
        self.call(self.costs.sample_latent_grad(stats, dz))
    }
    fn likelihood(&mut self, x: Rows, _: Likelihood, logits: Mat, _: Buf, _: Buf, _: Mat) -> backend::Result {
        self.call(self.costs.likelihood(x, logits))
    }
    fn adam(&mut self, _: Buf, _: Buf, _: Buf, _: Buf, len: u64, _: u64, _: Buf, _: Buf) -> backend::Result {
        self.call(self.costs.adam(len))
    }
    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, _: Buf, _: Buf) -> backend::Result {
        self.call(self.costs.top_k(scores, seen, k))
    }

    /// The batch as a transposed matrix of bits, which is what sparse gradients take on devices of their own memory.
    fn scratch(&self, batch: u32, items: u32, _units: u32) -> u64 {
        if self.info.host_memory { 0 } else { u64::from(batch).div_ceil(8) * u64::from(items) }
    }

    fn invite(&mut self, _: u32) -> backend::Result<Invitation> {
        Ok(Invitation { bytes: [0; 128] })
    }
    fn join(&mut self, _: Seat) -> backend::Result {
        Ok(())
    }
    fn all_reduce(&mut self, _: Buf, at: u64, len: u64) -> backend::Result {
        self.note(Entry::Sum { at, len })
    }
}

/// One that keeps the logits of its output layer out of memory.
struct Fused(Paper);

impl Backend for Fused {
    forward_backend! { self, self.0;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k scratch invite join all_reduce
    }

    /// A block of 512 users, as the CPU has it.
    fn logits_rows(&self, batch: u32, _items: u32) -> u32 {
        batch.min(512)
    }
    fn decode_loss_grad(
        &mut self,
        x: Rows,
        decode: Decode,
        _: Likelihood,
        _: Buf,
        _: Buf,
        _: Mat,
        _: Mat,
        _: Mat,
        _: Mat,
    ) -> backend::Result {
        self.0.call(self.0.costs.decode_loss_grad(x, decode))
    }
    fn recommend(&mut self, decode: Decode, seen: Rows, k: u32, _: Buf, _: Buf) -> backend::Result {
        self.0.call(self.0.costs.recommend(decode, seen, k))
    }
}
