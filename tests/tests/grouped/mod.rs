//! Runs of several members, each on a thread of its own, and how they are compared with the run of one.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::{thread, time::Duration};

use vaecf_core::{
    Result,
    backend::Backend,
    config::{Member, ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    evaluate::{Judge, Options},
    group::{Group, threads},
    metrics::Metric,
    popularity::Popularity,
    tensors::Values,
    trainer::{Ending, EpochReport, Observer, Placement, Snapshot, Trainer},
};
use vaecf_tests::compare::{Float, Tolerance, compare};

/// Longer than any test here waits for anything that comes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs a member's part on a thread for each, in the order of ranks.
pub(crate) fn each<R: Send>(world: u32, limit: Duration, member: impl Fn(Group) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let member = &member;
        let running: Vec<_> =
            threads(world, limit).into_iter().map(|group| scope.spawn(move || member(group))).collect();
        running.into_iter().map(|thread| thread.join().expect("a member that ends")).collect()
    })
}

pub(crate) fn model(member: Member) -> ModelConfig {
    let hidden = if member.is_variational() { vec![10] } else { vec![] };
    ModelConfig { hidden, latent: 6, ..ModelConfig::of(member) }
}

pub(crate) fn config(batch: u32) -> TrainConfig {
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
pub(crate) struct Outcome {
    pub(crate) epochs: Vec<EpochReport>,
    pub(crate) last: Option<Snapshot>,
    /// The state at its end, of every member.
    pub(crate) state: Snapshot,
    /// As it is written.
    pub(crate) evaluation: String,
}

#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) epochs: Vec<EpochReport>,
    pub(crate) last: Option<Snapshot>,
    /// Asked so often, it wants to stop.
    pub(crate) stop_at: Option<u32>,
    pub(crate) asked: u32,
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
pub(crate) fn trained(
    device: &Device,
    model: &ModelConfig,
    config: &TrainConfig,
    data: &Dataset,
    placement: Placement,
    from: Option<Snapshot>,
) -> Result<Outcome> {
    let mut trainer = Trainer::placed(device, model, config, data, placement, from)?;
    let mut watch = Watch::default();
    assert_eq!(trainer.run(&mut watch)?, Ending::Complete);
    let state = trainer.snapshot()?;
    let model = trainer.into_best()?;
    let test = data.test.as_ref().expect("a test part");
    let metrics: Vec<Metric> = ["ndcg@10", "recall@5", "coverage@5"].map(|name| name.parse().unwrap()).to_vec();
    let options = Options { batch: 7, keep_values: true, ..Options::default() };
    let judge = Judge::new(&model, test, &Popularity::of(&data.train), &metrics, options)?;
    let evaluation = serde_json::to_string(&judge.evaluate(&model)?).unwrap();
    device.group().clone().leave()?;
    Ok(Outcome { epochs: watch.epochs, last: watch.last, state, evaluation })
}

/// Runs of as many members, whose sums the hosts make where their backends do not.
pub(crate) fn run(
    world: u32,
    backend: impl Fn() -> Box<dyn Backend> + Sync,
    model: &ModelConfig,
    config: &TrainConfig,
    data: &Dataset,
    placement: Placement,
) -> Vec<Outcome> {
    each(world, LIMIT, |group| {
        let device = Device::in_group(backend(), group, false).unwrap();
        trained(&device, model, config, data, placement, None).unwrap()
    })
}

/// All weights as one row of numbers.
pub(crate) fn weights(state: &Snapshot) -> Vec<f64> {
    let wide = |values: &Values| match values {
        Values::F32(values) => values.iter().map(|&x| x.into()).collect(),
        Values::F64(values) => values.clone(),
    };
    state.weights.0.values().flat_map(|tensor| wide(&tensor.values)).collect()
}

/// Members have one and the same state, and it is that of a run of one member, to rounding: Adam makes much of what is
/// next to nothing, so double precision agrees to single and single to half. A share that is lost or counted twice is
/// off by far more.
pub(crate) fn is_the_run_of_one(one: &Outcome, many: &[Outcome]) {
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
