//! Several members on this machine, each with its share of the cores: what a sum over the group takes, and a step, beside
//! what was predicted.

use std::{fmt, net::TcpListener, panic::resume_unwind, thread, time::Instant};

use serde::Serialize;
use vaecf_core::{
    Error, Result,
    backend::{Backend, Ceilings},
    config::{ModelConfig, TrainConfig},
    device::Device,
    group::{self, Group},
    matrix::Matrix,
    scaling::{self, Cut, Path, Prediction, Wire, Work},
};
use vaecf_cpu::Cpu;

use crate::{
    machine::Machine,
    measure::{Bench, Median},
};

/// Elements that sums take together where one is too short for the clock.
const SUMMED: u64 = 1 << 22;

/// Makes a group of so many members, which carries what it says.
pub type Carrier = (&'static str, fn(u32) -> Result<Vec<Group>>);

/// Members that are threads of this process, and hand each other what they have in its memory.
///
/// # Errors
/// None; the type is that of all carriers.
pub fn over_threads(world: u32) -> Result<Vec<Group>> {
    Ok(group::threads(world, group::LIMIT))
}

/// Threads of this process that speak TCP through the machine's own interface.
///
/// # Errors
/// Where no port is free, or members do not find each other.
pub fn over_tcp(world: u32) -> Result<Vec<Group>> {
    let failed = |e: std::io::Error| Error::failure(format!("no port of this machine could be had: {e}"));
    // Whoever takes the port meanwhile is told of by those who meet there.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(failed)?;
    let place = free.to_string();
    thread::scope(|scope| {
        let place = &place;
        let meeting: Vec<_> =
            (0..world).map(|rank| scope.spawn(move || group::meet(rank, world, place, group::LIMIT))).collect();
        let ended = meeting.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.collect()
    })
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of members; the first is what the others are compared with.
    pub worlds: Vec<u32>,
    /// Ways between them; steps go by the first.
    pub carriers: Vec<Carrier>,
    /// Elements of the sums that are measured by themselves; the whole gradient is added to these.
    pub lens: Vec<u64>,
    /// Users of a batch of the whole group.
    pub batch: u32,
    /// Threads of all members together, where there are as many members at the most.
    pub threads: usize,
    /// Steps in a round.
    pub steps: usize,
    /// Rounds, in which every number of members takes its turn; figures are medians over rounds.
    pub rounds: usize,
}

/// A sum over a group, by itself.
#[derive(Clone, Debug, Serialize)]
pub struct Sum {
    /// What carries it.
    pub carrier: &'static str,
    /// Members.
    pub members: u32,
    /// Bytes of each member.
    pub bytes: u64,
    /// Seconds, until all have it.
    pub seconds: Median,
    /// Bytes per second that a member sends.
    pub rate: f64,
}

/// A training step of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Members.
    pub members: u32,
    /// Threads of each.
    pub threads: usize,
    /// Seconds, until the last member is done.
    pub seconds: Median,
    /// Users per second.
    pub users_per_second: f64,
    /// These, in relation to those of the first number of members.
    pub ratio: f64,
    /// What is predicted, from the limits of the machine, the share of these that the first number of members attains,
    /// and the sums measured by themselves.
    pub predicted: Prediction,
}

/// All figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Where and on what.
    pub machine: Machine,
    /// Users, items, events.
    pub data: [u64; 3],
    /// Users of a batch of the whole group.
    pub batch: u32,
    /// What all cores together do at best.
    pub ceilings: Ceilings,
    /// The share of that which a step of the first number of members attains.
    pub attained: f64,
    /// Sums by themselves.
    pub sums: Vec<Sum>,
    /// Steps.
    pub steps: Vec<Step>,
}

