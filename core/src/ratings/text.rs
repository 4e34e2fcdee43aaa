//! Text: what its form is, and its rows.

use std::io::{self, Read};

use csv::{ByteRecord, ReaderBuilder};

use super::{Format, Place, Reader, columns::Columns, decode};
use crate::error::{Error, Result};

/// Longer lines are not ratings; a quote was left open.
const LONGEST: usize = 64 << 20;

/// The rows that decide.
const SAMPLE_ROWS: usize = 100;

/// What is between the fields, and which of them matter.
struct Table {
    delimiter: u8,
    /// 2 where the delimiter is doubled, so that every other field is empty.
    step: usize,
    quoting: bool,
    header: bool,
    columns: Columns,
}

impl Reader<'_> {
    /// Reads text that starts with `head`.
    pub(super) fn text(&mut self, file: &str, head: &[u8], rest: impl Read) -> Result<()> {
        let start = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
            return Err(Error::data(format!(
                "{file}: the text is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8)"
            )));
        }
        if head[start..].trim_ascii().is_empty() {
            return Err(Error::data(format!("{file}: the file is empty; check where it comes from")));
        }
        if head.contains(&0) && self.options.format.is_none() {
            return Err(Error::data(format!(
                "{file}: this is no form of ratings that is known; give text, Parquet, or either in gzip, zstd or zip"
            )));
        }
        let sample = whole_lines(&head[start..]);
        let input = head[start..].chain(rest);
        let format = self.options.format.unwrap_or_else(|| self.form(sample));
        match format {
            Format::Table => {
                let delimiter = self.delimiter(file, sample)?;
                self.table(file, sample, delimiter, 1, true, input)
            }
            Format::Dat => self.table(file, sample, b':', 2, false, input),
            Format::List => self.lists(file, input),
            Format::Netflix => self.netflix(file, input),
            Format::Msweb => self.msweb(file, input),
            Format::Parquet => Err(Error::data(format!("{file}: this is not Parquet"))),
        }?;
        self.check()
    }

    /// The form of a sample.
    fn form(&self, sample: &[u8]) -> Format {
        let mut lines = sample.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        if first.strip_suffix(b":").is_some_and(|id| !id.is_empty() && id.iter().all(u8::is_ascii_digit)) {
            return Format::Netflix;
        }
        if self.options.delimiter.is_some() || self.options.header == Some(true) {
            return Format::Table;
        }
        if first.windows(2).any(|pair| pair == b"::") {
            return Format::Dat;
        }
        let record = |line: &[u8]| line.len() > 2 && b"ITNACV".contains(&line[0]) && line[1] == b',';
        if first.starts_with(b"I,") && lines.all(record) {
            return Format::Msweb;
        }
        if sniff(sample).is_none() && first.contains(&b' ') && !names_users(first) {
            Format::List
        } else {
            Format::Table
        }
    }

    fn delimiter(&self, file: &str, sample: &[u8]) -> Result<u8> {
        match self.options.delimiter {
            Some(c) => u8::try_from(c)
                .ok()
                .filter(u8::is_ascii)
                .ok_or_else(|| Error::usage(format!("{file}: the delimiter `{c}` is not a single ASCII character"))),
            None => Ok(sniff(sample).unwrap_or(b' ')),
        }
    }

    fn table(
        &mut self,
        file: &str,
        sample: &[u8],
        delimiter: u8,
        step: usize,
        quoting: bool,
        input: impl Read,
    ) -> Result<()> {
        let mut rows = fields(sample, delimiter, step, quoting);
        let first = rows.next().unwrap_or_default();
        let rest: Vec<_> = rows.take(SAMPLE_ROWS).collect();
        let (mut columns, header) = Columns::find(file, &first, &rest, self.options, self.keep)?;
        let described = columns.describe(self.keep);
        let delimiter_name = match (delimiter, step) {
            (b'\t', _) => "tab".to_owned(),
            (b, 1) => format!("`{}`", char::from(b)),
            (b, _) => format!("`{0}{0}`", char::from(b)),
        };
        // Words above words may be a header or an event; nothing in the file tells them apart.
        let words = self.options.header.is_none() && first.iter().all(|field| field.parse::<f64>().is_err());
        let header_name = match header {
            true => "with a header".to_owned(),
            false if words => {
                format!("no header (`{}` counts as an event; if it is a header, --header true)", first.join(" "))
            }
            false => "no header".to_owned(),
        };
        self.format = format!("table, delimiter {delimiter_name}, {header_name}; {described}");
        for column in [&mut columns.user, &mut columns.item, &mut columns.value, &mut columns.time] {
            *column = column.saturating_mul(step);
        }
        self.rows(file, &Table { delimiter, step, quoting, header, columns }, input)
    }

    /// The rows of a table: the loop that has to be fast.
    fn rows(&mut self, file: &str, table: &Table, input: impl Read) -> Result<()> {
        let columns = &table.columns;
        let (needs_value, needs_time) = (self.needs_value(), self.keep.times);
        let mut records = Records::new(input, table.delimiter, table.quoting);
        if table.header {
            records.next(self, file)?;
        }
        while records.next(self, file)? {
            let record = &records.record;
            let value = if needs_value { record.get(columns.value) } else { Some(&b""[..]) };
            let time = if needs_time { record.get(columns.time) } else { Some(&b""[..]) };
            let fields = (record.get(columns.user), record.get(columns.item), value, time);
            let (Some(user), Some(item), Some(value), Some(time)) = fields else {
                let last = [
                    columns.user,
                    columns.item,
                    if needs_value { columns.value } else { 0 },
                    if needs_time { columns.time } else { 0 },
                ];
                let wanted = columns.name(last.into_iter().max().unwrap_or(0) / table.step);
                let n = record.len().div_ceil(table.step);
                self.bad(records.place(file), &format!("{n} field{} but {wanted} is needed", plural(n)))?;
                continue;
            };
            if let Some(flaw) = self.row(user, item, value, time)? {
                let (field, column) = if flaw == "time" { (time, columns.time) } else { (value, columns.value) };
                self.bad(records.place(file), &complaint(flaw, field, &columns.name(column / table.step)))?;
            }
        }
        Ok(())
    }

    /// `user item item ...`
    fn lists(&mut self, file: &str, input: impl Read) -> Result<()> {
        self.no_values(file, "a list of items")?;
        "lists, `user item item ...`".clone_into(&mut self.format);
        let mut records = Records::new(input, b' ', false);
        while records.next(self, file)? {
            let mut words = records.record.iter().map(<[u8]>::trim_ascii).filter(|word| !word.is_empty());
            let user = words.next().unwrap_or_default();
            for item in words {
                self.row(user, item, b"", b"")?;
            }
        }
        Ok(())
    }

    /// `item:` and then `user,rating,date`; also the probe's `item:` and then `user`.
    fn netflix(&mut self, file: &str, input: impl Read) -> Result<()> {
        "Netflix, `item:` and then `user,rating,date`".clone_into(&mut self.format);
        let mut records = Records::new(input, b',', false);
        let mut item = Vec::new();
        while records.next(self, file)? {
            let record = &records.record;
            let first = record.get(0).unwrap_or_default().trim_ascii();
            if let (1, Some(id)) = (record.len(), first.strip_suffix(b":")) {
                id.clone_into(&mut item);
            } else if item.is_empty() {
                self.bad(records.place(file), "a rating before the first line like `17:`")?;
            } else {
                let (value, time) = (record.get(1).unwrap_or_default(), record.get(2).unwrap_or_default());
                if let Some(flaw) = self.row(first, &item, value, time)? {
                    let (field, column) = if flaw == "time" { (time, "column 3") } else { (value, "column 2") };
                    self.bad(records.place(file), &complaint(flaw, field, column))?;
                }
            }
        }
        Ok(())
    }

    /// `C,"user",user` and then `V,item,1`.
    fn msweb(&mut self, file: &str, input: impl Read) -> Result<()> {
        self.no_values(file, "a log of visits")?;
        "UCI msweb records".clone_into(&mut self.format);
        let mut records = Records::new(input, b',', true);
        let mut user = Vec::new();
        while records.next(self, file)? {
            let record = &records.record;
            let id = record.get(1).unwrap_or_default();
            match record.get(0).unwrap_or_default() {
                b"C" => id.clone_into(&mut user),
                b"V" if user.is_empty() => self.bad(records.place(file), "a visit before the first C record")?,
                b"V" => {
                    self.row(&user, id, b"", b"")?;
                }
                b"I" | b"T" | b"N" | b"A" => {}
                _ => self.bad(records.place(file), "not a record of kind I, T, N, A, C or V")?,
            }
        }
        Ok(())
    }

    fn no_values(&self, file: &str, what: &str) -> Result<()> {
        if self.needs_value() || self.keep.times {
            return Err(Error::usage(format!(
                "{file}: {what} has neither values nor times; leave out threshold and weights, and choose a split without times"
            )));
        }
        Ok(())
    }
}

