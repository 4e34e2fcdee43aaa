//! Ratings in every form people have them, read as a stream into [`Events`].
//!
//! What a file is, is decided by its content, and can be overridden ([`ReadOptions`]):
//!
//! | content | read as |
//! |---|---|
//! | gzip, zstd, zip, tar, one in another | what is inside; of a zip, a tar or a folder the files named like ratings (`ratings.csv`, `ratings.dat`, `u.data`, `mv_*.txt`, `combined_data_*.txt`) |
//! | `PAR1` | Parquet; columns by name or number |
//! | a first line like `17:` | Netflix: `item:`, then `user,rating,date` |
//! | `::` between fields, and no other delimiter cuts as well | MovieLens `ratings.dat` |
//! | `I,4,"www.microsoft.com",...` | the A, C and V records of UCI msweb |
//! | tabs, commas, semicolons or pipes | a table; with a header, columns are found by common names; without, they are user, item, value, time |
//! | words between spaces | LightGCN lists: `user item item ...`, or a user alone |
//!
//! Ids are opaque: `7` and `07` differ. Blanks around a field do not count. Text that is not UTF-8 is
//! taken for Windows-1252, the usual superset of Latin-1. A row without user or item is dropped and
//! counted; a row that cannot be read is an error that names file and line, unless bad lines are
//! skipped. Quotes enclose fields, unless the first rows are all equally long without quotes and leave one
//! open; a user, item, value or time that runs over lines was no field in quotes, and makes a bad line.
//! Only columns that are needed are read: without threshold, weights or a split by time, values and times
//! may hold anything.

mod columns;
mod parquet;
mod source;
mod text;
mod value;

use std::{borrow::Cow, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::source::Source;
pub(crate) use self::source::{lines, list};
use crate::{
    error::{Error, Result},
    events::{Events, Ids, integer},
    split::Threshold,
};

/// How many bad lines a message shows.
const SHOWN: usize = 5;

/// The form of a file, where it is not to be told by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Columns between delimiters, with or without a header.
    Table,
    /// Columns between `::`, without a header.
    Dat,
    /// `user item item ...`, between spaces.
    List,
    /// `item:` and then lines of `user,rating,date`.
    Netflix,
    /// The records of UCI msweb.
    Msweb,
    /// Apache Parquet.
    Parquet,
}

impl FromStr for Format {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        serde_json::from_value(text.into()).map_err(|_| {
            Error::usage(format!("`{text}` is not a format; there are table, dat, list, netflix, msweb and parquet"))
        })
    }
}

/// How to read ratings; everything left out is told by the content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// The form of the files.
    pub format: Option<Format>,
    /// What stands between the columns of a table.
    pub delimiter: Option<char>,
    /// Whether a table has a header.
    pub header: Option<bool>,
    /// Whether quotes enclose fields of a table or of msweb, `"a, b"`, or are plain characters. In other
    /// forms they are plain always.
    pub quoting: Option<bool>,
    /// The column of users: a name, or a number from 1.
    pub user: Option<String>,
    /// The column of items.
    pub item: Option<String>,
    /// The column of values.
    pub value: Option<String>,
    /// The column of times: integers, or `2005-04-02 23:53:47` and shorter, taken for UTC.
    pub time: Option<String>,
    /// Whether to count lines that cannot be read instead of stopping.
    pub skip_bad_lines: bool,
}

/// What is to be kept of each row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Keep {
    /// Rows whose value does not pass are dropped while reading.
    pub threshold: Option<Threshold>,
    /// Keep values, as weights: finite and not negative.
    pub values: bool,
    /// Keep times.
    pub times: bool,
    /// Threshold and values are for files that have values; in others every row counts, and weighs one.
    pub if_any: bool,
}

/// What was read, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadReport {
    /// Every source, in order.
    pub sources: Vec<SourceReport>,
    /// Rows that could be read, from all sources.
    pub rows: u64,
    /// Lines that could not be read and were skipped.
    pub bad_lines: u64,
    /// The first of them.
    pub bad_examples: Vec<String>,
    /// Rows dropped because user or item is empty.
    pub missing_id: u64,
    /// Rows dropped by the threshold.
    pub below_threshold: u64,
}

impl ReadReport {
    /// Joins what was read later.
    pub(crate) fn add(&mut self, later: Self) {
        self.sources.extend(later.sources);
        self.rows += later.rows;
        self.bad_lines += later.bad_lines;
        self.bad_examples.extend(later.bad_examples);
        self.bad_examples.truncate(SHOWN);
        self.missing_id += later.missing_id;
        self.below_threshold += later.below_threshold;
    }
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceReport {
    /// The path as given.
    pub name: String,
    /// What it was taken for.
    pub format: String,
    /// Rows that could be read.
    pub rows: u64,
}

/// Reads sources one after the other, in bounded memory apart from the events kept.
///
/// # Errors
/// One sentence that names the file, the line and the column.
pub fn read(
    sources: Vec<Source>,
    options: &ReadOptions,
    keep: Keep,
    users: &mut Ids,
    items: &mut Ids,
) -> Result<(Events, ReadReport)> {
    let events = Events::new(keep.values, keep.times);
    let report = ReadReport::default();
    let mut reader = Reader {
        options,
        keep,
        users,
        items,
        events,
        report,
        inside: Vec::new(),
        format: String::new(),
        valueless: false,
    };
    for source in sources {
        let (name, before) = (source.name(), reader.report.rows);
        reader.source(source)?;
        let (format, rows) = (std::mem::take(&mut reader.format), reader.report.rows - before);
        reader.report.sources.push(SourceReport { name, format, rows });
    }
    Ok((reader.events, reader.report))
}

/// Where a row stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    line: u64,
}

