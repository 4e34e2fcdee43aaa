//! The formulas. Nothing here is shared with the product.

use vaecf_core::metrics::{Measure, NO_ITEM};

use crate::world::{Person, World};

/// Is the item at rank `i` (from 1) wanted?
pub(crate) fn rel(p: &Person, i: usize) -> bool {
    p.ranking.get(i - 1).is_some_and(|item| p.target.contains(item))
}

pub(crate) fn found(p: &Person, k: usize) -> f64 {
    (1..=k).filter(|&i| rel(p, i)).count() as f64
}

pub(crate) fn gain(p: &Person, i: usize) -> f64 {
    if !rel(p, i) {
        return 0.0;
    }
    let at = p.target.iter().position(|item| *item == p.ranking[i - 1]).unwrap();
    2f64.powf(f64::from(p.values[at])) - 1.0
}

pub(crate) fn dcg(gains: &[f64]) -> f64 {
    gains.iter().enumerate().map(|(i, g)| g / ((i + 2) as f64).log2()).sum()
}

pub(crate) fn falling(mut gains: Vec<f64>, k: usize) -> Vec<f64> {
    gains.sort_by(|a, b| b.partial_cmp(a).unwrap());
    gains.truncate(k);
    gains
}

pub(crate) fn precision_sum(p: &Person, k: usize) -> f64 {
    (1..=k).filter(|&i| rel(p, i)).map(|i| found(p, i) / i as f64).sum()
}

pub(crate) fn formula(measure: Measure, p: &Person, k: usize) -> f64 {
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

pub(crate) fn recommended(world: &World, k: usize) -> Vec<usize> {
    let shown = world.scored().flat_map(|p| p.ranking.iter().take(k)).filter(|&&item| item != NO_ITEM);
    shown.map(|&item| item as usize).collect()
}

pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

pub(crate) fn formula_of_all(measure: Measure, world: &World, k: usize) -> Option<f64> {
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
