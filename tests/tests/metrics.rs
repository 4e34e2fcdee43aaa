//! Metrics against their formulas, written a second time and without haste, and against examples
//! worked by hand. `mutants` proves that these checks can fail.

use proptest::{collection::vec, prelude::*, sample::subsequence};
use vaecf_core::{
    Kind,
    matrix::Matrix,
    metrics::{Measure, Metric, NO_ITEM, Profile, Scorer, User, depth},
    popularity::Popularity,
    report::{Evaluation, compare as paired},
};
use vaecf_tests::compare::{Float, Mismatch, Tolerance, Values, Worst, compare, scalar};

/// A user as the tests make them.
#[derive(Clone, Debug)]
struct Person {
    ranking: Vec<u32>,
    target: Vec<u32>,
    values: Vec<f32>,
    predicted: Vec<f32>,
    history: u32,
}

impl Person {
    fn new(ranking: &[u32], target: &[u32]) -> Self {
        let ones = vec![1.0; target.len()];
        Self { ranking: ranking.into(), target: target.into(), values: ones.clone(), predicted: ones, history: 0 }
    }

    fn user(&self) -> User<'_> {
        User {
            ranking: &self.ranking,
            target: &self.target,
            values: Some(&self.values),
            predicted: Some(&self.predicted),
            history: self.history,
        }
    }
}

/// A population and the catalogue they choose from.
#[derive(Clone, Debug)]
struct World {
    popularity: Popularity,
    persons: Vec<Person>,
}

impl World {
    fn evaluate(&self, metrics: &[Metric]) -> Evaluation {
        let mut scorer = Scorer::new(metrics, &self.popularity).keep_values();
        for person in &self.persons {
            scorer.user(&person.user()).unwrap();
        }
        scorer.finish()
    }

    fn scored(&self) -> impl Iterator<Item = &Person> {
        self.persons.iter().filter(|person| !person.target.is_empty())
    }
}

fn metric(text: &str) -> Metric {
    text.parse().unwrap()
}

/// Every measure, at depth `k` where it has one.
fn every(k: u32) -> Vec<Metric> {
    Measure::ALL.into_iter().map(|m| Metric::new(m, m.has_depth().then_some(k)).unwrap()).collect()
}

fn per_user(k: u32) -> Vec<Metric> {
    Scorer::new(&every(k), &Popularity::new(vec![], 0).unwrap()).per_user().to_vec()
}

/// Sums of some dozens of terms in f64.
fn close(actual: impl Into<Values>, expected: impl Into<Values>) -> Result<Worst, Mismatch> {
    compare(actual, expected, &Tolerance::new(Float::F64, Float::F64).terms(64))
}

/// The same for sums over all lists or all pairs of items, whose terms, of size one, may cancel.
fn close_to_one(actual: f64, expected: f64) -> Result<Worst, Mismatch> {
    let tolerance = Tolerance::new(Float::F64, Float::F64).terms(1024).magnitude([expected.abs().max(1.0)]);
    compare(scalar(actual), scalar(expected), &tolerance)
}

/// A standard error by its square, whose terms cancel as far as the values are alike.
fn close_error(actual: f64, values: &[f64]) -> Result<Worst, Mismatch> {
    let (n, mean) = (values.len() as f64, mean(values).unwrap());
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let size = values.iter().map(|v| v * v).sum::<f64>() / (n - 1.0) / n;
    let tolerance = Tolerance::new(Float::F64, Float::F64).terms(64).magnitude([size]);
    compare(scalar(actual * actual), scalar(variance / n), &tolerance)
}

fn worlds() -> impl Strategy<Value = World> {
    (1u32..32, 1u32..50).prop_flat_map(|(items, users)| {
        let all: Vec<u32> = (0..items).collect();
        let target = subsequence(all.clone(), 0..=(items as usize).min(9));
        let person = (Just(all).prop_shuffle(), vec(prop::bool::weighted(0.1), items as usize), target, 0u32..12)
            .prop_flat_map(|(mut ranking, holes, target, history)| {
                ranking.iter_mut().zip(holes).filter(|(_, hole)| *hole).for_each(|(item, _)| *item = NO_ITEM);
                let grades = vec((0u8..=10).prop_map(|v| f32::from(v) / 2.0), target.len());
                (Just(ranking), Just(target), grades.clone(), grades, Just(history))
            })
            .prop_map(|(ranking, target, values, predicted, history)| Person {
                ranking,
                target,
                values,
                predicted,
                history,
            });
        (vec(0..=users, items as usize), vec(person, 0..10))
            .prop_map(move |(counts, persons)| World { popularity: Popularity::new(counts, users).unwrap(), persons })
    })
}

// ---- The formulas. Nothing here is shared with the product. ----

/// Is the item at rank `i` (from 1) wanted?
fn rel(p: &Person, i: usize) -> bool {
    p.ranking.get(i - 1).is_some_and(|item| p.target.contains(item))
}