/// An id as it was read.
#[derive(Clone, Copy)]
enum Id<'a> {
    Integer(u64),
    Text(&'a [u8]),
}

impl<'a> Id<'a> {
    #[inline]
    fn of(field: &'a [u8]) -> Self {
        integer(field).map_or(Self::Text(field), Self::Integer)
    }

    /// Integers are not looked through, which keeps the usual case fast.
    #[inline]
    fn breaks(self) -> bool {
        matches!(self, Self::Text(bytes) if breaks(bytes))
    }

    #[inline]
    fn number(self, ids: &mut Ids) -> Result<u32> {
        match self {
            Self::Integer(id) => ids.number_of_integer(id),
            Self::Text(bytes) => ids.number(&decode(bytes)),
        }
    }
}

/// Whether a field goes over several lines.
fn breaks(field: &[u8]) -> bool {
    field.trim_ascii().iter().any(|b| matches!(b, b'\n' | b'\r'))
}

fn decode(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0,
    }
}

/// Collects the rows of all sources.
struct Reader<'a> {
    options: &'a ReadOptions,
    keep: Keep,
    users: &'a mut Ids,
    items: &'a mut Ids,
    events: Events,
    report: ReadReport,
    /// The containers around what is being read, outermost first.
    inside: Vec<&'static str>,
    /// What the source was taken for.
    format: String,
    /// The file has no values, and need not have any.
    valueless: bool,
}

impl Reader<'_> {
    fn needs_value(&self) -> bool {
        (self.keep.threshold.is_some() || self.keep.values) && !self.valueless
    }

    /// One row; fields that are not needed are not looked at. Says what is wrong with it, if anything;
    /// `quote` where an id runs over lines.
    #[inline]
    fn row(&mut self, user: &[u8], item: &[u8], value: &[u8], time: &[u8]) -> Result<Option<&'static str>> {
        let value = if self.needs_value() {
            match value::number(value.trim_ascii()) {
                Some(value) => value,
                None => return Ok(Some("value")),
            }
        } else {
            1.0
        };
        let time = if self.keep.times {
            match value::time(time.trim_ascii()) {
                Some(time) => time,
                None => return Ok(Some("time")),
            }
        } else {
            0
        };
        let (user, item) = (user.trim_ascii(), item.trim_ascii());
        if user.is_empty() || item.is_empty() {
            if breaks(user) || breaks(item) {
                return Ok(Some("quote"));
            }
            self.report.rows += 1;
            self.report.missing_id += 1;
            return Ok(None);
        }
        let (user, item) = (Id::of(user), Id::of(item));
        if user.breaks() || item.breaks() {
            return Ok(Some("quote"));
        }
        self.event(user, item, value, time)
    }

    /// One row whose fields are known to be there.
    #[inline]
    fn event(&mut self, user: Id<'_>, item: Id<'_>, value: f64, time: i64) -> Result<Option<&'static str>> {
        if let Some(threshold) = self.keep.threshold
            && !self.valueless
            && !threshold.keeps(value)
        {
            self.report.rows += 1;
            self.report.below_threshold += 1;
            return Ok(None);
        }
        let weight = value as f32;
        if self.keep.values && !(weight.is_finite() && weight >= 0.0) {
            return Ok(Some("weight"));
        }
        let (user, item) = (user.number(self.users)?, item.number(self.items)?);
        self.events.push(user, item, weight, time);
        self.report.rows += 1;
        Ok(None)
    }

    /// Notes a line that cannot be read; fails with the fifth, or at once where there is no place for more.
    fn bad(&mut self, place: Place<'_>, what: &str) -> Result<()> {
        self.report.bad_lines += 1;
        if self.report.bad_examples.len() < SHOWN {
            self.report.bad_examples.push(format!("{}:{}: {what}", place.file, place.line));
        }
        if self.report.bad_examples.len() == SHOWN { self.check() } else { Ok(()) }
    }

    /// Fails where there are bad lines that are not to be skipped.
    fn check(&self) -> Result<()> {
        if self.options.skip_bad_lines || self.report.bad_lines == 0 {
            return Ok(());
        }
        let lines = self.report.bad_examples.join("; ");
        Err(Error::data(format!("{lines}; correct the file, or leave such lines out with --skip-bad-lines")))
    }
}
