//! The published preprocessing of Mult-VAE, to the row, and the published sizes of its data sets.
#![cfg(feature = "files")]

mod common;

use std::io::{self, Read};

use common::{data, held, pairs};
use vaecf_core::{
    dataset::Part,
    prepare::{Input, PrepareOptions, PrepareReport, prepare},
    ratings::Source,
    split::{Split, Threshold, numpy::RandomState},
};

fn published(held_out: u32) -> PrepareOptions {
    let threshold = Some(Threshold::Above(3.5));
    PrepareOptions { threshold, split: Split::Published { held_out }, ..PrepareOptions::default() }
}

fn golden() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published")
}

/// `tests/published` holds ratings and what the published steps make of them with numpy 2 (filter,
/// `np.random.seed(98765)`, `permutation`, seed again for each part, `choice` for each user).
#[test]
fn the_split_is_that_of_numpy_to_the_row() {
    let (ours, _) = prepare(golden().join("ratings.csv").into(), &published(12)).unwrap();
    let (theirs, _) = prepare(golden().into(), &PrepareOptions::default()).unwrap();
    assert_eq!((ours.users.len(), ours.train.users()), (theirs.users.len(), theirs.train.users()));
    assert_eq!(ours.items, theirs.items);
    assert_eq!(ours.train, theirs.train);
    assert_eq!(ours.validation, theirs.validation);
    assert_eq!(ours.test, theirs.test);
}

/// Only the numbering of items may depend on how rows of different users are mixed.
#[test]
fn the_order_of_users_in_the_file_changes_nothing() {
    let file = std::fs::read_to_string(golden().join("ratings.csv")).unwrap();
    let (header, rows) = file.split_once('\n').unwrap();
    // One row of each user in turn: within a user the order stays.
    let mut by_user: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows.lines() {
        let user = row.split(',').next().unwrap();
        match by_user.last_mut() {
            Some((last, list)) if *last == user => list.push(row),
            _ => by_user.push((user, vec![row])),
        }
    }
    let mut mixed = vec![header];
    for turn in 0..30 {
        mixed.extend(by_user.iter().filter_map(|(_, list)| list.get(turn)));
    }
    let (ours, _) = prepare(golden().join("ratings.csv").into(), &published(12)).unwrap();
    let (other, _) = common::text(&mixed.join("\n"), &published(12)).unwrap();
    assert_eq!(pairs(&ours), pairs(&other));
    assert_eq!(held(&ours, ours.test.as_ref().unwrap()), held(&other, other.test.as_ref().unwrap()));
    assert_eq!(held(&ours, ours.validation.as_ref().unwrap()), held(&other, other.validation.as_ref().unwrap()));
}

/// The files that the published code wrote for ML-1M. The copy of the ratings at hand has another row
/// order within a user, and drawing targets depends on it: so held-out users agree in their events
/// and in the number of their targets, training users pair for pair.
#[test]
fn ml_1m_is_that_of_the_published_files() {
    let test = "ml_1m_is_that_of_the_published_files";
    let (Some(ratings), Some(files)) = (data(test, "ml-1m/ratings.csv.zst"), data(test, "ml-1m-pro_sg")) else {
        return;
    };
    let (ours, report) = prepare(ratings.into(), &published(600)).unwrap();
    let (theirs, _) = prepare(files.into(), &PrepareOptions::default()).unwrap();
    assert_eq!((report.read.rows, report.split.users, report.split.items), (1_000_209, 6034, 3533));
    assert_eq!(report.split.events, 575_272);
    assert_eq!((ours.train.users(), ours.train.items(), ours.train.events()), (4834, 3497, 462_827));
    // Their users are numbers of the same permutation.
    let numbers = |user: u32| theirs.users.name(user).parse::<u32>().unwrap();
    assert!((0..theirs.users.len()).all(|user| numbers(user) == user));
    let names = |items: &[u32], of: &vaecf_core::dataset::Dataset| {
        let mut names: Vec<String> = items.iter().map(|&item| of.items.name(item).to_owned()).collect();
        names.sort();
        names
    };
    for user in 0..4834 {
        assert_eq!(names(ours.train.row(user), &ours), names(theirs.train.row(user), &theirs), "user {user}");
    }
    let parts = [(&ours.validation, &theirs.validation, 11_228), (&ours.test, &theirs.test, 10_761)];
    for (ours_part, theirs_part, targets) in parts {
        let (a, b) = (ours_part.as_ref().unwrap(), theirs_part.as_ref().unwrap());
        assert_eq!((a.users.len(), a.target.events()), (600, targets));
        assert_eq!(a.users, b.users);
        for row in 0..600 {
            let events = |part: &Part| [part.history.row(row), part.target.row(row)].concat();
            assert_eq!(a.target.row(row).len(), b.target.row(row).len(), "row {row}");
            assert_eq!(names(&events(a), &ours), names(&events(b), &theirs), "row {row}");
        }
    }
}

