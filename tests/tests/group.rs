//! Several members compute the run of one: losses, weights, figures and rankings, on any way between them.

use std::{thread, time::Duration};

use proptest::prelude::*;
use vaecf_core::{
    Result,
    backend::Backend,
    config::{Member, ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    evaluate::{Judge, Options},
    group::{Group, threads},
    math::Real,
    metrics::Metric,
    popularity::Popularity,
    tensors::Values,
    trainer::{Ending, EpochReport, Observer, Placement, Snapshot, Trainer},
};
use vaecf_cpu::Cpu;
use vaecf_tests::{
    Narrow, Recorded,
    compare::{Float, Tolerance, compare},
    planted,
};

/// Longer than any test here waits for anything that comes.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a member's part on a thread for each, in the order of ranks.
fn each<R: Send>(world: u32, limit: Duration, member: impl Fn(Group) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let member = &member;
        let running: Vec<_> =
            threads(world, limit).into_iter().map(|group| scope.spawn(move || member(group))).collect();
        running.into_iter().map(|thread| thread.join().expect("a member that ends")).collect()
    })
}

fn model(member: Member) -> ModelConfig {
    let hidden = if member.is_variational() { vec![10] } else { vec![] };
    ModelConfig { hidden, latent: 6, ..ModelConfig::of(member) }
}

fn config(batch: u32) -> TrainConfig {
    TrainConfig {
        batch,
        epochs: 3,
        lr: 1e-2,
        kl_cap: 0.1,
        kl_steps: 20.0,
        l2: 1e-3,
        metric: "ndcg@10".into(),
        ..TrainConfig::paper()
    }
}

/// What a member came to.
struct Outcome {
    epochs: Vec<EpochReport>,
    last: Option<Snapshot>,
    /// The state at its end, of every member.
    state: Snapshot,
    /// As it is written.
    evaluation: String,
}

#[derive(Default)]
struct Watch {
    epochs: Vec<EpochReport>,
    last: Option<Snapshot>,
    /// Asked so often, it wants to stop.
    stop_at: Option<u32>,
    asked: u32,
}

impl Observer for Watch {
    fn epoch(&mut self, report: &EpochReport) {
        self.epochs.push(*report);
    }
    fn checkpoint(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.last = Some(snapshot.clone());
        Ok(())
    }
    fn stop(&mut self) -> bool {
        self.asked += 1;
        self.stop_at.is_some_and(|at| self.asked > at)
    }
}

/// A member's run, and what the model is worth after it.
fn trained(
    group: Group,
    backend: Box<dyn Backend>,
    model: &ModelConfig,
    config: &TrainConfig,
    data: &Dataset,
    placement: Placement,
    from: Option<Snapshot>,
) -> Result<Outcome> {
    let device = Device::in_group(backend, group.clone(), false)?;
    let mut trainer = Trainer::placed(&device, model, config, data, placement, from)?;
    let mut watch = Watch::default();
    assert_eq!(trainer.run(&mut watch)?, Ending::Complete);
    let state = trainer.snapshot()?;
    let model = trainer.into_best()?;
    let test = data.test.as_ref().expect("a test part");
    let metrics: Vec<Metric> = ["ndcg@10", "recall@5", "coverage@5"].map(|name| name.parse().unwrap()).to_vec();
    let options = Options { batch: 7, keep_values: true, ..Options::default() };
    let judge = Judge::new(&model, test, &Popularity::of(&data.train), &metrics, options)?;
    let evaluation = serde_json::to_string(&judge.evaluate(&model)?).unwrap();
    group.leave()?;
    Ok(Outcome { epochs: watch.epochs, last: watch.last, state, evaluation })
}

fn cpu<T: Real>() -> Box<dyn Backend> {
    Box::new(Cpu::<T>::new(Some(1)).unwrap())
}

