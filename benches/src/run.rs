//! The whole bench: training, inference and latency at each precision and size of batch, every operation beside the
//! device's limits, memory beside its plan, and the peer.

use std::{fmt, path::PathBuf};

use serde::Serialize;
use vaecf_core::{
    Error, Result,
    backend::{Backend, Ceilings},
    config::{ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    matrix::Matrix,
    roofline::{Cost, Limit},
    trainer::{Observer, Placement, Plan, Trainer},
};

use crate::{
    gemm::{Gemm, Products},
    machine::Machine,
    measure::{Bench, Latency, Median, latency},
    peer::Peer,
    timed::{Time, Timed, Times},
};

/// Steps in a round on the host.
const STEPS: usize = 6;

/// Seconds of a round on a device, and of the measurement of latency on any.
const ROUND: f64 = 0.5;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The precisions, by name.
    pub precisions: Vec<String>,
    /// Users per batch.
    pub batches: Vec<u32>,
    /// Steps in a round, issued without waiting; none is 6 on the host, and half a second of them on a device.
    pub steps: Option<usize>,
    /// Rounds; every contestant takes its turn in each.
    pub rounds: usize,
    /// Recommendations a user in inference.
    pub k: u32,
    /// Also train in a group of one, which makes every sum over the group that several devices would.
    pub group_of_one: bool,
    /// Threads of the host's roofline and the peer.
    pub threads: usize,
    /// A Python with torch and numpy; none leaves the peer out.
    pub python: Option<PathBuf>,
    /// Options of the peer's script; with any of them it has sparse input only.
    pub peer_options: Vec<String>,
}

/// An operation's part of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Its name in the contract.
    pub name: &'static str,
    /// Rows of the batch, or elements of the arena, and the sizes on both sides.
    pub shape: String,
    /// Calls in a step.
    pub calls: f64,
    /// Milliseconds of a call, the median.
    pub milliseconds: f64,
    /// The least that a call costs.
    pub cost: Cost,
    /// The share of the device's limit that it attains, and which limit that is; none where the device tells none.
    pub attained: Option<(f64, Limit)>,
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

/// A training step as a whole.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Step {
    /// The least that it costs.
    pub cost: Cost,
    /// Milliseconds, from the users per second.
    pub milliseconds: f64,
    /// Milliseconds at the device's limits, operation by operation; none where the device tells none.
    pub least: Option<f64>,
}

/// Bytes of training.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// What the plan says.
    pub planned: u64,
    /// What the device has less of; none where its memory is the host's, or it does not tell.
    pub used: Option<u64>,
}

/// The figures of one precision and size of batch.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The backend's device.
    pub device: String,
    /// The backend's precision.
    pub precision: String,
    /// Users per batch.
    pub batch: u32,
    /// Steps in a round.
    pub steps: usize,
    /// Ours: steps that are replayed where the backend can, else issued call by call.
    pub ours: Speed,
    /// Users per second of training, issued call by call, where `ours` is replayed.
    pub eager: Option<Median>,
    /// Users per second of training in a group of one, where that was asked for; otherwise as `ours`.
    pub group_of_one: Option<Median>,
    /// The peer's, where there is one: with sparse and with dense input.
    pub peers: Vec<Speed>,
    /// What the device does at best, where it tells.
    pub ceilings: Option<Ceilings>,
    /// The `gemm` crate by itself on the products of the output layer; in f32 on the host.
    pub gemm: Option<Gemm>,
    /// A training step.
    pub step: Step,
    /// Where its time goes.
    pub training: Vec<Operation>,
    /// Where the time of inference goes.
    pub inference: Vec<Operation>,
    /// Bytes of training.
    pub memory: Memory,
    /// A batch of one, from a history on the host to recommendations on the host.
    pub latency: Latency,
}

/// All figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Where and on what.
    pub machine: Machine,
    /// Users, items, events.
    pub data: [u64; 3],
    /// Recommendations a user.
    pub k: u32,
    /// By precision and size of batch.
    pub settings: Vec<Setting>,
}