fn found(p: &Person, k: usize) -> f64 {
    (1..=k).filter(|&i| rel(p, i)).count() as f64
}

fn gain(p: &Person, i: usize) -> f64 {
    if !rel(p, i) {
        return 0.0;
    }
    let at = p.target.iter().position(|item| *item == p.ranking[i - 1]).unwrap();
    2f64.powf(f64::from(p.values[at])) - 1.0
}

fn dcg(gains: &[f64]) -> f64 {
    gains.iter().enumerate().map(|(i, g)| g / ((i + 2) as f64).log2()).sum()
}

fn falling(mut gains: Vec<f64>, k: usize) -> Vec<f64> {
    gains.sort_by(|a, b| b.partial_cmp(a).unwrap());
    gains.truncate(k);
    gains
}

fn precision_sum(p: &Person, k: usize) -> f64 {
    (1..=k).filter(|&i| rel(p, i)).map(|i| found(p, i) / i as f64).sum()
}

fn formula(measure: Measure, p: &Person, k: usize) -> f64 {
    let (r, kf) = (p.target.len(), k as f64);
    let binary: Vec<f64> = (1..=k.min(p.ranking.len())).map(|i| f64::from(u8::from(rel(p, i)))).collect();
    let graded: Vec<f64> = (1..=k.min(p.ranking.len())).map(|i| gain(p, i)).collect();
    let grades: Vec<f64> = p.values.iter().map(|v| 2f64.powf(f64::from(*v)) - 1.0).collect();
    match measure {
        Measure::Recall => found(p, k) / (k.min(r)) as f64,
        Measure::RecallAll => found(p, k) / r as f64,
        Measure::Precision => found(p, k) / kf,
        Measure::HitRate => found(p, k).min(1.0),
        Measure::Mrr => (1..=k).find(|&i| rel(p, i)).map_or(0.0, |i| 1.0 / i as f64),
        Measure::Map => precision_sum(p, k) / (k.min(r)) as f64,
        Measure::MapSlide => precision_sum(p, k) / kf,
        Measure::Dcg => dcg(&binary),
        Measure::DcgGraded => dcg(&graded),
        Measure::Ndcg => dcg(&binary) / dcg(&vec![1.0; k.min(r)]),
        Measure::NdcgGraded if grades.iter().all(|g| *g <= 0.0) => 0.0,
        Measure::NdcgGraded => dcg(&graded) / dcg(&falling(grades, k)),
        Measure::RPrecision => found(p, r) / r as f64,
        _ => panic!("{measure:?} is no per-user measure"),
    }
}