/// Runs everything, in f32 on the CPU.
///
/// # Errors
/// What a device or a group reports.
pub fn run(config: &ModelConfig, matrix: &Matrix, options: &Options) -> Result<Figures> {
    let ceilings = Cpu::<f32>::new(Some(options.threads))?.ceilings()?;
    let Some(&(_, way)) = options.carriers.first() else {
        return Err(Error::usage("no way between members was named"));
    };
    let mut groups = Vec::new();
    for &world in &options.worlds {
        groups.push(members(way(world)?, config, matrix, options)?);
    }
    let len = groups.first().and_then(|group| group.first()).map_or(0, |bench| bench.model().layout().len);
    let mut lens = options.lens.clone();
    lens.push(len);
    let sums = sums(&lens, options)?;

    let mut seconds = vec![Vec::new(); groups.len()];
    for _ in 0..options.rounds {
        for (seconds, group) in seconds.iter_mut().zip(&mut groups) {
            seconds.push(at_once(group, |bench| bench.train(options.steps, false))?);
        }
    }
    let info = Cpu::<f32>::new(Some(1))?.info();
    let work = Work {
        config: config.clone(),
        items: matrix.items(),
        users: matrix.users(),
        events: matrix.events() as f64 / f64::from(matrix.users()),
        batch: options.batch,
        dropout: TrainConfig::paper().dropout,
        half: false,
    };
    let predict = |members: u32, attained: f64| {
        let share = f64::from(members);
        let machine = scaling::Machine {
            info: info.clone(),
            fused: true,
            limits: Ceilings { copy: ceilings.copy / share, products: ceilings.products / share },
            attained,
            overhead: 0.0,
            memory: info.memory.map(|memory| memory / u64::from(members)),
            within: wire(&sums, members, len),
            between: Wire { rate: f64::INFINITY, latency: 0.0 },
            path: Path::Hosts { copy: None },
        };
        machine.predict(&work, Cut::Batch, members, 1)
    };
    let medians: Vec<_> = seconds.into_iter().map(Median::of).collect();
    let (mut attained, mut steps) = (1.0, Vec::<Step>::new());
    for (&members, &seconds) in options.worlds.iter().zip(&medians) {
        if steps.is_empty() {
            let bound = predict(members, 1.0)?;
            attained = (bound.seconds - bound.parts.exposed) / (seconds.median - bound.parts.exposed);
        }
        let users_per_second = f64::from(options.batch) / seconds.median;
        let ratio = medians.first().map_or(1.0, |first| first.median) / seconds.median;
        let threads = (options.threads / members as usize).max(1);
        steps.push(Step { members, threads, seconds, users_per_second, ratio, predicted: predict(members, attained)? });
    }
    let data = [u64::from(matrix.users()), u64::from(matrix.items()), matrix.events()];
    Ok(Figures { machine: Machine::here(), data, batch: options.batch, ceilings, attained, sums, steps })
}

/// A model for each member of a group, with its share of the threads.
fn members(group: Vec<Group>, config: &ModelConfig, matrix: &Matrix, options: &Options) -> Result<Vec<Bench>> {
    let threads = (options.threads / group.len()).max(1);
    let mut members: Vec<_> = group.into_iter().map(|group| (group, None)).collect();
    at_once(&mut members, |(group, bench)| {
        let device = Device::in_group(Box::new(Cpu::<f32>::new(Some(threads))?), group.clone(), false)?;
        let made = bench.insert(Bench::new(&device, matrix, config, options.batch, 1)?);
        // What a first step prepares does not count.
        made.train(1, false)
    })?;
    Ok(members.into_iter().filter_map(|(_, bench)| bench).collect())
}

/// Has all members do the same at the same time; the seconds are those of the slowest.
fn at_once<M: Send>(members: &mut [M], part: impl Fn(&mut M) -> Result<f64> + Sync) -> Result<f64> {
    let part = &part;
    thread::scope(|scope| {
        let running: Vec<_> = members.iter_mut().map(|member| scope.spawn(move || part(member))).collect();
        let mut ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.try_fold(0.0, |most, seconds| Ok(f64::max(most, seconds?)))
    })
}

/// Sums of all lengths, on all ways, for all numbers of members.
fn sums(lens: &[u64], options: &Options) -> Result<Vec<Sum>> {
    let mut sums = Vec::new();
    for &(carrier, way) in &options.carriers {
        for &members in options.worlds.iter().filter(|&&members| members > 1) {
            let mut group = way(members)?;
            for &len in lens {
                let mut seconds = Vec::new();
                for _ in 0..options.rounds {
                    seconds.push(at_once(&mut group, |group| sum(group, len))?);
                }
                let (bytes, seconds) = (4 * len, Median::of(seconds));
                let sent = 2.0 * f64::from(members - 1) * bytes as f64 / f64::from(members);
                sums.push(Sum { carrier, members, bytes, seconds, rate: sent / seconds.median });
            }
            at_once(&mut group, |group| group.clone().leave().map(|()| 0.0))?;
        }
    }
    Ok(sums)
}

