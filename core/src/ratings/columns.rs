//! Which column is what.

use super::{Keep, ReadOptions};
use crate::error::{Error, Result};

/// Places of the columns that are read, counted from 0, and all names for messages.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Columns {
    pub(super) user: usize,
    pub(super) item: usize,
    /// [`usize::MAX`] where there is none.
    pub(super) value: usize,
    pub(super) time: usize,
    pub(super) names: Vec<String>,
}

/// Names in order of preference, lower case, letters and digits only.
const USER: &[&str] = &[
    "user",
    "userid",
    "uid",
    "username",
    "customer",
    "customerid",
    "visitor",
    "visitorid",
    "reviewer",
    "reviewerid",
    "profile",
    "profileid",
    "member",
    "memberid",
    "account",
    "accountid",
    "client",
    "clientid",
    "person",
    "personid",
    "session",
    "sessionid",
    "u",
];
const ITEM: &[&str] = &[
    "item",
    "itemid",
    "iid",
    "movie",
    "movieid",
    "show",
    "showid",
    "sid",
    "song",
    "songid",
    "track",
    "trackid",
    "product",
    "productid",
    "article",
    "articleid",
    "book",
    "bookid",
    "isbn",
    "asin",
    "business",
    "businessid",
    "game",
    "gameid",
    "anime",
    "animeid",
    "recipe",
    "recipeid",
    "stockcode",
    "sku",
    "artist",
    "artistid",
    "i",
];
const VALUE: &[&str] = &[
    "rating",
    "ratings",
    "value",
    "score",
    "stars",
    "overall",
    "weight",
    "count",
    "plays",
    "playcount",
    "quantity",
    "r",
];
const TIME: &[&str] = &[
    "timestamp",
    "time",
    "datetime",
    "date",
    "ts",
    "unixtime",
    "unixreviewtime",
    "reviewtime",
    "createdat",
    "invoicedate",
    "t",
];

impl Columns {
    /// Decides from the first row and those after it, and says whether the first is a header.
    pub(super) fn find(
        file: &str,
        first: &[String],
        rest: &[Vec<String>],
        options: &ReadOptions,
        keep: Keep,
    ) -> Result<(Self, bool)> {
        let chosen = [&options.user, &options.item, &options.value, &options.time];
        let named = chosen.iter().any(|c| c.as_ref().is_some_and(|name| first.iter().any(|f| f == name)));
        let header = options.header.unwrap_or_else(|| {
            named || (find(first, USER).is_some() && find(first, ITEM).is_some()) || names_above_numbers(first, rest)
        });
        Ok((Self::resolve(file, first, header, options, keep)?, header))
    }

    /// Decides from the names of the columns (or the first row, where there are no names).
    pub(super) fn resolve(
        file: &str,
        first: &[String],
        header: bool,
        options: &ReadOptions,
        keep: Keep,
    ) -> Result<Self> {
        let listed = || {
            let quoted: Vec<_> = first.iter().take(30).map(|name| format!("`{name}`")).collect();
            let more = if first.len() > 30 { ", ..." } else { "" };
            format!("{}{}{more}", if header { "the columns are " } else { "the first row is " }, quoted.join(", "))
        };
        let column = |what: &str, chosen: &Option<String>, known: &[&str], place: usize| -> Result<Option<usize>> {
            let Some(chosen) = chosen else {
                // Two columns are a user and an item, whatever they are called.
                let by_place =
                    !header || (first.len() == 2 && find(first, USER).is_none() && find(first, ITEM).is_none());
                return Ok(if by_place { (place < first.len()).then_some(place) } else { find(first, known) });
            };
            let by_name = || first.iter().position(|name| header && name == chosen);
            let by_number = || chosen.parse().ok().and_then(|n: usize| n.checked_sub(1)).filter(|&n| n < first.len());
            by_name().or_else(by_number).map(Some).ok_or_else(|| {
                Error::usage(format!("{file}: there is no column `{chosen}` for the {what}; {}", listed()))
            })
        };
        let needed = |what: &str, flag: &str, found: Option<usize>| {
            found.ok_or_else(|| {
                let how = if first.len() < 2 { "choose the delimiter with --delimiter" } else { flag };
                Error::data(format!("{file}: it cannot be told which column is the {what}; {}; {how}", listed()))
            })
        };
        let user = needed("user", "choose one with --user", column("user", &options.user, USER, 0)?)?;
        let item = needed("item", "choose one with --item", column("item", &options.item, ITEM, 1)?)?;
        let mut value = column("value", &options.value, VALUE, 2)?;
        let mut time = column("time", &options.time, TIME, 3)?;
        if (keep.threshold.is_some() || keep.values) && !(keep.if_any && options.value.is_none()) {
            value = Some(needed("value", "choose one with --value, or leave out threshold and weights", value)?);
        }
        if keep.times {
            time = Some(needed("time", "choose one with --time, or another split", time)?);
        }
        if user == item {
            return Err(Error::usage(format!("{file}: user and item are the same column; {}", listed())));
        }
        let names = if header { first.to_vec() } else { Vec::new() };
        Ok(Self { user, item, value: value.unwrap_or(usize::MAX), time: time.unwrap_or(usize::MAX), names })
    }

    /// A column as people call it.
    pub(super) fn name(&self, column: usize) -> String {
        match self.names.get(column) {
            Some(name) => format!("column {} ({name})", column.saturating_add(1)),
            None => format!("column {}", column.saturating_add(1)),
        }
    }

    /// What was found, for the report.
    pub(super) fn describe(&self, keep: Keep) -> String {
        let mut text = format!("user {}, item {}", self.name(self.user), self.name(self.item));
        let asked = keep.threshold.is_some() || keep.values;
        if let Some(value) = Some(self.value).filter(|&value| value != usize::MAX && (asked || !self.names.is_empty()))
        {
            let unused = if asked { "" } else { " not used: see --threshold and --weights" };
            text += &format!(", value {}{unused}", self.name(value));
        }
        if keep.times {
            text += &format!(", time {}", self.name(self.time));
        }
        text
    }
}

/// The column with the most preferred name; failing that, one that ends like an id: `click_article_id`.
fn find(columns: &[String], known: &[&str]) -> Option<usize> {
    let plain = |name: &String| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let columns: Vec<String> = columns.iter().map(plain).collect();
    let exact = known.iter().find_map(|known| columns.iter().position(|name| name == known));
    let long = |known: &&&str| known.len() >= 5;
    exact.or_else(|| known.iter().filter(long).find_map(|known| columns.iter().position(|name| name.ends_with(known))))
}

/// Names above at least one column of numbers.
fn names_above_numbers(first: &[String], rest: &[Vec<String>]) -> bool {
    let number = |text: &str| text.trim().parse::<f64>().is_ok();
    !rest.is_empty()
        && first.iter().all(|name| !name.is_empty() && !number(name))
        && (0..first.len()).any(|c| rest.iter().all(|row| row.get(c).is_some_and(|field| number(field))))
}