fn recommended(world: &World, k: usize) -> Vec<usize> {
    let shown = world.scored().flat_map(|p| p.ranking.iter().take(k)).filter(|&&item| item != NO_ITEM);
    shown.map(|&item| item as usize).collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn formula_of_all(measure: Measure, world: &World, k: usize) -> Option<f64> {
    let (shown, items) = (recommended(world, k), world.popularity.items() as usize);
    let times = |item: usize| shown.iter().filter(|&&other| other == item).count() as f64;
    let share = |item: usize, least: u32| {
        f64::from(world.popularity.counts()[item].max(least)) / f64::from(world.popularity.users())
    };
    let off: Vec<f64> =
        world.scored().flat_map(|p| p.values.iter().zip(&p.predicted)).map(|(v, q)| f64::from(q - v)).collect();
    match measure {
        Measure::Coverage => mean(&shown.iter().map(|_| 0.0).collect::<Vec<_>>())
            .map(|_| (0..items).filter(|item| shown.contains(item)).count() as f64 / items as f64),
        Measure::Popularity => mean(&shown.iter().map(|&item| share(item, 0)).collect::<Vec<_>>()),
        Measure::Novelty => mean(&shown.iter().map(|&item| -share(item, 1).log2()).collect::<Vec<_>>()),
        // Half the mean absolute difference of all pairs, over the mean.
        Measure::Gini => mean(&(0..items).map(times).collect::<Vec<_>>()).filter(|mean| *mean > 0.0).map(|mean| {
            let pairs = (0..items).flat_map(|i| (0..items).map(move |j| (i, j)));
            pairs.map(|(i, j)| (times(i) - times(j)).abs()).sum::<f64>() / (2.0 * (items * items) as f64 * mean)
        }),
        Measure::Rmse => mean(&off.iter().map(|e| e * e).collect::<Vec<_>>()).map(f64::sqrt),
        Measure::Mae => mean(&off.iter().map(|e| e.abs()).collect::<Vec<_>>()),
        _ => panic!("{measure:?} is a per-user measure"),
    }
}

proptest! {
    #[test]
    fn every_metric_is_its_formula(world in worlds(), k in 1u32..40) {
        let evaluation = world.evaluate(&every(k));
        let kept = evaluation.per_user.as_ref().unwrap();
        prop_assert_eq!(evaluation.users_scored as usize, world.scored().count());
        prop_assert_eq!(evaluation.users_without_target as usize, world.persons.len() - world.scored().count());
        for value in &evaluation.metrics {
            let measure = value.name.measure();
            let Some(values) = kept.values.get(&value.name) else {
                match (value.value, formula_of_all(measure, &world, k as usize)) {
                    (Some(actual), Some(expected)) => { close_to_one(actual, expected)?; }
                    (actual, expected) => prop_assert!(actual.is_none() && expected.is_none(), "{}", value.name),
                }
                prop_assert!(value.standard_error.is_none());
                continue;
            };
            let expected: Vec<f64> = world.scored().map(|p| formula(measure, p, k as usize)).collect();
            close(values, &expected)?;

            match (value.value, mean(&expected)) {
                (Some(actual), Some(expected)) => { close(scalar(actual), scalar(expected))?; }
                (actual, expected) => prop_assert!(actual.is_none() && expected.is_none()),
            }
            prop_assert_eq!(value.standard_error.is_some(), expected.len() > 1);
            if let Some(error) = value.standard_error {
                close_error(error, &expected)?;
            }
        }
    }

    #[test]
    fn shares_lie_between_zero_and_one(world in worlds(), k in 1u32..40) {
        let evaluation = world.evaluate(&every(k));
        let unbounded = [Measure::Dcg, Measure::DcgGraded, Measure::Novelty, Measure::Rmse, Measure::Mae];
        for (metric, values) in &evaluation.per_user.unwrap().values {
            let most = if unbounded.contains(&metric.measure()) { f64::INFINITY } else { 1.0 };
            prop_assert!(values.iter().all(|v| (0.0..=most).contains(v)), "{} {:?}", metric, values);
        }
        for value in evaluation.metrics.iter().filter(|m| !unbounded.contains(&m.name.measure())) {
            prop_assert!(value.value.is_none_or(|v| (0.0..=1.0).contains(&v)), "{}", value.name);
        }
    }

    #[test]
    fn a_hit_that_moves_up_never_costs(world in worlds(), k in 1u32..40, place in 1usize..40) {
        let (metrics, mut better) = (per_user(k), world.clone());
        for person in &mut better.persons {
            if place < person.ranking.len() && rel(person, place + 1) && !rel(person, place) {
                person.ranking.swap(place - 1, place);
            }
        }
        let (before, after) = (world.evaluate(&metrics).per_user.unwrap(), better.evaluate(&metrics).per_user.unwrap());
        for (metric, values) in &before.values {
            prop_assert!(values.iter().zip(&after.values[metric]).all(|(a, b)| b >= a), "{metric}");
        }
    }

    #[test]
    fn padding_changes_nothing(world in worlds(), k in 1u32..40, more in 1usize..9) {
        let mut padded = world.clone();
        padded.persons.iter_mut().for_each(|p| p.ranking.resize(p.ranking.len() + more, NO_ITEM));
        let (a, b) = (world.evaluate(&every(k)), padded.evaluate(&every(k)));
        for (a, b) in a.metrics.iter().zip(&b.metrics) {
            prop_assert_eq!(a.value.map(f64::to_bits), b.value.map(f64::to_bits));
        }
    }

    #[test]
    fn places_below_k_do_not_count(world in worlds(), k in 1u32..20) {
        let mut cut = world.clone();
        cut.persons.iter_mut().for_each(|p| p.ranking.iter_mut().skip(k as usize).for_each(|item| *item = NO_ITEM));
        // R-precision looks as deep as the target is long.
        let metrics: Vec<_> = every(k).into_iter().filter(|m| m.measure() != Measure::RPrecision).collect();
        let (a, b) = (world.evaluate(&metrics), cut.evaluate(&metrics));
        for (a, b) in a.metrics.iter().zip(&b.metrics) {
            prop_assert_eq!(a.value.map(f64::to_bits), b.value.map(f64::to_bits), "{}", a.name);
        }
    }

    #[test]
    fn the_order_of_users_changes_no_mean(world in worlds(), k in 1u32..40) {
        let mut turned = world.clone();
        turned.persons.reverse();
        let (a, b) = (world.evaluate(&every(k)), turned.evaluate(&every(k)));
        for (a, b) in a.metrics.iter().zip(&b.metrics) {
            prop_assert_eq!(a.value.is_some(), b.value.is_some());
            if let (Some(a), Some(b)) = (a.value, b.value) {
                close_to_one(a, b)?;
            }
        }
    }

    #[test]
    fn groups_add_up_to_the_whole(world in worlds(), k in 1u32..40) {
        let evaluation = world.evaluate(&every(k));
        let groups = &evaluation.by_activity;
        prop_assert!(groups.len() <= 4);
        prop_assert_eq!(groups.iter().map(|g| g.users).sum::<u64>(), evaluation.users_scored);
        prop_assert!(groups.iter().all(|g| g.shortest <= g.longest && g.users > 0));
        prop_assert!(groups.windows(2).all(|g| g[0].longest < g[1].shortest), "equal histories stay together");
        for group in groups {
            let members: Vec<_> =
                world.scored().filter(|p| (group.shortest..=group.longest).contains(&p.history)).collect();
            prop_assert_eq!(members.len() as u64, group.users);
            for (metric, estimate) in &group.metrics {
                let values: Vec<_> = members.iter().map(|p| formula(metric.measure(), p, k as usize)).collect();
                close(scalar(estimate.value.unwrap()), scalar(mean(&values).unwrap()))?;
                prop_assert_eq!(estimate.standard_error.is_some(), values.len() > 1);
                if let Some(error) = estimate.standard_error {
                    close_error(error, &values)?;
                }
            }
        }
        let items = &evaluation.by_popularity;
        prop_assert_eq!(items.iter().map(|g| g.items).sum::<u64>(), u64::from(world.popularity.items()));
        prop_assert_eq!(
            items.iter().map(|g| g.targets).sum::<u64>(),
            world.scored().map(|p| p.target.len() as u64).sum::<u64>()
        );
        let hits: f64 = world.scored().map(|p| found(p, k as usize)).sum();
        prop_assert_eq!(items.iter().map(|g| g.hits).sum::<u64>(), hits as u64);
    }

    #[test]
    fn no_input_panics(
        items in 0u32..6, counts in 0u32..4, ranking in vec(prop_oneof![0u32..8, Just(NO_ITEM)], 0..8),
        target in vec(0u32..8, 0..5), values in prop::option::of(vec(any::<f32>(), 0..5)),
        predicted in prop::option::of(vec(any::<f32>(), 0..5)), k in 1u32.., history: u32,
    ) {
        let popularity = Popularity::new(vec![counts; items as usize], counts).unwrap();
        for metrics in [every(k), every(3), vec![], Profile::Default.metrics().to_vec()] {
            let mut scorer = Scorer::new(&metrics, &popularity).keep_values();
            let user = User {
                ranking: &ranking, target: &target, values: values.as_deref(), predicted: predicted.as_deref(), history,
            };
            let scored = scorer.user(&user).is_ok_and(|values| values.is_some());
            let evaluation = scorer.finish();
            prop_assert_eq!(evaluation.users_scored, u64::from(scored));
            let text = format!("{evaluation:#}");
            prop_assert!(!text.contains("NaN"));
            prop_assert!(evaluation.metrics.iter().all(|m| m.value.is_none_or(f64::is_finite)));
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,12}", k in "(@|@@)?[0-9]{0,11}") {
        let _ = text.parse::<Metric>();
        let _ = text.parse::<Profile>();
        let _ = format!("ndcg{k}").parse::<Metric>();
    }

    #[test]
    fn popularity_ranks_as_sorting_would(
        counts in vec(0u32..5, 0..20), seen in vec(any::<bool>(), 20), k in 0usize..25,
    ) {
        let popularity = Popularity::new(counts.clone(), 5).unwrap();
        let history: Vec<u32> = (0..counts.len() as u32).filter(|&item| seen[item as usize]).collect();
        let mut ranking = vec![7; k];
        popularity.rank(&history, &mut ranking);
        let mut expected: Vec<u32> = (0..counts.len() as u32).filter(|item| !history.contains(item)).collect();
        expected.sort_by(|&a, &b| counts[b as usize].cmp(&counts[a as usize]).then(a.cmp(&b)));
        expected.resize(k.max(expected.len()), NO_ITEM);
        expected.truncate(k);
        prop_assert_eq!(ranking, expected);
    }
}

/// One user, six items, worked by hand.
fn example() -> World {
    let mut person = Person::new(&[3, 0, 1, 2, 4, 5], &[1, 3, 5]);
    person.values = vec![2.0, 3.0, 1.0];
    person.predicted = vec![2.5, 3.0, 3.0];
    World { popularity: Popularity::new(vec![1; 6], 6).unwrap(), persons: vec![person] }
}

#[test]
fn values_worked_by_hand() {
    let ideal = 2.130_929_753_571_457_8; // 1 + 1/log2(3) + 1/2
    for (name, expected) in [
        ("recall@1", 1.0),
        ("recall@2", 1.0 / 2.0),
        ("recall@4", 2.0 / 3.0),
        ("recall@6", 1.0),
        ("recall-all@1", 1.0 / 3.0),
        ("recall-all@2", 1.0 / 3.0),
        ("precision@4", 1.0 / 2.0),
        ("precision@100", 3.0 / 100.0),
        ("hit-rate@1", 1.0),
        ("mrr@3", 1.0),
        ("map@4", 5.0 / 9.0),        // (1/1 + 2/3) / 3
        ("map@2", 1.0 / 2.0),        // (1/1) / 2
        ("map-slide@4", 5.0 / 12.0), // (1/1 + 2/3) / 4
        ("dcg@4", 1.5),              // 1/log2(2) + 1/log2(4)
        ("ndcg@4", 1.5 / ideal),     // the ideal list has three items
        ("ndcg@1", 1.0),             // and is cut at k
        ("dcg-graded@4", 8.5),       // 7/log2(2) + 3/log2(4)
        ("ndcg-graded@4", 0.904_949_505_846_097_1),
        ("ndcg-graded@1", 1.0),
        ("r-precision", 2.0 / 3.0),
        ("rmse", (4.25f64 / 3.0).sqrt()),
        ("mae", 2.5 / 3.0),
    ] {
        let value = example().evaluate(&[metric(name)]).metrics[0].value.unwrap();
        close(scalar(value), scalar(expected)).map_err(|e| format!("{name} {e}")).unwrap();
    }
}

#[test]
fn lists_worked_by_hand() {
    let persons = vec![Person::new(&[0, 1, 2, 3], &[1]), Person::new(&[0, 2, 1, 3], &[3]), Person::new(&[3], &[])];
    let world = World { popularity: Popularity::new(vec![4, 2, 1, 0], 4).unwrap(), persons };
    for (name, expected) in [
        ("coverage@2", 0.75),     // items 0, 1, 2 of four; the user without a target is left out
        ("popularity@2", 0.6875), // (1 + 1/2 + 1 + 1/4) / 4
        ("novelty@2", 0.75),      // (0 + 1 + 0 + 2) / 4
        ("novelty@4", 1.25),      // item 3, which nobody had, counts as if one had: (0 + 1 + 2 + 2) / 4
        ("gini@2", 0.375),        // times 0, 1, 1, 2
        ("gini@4", 0.0),
        ("gini@1", 0.75), // all to one of four
    ] {
        let value = world.evaluate(&[metric(name)]).metrics[0].value.unwrap();
        close_to_one(value, expected).map_err(|e| format!("{name} {e}")).unwrap();
    }
}

#[test]
fn without_values_every_grade_is_one() {
    let world = example();
    let User { ranking, target, .. } = world.persons[0].user();
    let mut scorer = Scorer::new(&[metric("ndcg@4"), metric("ndcg-graded@4")], &world.popularity);
    let values = scorer.user(&User { ranking, target, ..User::default() }).unwrap().unwrap().to_vec();
    close(scalar(values[1]), scalar(values[0])).unwrap();
}

/// Definitions that are wrong in a way somebody has shipped. Each must be told apart from the right
/// one by the population below, at the tolerance of the tests above.
#[test]
fn mutants() {
    type Mutant = fn(&Person, usize) -> f64;
    let mutants: &[(Measure, &str, Mutant)] = &[
        (Measure::Recall, "divided by |R|", |p, k| found(p, k) / p.target.len() as f64),
        (Measure::Recall, "divided by k", |p, k| found(p, k) / k as f64),
        (Measure::Recall, "k off by one", |p, k| found(p, k + 1) / k.min(p.target.len()) as f64),
        (Measure::RecallAll, "divided by min(k, |R|)", |p, k| found(p, k) / k.min(p.target.len()) as f64),
        (Measure::Precision, "divided by min(k, |R|)", |p, k| found(p, k) / k.min(p.target.len()) as f64),
        (Measure::HitRate, "counts hits", found),
        (Measure::Mrr, "rank from 0", |p, k| (1..=k).find(|&i| rel(p, i)).map_or(0.0, |i| 1.0 / (i + 1) as f64)),
        (Measure::Mrr, "not cut", |p, _| (1..=99).find(|&i| rel(p, i)).map_or(0.0, |i| 1.0 / i as f64)),
        (Measure::Map, "divided by k", |p, k| precision_sum(p, k) / k as f64),
        (Measure::Map, "divided by |R|", |p, k| precision_sum(p, k) / p.target.len() as f64),
        (Measure::Map, "divided by hits", |p, k| precision_sum(p, k) / found(p, k).max(1.0)),
        (Measure::MapSlide, "divided by min(k, |R|)", |p, k| precision_sum(p, k) / k.min(p.target.len()) as f64),
        (Measure::Dcg, "log2(i)", |p, k| {
            (1..=k).filter(|&i| rel(p, i)).map(|i| 1.0 / (i as f64).log2().max(1.0)).sum()
        }),
        (Measure::Dcg, "natural log", |p, k| (1..=k).filter(|&i| rel(p, i)).map(|i| 1.0 / ((i + 1) as f64).ln()).sum()),
        (Measure::Ndcg, "ideal not cut at k", |p, k| formula(Measure::Dcg, p, k) / dcg(&vec![1.0; p.target.len()])),
        (Measure::Ndcg, "ideal of k items", |p, k| formula(Measure::Dcg, p, k) / dcg(&vec![1.0; k])),
        (Measure::NdcgGraded, "linear gain", |p, k| {
            let linear: Vec<f64> = (1..=k).map(|i| (gain(p, i) + 1.0).log2()).collect();
            let ideal = falling(p.values.iter().map(|&v| f64::from(v)).collect(), k);
            dcg(&linear) / dcg(&ideal).max(1e-9)
        }),
        (Measure::NdcgGraded, "ideal in target order", |p, k| {
            let grades: Vec<f64> = p.values.iter().take(k).map(|&v| f64::from(v).exp2() - 1.0).collect();
            formula(Measure::DcgGraded, p, k) / dcg(&grades).max(1e-9)
        }),
        (Measure::NdcgGraded, "grades ignored", |p, k| formula(Measure::Ndcg, p, k)),
        (Measure::RPrecision, "cut at k", |p, k| found(p, k) / p.target.len() as f64),
    ];
    let mut person = Person::new(&[9, 3, 0, 1, 2, 4, 5, 6, 7, 8], &[0, 1, 2, 4, 5]);
    person.values = vec![0.5, 2.0, 3.0, 1.0, 5.0];
    let few = Person::new(&[7, 8, 2, 0, 1, 9, 3, 4, 5, 6], &[2]);
    let late = Person::new(&[7, 8, 2, 0, 1, 9, 3, 4, 5, 6], &[3, 6]);
    let world = World { popularity: Popularity::new(vec![1; 10], 1).unwrap(), persons: vec![person, few, late] };
    let k = 4;
    let right = world.evaluate(&every(k as u32)).per_user.unwrap();
    for (measure, fault, mutant) in mutants {
        let metric = right.values.keys().find(|metric| metric.measure() == *measure).unwrap();
        let wrong: Vec<f64> = world.scored().map(|p| mutant(p, k)).collect();
        let formula: Vec<f64> = world.scored().map(|p| formula(*measure, p, k)).collect();
        close(&right.values[metric], &formula).unwrap();
        assert!(close(&right.values[metric], &wrong).is_err(), "{metric}: nobody notices '{fault}'");
    }
    // The mean over all users, those without a target as zeros.
    let mut counted = world.clone();
    counted.persons.push(Person::new(&[], &[]));
    let (all, scored) = (counted.evaluate(&every(4)), world.evaluate(&every(4)));
    assert_eq!((all.users_scored, all.users_without_target), (3, 1));
    let recall = |e: &Evaluation| e.value(metric("recall@4")).unwrap();
    close(scalar(recall(&all)), scalar(recall(&scored))).unwrap();
    assert!(close(scalar(recall(&all)), scalar(recall(&scored) * 3.0 / 4.0)).is_err());
}

#[test]
fn depth_is_what_the_deepest_metric_needs() {
    let target = Matrix::from_rows(50, [vec![1, 2, 3], vec![], vec![4; 2]]).unwrap();
    assert_eq!(depth(&[metric("recall@20"), metric("rmse")], &target), 20);
    assert_eq!(depth(&[metric("r-precision")], &target), 3);
    assert_eq!(depth(&[metric("ndcg@2"), metric("r-precision")], &target), 3);
    assert_eq!(depth(&[metric("ndcg@100")], &target), 50, "no deeper than there are items");
    assert_eq!(depth(&[metric("mae")], &target), 0);
    assert_eq!(depth(&[], &target), 0);
}

#[test]
fn what_is_not_a_user_is_refused_and_not_counted() {
    let popularity = Popularity::new(vec![1; 4], 1).unwrap();
    let good = Person::new(&[0, 1, 2], &[1, 3]);
    let with = |change: &dyn Fn(&mut Person)| {
        let mut person = good.clone();
        change(&mut person);
        person
    };
    let mut scorer = Scorer::new(&[metric("ndcg-graded@3"), metric("coverage@2"), metric("mae")], &popularity);
    for (fault, person) in [
        ("2 places", with(&|p| p.ranking.truncate(2))),
        ("twice", with(&|p| p.ranking = vec![0, 2, 0])),
        ("beyond the 4 items", with(&|p| p.ranking = vec![0, 4, 2])),
        ("beyond the 4 items", with(&|p| p.target = vec![1, 4])),
        ("ascending", with(&|p| p.target = vec![3, 1])),
        ("ascending", with(&|p| p.target = vec![1, 1])),
        ("1 values for 2", with(&|p| p.values = vec![1.0])),
        ("NaN", with(&|p| p.values[1] = f32::NAN)),
        ("-1", with(&|p| p.values[1] = -1.0)),
        ("1000", with(&|p| p.values[1] = 1000.0)),
        ("inf", with(&|p| p.predicted[0] = f32::INFINITY)),
        ("3 predictions", with(&|p| p.predicted.push(1.0))),
    ] {
        let error = scorer.user(&person.user()).unwrap_err().to_string();
        assert!(error.contains(fault) && error.starts_with("user 0 of"), "{fault}: {error}");
    }
    let error = scorer.user(&User { predicted: None, ..good.user() }).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    scorer.user(&good.user()).unwrap();
    let evaluation = scorer.finish();
    assert_eq!((evaluation.users_scored, evaluation.users_without_target), (1, 0));
    assert!(close(scalar(evaluation.value(metric("coverage@2")).unwrap()), scalar(0.5)).is_ok());
}

#[test]
fn metrics_are_written_as_they_are_read() {
    for metric in every(100) {
        assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
        let json = serde_json::to_string(&metric).unwrap();
        assert_eq!(json, format!("\"{metric}\""));
        assert_eq!(serde_json::from_str::<Metric>(&json).unwrap(), metric);
        assert!(metric.definition().ends_with('.'), "{}", metric.definition());
    }
    assert_eq!(metric(" NDCG@100 "), Metric::NDCG_100);
    assert_eq!(metric("recall@20").definition(), "target items in the top 20, divided by min(20, target items).");
    assert!(metric("ndcg@9").definition().starts_with("dcg@9 divided"));
    for (text, part) in [
        ("ndgc@100", "recall@k, recall-all@k"),
        ("", "r-precision"),
        ("ndcg", "such as ndcg@20"),
        ("ndcg@", "whole number"),
        ("ndcg@0", "at least 1"),
        ("ndcg@-1", "whole number"),
        ("ndcg@99999999999", "whole number"),
        ("rmse@3", "write rmse"),
    ] {
        let error = text.parse::<Metric>().unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(part), "{text}: {error}");
    }
    for profile in Profile::ALL {
        assert_eq!(profile.to_string().parse::<Profile>().unwrap(), profile);
        assert_eq!(Profile::of(profile.metrics()), Some(profile));
    }
    assert!("paper".parse::<Profile>().unwrap_err().to_string().contains("default, lightgcn, slides"));
    assert_eq!(Profile::Lightgcn.metrics()[0], metric("recall-all@20"));
}

