//! The whole bench: training and inference, per operation, beside the roofline and the peer.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use vaecf_core::{Result, backend::Backend, config::ModelConfig, device::Device, matrix::Matrix};

use crate::{
    machine::Machine,
    measure::{Bench, Median},
    peer::Peer,
    roofline::{Gemm, Products},
    timed::Timed,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Users per batch.
    pub batch: u32,
    /// Steps in a round; a round's figure is their median.
    pub steps: usize,
    /// Rounds; every contestant takes its turn in each.
    pub rounds: usize,
    /// Recommendations a user in inference.
    pub k: u32,
    /// Threads of the roofline and the peer.
    pub threads: usize,
    /// A Python with torch and numpy; none leaves the peer out.
    pub python: Option<PathBuf>,
}

/// An operation's part of a training step.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Its name in the contract.
    pub name: &'static str,
    /// Calls in a step.
    pub calls: f64,
    /// Milliseconds in a step.
    pub milliseconds: f64,
    /// GFLOP/s; none where memory is the limit.
    pub gflops: Option<f64>,
}

/// A contestant's speed.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Who.
    pub name: String,
    /// Users per second, over the rounds.
    pub train: Median,
    /// Users per second, over the rounds.
    pub infer: Median,
}

/// All figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Where and on what.
    pub machine: Machine,
    /// The backend's device.
    pub device: String,
    /// The backend's precision.
    pub precision: String,
    /// Users, items, events.
    pub data: [u64; 3],
    /// Users per batch.
    pub batch: u32,
    /// Recommendations a user.
    pub k: u32,
    /// Ours.
    pub ours: Speed,
    /// The peer's, where there is one: with sparse and with dense input.
    pub peers: Vec<Speed>,
    /// GFLOP in a training step.
    pub step_gflop: f64,
    /// GFLOP/s of a training step.
    pub step_gflops: f64,
    /// The `gemm` crate by itself.
    pub gemm: Gemm,
    /// Where the time goes.
    pub operations: Vec<Operation>,
}

/// Runs everything. `backend` makes a backend, twice: one as it is, one that is timed.
///
/// # Errors
/// What the device or the peer reports.
pub fn run<B: Backend + 'static>(
    backend: impl Fn() -> Result<B>,
    config: &ModelConfig,
    matrix: &Matrix,
    options: &Options,
) -> Result<Figures> {
    let &Options { steps, rounds, k, threads, .. } = options;
    let batch = options.batch.clamp(1, matrix.users());
    let device = Device::new(Box::new(backend()?));
    let hidden = config.hidden.first().copied().unwrap_or(config.latent);
    let failed = |e| vaecf_core::Error::failure(format!("threads cannot be started: {e}"));
    let mut products = Products::new(batch, hidden, matrix.items(), threads).map_err(failed)?;
    let mut bench = Bench::new(&device, matrix, config, batch, k)?;
    let folder = tempfile::tempdir().map_err(|e| vaecf_core::Error::failure(format!("no temporary folder: {e}")))?;
    let mut peer = match &options.python {
        Some(python) => Some(Peer::start(python, matrix, batch, threads, folder.path())?),
        None => None,
    };

    let median = |n: usize, one: &mut dyn FnMut() -> Result<f64>| -> Result<f64> {
        one()?;
        let seconds = (0..n).map(|_| one()).collect::<Result<Vec<f64>>>()?;
        Ok(f64::from(batch) / Median::of(seconds).median)
    };
    let (mut train, mut infer, mut gemm) = (Vec::new(), Vec::new(), Vec::new());
    let mut peers = [("sparse", Vec::new(), Vec::new()), ("dense", Vec::new(), Vec::new())];
    for _ in 0..rounds {
        gemm.push(products.measure(3));
        train.push(median(steps, &mut || bench.train())?);
        infer.push(median(steps, &mut || bench.infer())?);
        for (input, train, infer) in &mut peers {
            if let Some(peer) = &mut peer {
                train.push(f64::from(batch) / peer.seconds("train", input, steps)?);
                infer.push(f64::from(batch) / peer.seconds("infer", input, steps)?);
            }
        }
    }
    let of = |pick: fn(&Gemm) -> f64| Median::of(gemm.iter().map(pick).collect()).median;
    let gemm =
        Gemm { forward: of(|g| g.forward), grad_weight: of(|g| g.grad_weight), grad_input: of(|g| g.grad_input) };

    let step_flop = bench.flops();
    drop(bench);
    let ours = Speed { name: "vaecf".into(), train: Median::of(train), infer: Median::of(infer) };
    let peers = peers
        .into_iter()
        .filter_map(|(input, train, infer)| {
            let name = format!("{}, {input} input", peer.as_ref()?.name);
            Some(Speed { name, train: Median::of(train), infer: Median::of(infer) })
        })
        .collect();
    Ok(Figures {
        machine: Machine::here(),
        device: device.info().device.clone(),
        precision: device.info().precision.clone(),
        data: [u64::from(matrix.users()), u64::from(matrix.items()), matrix.events()],
        batch,
        k,
        step_gflop: step_flop / 1e9,
        step_gflops: step_flop / f64::from(batch) * ours.train.median / 1e9,
        ours,
        peers,
        gemm,
        operations: operations(backend()?, config, matrix, batch, k, steps)?,
    })
}