/// Seconds of a sum of `len` elements, the mean of as many as take a while.
fn sum(group: &Group, len: u64) -> Result<f64> {
    let mut values = vec![1.0_f32; len as usize];
    let times = (SUMMED / len.max(1)).clamp(1, 200);
    group.sum(&mut values)?;
    group.barrier()?;
    let start = Instant::now();
    for _ in 0..times {
        group.sum(&mut values)?;
    }
    Ok(start.elapsed().as_secs_f64() / times as f64)
}

/// The way between two threads of this process: what sums through it say of it, additions included.
///
/// # Errors
/// What the group reports.
pub fn between_threads() -> Result<Wire> {
    const LEN: u64 = 1 << 22;
    let mut group = group::threads(2, group::LIMIT);
    let mut best = |len: u64| {
        (0..5)
            .try_fold(f64::INFINITY, |best, _| Ok::<_, Error>(at_once(&mut group, |group| sum(group, len))?.min(best)))
    };
    let (short, long) = (best(1)?, best(LEN)?);
    // Each of the two sends a half, and later the sum of another; a sum is two exchanges.
    Ok(Wire { rate: 4.0 * LEN as f64 / long, latency: short / 2.0 })
}

/// The way between members as it was measured: by the smallest sum and by that of the whole gradient.
fn wire(sums: &[Sum], members: u32, len: u64) -> Wire {
    let of = |bytes: u64| sums.iter().find(|sum| sum.members == members && sum.bytes == bytes);
    let least = sums.iter().map(|sum| sum.bytes).min().unwrap_or(0);
    // A sum is two exchanges.
    let latency = of(least).map_or(0.0, |sum| sum.seconds.median / 2.0);
    Wire { rate: of(4 * len).map_or(f64::INFINITY, |sum| sum.rate), latency }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, data: [users, items, events], batch, ceilings, attained, sums, steps } = self;
        writeln!(
            f,
            "{}, {} processors, {}, vaecf {} {}",
            machine.cpu, machine.cpus, machine.system, machine.version, machine.commit
        )?;
        writeln!(f, "{users} users x {items} items, {events} events; f32 on the CPU, all members on the same cores")?;
        writeln!(
            f,
            "limits of all cores: {:.1} GB/s of copies, {:.0} GFLOP/s of products\n",
            ceilings.copy / 1e9,
            ceilings.products / 1e9
        )?;
        writeln!(
            f,
            "{:<10} {:>7} {:>12} {:>26} {:>12} {:>9}",
            "sums by", "members", "KiB each", "ms, median [min, max]", "GB/s sent", "of copies"
        )?;
        for Sum { carrier, members, bytes, seconds, rate } in sums {
            writeln!(
                f,
                "{carrier:<10} {members:>7} {:>12} {:>26} {:>12.2} {:>7.0} %",
                bytes.div_ceil(1024),
                milliseconds(*seconds),
                rate / 1e9,
                100.0 * rate * f64::from(*members) / ceilings.copy
            )?;
        }
        writeln!(f, "GB/s are those of each member; the share is that of all of them in what the memory copies\n")?;
        writeln!(
            f,
            "{:<7} {:>7} {:>24} {:>9} {:>6} {:>13} {:>9} {:>8}",
            "members", "threads", "ms a step [min, max]", "users/s", "ratio", "predicted, ms", "of sums", "measured"
        )?;
        for Step { members, threads, seconds, users_per_second, ratio, predicted } in steps {
            writeln!(
                f,
                "{members:<7} {threads:>7} {:>24} {users_per_second:>9.0} {ratio:>6.2} {:>13.1} {:>9.1} {:>7.2}x",
                milliseconds(*seconds),
                1e3 * predicted.seconds,
                1e3 * predicted.sums,
                seconds.median / predicted.seconds
            )?;
        }
        writeln!(
            f,
            "a batch of {batch} users in all; each number of members has the same cores in all. A step of the first attains \
             {:.0} % of the limits,\nwhich the predictions take for the others",
            100.0 * attained
        )
    }
}

fn milliseconds(Median { median, min, max }: Median) -> String {
    format!("{:.2} [{:.2}, {:.2}]", 1e3 * median, 1e3 * min, 1e3 * max)
}