#[test]
fn popularity_breaks_ties_by_index_and_checks_its_counts() {
    let train = Matrix::from_rows(4, [vec![1, 2], vec![1, 3], vec![2]]).unwrap();
    let popularity = Popularity::of(&train);
    assert_eq!((popularity.counts(), popularity.order()), (&[0, 2, 2, 1][..], &[1, 2, 3, 0][..]));
    assert_eq!((popularity.users(), popularity.items()), (3, 4));
    assert_eq!(Popularity::new(vec![0, 2, 2, 1], 3).unwrap(), popularity);
    assert_eq!(Popularity::new(vec![0, 4], 3).unwrap_err().kind(), Kind::Data);
    let mut ranking = [0; 4];
    popularity.rank(&[1], &mut ranking);
    assert_eq!(ranking, [2, 3, 0, NO_ITEM]);
}

#[test]
fn head_torso_and_tail_share_the_events() {
    // 12 events: item 0 has a third, items 1 and 2 another, the rest the last.
    let popularity = Popularity::new(vec![4, 2, 2, 1, 1, 1, 1, 0], 4).unwrap();
    let person = Person::new(&[0, 7, 1, 2, 3, 4, 5, 6], &[0, 2, 6]);
    let evaluation = World { popularity, persons: vec![person] }.evaluate(&[metric("ndcg@4")]);
    let groups: Vec<_> =
        evaluation.by_popularity.iter().map(|g| (g.name.as_str(), g.items, g.targets, g.hits, g.depth)).collect();
    assert_eq!(groups, [("head", 1, 1, 1, 4), ("torso", 2, 1, 1, 4), ("tail", 5, 1, 0, 4)]);
    let share: Vec<f64> = evaluation.by_popularity.iter().filter_map(|g| g.share_of_hits).collect();
    close(&share, [0.5, 0.5, 0.0]).unwrap();
    let recall: Vec<f64> = evaluation.by_popularity.iter().filter_map(|g| g.recall).collect();
    close(&recall, [1.0, 1.0, 0.0]).unwrap();
}

