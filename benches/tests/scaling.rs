//! The plan of a step is what a step does: the same calls, the same bytes on the way between members, the same memory. Time
//! is not tested, because machines are not alone: `cargo bench --bench scaling` prints it beside the plan.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use vaecf_benches::{
    measure::Bench,
    scaling as measured,
    synthetic::{self, Shape},
    timed::{Timed, Times},
};
use vaecf_core::{
    Result,
    backend::{Backend, Ceilings},
    config::{ModelConfig, TrainConfig},
    dataset::{Dataset, Part},
    device::Device,
    group::{self, Broken, Group, Link},
    math::Real,
    matrix::Matrix,
    paper::{self, Entry},
    scaling::{Bottleneck, Cut, Growth, Machine, Path, Wire, Work},
    trainer::{Placement, Plan},
};
use vaecf_cpu::Cpu;

const LIMIT: Duration = Duration::from_secs(60);

/// A way that counts what is sent on it.
struct Counted<L> {
    inner: L,
    sent: Arc<AtomicU64>,
}

impl<L: Link> Link for Counted<L> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn exchange(
        &mut self,
        out: &[(u32, &[u8])],
        into: &mut [(u32, &mut [u8])],
        deadline: Instant,
    ) -> std::result::Result<(), Broken> {
        let bytes: usize = out.iter().map(|(_, bytes)| bytes.len()).sum();
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.inner.exchange(out, into, deadline)
    }
    fn fail(&mut self, why: &str) {
        self.inner.fail(why);
    }
    fn leave(&mut self) {
        self.inner.leave();
    }
}

/// Members on ways that are counted together.
fn counted(world: u32) -> (Vec<Group>, Arc<AtomicU64>) {
    let (ends, alarm) = group::links(world);
    let sent = Arc::new(AtomicU64::new(0));
    let member = |(rank, inner)| {
        let link = Counted { inner, sent: Arc::clone(&sent) };
        Group::new(rank, world, LIMIT, alarm.clone(), Box::new(link))
    };
    ((0..).zip(ends).map(member).collect(), sent)
}

fn config(hidden: &[u32]) -> ModelConfig {
    ModelConfig { hidden: hidden.to_vec(), latent: 8, ..ModelConfig::default() }
}

fn data() -> Matrix {
    synthetic::matrix(Shape { users: 700, items: 61, events: 9000 }, 1).unwrap()
}

fn work(config: &ModelConfig, matrix: &Matrix, batch: u32) -> Work {
    Work {
        config: config.clone(),
        items: matrix.items(),
        users: matrix.users(),
        events: matrix.events() as f64 / f64::from(matrix.users()),
        batch,
        dropout: TrainConfig::paper().dropout,
        half: false,
    }
}

/// Members that are threads on a backend like this one, at rates that do not matter where nothing is timed.
fn machine<T: Real>() -> Machine {
    let info = Cpu::<T>::new(Some(1)).unwrap().info();
    let wire = Wire { rate: 1e9, latency: 1e-5 };
    Machine {
        info,
        fused: true,
        limits: Ceilings { copy: 1e10, products: 1e11 },
        attained: 1.0,
        overhead: 0.0,
        memory: None,
        within: wire,
        between: wire,
        path: Path::Hosts { copy: None },
    }
}

/// What was done: calls of each kind and shape with what they cost, by what a debugger prints, and how many of them.
type Done = BTreeMap<String, usize>;