/// Runs everything. `backend` opens a device in a precision, anew for each measurement.
///
/// # Errors
/// What the device or the peer reports.
pub fn run(
    backend: impl Fn(&str) -> Result<Box<dyn Backend>>,
    config: &ModelConfig,
    matrix: &Matrix,
    options: &Options,
) -> Result<Figures> {
    let mut settings = Vec::new();
    for precision in &options.precisions {
        let ceilings = backend(precision)?.ceilings().ok();
        for &batch in &options.batches {
            let batch = batch.clamp(1, matrix.users());
            settings.push(setting(|| backend(precision), config, matrix, batch, ceilings, options)?);
        }
    }
    let data = [u64::from(matrix.users()), u64::from(matrix.items()), matrix.events()];
    Ok(Figures { machine: Machine::here(), data, k: options.k, settings })
}

fn setting(
    backend: impl Fn() -> Result<Box<dyn Backend>>,
    config: &ModelConfig,
    matrix: &Matrix,
    batch: u32,
    ceilings: Option<Ceilings>,
    options: &Options,
) -> Result<Setting> {
    let &Options { rounds, k, threads, .. } = options;
    let memory = memory(&Device::new(backend()?), config, matrix, batch)?;
    let device = Device::new(backend()?);
    let info = device.info().clone();
    let mut bench = Bench::new(&device, matrix, config, batch, k)?;
    let mut grouped = match options.group_of_one {
        true => Some(Bench::new(&Device::alone_in_group(backend()?)?, matrix, config, batch, k)?),
        false => None,
    };
    let folder = tempfile::tempdir().map_err(|e| Error::failure(format!("no temporary folder: {e}")))?;
    let start = |python: &PathBuf| Peer::start(python, matrix, batch, threads, &options.peer_options, folder.path());
    let mut peer = options.python.as_ref().map(start).transpose()?;
    let mut products = match info.host_memory && info.precision == "f32" {
        true => {
            let hidden = config.hidden.first().copied().unwrap_or(config.latent);
            let failed = |e| Error::failure(format!("threads cannot be started: {e}"));
            Some(Products::new(batch, hidden, matrix.items(), threads).map_err(failed)?)
        }
        false => None,
    };

    // Before anything counts: kernels are compiled, and clocks rise.
    let once = bench.train(2, false)?.max(bench.train(1, info.capture)?);
    bench.infer(2)?;
    if let Some(grouped) = &mut grouped {
        grouped.train(2, info.capture)?;
    }
    let steps = options.steps.unwrap_or(match info.host_memory {
        true => STEPS,
        false => ((ROUND / once) as usize).clamp(20, 5000),
    });
    let (mut eager, mut train, mut infer, mut gemm) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut in_group = Vec::new();
    let mut peers = vec![("sparse", Vec::new(), Vec::new())];
    if options.peer_options.is_empty() {
        peers.push(("dense", Vec::new(), Vec::new()));
    }
    let speed = |seconds: f64| f64::from(batch) / seconds;
    for _ in 0..rounds {
        gemm.extend(products.as_mut().map(|products| products.measure(3)));
        eager.push(speed(bench.train(steps, false)?));
        if info.capture {
            train.push(speed(bench.train(steps, true)?));
        }
        if let Some(grouped) = &mut grouped {
            in_group.push(speed(grouped.train(steps, info.capture)?));
        }
        infer.push(speed(bench.infer(steps)?));
        if let Some(peer) = &mut peer {
            for (input, train, infer) in &mut peers {
                train.push(speed(peer.seconds("train", input, steps)?));
                infer.push(speed(peer.seconds("infer", input, steps)?));
            }
        }
    }
    let latency = latency(bench.model(), matrix, k, ROUND)?;
    drop((bench, grouped));

    let (eager, train) = match info.capture {
        true => (Some(Median::of(eager)), Median::of(train)),
        false => (None, Median::of(eager)),
    };
    let ours = Speed { name: "vaecf".into(), train, infer: Median::of(infer) };
    let named = |(input, train, infer): (&str, Vec<f64>, Vec<f64>)| {
        let name = format!("{}, {input} input", peer.as_ref()?.name);
        Some(Speed { name, train: Median::of(train), infer: Median::of(infer) })
    };
    let [training, inference] = operations(backend()?, config, matrix, batch, ceilings, options.k, steps)?;
    let step = Step {
        cost: training.iter().fold(Cost::default(), |sum, o| Cost {
            flops: sum.flops + o.calls * o.cost.flops,
            bytes: sum.bytes + o.calls * o.cost.bytes,
        }),
        milliseconds: 1e3 * f64::from(batch) / ours.train.median,
        least: ceilings.map(|limits| training.iter().map(|o| 1e3 * o.calls * o.cost.least(limits).0).sum()),
    };
    let of = |pick: fn(&Gemm) -> f64| Median::of(gemm.iter().map(pick).collect()).median;
    Ok(Setting {
        device: info.device,
        precision: info.precision,
        batch,
        steps,
        ours,
        eager,
        group_of_one: options.group_of_one.then(|| Median::of(in_group)),
        peers: peers.into_iter().filter_map(named).collect(),
        ceilings,
        gemm: products.map(|_| Gemm {
            forward: of(|g| g.forward),
            grad_weight: of(|g| g.grad_weight),
            grad_input: of(|g| g.grad_input),
        }),
        step,
        training,
        inference,
        memory,
        latency,
    })
}