#[test]
fn activity_groups_are_quarters_that_keep_equals_together() {
    let groups = |histories: [u32; 8]| {
        let persons = histories.map(|history| Person { history, ..Person::new(&[0, 1], &[1]) });
        let world = World { popularity: Popularity::new(vec![1; 2], 1).unwrap(), persons: persons.to_vec() };
        let groups = world.evaluate(&[metric("recall@1")]).by_activity;
        groups.iter().map(|g| (g.shortest, g.longest, g.users)).collect::<Vec<_>>()
    };
    assert_eq!(groups([1, 1, 1, 1, 2, 3, 4, 9]), [(1, 1, 4), (2, 3, 2), (4, 9, 2)]);
    // Five equals that start in the first quarter belong where their middle lies.
    assert_eq!(groups([1, 2, 2, 2, 2, 2, 9, 9]), [(1, 1, 1), (2, 2, 5), (9, 9, 2)]);
}

#[test]
fn a_report_survives_json_and_carries_users_only_when_asked() {
    let world = example();
    let evaluation = world.evaluate(Profile::Default.metrics());
    let json = serde_json::to_value(&evaluation).unwrap();
    assert_eq!(json["profile"], "default");
    assert_eq!(json["metrics"][0]["name"], "recall@20");
    assert_eq!(json["by_activity"][0]["metrics"]["ndcg@100"]["value"], json["metrics"][2]["value"]);
    assert_eq!(json["per_user"]["rows"], serde_json::json!([0]));
    assert!(json["metrics"][0]["definition"].as_str().unwrap().contains("min(20"));
    let back: Evaluation = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&back).unwrap(), json);

    let mut scorer = Scorer::new(&[metric("mrr@5")], &world.popularity);
    scorer.user(&world.persons[0].user()).unwrap();
    let json = serde_json::to_value(scorer.finish()).unwrap();
    assert!(json.get("per_user").is_none() && json["profile"].is_null());

    let empty = Scorer::new(Profile::Default.metrics(), &world.popularity).finish();
    let json = serde_json::to_value(&empty).unwrap();
    assert!(json["metrics"][0]["value"].is_null());
    serde_json::from_value::<Evaluation>(json).unwrap();
}

