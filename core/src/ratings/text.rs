//! Text: what its form is, and its rows.

use std::io::{self, Read};

use csv::{ByteRecord, ReaderBuilder};
use rustc_hash::FxHashSet;

use super::{Format, Place, Reader, breaks, columns::Columns, decode};
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
                let quoting = self.options.quoting.unwrap_or_else(|| !plain_quotes(sample, delimiter));
                self.table(file, sample, delimiter, 1, quoting, input)
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
        let all = lines.clone();
        let first = lines.next().unwrap_or_default();
        if first.strip_suffix(b":").is_some_and(|id| !id.is_empty() && id.iter().all(u8::is_ascii_digit)) {
            return Format::Netflix;
        }
        if self.options.delimiter.is_some() || self.options.header == Some(true) {
            return Format::Table;
        }
        let cut = sniff(sample, self.options.quoting);
        // `::` also stands inside ids, `Foo::Bar`, and then another delimiter cuts as many rows.
        let doubled = first.windows(2).any(|pair| pair == b"::").then(|| Cut::of(sample, b':', 2, false)).flatten();
        if doubled.is_some_and(|doubled| cut.is_none_or(|cut| doubled.fields >= 3 && doubled.rows >= cut.rows)) {
            return Format::Dat;
        }
        let record = |line: &[u8]| line.len() > 2 && b"ITNACV".contains(&line[0]) && line[1] == b',';
        if first.starts_with(b"I,") && lines.all(record) {
            return Format::Msweb;
        }
        let words = if first.contains(&b' ') { !names_users(first) } else { begins_without_items(all) };
        if cut.is_none() && words { Format::List } else { Format::Table }
    }

    fn delimiter(&self, file: &str, sample: &[u8]) -> Result<u8> {
        match self.options.delimiter {
            Some(c) => u8::try_from(c)
                .ok()
                .filter(u8::is_ascii)
                .ok_or_else(|| Error::usage(format!("{file}: the delimiter `{c}` is not a single ASCII character"))),
            None => Ok(sniff(sample, self.options.quoting).map_or(b' ', |cut| cut.delimiter)),
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
        self.valueless = self.keep.if_any && columns.value == usize::MAX;
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
        let quotes = if quoting || step == 2 { "" } else { ", quotes are plain characters" };
        self.format = format!("table, delimiter {delimiter_name}, {header_name}{quotes}; {described}");
        for column in [&mut columns.user, &mut columns.item, &mut columns.value, &mut columns.time] {
            *column = column.saturating_mul(step);
        }
        self.rows(file, &Table { delimiter, step, quoting, header, columns }, input)
    }

    /// The rows of a table: the loop that has to be fast.
    fn rows(&mut self, file: &str, table: &Table, input: impl Read) -> Result<()> {
        let columns = &table.columns;
        let (needs_value, needs_time) = (self.needs_value(), self.keep.times);
        let mut records = Records::new(input, table.delimiter, table.step, table.quoting);
        if table.header {
            records.next(self, file)?;
        }
        while records.next(self, file)? {
            let record = &records.record;
            let value = if needs_value { record.get(columns.value) } else { Some(&b""[..]) };
            let time = if needs_time { record.get(columns.time) } else { Some(&b""[..]) };
            let fields = (record.get(columns.user), record.get(columns.item), value, time);
            let (Some(user), Some(item), Some(value), Some(time)) = fields else {
                if [fields.0, fields.1, value, time].into_iter().flatten().any(breaks) {
                    self.bad(records.place(file), &records.open_quote())?;
                    continue;
                }
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
                if [user, item, value, time].into_iter().any(breaks) {
                    self.bad(records.place(file), &records.open_quote())?;
                    continue;
                }
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
        let mut records = Records::new(input, b' ', 1, false);
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
        self.valueless = false;
        "Netflix, `item:` and then `user,rating,date`".clone_into(&mut self.format);
        let mut records = Records::new(input, b',', 1, false);
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
        let mut records = Records::new(input, b',', 1, self.options.quoting.unwrap_or(true));
        let mut user = Vec::new();
        while records.next(self, file)? {
            let record = &records.record;
            let id = record.get(1).unwrap_or_default();
            match record.get(0).unwrap_or_default() {
                b"C" => id.clone_into(&mut user),
                b"V" if user.is_empty() => self.bad(records.place(file), "a visit before the first C record")?,
                b"V" => {
                    if self.row(&user, id, b"", b"")?.is_some() {
                        self.bad(records.place(file), &records.open_quote())?;
                    }
                }
                b"I" | b"T" | b"N" | b"A" => {}
                _ => self.bad(records.place(file), "not a record of kind I, T, N, A, C or V")?,
            }
        }
        Ok(())
    }

    fn no_values(&mut self, file: &str, what: &str) -> Result<()> {
        self.valueless = self.keep.if_any;
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

/// The rows of a sample.
fn rows(sample: &[u8], delimiter: u8, step: usize, quoting: bool) -> impl Iterator<Item = ByteRecord> {
    let reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .quoting(quoting)
        .from_reader(sample);
    reader.into_byte_records().map_while(std::result::Result::ok).map(move |mut row| {
        if step == 2 {
            rejoin(&mut row, delimiter);
        }
        row
    })
}

/// The rows of a sample, as text.
fn fields(sample: &[u8], delimiter: u8, step: usize, quoting: bool) -> impl Iterator<Item = Vec<String>> {
    let text = move |row: ByteRecord| row.iter().step_by(step).map(|f| decode(f.trim_ascii()).into_owned()).collect();
    rows(sample, delimiter, step, quoting).map(text)
}

/// Mends a row that was cut at every `:` where only `::` delimits, `1::Alien: Covenant::4`: afterwards
/// every other field is empty.
fn rejoin(row: &mut ByteRecord, delimiter: u8) {
    if row.len().is_multiple_of(2) || !row.iter().skip(1).step_by(2).all(<[u8]>::is_empty) {
        cut_again(row, delimiter);
    }
}

#[cold]
fn cut_again(row: &mut ByteRecord, delimiter: u8) {
    let line = row.iter().collect::<Vec<_>>().join(&delimiter);
    let mut rest = &line[..];
    row.clear();
    while let Some(at) = rest.windows(2).position(|pair| pair == [delimiter; 2]) {
        row.push_field(&rest[..at]);
        row.push_field(b"");
        rest = &rest[at + 2..];
    }
    row.push_field(rest);
}

/// What a delimiter makes of a sample.
#[derive(Clone, Copy)]
struct Cut {
    delimiter: u8,
    /// The rows that have the commonest number of fields.
    rows: usize,
    /// This number, at least 2.
    fields: usize,
}

impl Cut {
    /// None where most rows stay whole.
    fn of(sample: &[u8], delimiter: u8, step: usize, quoting: bool) -> Option<Self> {
        let count = |row: ByteRecord| row.len().div_ceil(step);
        let mut counts: Vec<usize> = rows(sample, delimiter, step, quoting).take(SAMPLE_ROWS).map(count).collect();
        counts.sort_unstable();
        let (rows, fields) = counts.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).max()?;
        (fields >= 2).then_some(Self { delimiter, rows, fields })
    }
}

/// The delimiter that cuts the most rows of the sample into the same number of fields, and that number
/// the highest; none where most rows stay whole.
fn sniff(sample: &[u8], quoting: Option<bool>) -> Option<Cut> {
    let best = |quoting| {
        // Of equals `max_by_key` takes the last, so the most telling delimiter stands last.
        let cuts = [b'|', b';', b',', b'\t'].into_iter().filter_map(|d| Cut::of(sample, d, 1, quoting));
        cuts.max_by_key(|cut| (cut.rows, cut.fields))
    };
    let plain = || best(false).filter(|cut| plain_quotes(sample, cut.delimiter));
    quoting.map_or_else(|| best(true).or_else(plain), best)
}

/// Whether quotes are plain characters: read so, all rows have the same number of fields, and in some
/// row a field opens a quote that neither it nor a later one closes.
fn plain_quotes(sample: &[u8], delimiter: u8) -> bool {
    let (mut width, mut plain) = (None, false);
    for row in rows(sample, delimiter, 1, false) {
        if *width.get_or_insert(row.len()) != row.len() {
            return false;
        }
        let mut open = false;
        for field in row.iter().map(<[u8]>::trim_ascii_end) {
            let closes = field.ends_with(b"\"");
            open = if open { !closes } else { field.starts_with(b"\"") && (!closes || field.len() == 1) };
        }
        plain |= open;
    }
    plain
}

/// Whether lines of words, the first of a single one, are lists of which the first user has no items:
/// they vary in length, or begin with numbers that do not repeat (a number above rows that belong to
/// the same users again is rather how many there are).
fn begins_without_items<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    let words = |line: &'a [u8]| line.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let mut lengths = lines.clone().map(|line| words(line).count()).filter(|&n| n > 1);
    let Some(length) = lengths.next() else { return false };
    let mut seen = FxHashSet::default();
    let mut users = lines.filter_map(|line| words(line).next());
    lengths.any(|n| n != length) || users.all(|user| user.iter().all(u8::is_ascii_digit) && seen.insert(user))
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
    delimiter: u8,
    /// As in [`Table`].
    step: usize,
}

impl<R: Read> Records<R> {
    fn new(input: R, delimiter: u8, step: usize, quoting: bool) -> Self {
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .quoting(quoting)
            .buffer_capacity(128 << 10)
            .from_reader(Limited { inner: input, left: LONGEST, end: None, last: 0, done: false });
        Self { reader, record: ByteRecord::new(), delimiter, step }
    }

    #[inline]
    fn next(&mut self, from: &Reader<'_>, file: &str) -> Result<bool> {
        self.reader.get_mut().left = LONGEST;
        // As in `place`, a `\n` of the line above may be still to come.
        let line = self.reader.position().line() + u64::from(self.reader.get_ref().end == Some(b'\r'));
        let read = self.reader.read_byte_record(&mut self.record).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) if error.get_ref().is_some_and(|e| e.is::<TooLong>()) => {
                Error::data(format!("{file}:{line}: {TooLong}"))
            }
            csv::ErrorKind::Io(error) => from.unreadable(file, &error),
            kind => Error::data(format!("{file}: {kind:?}")),
        })?;
        if self.step == 2 {
            rejoin(&mut self.record, self.delimiter);
        }
        Ok(read)
    }

    /// Where the record starts. It is counted back from its end: the reader's own start lies before the
    /// blank lines above, and before the second half of the `\r\n` above.
    fn place<'a>(&self, file: &'a str) -> Place<'a> {
        let input = self.reader.get_ref();
        // Nothing ends a record whose quote is open at the end of the input.
        let ends = u64::from(input.end == Some(b'\n') && !input.done);
        Place {
            file,
            line: self.reader.position().line().saturating_sub(breaks_in(self.record.as_slice()) + ends).max(1),
        }
    }

    /// Why a field of several lines does not do.
    #[cold]
    fn open_quote(&self) -> String {
        let lines = breaks_in(self.record.as_slice().trim_ascii_end()) + 1;
        format!("a quote opens a field and {lines} lines are one row; --quoting false reads quotes as plain characters")
    }
}

fn breaks_in(fields: &[u8]) -> u64 {
    fields.iter().filter(|&&b| b == b'\n').count() as u64
}

/// Fails where one record takes too much. Ends the last line where nothing does, so that every line is
/// counted in the same way.
struct Limited<R> {
    inner: R,
    left: usize,
    /// The first byte of a line end, as the first line has it.
    end: Option<u8>,
    /// The last byte.
    last: u8,
    /// Whether more was asked for after that.
    done: bool,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut n = self.inner.read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            self.done = matches!(self.last, b'\n' | b'\r');
            if !self.done {
                (buffer[0], n) = (self.end.unwrap_or(b'\n'), 1);
            }
        }
        self.last = buffer[..n].last().copied().unwrap_or(self.last);
        if self.end.is_none() {
            self.end = buffer[..n].iter().copied().find(|b| matches!(b, b'\n' | b'\r'));
        }
        self.left = self.left.checked_sub(n).ok_or_else(|| io::Error::other(TooLong))?;
        Ok(n)
    }
}

#[derive(Debug)]
struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "a line of more than 64 MiB; look for a quote that is left open, or read quotes as plain characters with \
             --quoting false",
        )
    }
}

impl std::error::Error for TooLong {}
