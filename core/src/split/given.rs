//! A data set whose parts came in files of their own.

use super::{
    SplitReport,
    build::{Builder, NONE, PartBuilder, vocabulary},
};
use crate::{
    dataset::Dataset,
    error::{Error, Result},
    events::{Ids, Rows},
};

/// A held-out part that came in files of its own.
#[derive(Debug)]
pub struct Given {
    /// What the model sees; without it, the user's training events (for test also those of validation).
    pub history: Option<Rows>,
    /// What it is to recommend.
    pub target: Rows,
}

/// A data set of given parts, as they are: the vocabulary is that of `train`, the rest is counted.
///
/// # Errors
/// Where a part has no event.
pub fn given(
    train: &Rows,
    validation: Option<&Given>,
    test: Option<&Given>,
    users: &Ids,
    items: &Ids,
) -> Result<(Dataset, SplitReport)> {
    let mut report = SplitReport { events: train.events(), ..SplitReport::default() };
    let ranks = users.ranks();
    let mut order: Vec<u32> = (0..users.names().len()).collect();
    order.sort_unstable_by_key(|&user| ranks[user as usize]);
    let mut listed: Vec<u32> = order.iter().copied().filter(|&user| !train.span(user).is_empty()).collect();
    if listed.is_empty() {
        return Err(Error::data("the training file has no event"));
    }
    let mut seen = vec![false; items.names().len() as usize];
    train.items().iter().for_each(|&item| seen[item as usize] = true);
    let known = (0..).zip(seen).filter(|(_, seen)| *seen).map(|(item, _)| item).collect();
    let mut map = Vec::new();
    let vocabulary = vocabulary(items, known, true, &mut map);
    (report.users, report.items) = (listed.len() as u32, vocabulary.len());
    let row = |rows: &Rows, user: u32, unknown: &mut u64| -> Vec<(u32, f32)> {
        let mut row = Vec::new();
        for at in rows.span(user) {
            match map[rows.items()[at] as usize] {
                NONE => *unknown += 1,
                item => row.push((item, rows.values().map_or(1.0, |values| values[at]))),
            }
        }
        row
    };
    let mut matrix = Builder::new(&vocabulary, train, listed.len(), train.events());
    listed.iter().for_each(|&user| matrix.push(row(train, user, &mut 0).into_iter()));
    let mut index = vec![NONE; order.len()];
    listed.iter().zip(0..).for_each(|(&user, row)| index[user as usize] = row);

    let mut parts = [None, None];
    for (part, given) in parts.iter_mut().zip([validation, test]) {
        let Some(given) = given else { continue };
        let mut builder = PartBuilder::new(&vocabulary, train);
        let mut held = Vec::new();
        for &user in &order {
            let targets = given.target.span(user).len();
            if targets == 0 && given.history.as_ref().is_none_or(|rows| rows.span(user).is_empty()) {
                continue;
            }
            let mut history = match &given.history {
                Some(rows) => row(rows, user, &mut report.unknown_item),
                None if index[user as usize] == NONE => {
                    report.unknown_user += targets as u64;
                    continue;
                }
                None => row(train, user, &mut 0),
            };
            if given.history.is_none()
                && let Some(earlier) = validation.filter(|earlier| !std::ptr::eq(*earlier, given))
            {
                history.extend(row(&earlier.target, user, &mut 0));
            }
            let mut target = row(&given.target, user, &mut report.unknown_item);
            history.sort_unstable_by_key(|event| event.0);
            history.dedup_by_key(|event| event.0);
            let before = target.len();
            target.retain(|event| history.binary_search_by_key(&event.0, |known| known.0).is_err());
            report.already_seen += (before - target.len()) as u64;
            if index[user as usize] == NONE {
                index[user as usize] = listed.len() as u32;
                listed.push(user);
            }
            held.push((index[user as usize], history, target));
        }
        held.sort_unstable_by_key(|row| row.0);
        held.into_iter().for_each(|(user, history, target)| {
            builder.push(user, history.into_iter(), target.into_iter());
        });
        *part = Some(builder.finish(
            "a held-out file has no event of a known user on a known item; are the ids those of the training file?",
        )?);
    }
    let [validation, test] = parts;
    let names = listed.iter().map(|&user| users.names().name(user)).collect();
    Ok((Dataset::new(matrix.finish()?, validation, test, vocabulary, names)?, report))
}
