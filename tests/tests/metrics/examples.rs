//! Examples worked by hand. `mutants` proves that these checks can fail.

use vaecf_core::{
    Kind,
    matrix::Matrix,
    metrics::{Measure, Metric, Profile, Scorer, User, depth},
    popularity::Popularity,
    report::Evaluation,
};
use vaecf_tests::compare::scalar;

use crate::{
    formulas::{dcg, falling, formula, found, gain, precision_sum, rel},
    world::{Person, World, close, close_to_one, every, example, metric},
};

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