/// Ends a run after its first step.
#[derive(Default)]
struct Once(bool);

impl Observer for Once {
    fn stop(&mut self) -> bool {
        std::mem::replace(&mut self.0, true)
    }
}

/// What a training run takes of the device, and what its plan says.
fn memory(device: &Device, config: &ModelConfig, matrix: &Matrix, batch: u32) -> Result<Memory> {
    let names = |count: u32| (0..count).map(|at| at.to_string()).collect();
    let data = Dataset::new(matrix.clone(), None, None, names(matrix.items()), names(matrix.users()))?;
    let train = TrainConfig { batch, ..TrainConfig::paper() };
    let planned = Plan::new(device, config, &train, &data, Placement::Auto)?.total();
    let own = |device: &Device| device.memory().filter(|_| !device.info().host_memory);
    let before = own(device);
    let used = match before {
        Some(before) => {
            let mut trainer = Trainer::new(device, config, &train, &data, None)?;
            // What a backend takes only when it is needed counts, too.
            trainer.run(&mut Once::default())?;
            own(device).map(|after| before.saturating_sub(after))
        }
        None => None,
    };
    Ok(Memory { planned, used })
}

/// Training steps and batches of inference with every operation timed.
fn operations(
    backend: Box<dyn Backend>,
    config: &ModelConfig,
    matrix: &Matrix,
    batch: u32,
    ceilings: Option<Ceilings>,
    k: u32,
    steps: usize,
) -> Result<[Vec<Operation>; 2]> {
    let (timed, times) = Timed::new(backend, matrix.events() as f64 / f64::from(matrix.users()));
    let device = Device::new(Box::new(timed));
    let mut bench = Bench::new(&device, matrix, config, batch, k)?;
    // A thousand calls tell a median.
    let steps = steps.min(100);
    bench.train(2, false)?;
    take(&times);
    bench.train(steps, false)?;
    let training = take(&times);
    bench.infer(2)?;
    device.sync()?;
    take(&times);
    bench.infer(steps)?;
    device.sync()?;
    let row = |time: Time| {
        let seconds = Median::of(time.seconds.clone()).median;
        Operation {
            name: time.call.name,
            shape: time.call.shape,
            calls: time.seconds.len() as f64 / steps as f64,
            milliseconds: 1e3 * seconds,
            cost: time.call.cost,
            attained: ceilings.map(|limits| {
                let (least, limit) = time.call.cost.least(limits);
                (least / seconds, limit)
            }),
        }
    };
    Ok([training, take(&times)].map(|times| times.into_iter().map(row).collect()))
}