/// Why a field does not do.
fn complaint(flaw: &str, field: &[u8], column: &str) -> String {
    let text = decode(&field[..field.len().min(60)]);
    match flaw {
        "value" => format!("`{text}` in {column} is not a number"),
        "time" => format!("`{text}` in {column} is not a time; write Unix seconds or 2005-04-02 23:53:47"),
        _ => format!("`{text}` in {column} is not a weight; weights are at least 0"),
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The sample up to its last line end, where it has one.
fn whole_lines(sample: &[u8]) -> &[u8] {
    let end = sample.iter().rposition(|&b| b == b'\n').map_or(sample.len(), |at| at + 1);
    &sample[..end]
}

/// The rows of a sample, as text.
fn fields(sample: &[u8], delimiter: u8, step: usize, quoting: bool) -> impl Iterator<Item = Vec<String>> {
    let reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .quoting(quoting)
        .from_reader(sample);
    let text = move |row: ByteRecord| row.iter().step_by(step).map(|f| decode(f.trim_ascii()).into_owned()).collect();
    reader.into_byte_records().map_while(std::result::Result::ok).map(text)
}

/// The delimiter that cuts the most rows of the sample into the same number of fields, and that number
/// the highest; none where most rows stay whole.
fn sniff(sample: &[u8]) -> Option<u8> {
    let score = |&delimiter: &u8| {
        let mut counts: Vec<usize> =
            fields(sample, delimiter, 1, true).take(SAMPLE_ROWS).map(|row| row.len()).collect();
        counts.sort_unstable();
        let common = counts.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).max()?;
        (common.1 >= 2).then_some(common)
    };
    // Of equals `max_by_key` takes the last, so the most telling delimiter stands last.
    [b'|', b';', b',', b'\t']
        .into_iter()
        .filter_map(|d| score(&d).map(|s| (s, d)))
        .max_by_key(|best| best.0)
        .map(|best| best.1)
}

/// Whether a line of words is a header.
fn names_users(line: &[u8]) -> bool {
    let names: Vec<String> = line.split(|&b| b == b' ').map(|word| decode(word).to_lowercase()).collect();
    names.iter().any(|name| name.contains("user") || name == "uid")
}

/// Records one after the other, counted against [`LONGEST`].
struct Records<R> {
    reader: csv::Reader<Limited<R>>,
    record: ByteRecord,
}

impl<R: Read> Records<R> {
    fn new(input: R, delimiter: u8, quoting: bool) -> Self {
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .quoting(quoting)
            .buffer_capacity(128 << 10)
            .from_reader(Limited { inner: input, left: LONGEST });
        Self { reader, record: ByteRecord::new() }
    }

    #[inline]
    fn next(&mut self, from: &Reader<'_>, file: &str) -> Result<bool> {
        self.reader.get_mut().left = LONGEST;
        let line = self.reader.position().line();
        self.reader.read_byte_record(&mut self.record).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) if error.get_ref().is_some_and(|e| e.is::<TooLong>()) => {
                Error::data(format!("{file}:{line}: {TooLong}"))
            }
            csv::ErrorKind::Io(error) => from.unreadable(file, &error),
            kind => Error::data(format!("{file}: {kind:?}")),
        })
    }

    fn place<'a>(&self, file: &'a str) -> Place<'a> {
        Place { file, line: self.record.position().map_or(0, csv::Position::line) }
    }
}

/// Fails where one record takes too much.
struct Limited<R> {
    inner: R,
    left: usize,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n).ok_or_else(|| io::Error::other(TooLong))?;
        Ok(n)
    }
}

#[derive(Debug)]
struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a line of more than 64 MiB; look for a quote that is left open")
    }
}

impl std::error::Error for TooLong {}