/// Steps of a group: what each member did in one of them, and the bytes that all sent.
fn steps<T: Real>(world: u32, config: &ModelConfig, matrix: &Matrix, batch: u32) -> (Vec<Done>, u64) {
    const STEPS: usize = 3;
    let (groups, sent) = counted(world);
    let events = matrix.events() as f64 / f64::from(matrix.users());
    let member = |group: Group| -> Result<(Bench, Times, Group)> {
        let (timed, times) = Timed::new(Cpu::<T>::new(Some(1))?, events);
        let device = Device::in_group(Box::new(timed), group.clone(), false)?;
        Ok((Bench::new(&device, matrix, config, batch, 1)?, times, group))
    };
    let mut members: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = groups.into_iter().map(|group| scope.spawn(|| member(group).unwrap())).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let before = sent.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for (bench, ..) in &mut members {
            scope.spawn(|| bench.train(STEPS, false).unwrap());
        }
    });
    let after = sent.load(Ordering::Relaxed);
    assert_eq!((after - before) % STEPS as u64, 0, "every step sends the same");
    let done = members.iter().map(|(_, times, _)| {
        let times = times.lock().unwrap();
        times.iter().map(|time| (format!("{:?}", time.call), time.seconds.len() / STEPS)).collect()
    });
    (done.collect(), (after - before) / STEPS as u64)
}

fn planned<T: Real>(config: &ModelConfig, matrix: &Matrix, share: u32) -> Done {
    let Work { events, dropout, .. } = work(config, matrix, share);
    let info = Cpu::<T>::new(Some(1)).unwrap().info();
    let mut done = Done::new();
    for entry in paper::step(&info, true, config, matrix.items(), share, events, dropout).unwrap() {
        if let Entry::Call(call) = entry {
            *done.entry(format!("{call:?}")).or_default() += 1;
        }
    }
    done
}

fn is_as_planned<T: Real>(world: u32, hidden: &[u32], batch: u32) {
    let (config, matrix) = (config(hidden), data());
    let (done, sent) = steps::<T>(world, &config, &matrix, batch);
    for (rank, done) in (0..).zip(done) {
        let share = group::share(batch, rank, world);
        assert_eq!(done, planned::<T>(&config, &matrix, share.end - share.start), "rank {rank} of {world}");
    }
    let plan = machine::<T>().predict(&work(&config, &matrix, batch), Cut::Batch, world, 1).unwrap();
    assert_eq!(sent, plan.sent, "{world} members");
}

#[test]
fn a_step_does_and_sends_what_is_planned() {
    for world in [1, 2, 3, 4] {
        is_as_planned::<f32>(world, &[24], 50);
        is_as_planned::<f64>(world, &[], 7);
        is_as_planned::<f32>(world, &[30, 20], 40);
    }
}

/// More elements than are summed at once.
#[test]
fn long_sums_send_what_is_planned() {
    let matrix = synthetic::matrix(Shape { users: 60, items: 20_011, events: 900 }, 1).unwrap();
    let config = config(&[64]);
    let (_, sent) = steps::<f32>(3, &config, &matrix, 5);
    let plan = machine::<f32>().predict(&work(&config, &matrix, 5), Cut::Batch, 3, 1).unwrap();
    assert_eq!(sent, plan.sent);
}

/// The test above would see a plan that is a little off.
#[test]
fn another_plan_is_told_apart() {
    let (config, matrix) = (config(&[24]), data());
    let (done, sent) = steps::<f32>(2, &config, &matrix, 50);
    let work = work(&config, &matrix, 50);
    let plan = |machine: Machine, work: &Work, world: u32| machine.predict(work, Cut::Batch, world, 1).unwrap().sent;
    assert_eq!(sent, plan(machine::<f32>(), &work, 2));
    let mut packed = machine::<f32>();
    packed.info.align = 1;
    assert_ne!(sent, plan(packed, &work, 2), "no padding");
    assert_ne!(sent, plan(machine::<f64>(), &work, 2), "wider elements");
    assert_ne!(sent, plan(machine::<f32>(), &work, 3), "more members");
    assert_ne!(sent, plan(machine::<f32>(), &Work { items: 101, ..work.clone() }, 2), "more items");
    assert_ne!(done[0], planned::<f32>(&config, &matrix, 50), "the whole batch");
    assert_ne!(done[0], planned::<f64>(&config, &matrix, 25), "wider elements");
}

