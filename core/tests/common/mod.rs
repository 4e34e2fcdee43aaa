//! What the tests of data share.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use proptest::prelude::ProptestConfig;
use vaecf_core::{
    Error, Result,
    dataset::{Dataset, Part},
    prepare::{Input, PrepareOptions, PrepareReport, prepare},
    ratings::Source,
    split::{Filter, Split},
};

/// Says that a test did nothing, past the harness, which hides what a passing test prints.
pub(crate) fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// So many cases of a property, or `$PROPTEST_CASES` where set: with many, tests of bytes are fuzzing.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let set = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { set } else { ProptestConfig { cases, ..set } }
}

/// The folder of real data: `$VAECF_DATA`, or `data` in the workspace. Where a data set is absent
/// the test says so and is skipped.
pub(crate) fn data(test: &str, name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("data");
    let folder = std::env::var_os("VAECF_DATA").map_or(beside, PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    skipped(test, &format!("{} is absent; set VAECF_DATA to the folder of real data", path.display()));
    None
}

/// Everything stays and trains.
pub(crate) fn all() -> PrepareOptions {
    let filter = Filter { min_user: 1, ..Filter::default() };
    PrepareOptions { filter, split: Split::All, ..PrepareOptions::default() }
}

/// Prepares bytes as if they came on standard input.
pub(crate) fn bytes(bytes: &[u8], options: &PrepareOptions) -> Result<(Dataset, PrepareReport)> {
    let source = Source::Stream("stdin".to_owned(), Box::new(std::io::Cursor::new(bytes.to_vec())));
    prepare(Input::Ratings(vec![source]), options)
}

/// Prepares text.
pub(crate) fn text(text: &str, options: &PrepareOptions) -> Result<(Dataset, PrepareReport)> {
    bytes(text.as_bytes(), options)
}

/// The message of what has to fail.
pub(crate) fn message<T>(result: Result<T>) -> String {
    result.err().map(|error: Error| error.to_string()).expect("this has to fail")
}

/// Training pairs in external ids, sorted.
pub(crate) fn pairs(dataset: &Dataset) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (user, (items, _)) in (0..).zip(dataset.train.rows()) {
        let name = dataset.users.name(user);
        pairs.extend(items.iter().map(|&item| (name.to_owned(), dataset.items.name(item).to_owned())));
    }
    pairs.sort();
    pairs
}

/// (user, item, whether a target) of a held-out part in external ids, sorted.
pub(crate) fn held(dataset: &Dataset, part: &Part) -> Vec<(String, String, bool)> {
    let mut pairs = Vec::new();
    for (row, &user) in (0..).zip(&part.users) {
        for (matrix, target) in [(&part.history, false), (&part.target, true)] {
            let name = |&item: &u32| (dataset.users.name(user).to_owned(), dataset.items.name(item).to_owned(), target);
            pairs.extend(matrix.row(row).iter().map(name));
        }
    }
    pairs.sort();
    pairs
}
