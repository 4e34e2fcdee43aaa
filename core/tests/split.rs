//! What every split promises, on any events.
#![cfg(feature = "files")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{all, held, message, pairs, text};
use proptest::prelude::*;
use vaecf_core::{
    Kind,
    dataset::{Dataset, Part},
    prepare::PrepareOptions,
    split::{Filter, HeldOut, Split, Threshold},
};

/// (user, item, time); a pair may repeat.
type Row = (u32, u32, i64);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec((0..25_u32, 0..30_u32, 0..50_i64), 1..300)
}

fn csv(rows: &[Row]) -> String {
    let mut text = "user,item,time\n".to_owned();
    rows.iter().for_each(|(u, i, t)| text += &format!("u{u},{i},{t}\n"));
    text
}

/// Pairs with the place of their last row.
fn last(rows: &[Row]) -> BTreeMap<(String, String), (i64, usize)> {
    let pair = |row: &Row| (format!("u{}", row.0), row.1.to_string());
    rows.iter().enumerate().map(|(at, row)| (pair(row), (row.2, at))).collect()
}

fn options(split: Split, seed: u64, min_user: u32) -> PrepareOptions {
    PrepareOptions { split, seed, filter: Filter { min_user, ..Filter::default() }, ..all() }
}

fn parts(dataset: &Dataset) -> impl Iterator<Item = &Part> {
    [&dataset.validation, &dataset.test].into_iter().flatten()
}

/// What must hold of every data set.
fn sound(dataset: &Dataset) {
    dataset.train.check().unwrap();
    let in_train: BTreeSet<u32> = dataset.train.indices().iter().copied().collect();
    assert_eq!(in_train.len(), dataset.items.len() as usize, "the vocabulary is that of the training users");
    assert!((0..dataset.train.users()).all(|user| !dataset.train.row(user).is_empty()));
    for part in parts(dataset) {
        part.history.check().unwrap();
        part.target.check().unwrap();
        assert!(part.users.is_sorted_by(|a, b| a < b));
        for row in 0..part.target.users() {
            let history = part.history.row(row);
            assert!(part.target.row(row).iter().all(|item| history.binary_search(item).is_err()), "disjoint");
        }
        assert!(part.target.events() > 0);
    }
    let names: BTreeSet<&str> = dataset.users.iter().collect();
    assert_eq!(names.len(), dataset.users.len() as usize, "every user once");
}

/// Weak splits: training events and targets together are the events, apart from those counted as dropped.
fn complete(dataset: &Dataset, dropped: u64, all: &BTreeSet<(String, String)>) {
    let mut seen: BTreeSet<_> = pairs(dataset).into_iter().collect();
    let mut count = dataset.train.events();
    for part in parts(dataset) {
        assert!(part.users.iter().all(|&user| user < dataset.train.users()));
        seen.extend(held(dataset, part).into_iter().filter(|event| event.2).map(|event| (event.0, event.1)));
        count += part.target.events();
    }
    assert_eq!(seen.len() as u64, count, "disjoint");
    assert_eq!(count + dropped, all.len() as u64, "complete");
    assert!(seen.is_subset(all));
}