#[test]
fn memory_is_that_of_the_trainers_plan() {
    let (config, matrix) = (config(&[24]), data());
    let rows: Vec<u32> = (0..600).collect();
    let part = Part { users: rows.clone(), history: matrix.select(&rows), target: matrix.select(&rows) };
    let histories = 4 * (part.history.events() + 601);
    let names = |count: u32| (0..count).map(|at| at.to_string()).collect();
    let data = Dataset::new(matrix.clone(), Some(part), None, names(matrix.items()), names(matrix.users())).unwrap();
    for (world, batch) in [(1, 50), (2, 51), (4, 700)] {
        let train = TrainConfig { batch, ..TrainConfig::paper() };
        let totals = thread::scope(|scope| {
            let total = |group: Group| {
                let device =
                    Device::in_group(Box::new(Cpu::<f32>::new(Some(1)).unwrap()), group.clone(), false).unwrap();
                let total = Plan::new(&device, &config, &train, &data, Placement::Auto).unwrap().total();
                group.leave().unwrap();
                total
            };
            let running: Vec<_> =
                group::threads(world, LIMIT).into_iter().map(|group| scope.spawn(move || total(group))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let plan = machine::<f32>().predict(&work(&config, &matrix, batch), Cut::Batch, world, 1).unwrap();
        assert_eq!(totals, vec![plan.memory + histories; world as usize]);
    }
}

/// Rates of all kinds.
fn machines() -> impl Strategy<Value = Machine> {
    let rates = (1e9..1e13_f64, 1e10..1e15_f64, 0.1..1.0_f64, 0.0..1e-4_f64);
    let ways = (1e8..1e12_f64, 0.0..1e-4_f64, 1e8..1e12_f64, 0.0..1e-4_f64);
    let path = prop_oneof![
        Just(Path::Devices),
        Just(Path::Hosts { copy: None }),
        (1e9..1e11_f64).prop_map(|copy| Path::Hosts { copy: Some(copy) })
    ];
    (rates, ways, path, any::<bool>(), any::<bool>()).prop_map(|(rates, ways, path, fused, half)| Machine {
        info: paper::info("paper", if half { "f16" } else { "f32" }),
        fused,
        limits: Ceilings { copy: rates.0, products: rates.1 },
        attained: rates.2,
        overhead: rates.3,
        memory: Some(80_000_000_000),
        within: Wire { rate: ways.0, latency: ways.1 },
        between: Wire { rate: ways.2, latency: ways.3 },
        path,
    })
}

/// Not more, but for rounding.
fn at_most(a: f64, b: f64) -> bool {
    a <= b * (1.0 + 1e-9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_plan_keeps_to_its_bounds(
        machine in machines(),
        items in 100..5_000_000_u32,
        batch in 1..30_000_u32,
        devices in 1..=64_u32,
        nodes in 1..=8_u32,
    ) {
        let nodes = nodes.min(devices);
        let work = Work {
            config: ModelConfig::default(), items, users: 100_000, events: 50.0, batch, dropout: 0.5, half: false,
        };
        let one = machine.predict(&work, Cut::Batch, 1, 1).unwrap();
        let many = machine.predict(&work, Cut::Batch, devices, nodes).unwrap();

        // One device is the roofline.
        let least: f64 = paper::step(&machine.info, machine.fused, &work.config, items, batch, 50.0, 0.5).unwrap().iter().map(|entry| match entry {
            Entry::Call(call) => call.cost.least(machine.limits).0 / machine.attained,
            Entry::Sum { .. } => 0.0,
        }).sum();
        let bound = least + machine.overhead;
        prop_assert!(at_most(one.seconds, bound) && at_most(bound, one.seconds));
        prop_assert_eq!((one.sent, one.sums, one.parts.exposed), (0, 0.0, 0.0));

        // More devices cost their sums at the most, and what is waited for is a part of these.
        prop_assert!(at_most(many.seconds, one.seconds + many.sums));
        prop_assert!(at_most(many.parts.exposed, many.sums));
        prop_assert!(machine.path == Path::Devices || at_most(many.sums, many.parts.exposed));
        for growth in [Growth::Strong, Growth::Weak] {
            let row = &machine.table(&work, Cut::Batch, growth, &[(devices, nodes)]).unwrap()[0];
            prop_assert!(row.efficiency > 0.0 && at_most(row.efficiency, 1.0), "{}", row.efficiency);
        }
        prop_assert!((many.bottleneck == Bottleneck::DoesNotFit) == (many.memory > 80_000_000_000));

        // Whatever gets faster makes no step slower.
        let faster: [fn(&mut Machine); 7] = [
            |m| m.limits.copy *= 2.0,
            |m| m.limits.products *= 2.0,
            |m| m.within.rate *= 2.0,
            |m| m.between.rate *= 2.0,
            |m| m.within.latency /= 2.0,
            |m| m.between.latency /= 2.0,
            |m| m.overhead /= 2.0,
        ];
        for faster in faster {
            let mut machine = machine.clone();
            faster(&mut machine);
            let less = machine.predict(&work, Cut::Batch, devices, nodes).unwrap();
            prop_assert!(at_most(less.seconds, many.seconds), "{} {}", less.seconds, many.seconds);
        }
        // Half the bytes, where the devices send them.
        let half = machine.predict(&Work { half: true, ..work.clone() }, Cut::Batch, devices, nodes).unwrap();
        let parts = if machine.path == Path::Devices { 2 } else { 1 };
        prop_assert_eq!(half.sent * parts, many.sent);

        // With a part of the items a device does a part of the work at the least.
        let cut = machine.predict(&work, Cut::Items, devices, nodes).unwrap();
        prop_assert!(at_most(one.seconds, f64::from(devices) * cut.seconds));
        prop_assert!(at_most(cut.parts.exposed, cut.sums) && at_most(cut.sums, cut.parts.exposed));
    }
}

fn options() -> measured::Options {
    measured::Options {
        worlds: vec![1, 2, 4],
        carriers: vec![("threads", measured::over_threads), ("TCP", measured::over_tcp)],
        lens: vec![16],
        batch: 20,
        threads: 2,
        steps: 1,
        rounds: 1,
    }
}

/// How far off predictions may be, as a factor. Members share a machine with whatever else runs on it.
const BAND: f64 = 3.0;

/// Steps take about as long as is predicted. A machine that is busy with something else in the midst of it is tried
/// again. Sums twenty times as slow would be told apart.
#[test]
fn steps_take_about_as_long_as_is_predicted() {
    let matrix = synthetic::matrix(Shape { users: 1000, items: 8000, events: 50_000 }, 1).unwrap();
    let (config, carriers) = (config(&[128]), vec![options().carriers[0]]);
    let options = measured::Options { carriers, batch: 64, steps: 4, rounds: 7, ..options() };
    let mut tried = Vec::new();
    for _ in 0..5 {
        let figures = measured::run(&config, &matrix, &options).unwrap();
        let off: Vec<f64> = figures.steps.iter().map(|step| step.seconds.median / step.predicted.seconds).collect();
        if off.iter().all(|off| (BAND.recip()..BAND).contains(off)) {
            return;
        }
        tried.push(off);
    }
    panic!("measured by predicted, for 1, 2 and 4 members: {tried:?}");
}

/// All of the bench at a size that takes no time.
#[test]
fn the_bench_of_scaling() {
    let figures = measured::run(&config(&[24]), &data(), &options()).unwrap();
    assert_eq!(figures.sums.iter().map(|sum| sum.members).collect::<Vec<_>>(), [2, 2, 4, 4, 2, 2, 4, 4]);
    let members: Vec<_> = figures.steps.iter().map(|step| (step.members, step.threads)).collect();
    assert_eq!(members, [(1, 2), (2, 1), (4, 1)]);
    assert!(figures.steps.iter().all(|step| step.seconds.median > 0.0 && step.predicted.seconds > 0.0));
    assert!(figures.to_string().contains("predicted"));
    let way = measured::between_threads().unwrap();
    assert!(way.rate > 0.0 && way.latency > 0.0);
}