#[test]
fn the_table_lines_up() {
    let mut world = example();
    world.persons.push(Person { history: 12, ..Person::new(&[1, 2, 3, 4, 5, 0], &[0]) });
    world.persons.push(Person::new(&[], &[]));
    let metrics = [metric("recall@4"), metric("ndcg@4"), metric("coverage@4")];
    let text = world.evaluate(&metrics).to_string();
    let expected = "\
metric        value  std. error
recall@4    0.33333     0.33333
ndcg@4      0.35196     0.35196
coverage@4  0.83333           -
2 users scored, 1 without a target left out; metrics chosen one by one

items in history        0       12
users                   1        1
recall@4          0.66667  0.00000
ndcg@4            0.70392  0.00000

popularity  items  targets  found@4   recall  share of found
head            2        2        1  0.50000         0.50000
torso           2        1        1  1.00000         0.50000
tail            2        1        0  0.00000         0.00000
";
    assert_eq!(text, expected, "\n{text}");
    assert!(format!("{:#}", world.evaluate(&metrics)).contains("\ncoverage@4: items in the top 4 of"));
}

/// Numbers between 0 and 1 that look random and never change.
fn noise(n: usize) -> Vec<f64> {
    (1..=n).map(|i| (i as f64 * 0.618_033_988_749_895).fract()).collect()
}