fn run(
    world: u32,
    backend: impl Fn() -> Box<dyn Backend> + Sync,
    model: &ModelConfig,
    config: &TrainConfig,
    data: &Dataset,
    placement: Placement,
) -> Vec<Outcome> {
    each(world, LIMIT, |group| trained(group, backend(), model, config, data, placement, None).unwrap())
}

/// All weights as one row of numbers.
fn weights(state: &Snapshot) -> Vec<f64> {
    let wide = |values: &Values| match values {
        Values::F32(values) => values.iter().map(|&x| x.into()).collect(),
        Values::F64(values) => values.clone(),
    };
    state.weights.0.values().flat_map(|tensor| wide(&tensor.values)).collect()
}

/// Members have one and the same state, and it is that of a run of one member, to rounding: Adam makes much of what is
/// next to nothing, so double precision agrees to single and single to half. A share that is lost or counted twice is
/// off by far more.
fn is_the_run_of_one(one: &Outcome, many: &[Outcome]) {
    let root = &many[0];
    for member in &many[1..] {
        assert!(member.state.weights == root.state.weights && member.state.moments == root.state.moments);
        assert_eq!(member.state.progress, root.state.progress);
        assert_eq!(member.evaluation, root.evaluation);
        assert!(member.epochs.is_empty() && member.last.is_none(), "only the root is shown anything");
    }
    assert_eq!(root.last.as_ref().map(|last| &last.weights), Some(&root.state.weights));
    assert_eq!(root.epochs.len(), one.epochs.len());
    let double = root.state.weights.0.values().all(|tensor| matches!(tensor.values, Values::F64(_)));
    let float = if double { Float::F32 } else { Float::F16 };
    let close = |a: &[f64], b: &[f64]| {
        let tolerance = Tolerance::new(float, float).magnitude(b.iter().map(|x| x.abs() + 1.0).collect::<Vec<_>>());
        compare(a.to_vec().as_slice(), b, &tolerance).unwrap();
    };
    for (a, b) in root.epochs.iter().zip(&one.epochs) {
        close(&[a.nll, a.kl, a.kl_weight], &[b.nll, b.kl, b.kl_weight]);
        assert_eq!((a.update, a.skipped), (b.update, b.skipped));
    }
    if double {
        close(&weights(&root.state), &weights(&one.state));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any number of members, batches that do not divide, fewer users than members; also when the data pass through
    /// in chunks.
    #[test]
    fn many_members_compute_the_run_of_one(
        member in proptest::sample::select(Member::ALL.to_vec()),
        world in 2..=4_u32,
        batch in 1..=40_u32,
        users in 5..=60_u32,
        streamed in any::<bool>(),
    ) {
        let data = planted::tastes(u64::from(users), users, 21, 4).unwrap();
        prop_assume!(data.train.events() > 0 && data.validation.as_ref().is_some_and(|part| part.target.events() > 0));
        let (model, config) = (model(member), config(batch));
        let placement = if streamed { Placement::Streamed { bytes: 1 << 13 } } else { Placement::Auto };
        let one = run(1, cpu::<f64>, &model, &config, &data, Placement::Auto);
        let many = run(world, cpu::<f64>, &model, &config, &data, placement);
        is_the_run_of_one(&one[0], &many);
    }
}

#[test]
fn every_precision_and_a_device_that_captures_compute_the_run_of_one() {
    let data = planted::tastes(3, 90, 33, 4).unwrap();
    let (model, config) = (model(Member::MultVae), config(25));
    let f32s: fn() -> Box<dyn Backend> = cpu::<f32>;
    let half: fn() -> Box<dyn Backend> = || Box::new(Narrow::f16(Cpu::<f32>::new(Some(1)).unwrap()));
    let recorded: fn() -> Box<dyn Backend> = || Box::new(Recorded::new(Cpu::<f32>::new(Some(1)).unwrap()));
    for backend in [f32s, half, recorded] {
        let one = run(1, backend, &model, &config, &data, Placement::Auto);
        for world in 2..=4 {
            is_the_run_of_one(&one[0], &run(world, backend, &model, &config, &data, Placement::Auto));
        }
    }
}
