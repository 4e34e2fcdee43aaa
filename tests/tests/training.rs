//! Training as a whole: it finds what is planted, repeats itself, goes on where it stopped, and ends
//! when it should.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use vaecf_core::{
    backend::{self, Backend, Buf, Curve, Host, HostMut, Info, Role, Rows},
    config::{Member, ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    evaluate::{Judge, Options},
    forward_backend,
    math::Real,
    matrix::Matrix,
    metrics::Metric,
    model::Model,
    popularity::Popularity,
    recommend::{Catalogue, Recommender},
    trainer::{Ending, EpochReport, Observer, Pace, Placement, Plan, Snapshot, Trainer},
};
use vaecf_cpu::Cpu;
use vaecf_tests::{Narrow, Recorded, planted};

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
    let plan = Plan::new(&device, &config, &quick(), &data, Placement::Auto).unwrap();
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

/// What a device was asked for.
#[derive(Debug, Default)]
struct Told {
    /// Bytes of the live buffers of indices and values.
    live: HashMap<Buf, (Role, u64)>,
    /// Allocations and frees, and the steps after which they happened.
    changes: Vec<u32>,
    /// Updates so far.
    steps: u32,
    /// Calls that wait.
    waits: u32,
    /// Row starts that a step read, in turn, and where rows were uploaded to.
    calls: Vec<(bool, Buf)>,
}

/// A device of its own memory, that captures nothing and writes down what it is asked for.
struct Witness {
    inner: Cpu<f32>,
    memory: Option<u64>,
    told: Arc<Mutex<Told>>,
}

impl Witness {
    fn device(memory: Option<u64>) -> (Device, Arc<Mutex<Told>>) {
        let told = Arc::new(Mutex::new(Told::default()));
        let inner = Cpu::new(Some(1)).unwrap();
        (Device::new(Box::new(Self { inner, memory, told: Arc::clone(&told) })), told)
    }
}

impl Backend for Witness {
    forward_backend! { self, self.inner;
        linear linear_grad_weight linear_grad_input encode_sparse_grad
        sample_latent sample_latent_grad likelihood top_k logits_rows scratch decode_loss_grad recommend
    }

    fn info(&self) -> Info {
        Info { memory: self.memory, host_memory: false, ..self.inner.info() }
    }

    fn alloc(&mut self, role: Role, len: u64) -> backend::Result<Buf> {
        let buf = self.inner.alloc(role, len)?;
        let mut told = self.told.lock().unwrap();
        let step = told.steps;
        told.changes.push(step);
        told.live.insert(buf, (role, 4 * len));
        Ok(buf)
    }