/// The held-out parts of the published ML-20M split, of which only the targets are at hand.
#[test]
fn ml_20m_targets_have_the_published_shape() {
    let Some(pieces) = data("ml_20m_targets_have_the_published_shape", "ml-20m-pieces") else { return };
    for (file, targets) in [("validation_te.csv.zst", 142_514), ("test_te.csv.zst", 139_775)] {
        let (dataset, _) = prepare(pieces.join(file).into(), &common::all()).unwrap();
        assert_eq!(dataset.train.events(), targets);
        assert!(dataset.items.iter().all(|sid| sid.parse::<u32>().unwrap() < 20_108));
    }
}

/// A file that is made while it is read.
struct Made<F> {
    rows: F,
    line: Vec<u8>,
    at: usize,
}

impl<F: FnMut(&mut Vec<u8>) -> bool> Read for Made<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        while n < buffer.len() {
            if self.at == self.line.len() {
                self.line.clear();
                self.at = 0;
                if !(self.rows)(&mut self.line) {
                    break;
                }
            }
            let part = (self.line.len() - self.at).min(buffer.len() - n);
            buffer[n..n + part].copy_from_slice(&self.line[self.at..self.at + part]);
            (self.at, n) = (self.at + part, n + part);
        }
        Ok(n)
    }
}

fn made(rows: impl FnMut(&mut Vec<u8>) -> bool + 'static) -> Input {
    let made = Made { rows, line: Vec::new(), at: 0 };
    Input::Ratings(vec![Source::Stream("made".to_owned(), Box::new(made))])
}

/// Sizes of a file of ratings, before and after the published steps.
#[derive(Clone, Copy)]
struct Sizes {
    rows: u64,
    users: u32,
    kept_users: u32,
    kept_items: u32,
    train_items: u32,
    events: u64,
    held_out: u32,
}

/// The events that count of each user: user `u` of `users` has `events * share` of them, at least
/// five where kept. Items that no training user has stand with held-out users only.
struct Plan {
    sizes: Sizes,
    is_train: Vec<bool>,
    /// Where the events of each kept user begin.
    starts: Vec<u64>,
}

impl Plan {
    fn new(sizes: Sizes) -> Self {
        let n = sizes.kept_users;
        let drawn = RandomState::new(98765).permutation(n);
        let mut is_train = vec![false; n as usize];
        drawn[..(n - 2 * sizes.held_out) as usize].iter().for_each(|&u| is_train[u as usize] = true);
        let starts = (0..=u64::from(n)).map(|u| sizes.events * u / u64::from(n)).collect();
        Self { sizes, is_train, starts }
    }

    /// The `k`-th item of a kept user, from 0: a run through the vocabulary, so that no item repeats
    /// and all appear. Held-out users begin with an item that nobody else has.
    fn item(&self, user: u32, k: u64) -> u32 {
        let rare = self.sizes.kept_items - self.sizes.train_items;
        if k == 0 && !self.is_train[user as usize] && rare > 0 {
            return self.sizes.train_items + user % rare;
        }
        ((self.starts[user as usize] + k) % u64::from(self.sizes.train_items)) as u32
    }

    fn check(&self, report: &PrepareReport) {
        let sizes = self.sizes;
        assert_eq!(report.read.rows, sizes.rows);
        assert_eq!((report.split.users, report.split.items), (sizes.kept_users, sizes.kept_items));
        assert_eq!(report.split.events, sizes.events);
        assert_eq!(report.train.users, sizes.kept_users - 2 * sizes.held_out);
        assert_eq!(report.train.items, sizes.train_items);
        for part in [&report.validation, &report.test] {
            assert_eq!(part.as_ref().unwrap().users, sizes.held_out);
        }
        let held =
            |part: &Option<vaecf_core::prepare::PartReport>| part.as_ref().map_or(0, |part| part.events + part.targets);
        let kept = report.train.events + held(&report.validation) + held(&report.test);
        assert_eq!(kept + report.split.unknown_item, sizes.events);
    }
}

const ML_20M: Sizes = Sizes {
    rows: 20_000_263,
    users: 138_493,
    kept_users: 136_677,
    kept_items: 20_720,
    train_items: 20_108,
    events: 9_990_682,
    held_out: 10_000,
};