fn take(times: &Times) -> Vec<Time> {
    std::mem::take(&mut *times.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, data: [users, items, events], k, settings } = self;
        writeln!(
            f,
            "{}, {} processors, {}, vaecf {} {}",
            machine.cpu, machine.cpus, machine.system, machine.version, machine.commit
        )?;
        writeln!(f, "{users} users x {items} items, {events} events; top {k}")?;
        for setting in settings {
            writeln!(f)?;
            setting.fmt(f)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<9} {:>7} {:>14} {:>14} {:>14} {:>9} {:>10} {:>10}",
            "precision", "batch", "training", "call by call", "inference", "of limit", "one, p50", "one, p99"
        )?;
        for s in settings {
            let eager = s.eager.map_or_else(|| "-".into(), |m| format!("{:.0}", m.median));
            writeln!(
                f,
                "{:<9} {:>7} {:>14.0} {eager:>14} {:>14.0} {:>9} {:>7.3} ms {:>7.3} ms",
                s.precision,
                s.batch,
                s.ours.train.median,
                s.ours.infer.median,
                percent(s.step.least.map(|least| least / s.step.milliseconds)),
                1e3 * s.latency.p50,
                1e3 * s.latency.p99
            )?;
        }
        Ok(())
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.0} %", 100.0 * share))
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} in {}; batch {}, {} steps a round", self.device, self.precision, self.batch, self.steps)?;
        writeln!(f)?;
        let names = self.peers.iter().map(|s| s.name.len() + "vaecf / ".len());
        let wide = names.max().unwrap_or(0).max(36);
        writeln!(f, "{:<wide$} {:>26} {:>26}", "users/s, median of rounds [min, max]", "training", "inference")?;
        let show = |m: Median| format!("{:.0} [{:.0}, {:.0}]", m.median, m.min, m.max);
        for s in [&self.ours].into_iter().chain(&self.peers) {
            writeln!(f, "{:<wide$} {:>26} {:>26}", s.name, show(s.train), show(s.infer))?;
        }
        if let Some(eager) = self.eager {
            writeln!(f, "{:<wide$} {:>26}", "vaecf, call by call", show(eager))?;
        }
        if let Some(grouped) = self.group_of_one {
            writeln!(f, "{:<wide$} {:>26}", "vaecf, in a group of one", show(grouped))?;
            let ratio = grouped.median / self.ours.train.median;
            writeln!(f, "{:<wide$} {ratio:>25.3}x", "in a group of one / without")?;
        }
        for s in &self.peers {
            let (train, infer) = (self.ours.train.median / s.train.median, self.ours.infer.median / s.infer.median);
            writeln!(f, "{:<wide$} {train:>25.2}x {infer:>25.2}x", format!("vaecf / {}", s.name))?;
        }
        writeln!(f)?;
        if let Some(Ceilings { copy, products }) = self.ceilings {
            writeln!(f, "limits: {:.0} GB/s of copies, {:.0} GFLOP/s of products", copy / 1e9, products / 1e9)?;
        }
        let rate = self.step.cost.flops / self.step.milliseconds / 1e6;
        if let Some(gemm) = self.gemm {
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
                "products at {rate:.0} GFLOP/s: {:.0} % of what the crate alone does on them, {:.0} % of its best rate",
                100.0 * rate / gemm.together(),
                100.0 * rate / gemm.best()
            )?;
        }
        write!(
            f,
            "a training step is {:.2} GFLOP and {:.0} MB in {:.3} ms",
            self.step.cost.flops / 1e9,
            self.step.cost.bytes / 1e6,
            self.step.milliseconds
        )?;
        match self.step.least {
            Some(least) => {
                writeln!(f, ", {least:.3} at the limits: {}", percent(Some(least / self.step.milliseconds)))?
            }
            None => writeln!(f)?,
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let used = self.memory.used.map_or_else(String::new, |used| format!(", used {:.0}", mib(used)));
        writeln!(f, "memory of training, MiB: planned {:.0}{used}", mib(self.memory.planned))?;
        let Latency { calls, p50, p99 } = self.latency;
        writeln!(f, "one user: {:.3} ms, p99 {:.3} ms ({calls} calls)", 1e3 * p50, 1e3 * p99)?;
        for (title, operations) in [("training", &self.training), ("inference", &self.inference)] {
            writeln!(f)?;
            writeln!(
                f,
                "{title:<22} {:>22} {:>6} {:>10} {:>9} {:>8} {:>9}",
                "shape", "calls", "ms", "GFLOP/s", "GB/s", "of limit"
            )?;
            for o in operations {
                let gflops = match o.cost.flops > 0.0 {
                    true => format!("{:.0}", o.cost.flops / o.milliseconds / 1e6),
                    false => "-".into(),
                };
                let limit = match o.attained {
                    Some((_, Limit::Copy)) => " copy",
                    Some((_, Limit::Products)) => " products",
                    None => "",
                };
                writeln!(
                    f,
                    "{:<22} {:>22} {:>6.0} {:>10.4} {gflops:>9} {:>8.0} {:>9}{limit}",
                    o.name,
                    o.shape,
                    o.calls,
                    o.milliseconds,
                    o.cost.bytes / o.milliseconds / 1e6,
                    percent(o.attained.map(|(share, _)| share))
                )?;
            }
        }
        Ok(())
    }
}