    fn free(&mut self, buf: Buf) {
        let mut told = self.told.lock().unwrap();
        let step = told.steps;
        told.changes.push(step);
        told.live.remove(&buf);
        self.inner.free(buf);
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> backend::Result {
        self.told.lock().unwrap().waits += 1;
        self.inner.download(src, at, dst)
    }

    fn sync(&mut self) -> backend::Result {
        self.told.lock().unwrap().waits += 1;
        self.inner.sync()
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> backend::Result {
        if matches!(src, Host::U32(_)) {
            self.told.lock().unwrap().calls.push((false, dst));
        }
        self.inner.upload(dst, at, src)
    }

    fn encode_sparse(
        &mut self,
        x: Rows,
        w: backend::Mat,
        b: backend::Mat,
        curve: Curve,
        noise: backend::Noise,
        step: Buf,
        y: backend::Mat,
    ) -> backend::Result {
        self.told.lock().unwrap().calls.push((true, x.indptr));
        self.inner.encode_sparse(x, w, b, curve, noise, step, y)
    }

    fn adam(
        &mut self,
        w: Buf,
        dw: Buf,
        m: Buf,
        v: Buf,
        len: u64,
        decayed: u64,
        step: Buf,
        scale: Buf,
    ) -> backend::Result {
        self.told.lock().unwrap().steps += 1;
        self.inner.adam(w, dw, m, v, len, decayed, step, scale)
    }
}

/// Circles in which some users have many events, some none, and all of them weights where that is asked for.
fn uneven(circles: u32, weights: bool) -> Dataset {
    let data = planted::circles(circles, 5).unwrap();
    let items = data.train.items();
    let rows = (0..data.train.users()).map(|user| {
        let row: Vec<(u32, f32)> = match user % 7 {
            3 => Vec::new(),
            5 => (0..items).map(|item| (item, 0.5)).collect(),
            _ => data.train.row(user).iter().map(|&item| (item, 0.25 + f32::from(u8::from(item % 2 == 0)))).collect(),
        };
        row
    });
    Dataset { train: Matrix::from_pairs(items, rows, weights).unwrap(), ..data }
}

/// The bytes of the smallest halves through which batches can pass, from what is said where they are smaller.
fn least(train: &TrainConfig, data: &Dataset) -> u64 {
    let placement = Placement::Streamed { bytes: 0 };
    let error = Plan::new(&device::<f32>(1), &small(Member::MultVae), train, data, placement).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("allow as many, or use a smaller batch"), "{text}");
    let words: Vec<_> = text.split(' ').collect();
    words[words.iter().position(|word| *word == "take").unwrap() + 1].parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Data that pass through the device give the bits of data that lie there: weights, moments, losses, best weights;
    /// also in a run that goes on in the middle of an epoch, under the one or the other.
    #[test]
    fn a_streamed_run_is_the_resident_one(
        member in proptest::sample::select(Member::ALL.to_vec()),
        weights in any::<bool>(),
        batch in 1_u32..90,
        room in 0_u64..2500,
        stop_before in 0_u32..30,
        resident_first in any::<bool>(),
    ) {
        let weights = weights && member != Member::LogisticVae;
        let data = uneven(4, weights);
        let train = TrainConfig { batch, epochs: 4, validate_every: 2, ..quick() };
        let config = small(member);
        let streamed = Placement::Streamed { bytes: least(&train, &data) + room };
        let run_on = |device: Device, placement, snapshot, stop_before| {
            let mut watch = Watch { stop_before, ..Watch::default() };
            let mut trainer = Trainer::placed(&device, &config, &train, &data, placement, snapshot).unwrap();
            trainer.run(&mut watch).unwrap();
            watch.last.unwrap()
        };
        let run = |placement, snapshot, stop_before| run_on(device::<f32>(1), placement, snapshot, stop_before);
        let whole = run(Placement::Resident, None, None);
        prop_assert_eq!(&run(streamed, None, None), &whole);
        // Steps are captured for each set, and for each size of batch.
        let captures = Device::new(Box::new(Recorded::new(Cpu::<f32>::new(Some(1)).unwrap())));
        prop_assert_eq!(&run_on(captures, streamed, None, None), &whole);
        let (first, second) =
            if resident_first { (Placement::Resident, streamed) } else { (streamed, Placement::Resident) };
        let stopped = run(first, None, Some(stop_before));
        prop_assert_eq!(&run(second, Some(stopped.clone()), None), &whole);
        prop_assert_eq!(&run(streamed, Some(stopped), None), &whole);
    }
}

/// A device whose lists are short, and that says so where it is asked for a longer one.
struct Short {
    inner: Cpu<f32>,
    longest: u64,
}

impl Short {
    fn device(longest: u64) -> Device {
        Device::new(Box::new(Self { inner: Cpu::new(Some(1)).unwrap(), longest }))
    }
}

impl Backend for Short {
    forward_backend! { self, self.inner;
        info free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k logits_rows scratch decode_loss_grad recommend
    }

    fn longest_list(&self) -> u64 {
        self.longest
    }

