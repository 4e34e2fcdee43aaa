//! Data whose answer is known: a model that learns anything finds it.

use vaecf_core::{
    Result,
    dataset::{Dataset, Part, Vocabulary},
    matrix::Matrix,
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