#[test]
fn a_paired_difference_is_found_and_none_is_not_made_up() {
    let a = noise(2000);
    let shifted: Vec<f64> =
        a.iter().zip(noise(4000).iter().skip(2000)).map(|(a, e)| a + 0.05 + (e - 0.5) * 0.2).collect();
    let worse = paired(&shifted, &a, 7).unwrap();
    assert!(worse.is_worse() && !worse.is_better());
    let better = paired(&a, &shifted, 7).unwrap();
    assert!(better.is_better() && better.lower < better.mean && better.mean < better.upper);
    // The spread of the differences is that of uniform noise of width 0.2.
    let half = 1.96 * 0.2 / 12f64.sqrt() / 2000f64.sqrt();
    let width = (better.upper - better.lower) / 2.0;
    assert!((0.9..1.1).contains(&(width / half)), "{width} should be near {half}");

    let same = paired(&a, &a, 7).unwrap();
    assert!(!same.is_worse() && !same.is_better());
    compare([same.mean, same.lower, same.upper], [0.0; 3], &Tolerance::EXACT).unwrap();

    let again = paired(&a, &shifted, 7).unwrap();
    compare([again.lower, again.upper], [better.lower, better.upper], &Tolerance::EXACT).unwrap();
    let other = paired(&a, &shifted, 8).unwrap();
    assert!(compare([other.lower], [better.lower], &Tolerance::EXACT).is_err(), "the seed is not used");

    assert!(paired(&[1.0], &[], 0).is_err());
    assert!(paired(&[], &[], 0).is_err());
    assert!(paired(&[f64::NAN], &[1.0], 0).is_err());
    assert!(paired(&[f64::INFINITY], &[1.0], 0).is_err());
    assert!(paired(&[0.25], &[0.5], 0).unwrap().to_string().starts_with("+0.25000 (95 % interval"));
}

#[test]
fn evaluations_are_compared_user_by_user() {
    let world = example();
    let recall = metric("recall@2");
    let mut better = world.clone();
    better.persons[0].ranking.swap(1, 2);
    let (a, b) = (world.evaluate(&[recall]), better.evaluate(&[recall]));
    close(scalar(a.compare(&b, recall, 0).unwrap().mean), scalar(0.5)).unwrap();
    assert!(a.compare(&b, Metric::NDCG_100, 0).unwrap_err().to_string().contains("first"));
    let mut bare = b.clone();
    bare.per_user = None;
    assert!(a.compare(&bare, recall, 0).unwrap_err().to_string().contains("second"));
    better.persons.insert(0, Person::new(&[], &[]));
    let error = a.compare(&better.evaluate(&[recall]), recall, 0).unwrap_err();
    assert!(error.to_string().contains("different users"), "{error}");
}