    fn alloc(&mut self, role: Role, len: u64) -> backend::Result<Buf> {
        assert!(!matches!(role, Role::Index | Role::Value) || len <= self.longest, "a {role:?} of {len} is asked for");
        self.inner.alloc(role, len)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// On a device of short lists a run gives the bits of one on any other, and so do metrics and recommendations;
    /// where that cannot be, it is refused in words before anything is allocated that is too long.
    #[test]
    fn short_lists_change_nothing_or_are_a_sentence(
        member in proptest::sample::select(Member::ALL.to_vec()),
        weights in any::<bool>(),
        batch in 1_u32..30,
        longest in 1_u64..250,
        k in 1_u32..10,
        denied in 0_u32..10,
    ) {
        let data = uneven(4, weights && member != Member::LogisticVae);
        let train = TrainConfig { batch, epochs: 2, ..quick() };
        let (config, popularity) = (small(member), Popularity::of(&data.train));
        let mut rows: Vec<u64> = data.train.rows().map(|(row, _)| row.len() as u64).collect();
        rows.sort_unstable_by_key(|&events| std::cmp::Reverse(events));
        let histories = data.validation.as_ref().unwrap().history.events();
        let enough = rows.iter().take(batch as usize).sum::<u64>().max(2 * rows.len() as u64).max(histories);
        let refused = |error: vaecf_core::Error| {
            let text = error.to_string();
            text.contains(&format!(" {longest}")) || text.contains(&format!("the limit is {}", longest / 2))
        };
        let run = |device: &Device, placement| -> vaecf_core::Result<_> {
            let mut trainer = Trainer::placed(device, &config, &train, &data, placement, None)?;
            trainer.run(&mut ())?;
            trainer.snapshot()
        };
        let (any, short) = (device::<f32>(1), Short::device(longest));
        let whole = run(&any, Placement::Resident).unwrap();
        for (placement, fits) in [(Placement::Auto, true), (Placement::Resident, data.train.events() <= longest)] {
            match run(&short, placement) {
                Ok(snapshot) => prop_assert!(snapshot == whole && fits),
                Err(error) => {
                    prop_assert!(!fits || longest < enough, "{} are enough: {}", longest, error);
                    prop_assert!(refused(error));
                }
            }
        }

        let elsewhere = Model::load(&short, &config, data.train.items(), &whole.weights).unwrap();
        let here = Model::load(&any, &config, data.train.items(), &whole.weights).unwrap();
        let metrics = ["ndcg@10".parse().unwrap(), "recall@1".parse().unwrap()];
        let judged = |model| {
            let judge = Judge::new(model, data.test.as_ref().unwrap(), &popularity, &metrics, Options::default())?;
            judge.evaluate(model)
        };
        match judged(&elsewhere) {
            Ok(found) => prop_assert_eq!(format!("{found:?}"), format!("{:?}", judged(&here).unwrap())),
            Err(error) => prop_assert!(longest < histories && refused(error)),
        }
        let catalogue = Catalogue::new(data.train.items(), None, &(0..denied).collect::<Vec<_>>());
        let recommended = |model| {
            Recommender::new(model, &popularity, catalogue.clone(), true, k, batch)?.recommend(&data.train)
        };
        match recommended(&elsewhere) {
            Ok(found) => prop_assert_eq!(found, recommended(&here).unwrap()),
            Err(error) => {
                prop_assert!(longest < rows[0] + u64::from(denied.max(batch + 1)), "{} are enough: {}", longest, error);
                prop_assert!(refused(error));
            }
        }
    }
}

#[test]
fn streaming_keeps_to_its_bytes_allocates_nothing_on_the_way_and_uploads_ahead() {
    let data = uneven(12, true);
    let train = TrainConfig { batch: 2, epochs: 3, ..quick() };
    let bytes = least(&train, &data) + 300;
    let (device, told) = Witness::device(None);
    let placement = Placement::Streamed { bytes };
    let config = small(Member::MultVae);
    let plan = Plan::new(&device, &config, &train, &data, placement).unwrap();
    let resident = Plan::new(&device, &config, &train, &data, Placement::Resident).unwrap();
    assert!(plan.streamed.is_some_and(|streamed| streamed <= bytes) && resident.streamed.is_none());
    // The chunks are a fraction of the data: else nothing is shown here.
    assert!(data.train.events() * 8 > bytes, "{bytes} bytes for {} events", data.train.events());
    let unvalidated = Dataset { validation: None, ..data.clone() };
    let mut trainer = Trainer::placed(&device, &config, &train, &unvalidated, placement, None).unwrap();
    let of = |told: &Told, roles: &[Role]| -> u64 {
        told.live.values().filter(|(role, _)| roles.contains(role)).map(|(_, bytes)| bytes).sum()
    };
    // Of indices and values there are, beside the data, the two halves of order and losses.
    let users = u64::from(data.train.users());
    assert_eq!(of(&told.lock().unwrap(), &[Role::Index, Role::Value]) - 2 * users * 12, plan.streamed.unwrap());
    told.lock().unwrap().calls.clear();
    trainer.run(&mut ()).unwrap();
    let told = told.lock().unwrap();
    // Both losses and the scale after each epoch, the last checkpoint, and a look four times a second.
    assert!(told.steps == 126 && told.waits < told.steps / 3, "{} waits in {} steps", told.waits, told.steps);
    assert_eq!(told.changes.iter().filter(|&&step| step > 0).count(), 0, "{:?}", told.changes);
    // Each set is filled before the first step on the other one, so that both can go on at once.
    let mut steps = told.calls.iter().enumerate().filter(|(_, (step, _))| *step);
    let (mut turns, mut now) = (0, steps.next().unwrap().1.1);
    for (at, &(_, set)) in steps {
        if set != now {
            let since = told.calls[..at].iter().rev().take_while(|(step, _)| !step);
            let filled: Vec<Buf> = since.map(|(_, buf)| *buf).collect();
            // After the last chunk of the last epoch nothing comes.
            let next = filled.contains(&now) || (filled.is_empty() && !told.calls[at..].iter().any(|(step, _)| !step));
            assert!(next, "the other set is filled as this one begins");
            assert!(!filled.contains(&set), "a set is filled before it is computed on, not as it begins");
            (turns, now) = (turns + 1, set);
        }
    }
    assert!(turns > 10, "{turns} turns");
}

#[test]
fn the_loss_scale_is_told_where_there_is_one() {
    let data = planted::circles(4, 5).unwrap();
    let told = |backend: Box<dyn Backend>| {
        let (mut watch, train) = (Watch::default(), TrainConfig { epochs: 2, ..quick() });
        Trainer::new(&Device::new(backend), &small(Member::MultVae), &train, &data, None)
            .unwrap()
            .run(&mut watch)
            .unwrap();
        watch.epochs.last().map(|report| (report.loss_scale, report.skipped)).unwrap()
    };
    let plain = || Cpu::<f32>::new(Some(1)).unwrap();
    assert_eq!(told(Box::new(plain())), (None, 0));
    let (scale, skipped) = told(Box::new(Narrow::f16(plain())));
    assert_eq!(scale, Some(65_536.0 / 2_f32.powi(skipped as i32)));
}

#[test]
fn what_the_device_has_decides_whether_data_are_streamed() {
    let data = uneven(12, false);
    let (config, train) = (small(Member::MultVae), TrainConfig { batch: 4, ..quick() });
    let plan = |memory| Plan::new(&Witness::device(memory).0, &config, &train, &data, Placement::Auto).unwrap();
    let whole = plan(None);
    // An eighth of what the model leaves is kept free.
    assert_eq!(plan(Some(whole.total() + whole.data / 4)).streamed, None);
    assert!(plan(Some(whole.total() + whole.data / 16)).streamed.is_some());
    let tight = plan(Some(whole.total() - 1));
    assert!(tight.streamed.is_some() && tight.total() < whole.total() && tight.check().is_ok(), "{tight:?}");
    // Too little for any chunk: refused, with what is missing.
    let error = plan(Some(whole.total() / 2)).check().err().unwrap();
    assert!(error.to_string().contains("are free"), "{error}");
    // A host that computes in its own memory gains nothing.
    let on_host = Plan::new(&device::<f32>(1), &config, &train, &data, Placement::Auto).unwrap();
    assert_eq!(on_host.streamed, None);
}
