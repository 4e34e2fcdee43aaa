//! Training as a whole: it finds what is planted, repeats itself, goes on where it stopped, and ends
//! when it should.

use proptest::prelude::*;
use vaecf_core::{
    backend::Curve,
    config::{Member, ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    evaluate::{Judge, Options},
    math::Real,
    metrics::Metric,
    popularity::Popularity,
    trainer::{Ending, EpochReport, Observer, Pace, Plan, Snapshot, Trainer},
};
use vaecf_cpu::Cpu;
use vaecf_tests::planted;

fn device<T: Real>(threads: usize) -> Device {
    Device::new(Box::new(Cpu::<T>::new(Some(threads)).unwrap()))
}

fn small(member: Member) -> ModelConfig {
    let hidden = if member.is_variational() { vec![24] } else { vec![] };
    ModelConfig { hidden, latent: 12, ..ModelConfig::of(member) }
}

fn quick() -> TrainConfig {
    TrainConfig {
        batch: 32,
        epochs: 60,
        lr: 1e-2,
        dropout: 0.2,
        kl_cap: 0.01,
        kl_steps: 0.0,
        metric: "recall@1".into(),
        ..TrainConfig::paper()
    }
}

/// Keeps the last checkpoint, stops before a given batch, and remembers what it was told.
#[derive(Default)]
struct Watch {
    stop_before: Option<u32>,
    batches: u32,
    epochs: Vec<EpochReport>,
    last: Option<Snapshot>,
}

impl Observer for Watch {
    fn pace(&mut self, pace: &Pace) {
        assert!(pace.users <= pace.of_users && pace.loss.is_finite());
    }
    fn epoch(&mut self, report: &EpochReport) {
        self.epochs.push(*report);
    }
    fn checkpoint(&mut self, snapshot: &Snapshot) -> vaecf_core::Result<()> {
        self.last = Some(snapshot.clone());
        Ok(())
    }
    fn stop(&mut self) -> bool {
        self.batches += 1;
        self.stop_before.is_some_and(|at| self.batches > at)
    }
}

fn finds_what_is_planted<T: Real>(member: Member) {
    let data = planted::circles(6, 5).unwrap();
    let mut trainer = Trainer::new(&device::<T>(2), &small(member), &quick(), &data, None).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), Ending::Complete);
    let model = trainer.into_best().unwrap();
    let metric: Metric = "recall@1".parse().unwrap();
    let test = data.test.as_ref().unwrap();
    let judge = Judge::new(&model, test, &Popularity::of(&data.train), &[metric], Options::default()).unwrap();
    let found = judge.evaluate(&model).unwrap();
    assert_eq!(found.users_scored, 30);
    assert_eq!(found.value(metric), Some(1.0), "{} of {:?}", member.name(), T::MASTER);
    // Popularity cannot know: every item is as popular as any other.
    assert!(judge.baseline().unwrap().value(metric).unwrap() < 0.5);
}

