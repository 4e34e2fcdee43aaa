//! A world as the tests make it, and how numbers are compared in it.

use proptest::{collection::vec, prelude::*, sample::subsequence};
use vaecf_core::{
    metrics::{Measure, Metric, NO_ITEM, Scorer, User},
    popularity::Popularity,
    report::Evaluation,
};
use vaecf_tests::compare::{Float, Mismatch, Tolerance, Values, Worst, compare, scalar};

use crate::formulas::mean;

/// A user as the tests make them.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) ranking: Vec<u32>,
    pub(crate) target: Vec<u32>,
    pub(crate) values: Vec<f32>,
    pub(crate) predicted: Vec<f32>,
    pub(crate) history: u32,
}

impl Person {
    pub(crate) fn new(ranking: &[u32], target: &[u32]) -> Self {
        let ones = vec![1.0; target.len()];
        Self { ranking: ranking.into(), target: target.into(), values: ones.clone(), predicted: ones, history: 0 }
    }

    pub(crate) fn user(&self) -> User<'_> {
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
pub(crate) struct World {
    pub(crate) popularity: Popularity,
    pub(crate) persons: Vec<Person>,
}

impl World {
    pub(crate) fn evaluate(&self, metrics: &[Metric]) -> Evaluation {
        let mut scorer = Scorer::new(metrics, &self.popularity).keep_values();
        for person in &self.persons {
            scorer.user(&person.user()).unwrap();
        }
        scorer.finish()
    }

    pub(crate) fn scored(&self) -> impl Iterator<Item = &Person> {
        self.persons.iter().filter(|person| !person.target.is_empty())
    }
}

pub(crate) fn metric(text: &str) -> Metric {
    text.parse().unwrap()
}

/// Every measure, at depth `k` where it has one.
pub(crate) fn every(k: u32) -> Vec<Metric> {
    Measure::ALL.into_iter().map(|m| Metric::new(m, m.has_depth().then_some(k)).unwrap()).collect()
}

pub(crate) fn per_user(k: u32) -> Vec<Metric> {
    Scorer::new(&every(k), &Popularity::new(vec![], 0).unwrap()).per_user().to_vec()
}

/// Sums of some dozens of terms in f64.
pub(crate) fn close(actual: impl Into<Values>, expected: impl Into<Values>) -> Result<Worst, Mismatch> {
    compare(actual, expected, &Tolerance::new(Float::F64, Float::F64).terms(64))
}

/// The same for sums over all lists or all pairs of items, whose terms, of size one, may cancel.
pub(crate) fn close_to_one(actual: f64, expected: f64) -> Result<Worst, Mismatch> {
    let tolerance = Tolerance::new(Float::F64, Float::F64).terms(1024).magnitude([expected.abs().max(1.0)]);
    compare(scalar(actual), scalar(expected), &tolerance)
}

/// A standard error by its square, whose terms cancel as far as the values are alike.
pub(crate) fn close_error(actual: f64, values: &[f64]) -> Result<Worst, Mismatch> {
    let (n, mean) = (values.len() as f64, mean(values).unwrap());
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let size = values.iter().map(|v| v * v).sum::<f64>() / (n - 1.0) / n;
    let tolerance = Tolerance::new(Float::F64, Float::F64).terms(64).magnitude([size]);
    compare(scalar(actual * actual), scalar(variance / n), &tolerance)
}

pub(crate) fn worlds() -> impl Strategy<Value = World> {
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

/// One user, six items, worked by hand.
pub(crate) fn example() -> World {
    let mut person = Person::new(&[3, 0, 1, 2, 4, 5], &[1, 3, 5]);
    person.values = vec![2.0, 3.0, 1.0];
    person.predicted = vec![2.5, 3.0, 3.0];
    World { popularity: Popularity::new(vec![1; 6], 6).unwrap(), persons: vec![person] }
}