/// `ratings.csv` in the layout of ML-20M, with its published sizes: 20,000,263 rows, after the steps
/// 136,677 users and 9,990,682 events, 20,108 items with training users.
#[test]
fn ml_20m_has_its_published_sizes() {
    let plan = std::rc::Rc::new(Plan::new(ML_20M));
    let (of, mut user, mut k, mut row) = (plan.clone(), 0_u32, 0_u64, 0_u64);
    let mut digits = [0_u8; 20];
    let mut number = move |line: &mut Vec<u8>, mut n: u64| {
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return line.extend_from_slice(&digits[at..]);
            }
        }
    };
    let extra = ML_20M.rows - ML_20M.events;
    let input = made(move |line| {
        if row == 0 && line.is_empty() && k == 0 && user == 0 {
            line.extend_from_slice(b"userId,movieId,rating,timestamp\r\n");
            k = 1;
            return true;
        }
        if row == ML_20M.rows {
            return false;
        }
        // Kept users first, each with ratings of 4.0 and, in between, others of 3.5; the rest after.
        let users = u64::from(ML_20M.users);
        let (id, item, rating) = if user < ML_20M.kept_users {
            let (start, end) = (of.starts[user as usize], of.starts[user as usize + 1]);
            let dull = extra * (u64::from(user) + 1) / users - extra * u64::from(user) / users;
            let n = k - 1;
            let (count, id) = (end - start, user);
            k += 1;
            let row = if n < count { (id, of.item(user, n), "4.0") } else { (id, 30_000 + (n - count) as u32, "3.5") };
            if k > count + dull {
                (user, k) = (user + 1, 1);
            }
            row
        } else {
            let dull = extra * (u64::from(user) + 1) / users - extra * u64::from(user) / users;
            let row = (user, 30_000 + (k - 1) as u32, "3.5");
            k += 1;
            if k > dull {
                (user, k) = (user + 1, 1);
            }
            row
        };
        row += 1;
        number(line, u64::from(id) + 1);
        line.push(b',');
        number(line, u64::from(item) + 1);
        line.push(b',');
        line.extend_from_slice(rating.as_bytes());
        line.extend_from_slice(b",1112486027\r\n");
        true
    });
    let (_, report) = prepare(input, &published(ML_20M.held_out)).unwrap();
    plan.check(&report);
}

/// Blocks of items in the layout of Netflix, not sorted by user.
fn netflix(sizes: Sizes) {
    let plan = std::rc::Rc::new(Plan::new(sizes));
    // Events by item: who has item i? Kept user u has the run starts[u]..starts[u + 1] modulo items.
    let of = plan.clone();
    let (mut item, mut round, mut row) = (0_u32, 0_u64, 0_u64);
    let mut user = 0_u32;
    let mut opened = false;
    let input = made(move |line| {
        use io::Write;
        let items = u64::from(sizes.train_items);
        while item < sizes.train_items {
            if !opened {
                opened = true;
                writeln!(line, "{}:", item + 1).unwrap();
                return true;
            }
            let at = round * items + u64::from(item);
            if at >= sizes.events {
                (item, round, user, opened) = (item + 1, 0, 0, false);
                continue;
            }
            round += 1;
            while of.starts[user as usize + 1] <= at {
                user += 1;
            }
            row += 1;
            writeln!(line, "{},4,2005-09-06", user + 1).unwrap();
            return true;
        }
        // All rows that do not count, at the end.
        if row == sizes.rows {
            return false;
        }
        row += 1;
        let user = (row % u64::from(sizes.users)) + 1;
        writeln!(line, "{user},3,2005-09-06").unwrap();
        true
    });
    let (_, report) = prepare(input, &published(sizes.held_out)).unwrap();
    plan.check(&report);
}

/// Netflix, a hundredth of its size.
#[test]
fn netflix_blocks_have_their_sizes() {
    netflix(Sizes {
        rows: 1_004_805,
        users: 4801,
        kept_users: 4634,
        kept_items: 177,
        train_items: 177,
        events: 568_800,
        held_out: 400,
    });
}

/// All 100,480,507 rows take a minute and about 800 MB.
#[test]
fn netflix_has_its_published_sizes() {
    if std::env::var_os("VAECF_FULL").is_none() {
        let reason = "the full size takes long; set VAECF_FULL=1 to run it";
        return common::skipped("netflix_has_its_published_sizes", reason);
    }
    netflix(Sizes {
        rows: 100_480_507,
        users: 480_189,
        kept_users: 463_435,
        kept_items: 17_769,
        train_items: 17_769,
        events: 56_880_037,
        held_out: 40_000,
    });
}