#[test]
fn every_member_finds_what_is_planted() {
    for member in Member::ALL {
        finds_what_is_planted::<f32>(member);
        finds_what_is_planted::<f64>(member);
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads_and_another_seed_does_not() {
    let data = planted::circles(4, 5).unwrap();
    let run = |seed, threads| {
        let train = TrainConfig { epochs: 5, seed, ..quick() };
        let mut trainer = Trainer::new(&device::<f32>(threads), &small(Member::MultVae), &train, &data, None).unwrap();
        trainer.run(&mut ()).unwrap();
        trainer.snapshot().unwrap()
    };
    assert_eq!(run(1, 1), run(1, 1));
    assert_eq!(run(1, 1), run(1, 2));
    assert_ne!(run(1, 1).weights, run(2, 1).weights);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A run stopped before any batch, once or twice, and taken up again on a new device ends with the
    /// bits of one that never stopped: weights, moments, best weights, figures.
    #[test]
    fn a_resumed_run_equals_the_uninterrupted_one(
        member in proptest::sample::select(Member::ALL.to_vec()),
        first in 0_u32..20,
        second in 0_u32..20,
        batch in 7_u32..40,
    ) {
        let data = planted::circles(4, 4).unwrap();
        let train = TrainConfig { batch, epochs: 6, validate_every: 2, ..quick() };
        let config = small(member);
        let whole = {
            let mut trainer = Trainer::new(&device::<f32>(1), &config, &train, &data, None).unwrap();
            trainer.run(&mut ()).unwrap();
            trainer.snapshot().unwrap()
        };
        let mut kept = None;
        for stop_before in [Some(first), Some(second), None] {
            let mut trainer = Trainer::new(&device::<f32>(1), &config, &train, &data, kept.take()).unwrap();
            let mut watch = Watch { stop_before, ..Watch::default() };
            trainer.run(&mut watch).unwrap();
            kept = watch.last;
        }
        prop_assert_eq!(kept.unwrap(), whole);
    }
}

#[test]
fn patience_ends_a_run_that_no_longer_improves() {
    let data = planted::circles(3, 4).unwrap();
    let train = TrainConfig { epochs: 500, patience: 4, ..quick() };
    let mut watch = Watch::default();
    let mut trainer = Trainer::new(&device::<f32>(1), &small(Member::MultDae), &train, &data, None).unwrap();
    assert_eq!(trainer.run(&mut watch).unwrap(), Ending::EarlyStop);
    let best = watch.epochs.iter().rposition(|e| e.is_best).unwrap();
    assert_eq!(watch.epochs.len() - best - 1, 4);
    assert_eq!(trainer.progress().best.unwrap().epoch as usize, best + 1);
}

#[test]
fn losses_fall_and_are_the_mean_over_all_users() {
    let data = planted::circles(5, 4).unwrap();
    let train = TrainConfig { batch: 13, epochs: 30, ..quick() };
    let mut watch = Watch::default();
    let mut trainer = Trainer::new(&device::<f64>(1), &small(Member::MultVae), &train, &data, None).unwrap();
    trainer.run(&mut watch).unwrap();
    let (first, last) = (watch.epochs[0], watch.epochs[29]);
    // Before anything is learned every item is as likely: the loss is events times log(items).
    let events = data.train.events() as f64 / f64::from(data.train.users());
    assert!((0.8..1.1).contains(&(first.nll / (events * 20_f64.ln()))), "{}", first.nll);
    assert!(last.nll < 0.8 * first.nll);
    // The last short batch is trained on: 30 users in batches of 13 are three updates.
    assert_eq!(first.update, data.train.users().div_ceil(13));
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_it_starts() {
    let data = planted::circles(4, 5).unwrap();
    let config = ModelConfig { hidden: vec![1 << 20, 1 << 20], ..ModelConfig::of(Member::MultVae) };
    let device = device::<f32>(1);
    let plan = Plan::new(&device, &config, &quick(), &data).unwrap();
    assert!(plan.total() > 16 << 40, "{plan:?}");
    let error = Trainer::new(&device, &config, &quick(), &data, None).err().unwrap();
    assert_eq!(error.kind(), vaecf_core::Kind::Device);
    assert!(error.to_string().contains("GiB are free"), "{error}");
}

#[test]
fn a_diverging_run_says_so() {
    let data = planted::circles(4, 5).unwrap();
    let train = TrainConfig { lr: 1e30, epochs: 50, ..quick() };
    let config = ModelConfig { curve: Curve::Relu, ..small(Member::GaussianVae) };
    let mut trainer = Trainer::new(&device::<f32>(1), &config, &train, &data, None).unwrap();
    let error = trainer.run(&mut ()).err().unwrap();
    assert!(error.to_string().contains("smaller learning rate"), "{error}");
}

/// What is an error is to be small: the epoch is chosen by the smallest.
#[test]
fn a_metric_that_is_better_when_smaller_chooses_the_smallest() {
    let data = planted::circles(4, 5).unwrap();
    let train = TrainConfig { metric: "rmse".into(), epochs: 12, ..quick() };
    let mut watch = Watch::default();
    let mut trainer = Trainer::new(&device::<f32>(1), &small(Member::GaussianVae), &train, &data, None).unwrap();
    trainer.run(&mut watch).unwrap();
    let values: Vec<f64> = watch.epochs.iter().filter_map(|report| Some(report.validation?.value)).collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(values.len() == 12 && values[0] > least, "{values:?}");
    assert_eq!(trainer.progress().best.map(|best| best.value), Some(least));
}

#[test]
fn an_empty_training_part_and_weights_above_one_for_the_logistic_member_are_refused() {
    let data = planted::circles(3, 4).unwrap();
    let empty = Dataset { train: vaecf_core::matrix::Matrix::from_rows(12, [[0_u32; 0]; 3]).unwrap(), ..data.clone() };
    let error = Trainer::new(&device::<f32>(1), &small(Member::MultVae), &quick(), &empty, None).err().unwrap();
    assert!(error.to_string().contains("empty"), "{error}");
    let train = vaecf_core::matrix::Matrix::new(12, vec![0, 1], vec![3], Some(vec![2.0].into())).unwrap();
    let heavy = Dataset { train, ..data };
    let error = Trainer::new(&device::<f32>(1), &small(Member::LogisticVae), &quick(), &heavy, None).err().unwrap();
    assert!(error.to_string().contains("between 0 and 1"), "{error}");
}