proptest! {
    #[test]
    fn strong(rows in rows(), seed in any::<u64>(), (validation, test) in (0..6_u32, 0..6_u32)) {
        let (validation_users, test_users) = (HeldOut::Users(validation), HeldOut::Users(test));
        let split = Split::Strong { validation: validation_users, test: test_users, targets: 0.2 };
        let Ok((dataset, report)) = text(&csv(&rows), &options(split, seed, 1)) else { return Ok(()) };
        sound(&dataset);
        let all = last(&rows);
        let users: BTreeSet<_> = all.keys().map(|pair| &pair.0).collect();
        prop_assert_eq!(dataset.train.users() + validation + test, users.len() as u32);
        let mut count = dataset.train.events() + report.split.unknown_item;
        for part in parts(&dataset) {
            for (row, &user) in (0..).zip(&part.users) {
                prop_assert!(user >= dataset.train.users());
                let (history, target) = (part.history.row(row).len(), part.target.row(row).len());
                let n = history + target;
                prop_assert_eq!(target, if n < 5 { 0 } else { n / 5 });
                count += n as u64;
            }
        }
        prop_assert_eq!(count, all.len() as u64);
    }

    #[test]
    fn ratio(rows in rows(), seed in any::<u64>(), validation in 0.0..0.5_f64, test in 0.0..0.49_f64) {
        let split = Split::Ratio { validation, test };
        let Ok((dataset, report)) = text(&csv(&rows), &options(split, seed, 1)) else { return Ok(()) };
        sound(&dataset);
        complete(&dataset, report.split.unknown_item, &last(&rows).into_keys().collect());
    }

    #[test]
    fn leave_one_out(rows in rows(), seed in any::<u64>()) {
        let Ok((dataset, report)) = text(&csv(&rows), &options(Split::LeaveOneOut, seed, 1)) else { return Ok(()) };
        sound(&dataset);
        complete(&dataset, report.split.unknown_item, &last(&rows).into_keys().collect());
        prop_assert!(parts(&dataset).all(|part| (0..part.target.users()).all(|row| part.target.row(row).len() == 1)));
    }

    /// The target is the newest event; nothing that the model sees is newer.
    #[test]
    fn leave_last(rows in rows()) {
        let Ok((dataset, report)) = text(&csv(&rows), &options(Split::LeaveLast, 0, 1)) else { return Ok(()) };
        sound(&dataset);
        let all = last(&rows);
        complete(&dataset, report.split.unknown_item, &all.keys().cloned().collect());
        for part in parts(&dataset) {
            let events = held(&dataset, part);
            for (user, item, _) in events.iter().filter(|event| event.2) {
                let time = all[&(user.clone(), item.clone())].0;
                let mut seen = events.iter().filter(|event| event.0 == *user && !event.2);
                prop_assert!(seen.all(|event| all[&(user.clone(), event.1.clone())].0 <= time));
            }
        }
    }

    /// No training event is newer than a validation target, and none of those newer than a test target.
    #[test]
    fn time(rows in rows(), validation in 0.0..0.5_f64, test in 0.0..0.49_f64) {
        let split = Split::Time { validation, test };
        let Ok((dataset, report)) = text(&csv(&rows), &options(split, 0, 1)) else { return Ok(()) };
        sound(&dataset);
        let all = last(&rows);
        complete(&dataset, report.split.unknown_item + report.split.unknown_user, &all.keys().cloned().collect());
        let mut newest = pairs(&dataset).iter().map(|pair| all[pair].0).max().unwrap();
        for part in parts(&dataset) {
            let events = held(&dataset, part).into_iter().filter(|event| event.2);
            let times: Vec<i64> = events.map(|event| all[&(event.0, event.1)].0).collect();
            prop_assert!(times.iter().all(|&time| time > newest));
            newest = times.into_iter().max().unwrap_or(newest);
        }
    }

    /// The filters against the plainest way to write them.
    #[test]
    fn filters(rows in rows(), min_user in 0..8_u32, min_item in 0..8_u32, k_core in any::<bool>()) {
        let mut kept: BTreeSet<(String, String)> = last(&rows).into_keys().collect();
        loop {
            let before = kept.len();
            let mut counts = BTreeMap::new();
            kept.iter().for_each(|pair| *counts.entry(pair.1.clone()).or_insert(0) += 1);
            kept.retain(|pair| counts[&pair.1] >= min_item);
            let mut counts = BTreeMap::new();
            kept.iter().for_each(|pair| *counts.entry(pair.0.clone()).or_insert(0) += 1);
            kept.retain(|pair| counts[&pair.0] >= min_user);
            if !k_core || kept.len() == before {
                break;
            }
        }
        let options = PrepareOptions { filter: Filter { min_user, min_item, k_core }, ..all() };
        match text(&csv(&rows), &options) {
            Ok((dataset, report)) => {
                prop_assert_eq!(pairs(&dataset), kept.iter().cloned().collect::<Vec<_>>());
                let split = report.split;
                prop_assert_eq!(split.events, kept.len() as u64);
                let unique = last(&rows).len() as u64;
                prop_assert_eq!(split.events + split.rare_item + split.rare_user, unique);
                prop_assert_eq!(report.repeats + unique, rows.len() as u64);
            }
            Err(error) => {
                prop_assert!(kept.is_empty(), "{}", error);
                prop_assert_eq!(error.kind(), Kind::Data);
            }
        }
    }

    #[test]
    fn the_seed_decides(seed in any::<u64>()) {
        let rows: Vec<Row> = (0..400).map(|n| (n / 8, n * 7 % 30, 0)).collect();
        let made = |seed| text(&csv(&rows), &options(Split::default(), seed, 5)).unwrap().0;
        prop_assert_eq!(made(seed), made(seed));
        prop_assert_ne!(made(seed), made(seed ^ 1));
    }
}

