//! What is reported of the metrics: groups of users and items, files, tables, and differences.

use vaecf_core::{
    Kind,
    matrix::Matrix,
    metrics::{Metric, NO_ITEM, Profile, Scorer},
    popularity::Popularity,
    report::{Evaluation, compare as paired},
};
use vaecf_tests::compare::{Tolerance, compare, scalar};

use crate::world::{Person, World, close, example, metric};

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
