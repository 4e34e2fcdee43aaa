//! What holds in any world.

use proptest::{collection::vec, prelude::*};
use vaecf_core::{
    metrics::{Measure, Metric, NO_ITEM, Profile, Scorer, User},
    popularity::Popularity,
};
use vaecf_tests::compare::scalar;

use crate::{
    formulas::{formula, formula_of_all, found, mean, rel},
    world::{close, close_error, close_to_one, every, per_user, worlds},
};

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