#[test]
fn what_cannot_be_split_says_why() {
    let one: String = (0..9).map(|item| format!("1,{item},1\n")).collect();
    let two = format!("{one}{}", (0..9).map(|item| format!("2,{item},1\n")).collect::<String>());
    let strong = |validation, test| Split::Strong { validation, test, targets: 0.2 };
    let users = HeldOut::Users;
    let cases = [
        (&one, strong(users(1), users(0)), Kind::Usage, "1 + 0 users to hold out leave none of the 1 to train on"),
        (&two, strong(users(1), users(1)), Kind::Usage, "1 + 1 users to hold out leave none of the 2 to train on"),
        (&two, strong(users(u32::MAX), users(u32::MAX)), Kind::Usage, "leave none of the 2"),
        (&two, strong(HeldOut::Share(1.5), users(0)), Kind::Usage, "1.5 is not a share for validation users"),
        (&two, Split::Published { held_out: 1 }, Kind::Usage, "leave none of the 2"),
        (&two, Split::Ratio { validation: 0.5, test: 0.5 }, Kind::Usage, "1 is not a share"),
        (&two, Split::Ratio { validation: 0.01, test: 0.01 }, Kind::Data, "the split leaves no target"),
        (&two, Split::LeaveLast, Kind::Data, "which column is the time"),
        (&two, Split::Time { validation: f64::NAN, test: 0.1 }, Kind::Usage, "NaN is not a share"),
    ];
    for (file, split, kind, part) in cases {
        let error = text(file, &options(split.clone(), 1, 5)).map(|_| ()).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(part), "{split:?}: {error}");
    }
    let rare = message(text(&one, &options(Split::All, 1, 10)));
    assert!(rare.contains("no user is left of 1 with 9 events; a user needs 10"), "{rare}");
    let nobody = message(text(&two, &options(Split::default(), 1, 5)));
    assert!(nobody.contains("0.1 of 2 users is nobody"), "{nobody}");
}

#[test]
fn options_are_written_as_they_are_read() {
    for split in [
        Split::default(),
        Split::Published { held_out: 10_000 },
        Split::Strong { validation: HeldOut::Users(7), test: HeldOut::Share(0.5), targets: 0.2 },
        Split::LeaveOneOut,
        Split::Time { validation: 0.1, test: 0.1 },
    ] {
        let options = PrepareOptions { split, threshold: Some(Threshold::Above(3.5)), ..PrepareOptions::default() };
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<PrepareOptions>(&text).unwrap(), options, "{text}");
    }
    assert_eq!(serde_json::from_str::<PrepareOptions>("{}").unwrap(), PrepareOptions::default());
    for (text, threshold) in
        [(">3.5", Threshold::Above(3.5)), (">= 4", Threshold::AtLeast(4.0)), ("4", Threshold::AtLeast(4.0))]
    {
        assert_eq!(text.parse::<Threshold>().unwrap(), threshold);
        assert_eq!(threshold.to_string().parse::<Threshold>().unwrap(), threshold);
    }
    assert!("<4".parse::<Threshold>().is_err() && ">NaN".parse::<Threshold>().is_err());
    for (text, held_out) in
        [("10000", HeldOut::Users(10_000)), ("10%", HeldOut::Share(0.1)), ("0.25", HeldOut::Share(0.25))]
    {
        assert_eq!(text.parse::<HeldOut>().unwrap(), held_out);
    }
    for text in ["", "-1", "100%", "1.5", "many", "99999999999"] {
        assert!(text.parse::<HeldOut>().is_err(), "{text}");
    }
}