/// Training steps with every operation timed.
fn operations<B: Backend + 'static>(
    backend: B,
    config: &ModelConfig,
    matrix: &Matrix,
    batch: u32,
    k: u32,
    steps: usize,
) -> Result<Vec<Operation>> {
    let (timed, times) = Timed::new(backend);
    let mut bench = Bench::new(&Device::new(Box::new(timed)), matrix, config, batch, k)?;
    bench.train()?;
    let take = || std::mem::take(&mut *times.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    take();
    for _ in 0..steps {
        bench.train()?;
    }
    let each = 1.0 / steps as f64;
    let row = |(name, time): (&'static str, crate::timed::Time)| Operation {
        name,
        calls: f64::from(time.calls) * each,
        milliseconds: time.total.as_secs_f64() * 1e3 * each,
        gflops: (time.flops > 0.0).then(|| time.flops / time.total.as_secs_f64() / 1e9),
    };
    Ok(take().into_iter().map(row).collect())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, batch, k, gemm, .. } = self;
        let [users, items, events] = self.data;
        writeln!(
            f,
            "{}, {} processors, {}, vaecf {} {}",
            machine.cpu, machine.cpus, machine.system, machine.version, machine.commit
        )?;
        writeln!(
            f,
            "{} in {}; {users} users x {items} items, {events} events; batch {batch}, top {k}",
            self.device, self.precision
        )?;
        writeln!(f)?;
        let names = self.peers.iter().map(|s| s.name.len() + "vaecf / ".len());
        let wide = names.max().unwrap_or(0).max(36);
        writeln!(f, "{:<wide$} {:>22} {:>22}", "users/s, median of rounds [min, max]", "training", "inference")?;
        for s in [&self.ours].into_iter().chain(&self.peers) {
            let show = |m: Median| format!("{:.0} [{:.0}, {:.0}]", m.median, m.min, m.max);
            writeln!(f, "{:<wide$} {:>22} {:>22}", s.name, show(s.train), show(s.infer))?;
        }
        for s in &self.peers {
            let (train, infer) = (self.ours.train.median / s.train.median, self.ours.infer.median / s.infer.median);
            writeln!(f, "{:<wide$} {train:>21.2}x {infer:>21.2}x", format!("vaecf / {}", s.name))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "gemm crate alone, GFLOP/s: forward {:.0}, weight gradient {:.0}, input gradient {:.0}; together {:.0}",
            gemm.forward,
            gemm.grad_weight,
            gemm.grad_input,
            gemm.together()
        )?;
        writeln!(
            f,
            "a training step is {:.2} GFLOP at {:.0} GFLOP/s: {:.0} % of what the crate alone does on its products, \
             {:.0} % of the crate's best rate",
            self.step_gflop,
            self.step_gflops,
            100.0 * self.step_gflops / gemm.together(),
            100.0 * self.step_gflops / gemm.best()
        )?;
        writeln!(f)?;
        writeln!(f, "{:<22} {:>6} {:>9} {:>9}", "operation", "calls", "ms", "GFLOP/s")?;
        for o in &self.operations {
            let gflops = o.gflops.map_or_else(|| "-".to_owned(), |g| format!("{g:.0}"));
            writeln!(f, "{:<22} {:>6.0} {:>9.2} {gflops:>9}", o.name, o.calls, o.milliseconds)?;
        }
        Ok(())
    }
}
