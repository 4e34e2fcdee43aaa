//! Data whose answer is known: a model that learns anything finds it.

use vaecf_core::{
    Result,
    dataset::{Dataset, Part, Vocabulary},
    matrix::Matrix,
    random::{Generator, stream},
};

/// `groups` circles of `size` items each. Every training user has all items of one circle, every
/// held-out user all but one: that one is the only right answer.
///
/// # Errors
/// Where the numbers make no data set.
pub fn circles(groups: u32, size: u32) -> Result<Dataset> {
    let items = groups * size;
    let circle = |group: u32| (group * size..(group + 1) * size).collect::<Vec<u32>>();
    // Each circle is seen in full by two users, and by one user per item who lacks that item.
    let mut rows: Vec<Vec<u32>> = (0..2 * groups).map(|u| circle(u % groups)).collect();
    let mut held = (Vec::new(), Vec::new());
    for group in 0..groups {
        for missing in circle(group) {
            let without: Vec<u32> = circle(group).into_iter().filter(|&i| i != missing).collect();
            rows.push(without.clone());
            held.0.push(without);
            held.1.push(vec![missing]);
        }
    }
    let train = rows.len() as u32;
    let part = |first: u32| -> Result<Part> {
        Ok(Part {
            users: (first..first + items).collect(),
            history: Matrix::from_rows(items, &held.0)?,
            target: Matrix::from_rows(items, &held.1)?,
        })
    };
    let users: Vocabulary = (0..train + 2 * items).map(|u| format!("user {u}")).collect();
    let names: Vocabulary = (0..items).map(|i| format!("item {i}")).collect();
    Dataset::new(Matrix::from_rows(items, &rows)?, Some(part(train)?), Some(part(train + items)?), names, users)
}

/// Users with noisy tastes: each likes two of `groups` groups of items and touches their items eight times
/// as readily as others, of which more popular ones more. A fifth of the users is held out for each
/// of validation and test, with every fourth event as target.
///
/// # Errors
/// Where the numbers make no data set.
pub fn tastes(seed: u64, users: u32, items: u32, groups: u32) -> Result<Dataset> {
    let row = |user: u32| {
        let mut random = Generator::new(seed, stream::SYNTHETIC, user);
        let likes = [random.below(groups), random.below(groups)];
        let touched = |item: &u32| {
            let taste = if likes.contains(&(item % groups)) { 0.4 } else { 0.05 };
            random.unit() < taste * (1.5 - f64::from(*item) / f64::from(items))
        };
        (0..items).filter(touched).collect::<Vec<u32>>()
    };
    let held = users / 5;
    let train = users - 2 * held;
    let part = |from: u32| -> Result<Part> {
        let rows: Vec<Vec<u32>> = (from..from + held).map(row).collect();
        let pick = |target: bool| {
            rows.iter().map(move |row| {
                row.iter()
                    .enumerate()
                    .filter(move |(at, _)| (at % 4 == 3) == target)
                    .map(|(_, &item)| item)
                    .collect::<Vec<u32>>()
            })
        };
        Ok(Part {
            users: (from..from + held).collect(),
            history: Matrix::from_rows(items, pick(false))?,
            target: Matrix::from_rows(items, pick(true))?,
        })
    };
    let ids: Vocabulary = (0..users).map(|u| format!("user {u}")).collect();
    let names: Vocabulary = (0..items).map(|i| format!("item {i}")).collect();
    let history = Matrix::from_rows(items, (0..train).map(row))?;
    Dataset::new(history, Some(part(train)?), Some(part(train + held)?), names, ids)
}
