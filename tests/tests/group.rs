//! Several members compute the run of one: losses, weights, figures and rankings, on any way between them.

mod grouped;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use grouped::{LIMIT, Watch, config, each, is_the_run_of_one, model, run, trained, weights};
use proptest::prelude::*;
use vaecf_core::{
    Error, Result,
    backend::{self, Backend, Buf, Curve, Fault, Mat, Noise, Rows},
    config::{LrScaling, Member, TrainConfig},
    dataset::Dataset,
    device::Device,
    evaluate::{Judge, Options},
    forward_backend,
    group::{Group, share},
    math::Real,
    matrix::Matrix,
    metrics::Metric,
    model::Model,
    popularity::Popularity,
    random::{Generator, stream},
    recommend::{Catalogue, Recommender},
    schedule,
    trainer::{Ending, Placement, Snapshot, Trainer},
};
use vaecf_cpu::Cpu;
use vaecf_tests::{
    Narrow, Recorded,
    compare::{Float, Tolerance, compare},
    planted,
};

fn cpu<T: Real>() -> Box<dyn Backend> {
    Box::new(Cpu::<T>::new(Some(1)).unwrap())
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

/// Some members have nothing to do at all, and nobody waits for them.
#[test]
fn fewer_users_than_members_compute_the_run_of_one() {
    let mut tried = 0;
    for (seed, users) in (1..9).flat_map(|seed| (5..8).map(move |users| (seed, users))) {
        let data = planted::tastes(seed, users, 21, 4).unwrap();
        let parts = [&data.validation, &data.test];
        if data.train.users() >= 6 || parts.iter().any(|part| part.as_ref().unwrap().target.events() == 0) {
            continue;
        }
        for batch in [1, 2, 100] {
            let (model, config) = (model(Member::MultVae), config(batch));
            let one = run(1, cpu::<f64>, &model, &config, &data, Placement::Auto);
            is_the_run_of_one(&one[0], &run(6, cpu::<f64>, &model, &config, &data, Placement::Auto));
            tried += 1;
        }
    }
    assert!(tried >= 9, "{tried}");
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

/// What may go wrong in one member's part.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// Its share is not in a sum.
    Lost,
    /// It learns more than the others.
    Drifts,
    /// Its noise is not that of the run.
    Noise,
}

struct Faulty(Cpu<f64>, Wrong);

impl Backend for Faulty {
    forward_backend! { self, self.0;
        info alloc free upload download sync encode_sparse linear linear_grad_weight linear_grad_input
        sample_latent_grad likelihood top_k logits_rows decode_loss_grad recommend lend
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, n: Noise, s: Buf, dw: Mat, db: Mat) -> backend::Result {
        let lost = self.1 == Wrong::Lost;
        let (x, dy) = if lost { (Rows { count: 0, ..x }, dy.top(0)) } else { (x, dy) };
        self.0.encode_sparse_grad(x, dy, n, s, dw, db)
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, n: Noise, s: Buf, z: Mat, kl: Mat) -> backend::Result {
        let seed = if self.1 == Wrong::Noise { n.seed ^ 1 } else { n.seed };
        self.0.sample_latent(x, stats, Noise { seed, ..n }, s, z, kl)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, d: u64, s: Buf, sc: Buf) -> backend::Result {
        self.0.adam(w, dw, m, v, len, d, s, sc)?;
        if self.1 == Wrong::Drifts { self.0.adam(w, dw, m, v, len, d, s, sc) } else { Ok(()) }
    }
}

#[test]
fn a_fault_in_one_members_part_is_seen() {
    let data = planted::tastes(3, 90, 33, 4).unwrap();
    let (model, config) = (model(Member::MultVae), config(25));
    let one = run(1, cpu::<f64>, &model, &config, &data, Placement::Auto);
    for wrong in [Wrong::Lost, Wrong::Drifts, Wrong::Noise] {
        let many = each(3, LIMIT, |group| {
            let sound = Cpu::new(Some(1)).unwrap();
            let backend: Box<dyn Backend> =
                if group.rank() == 1 { Box::new(Faulty(sound, wrong)) } else { Box::new(sound) };
            let device = Device::in_group(backend, group, false).unwrap();
            trained(&device, &model, &config, &data, Placement::Auto, None).unwrap()
        });
        let seen = catch_unwind(AssertUnwindSafe(|| is_the_run_of_one(&one[0], &many)));
        assert!(seen.is_err(), "{wrong:?} passes");
    }
}

/// A run of `world` members that ends as the root's `watch` wants, or goes on from a snapshot.
fn stopped(
    world: u32,
    data: &Dataset,
    config: &TrainConfig,
    from: Option<&Snapshot>,
    stop_at: Option<u32>,
) -> Vec<Snapshot> {
    each(world, LIMIT, |group| {
        let device = Device::in_group(cpu::<f64>(), group.clone(), false).unwrap();
        let mut trainer = Trainer::new(&device, &model(Member::MultVae), config, data, from.cloned()).unwrap();
        // Any member may want to stop, so the last does.
        let last = group.rank() + 1 == group.world();
        let mut watch = Watch { stop_at: stop_at.filter(|_| last), ..Watch::default() };
        let ending = trainer.run(&mut watch).unwrap();
        assert_eq!(ending, if stop_at.is_some() { Ending::Interrupted } else { Ending::Complete });
        let state = trainer.snapshot().unwrap();
        group.leave().unwrap();
        state
    })
}

#[test]
fn a_run_goes_on_with_another_number_of_members() {
    let data = planted::tastes(8, 70, 25, 4).unwrap();
    let config = TrainConfig { epochs: 4, ..config(9) };
    let whole = &stopped(1, &data, &config, None, None)[0];
    for (first, then) in [(1, 3), (3, 1), (4, 2), (2, 4)] {
        let parts = stopped(first, &data, &config, None, Some(2));
        assert!(parts.iter().all(|part| part.progress == parts[0].progress), "all members stop at one batch");
        assert!(parts[0].progress.update < whole.progress.update);
        let rest = stopped(then, &data, &config, Some(&parts[0]), None);
        let tolerance = Tolerance::new(Float::F32, Float::F32);
        compare(&weights(&rest[0]), &weights(whole), &tolerance.magnitude(vec![1.0; weights(whole).len()])).unwrap();
        assert_eq!(rest[0].progress.update, whole.progress.update);
        // The same members stopped and gone on are the same bits as those who never stopped.
        let rest = stopped(first, &data, &config, Some(&parts[0]), None);
        assert!(rest[0].weights == stopped(first, &data, &config, None, None)[0].weights);
    }
}

#[test]
fn evaluation_and_recommendation_are_those_of_one_to_the_last_digit() {
    let data = planted::tastes(5, 120, 31, 4).unwrap();
    let test = data.test.as_ref().unwrap();
    let (popularity, config) = (Popularity::of(&data.train), TrainConfig { epochs: 2, ..config(16) });
    for member in [Member::MultVae, Member::GaussianVae] {
        let mut names = vec!["ndcg@10", "recall@20", "gini@5", "novelty@5"];
        names.extend((member == Member::GaussianVae).then_some("rmse"));
        let metrics: Vec<Metric> = names.iter().map(|name| name.parse().unwrap()).collect();
        let device = Device::new(cpu::<f32>());
        let mut trainer = Trainer::new(&device, &model(member), &config, &data, None).unwrap();
        trainer.run(&mut ()).unwrap();
        let trained = trainer.into_best().unwrap().weights().unwrap();
        let figures = |world: u32| {
            each(world, LIMIT, |group| {
                let device = Device::in_group(cpu::<f32>(), group.clone(), false).unwrap();
                let model = Model::load(&device, &model(member), data.train.items(), &trained).unwrap();
                let options = Options { batch: 5, keep_values: true, ..Options::default() };
                let judge = Judge::new(&model, test, &popularity, &metrics, options).unwrap();
                let evaluation = serde_json::to_string(&judge.evaluate(&model).unwrap()).unwrap();
                let denied = Catalogue::new(model.items(), None, &[3, 4]);
                let recommender = Recommender::new(&model, &popularity, denied, true, 6, 4).unwrap();
                let best = match group.is_root() {
                    true => {
                        // Twice, with an empty history among them, then nobody.
                        let mut rows: Vec<Vec<u32>> = test.history.rows().map(|(row, _)| row.to_vec()).collect();
                        rows[2].clear();
                        let histories = Matrix::from_rows(model.items(), &rows).unwrap();
                        let best = [recommender.recommend(&histories), recommender.recommend(&histories)];
                        let none =
                            recommender.recommend(&Matrix::from_rows(model.items(), Vec::<Vec<u32>>::new()).unwrap());
                        assert_eq!(none.unwrap(), []);
                        recommender.done().unwrap();
                        best.map(Result::unwrap).concat()
                    }
                    false => {
                        recommender.attend().unwrap();
                        Vec::new()
                    }
                };
                group.leave().unwrap();
                (evaluation, best)
            })
        };
        let one = figures(1);
        assert!(one[0].1[2].popular && one[0].1.len() == 2 * test.history.users() as usize);
        for world in 2..=4 {
            let many = figures(world);
            assert!(many.iter().all(|(evaluation, _)| *evaluation == one[0].0));
            assert_eq!(many[0].1, one[0].1);
        }
    }
}

/// What each member says of a group in which something goes wrong, and how long that took it.
fn told(world: u32, limit: Duration, member: impl Fn(Group) -> Result<()> + Sync) -> Vec<String> {
    let begun = Instant::now();
    let all = each(world, limit, |group| {
        let done = member(group.clone());
        // As a program does that has an error of its own.
        match done {
            Ok(()) => String::new(),
            Err(error) => {
                if !error.is_echo() {
                    group.fail(&error);
                }
                format!("{}{error}", if error.is_echo() { "echo: " } else { "" })
            }
        }
    });
    assert!(begun.elapsed() < LIMIT, "{all:?}");
    all
}

/// A device that is lost after so many products.
struct Lost {
    inner: Cpu<f32>,
    left: u32,
}

impl Backend for Lost {
    forward_backend! { self, self.inner;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> backend::Result {
        self.left = self.left.checked_sub(1).ok_or_else(|| Fault::Lost("it fell off the bus".into()))?;
        self.inner.linear(x, w, b, curve, y)
    }
}

#[test]
fn a_device_that_is_lost_ends_all_members_with_its_name() {
    let data = planted::tastes(2, 60, 20, 4).unwrap();
    for left in [0, 1, 7, 40] {
        let said = told(3, LIMIT, |group| {
            let left = if group.rank() == 1 { left } else { u32::MAX };
            let backend = Lost { inner: Cpu::new(Some(1)).unwrap(), left };
            let device = Device::in_group(Box::new(backend), group.clone(), false)?;
            Trainer::new(&device, &model(Member::MultVae), &config(6), &data, None)?.run(&mut ())?;
            group.leave()
        });
        assert!(said[1].starts_with("the device was lost: it fell off the bus"), "{said:?}");
        for other in [0, 2] {
            assert!(said[other].starts_with("echo: stopped, because rank 1 reports: the device was lost"), "{said:?}");
        }
    }
}

#[test]
fn members_that_end_are_silent_or_never_come_are_named_within_the_limit() {
    // One ends without a word.
    let said = told(3, LIMIT, |group| if group.rank() == 2 { Ok(()) } else { group.barrier() });
    assert_eq!(said[0], "echo: stopped, because rank 2 ended without a word");
    assert_eq!(said[1], said[0]);
    // One panics.
    let said = told(2, LIMIT, |group| {
        if group.rank() == 0 {
            return group.sum(&mut [1.0_f32; 3]);
        }
        let ended = catch_unwind(AssertUnwindSafe(move || {
            assert_eq!(group.rank(), 0, "this panic is part of the test");
        }));
        assert!(ended.is_err());
        Ok(())
    });
    assert_eq!(said[0], "echo: stopped, because rank 1 ended without a word");
    // One is silent.
    let limit = Duration::from_millis(300);
    let said = told(3, limit, |group| {
        if group.rank() == 1 {
            while !group.alarm().is_raised() {
                thread::sleep(Duration::from_millis(5));
            }
            return group.barrier();
        }
        group.barrier()
    });
    for said in said {
        assert!(
            said.starts_with("echo: stopped, because rank ") && said.contains("was not heard of for 0.3 seconds"),
            "{said}"
        );
    }
    // After a failure nothing waits any more.
    let said = told(2, LIMIT, |group| {
        if group.rank() == 0 {
            return Err(Error::data("line 7 is no line"));
        }
        while !group.alarm().is_raised() {
            thread::sleep(Duration::from_millis(5));
        }
        group.all_gather(b"x").map(drop)
    });
    assert_eq!(said[1], "echo: stopped, because rank 0 reports: line 7 is no line");
}

#[test]
fn members_with_other_data_settings_or_backends_are_refused_by_name() {
    let [data, other] = [1, 2].map(|seed| planted::tastes(seed, 60, 20, 4).unwrap());
    let odd = |group: &Group| group.rank() == 2;
    let begin = |group: Group, backend, config: &TrainConfig, data: &Dataset| {
        let device = Device::in_group(backend, group.clone(), false)?;
        Trainer::new(&device, &model(Member::MultVae), config, data, None)?.run(&mut ())?;
        group.leave()
    };
    let said = told(3, LIMIT, |group| {
        let data = if odd(&group) { &other } else { &data };
        begin(group, cpu::<f32>(), &config(6), data)
    });
    assert!(said.iter().all(|said| said.starts_with("the data of rank 2 differ from those of rank 0")), "{said:?}");
    let said = told(3, LIMIT, |group| {
        let config = TrainConfig { lr: if odd(&group) { 2e-3 } else { 1e-3 }, ..config(6) };
        begin(group, cpu::<f32>(), &config, &data)
    });
    assert!(said.iter().all(|said| said.starts_with("version and settings of rank 2 differ")), "{said:?}");
    let said = told(3, LIMIT, |group| {
        let backend = if odd(&group) { cpu::<f64>() } else { cpu::<f32>() };
        begin(group, backend, &config(6), &data)
    });
    assert!(said.iter().all(|said| said.starts_with("backend, precision and half sums of rank 2 differ")), "{said:?}");
}

#[test]
fn a_loss_that_is_not_finite_is_said_once_and_ends_all() {
    let data = planted::tastes(2, 60, 20, 4).unwrap();
    let said = told(3, LIMIT, |group| {
        let device = Device::in_group(cpu::<f32>(), group.clone(), false)?;
        let config = TrainConfig { lr: 1e30, ..config(6) };
        Trainer::new(&device, &model(Member::MultVae), &config, &data, None)?.run(&mut ())?;
        group.leave()
    });
    assert!(said[0].starts_with("the loss is not finite in epoch"), "{said:?}");
    assert!(
        said[1..].iter().all(|said| said.starts_with("echo: stopped, because rank 0 reports: the loss")),
        "{said:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Sums are in the order of ranks, to the bit, on every member, of any length; what is gathered is what was said.
    #[test]
    fn sums_are_in_the_order_of_ranks(world in 1..=5_u32, len in 0..40_usize, large in any::<bool>(), seed in any::<u32>()) {
        let len = if large { (1 << 20) + len } else { len };
        let own = |rank: u32| -> Vec<f32> {
            let mut random = Generator::new(u64::from(seed), stream::SYNTHETIC, rank);
            (0..len).map(|_| (random.normal() * 1e3) as f32).collect()
        };
        let mut sum = own(0);
        for rank in 1..world {
            sum.iter_mut().zip(own(rank)).for_each(|(sum, more)| *sum += more);
        }
        let all = each(world, LIMIT, |group| {
            let mut values = own(group.rank());
            group.sum(&mut values).unwrap();
            let said = vec![group.rank() as u8; 3 * group.rank() as usize];
            let gathered = group.all_gather(&said).unwrap();
            let first = group.broadcast(&said).unwrap();
            group.leave().unwrap();
            (values, gathered, first)
        });
        let said: Vec<Vec<u8>> = (0..world).map(|rank| vec![rank as u8; 3 * rank as usize]).collect();
        for (values, gathered, first) in all {
            prop_assert!(values.iter().map(|x| x.to_bits()).eq(sum.iter().map(|x| x.to_bits())));
            prop_assert_eq!(&gathered, &said);
            prop_assert_eq!(&first, &said[0]);
        }
    }

    /// Shares are consecutive, complete, and of nearly one size.
    #[test]
    fn shares_divide_a_batch(count in any::<u32>(), world in 1..=70_u32) {
        let shares: Vec<_> = (0..world).map(|rank| share(count, rank, world)).collect();
        prop_assert_eq!((shares[0].start, shares[world as usize - 1].end), (0, count));
        prop_assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        let sizes: Vec<u32> = shares.iter().map(|share| share.end - share.start).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        prop_assert!(sizes.iter().all(|&size| size <= count.div_ceil(world)));
    }
}

#[test]
fn the_learning_rate_follows_the_batch_after_a_warm_up() {
    let config = TrainConfig { batch: 4000, lr: 1e-3, lr_batch: 1000, warmup: 10, ..TrainConfig::paper() };
    let rate = |lr_scaling, update| schedule::learning_rate(&TrainConfig { lr_scaling, ..config.clone() }, update);
    let rates = [1, 5, 10, 11, 5000].map(|update| LrScaling::ALL.map(|rule| rate(rule, update)));
    let share = [0.1, 0.5, 1.0, 1.0, 1.0];
    for (rates, share) in rates.iter().zip(share) {
        let expected = [1e-3, 4e-3, 2e-3].map(|rate| rate * share);
        compare(*rates, expected, &Tolerance::new(Float::F64, Float::F64)).unwrap();
    }
    // Off unless asked for.
    assert_eq!(
        schedule::learning_rate(&TrainConfig { batch: 9000, ..TrainConfig::paper() }, 1).to_bits(),
        1e-3_f64.to_bits()
    );
}
