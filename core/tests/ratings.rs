//! Every form of ratings says the same, whatever it is wrapped in; what is wrong is said with its place.
#![cfg(feature = "files")]

mod common;

use std::io::Write;

use common::{all, bytes, cases, data, message, pairs, text};
use flate2::{Compression, write::GzEncoder};
use parquet::{
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;
use vaecf_core::{
    Kind,
    prepare::{Input, PrepareOptions, prepare},
    ratings::{Format, ReadOptions},
    split::{Filter, Split, Threshold},
};

/// (user, item, value, time).
type Row = (u32, u32, f64, i64);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let value = (0..=10_u8).prop_map(|half| f64::from(half) / 2.0);
    prop::collection::vec((0..30_u32, 1..40_u32, value, 0..2_000_000_000_i64), 1..120)
}

fn over_three() -> PrepareOptions {
    PrepareOptions { threshold: Some(Threshold::Above(3.0)), ..all() }
}

fn csv(rows: &[Row]) -> String {
    let mut text = "userId,movieId,rating,timestamp\n".to_owned();
    rows.iter().for_each(|(u, i, v, t)| text += &format!("{u},{i},{v:.1},{t}\n"));
    text
}

/// What the rows come to, by the plainest means.
fn expected(rows: &[Row]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = rows.iter().filter(|r| r.2 > 3.0).map(|r| (r.0.to_string(), r.1.to_string())).collect();
    pairs.sort();
    pairs.dedup();
    pairs
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes).unwrap();
    archive.into_inner().unwrap()
}

fn parquet_of(rows: &[Row]) -> Vec<u8> {
    let schema = "message ratings { optional int64 user_id; required binary item_id (UTF8); \
                  optional double rating; required int64 timestamp; }";
    let properties = WriterProperties::builder().set_data_page_row_count_limit(7).build();
    let schema = parse_message_type(schema).unwrap().into();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties.into()).unwrap();
    for part in rows.chunks(50) {
        let mut group = writer.next_row_group().unwrap();
        let defined = vec![1; part.len()];
        let mut column = group.next_column().unwrap().unwrap();
        let users: Vec<i64> = part.iter().map(|r| r.0.into()).collect();
        column.typed::<Int64Type>().write_batch(&users, Some(&defined), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let items: Vec<ByteArray> = part.iter().map(|r| r.1.to_string().as_str().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&items, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<f64> = part.iter().map(|r| r.2).collect();
        column.typed::<DoubleType>().write_batch(&values, Some(&defined), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let times: Vec<i64> = part.iter().map(|r| r.3).collect();
        column.typed::<Int64Type>().write_batch(&times, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// The same rows in every form.
fn forms(rows: &[Row]) -> Vec<(&'static str, Vec<u8>)> {
    let plain = csv(rows);
    let mut forms = vec![
        ("CRLF", plain.replace('\n', "\r\n").into_bytes()),
        ("byte order mark", format!("\u{feff}{plain}").into_bytes()),
        ("no line end at the end", plain.trim_end().to_owned().into_bytes()),
        ("blank lines", plain.replace('\n', "\n\n").into_bytes()),
        ("semicolons", plain.replace(',', ";").into_bytes()),
        ("pipes", plain.replace(',', "|").into_bytes()),
        ("tabs", plain.replace(',', "\t").into_bytes()),
        ("blanks around", plain.replace(',', " , ").into_bytes()),
        ("gzip", gzip(plain.as_bytes())),
        ("two gzip members", [gzip(&plain.as_bytes()[..40]), gzip(&plain.as_bytes()[40..])].concat()),
        ("zstd", zstd::encode_all(plain.as_bytes(), 3).unwrap()),
        ("gzip in zstd", zstd::encode_all(&gzip(plain.as_bytes())[..], 3).unwrap()),
        ("zip", zip(&[("ml/README.txt", b"hello"), ("ml/tags.csv", b"a,b\n"), ("ml/ratings.csv", plain.as_bytes())])),
        ("zip of one file", zip(&[("whatever.csv", plain.as_bytes())])),
        ("gzip in zip", zip(&[("x/ratings.csv.gz", &gzip(plain.as_bytes())), ("x/movies.csv", b"1,2\n")])),
        ("tar in tar in gzip", gzip(&tar("training_set.tar", &tar("ml/ratings.csv", plain.as_bytes())))),
        ("Parquet", parquet_of(rows)),
        ("Parquet in gzip", gzip(&parquet_of(rows))),
    ];
    let mut add = |name, line: &dyn Fn(&Row) -> String| {
        let text: String = rows.iter().map(line).collect();
        forms.push((name, text.into_bytes()));
    };
    add("quotes", &|(u, i, v, t)| format!("\"{u}\",\"{i}\",\"{v}\",\"{t}\"\n"));
    add("ratings.dat", &|(u, i, v, t)| format!("{u}::{i}::{v}::{t}\n"));
    add("u.data", &|(u, i, v, t)| format!("{u}\t{i}\t{v}\t{t}\n"));
    add("Netflix", &|(u, i, v, _)| format!("{i}:\n{u},{v},2005-09-06\n"));
    let mut swapped = "title,date,stars,movie_id,UserID\n".to_owned();
    rows.iter().for_each(|(u, i, v, t)| swapped += &format!("\"a, b\nc \"\"d\"\"\",{t},{v},{i},{u}\n"));
    forms.push(("columns in another order", swapped.into_bytes()));
    forms
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn every_form_says_the_same(rows in rows()) {
        let expected = expected(&rows);
        prop_assume!(!expected.is_empty());
        let below = rows.iter().filter(|r| r.2 <= 3.0).count() as u64;
        let (plain, report) = text(&csv(&rows), &over_three()).unwrap();
        prop_assert_eq!(&pairs(&plain), &expected);
        prop_assert_eq!((report.read.rows, report.read.below_threshold), (rows.len() as u64, below));
        prop_assert_eq!(report.repeats, rows.len() as u64 - below - expected.len() as u64);
        for (form, written) in forms(&rows) {
            let (dataset, other) = bytes(&written, &over_three()).map_err(|e| TestCaseError::fail(format!("{form}: {e}")))?;
            // Ids are sorted, so the matrices agree too, not only the pairs.
            prop_assert_eq!(&plain, &dataset, "{}", form);
            prop_assert_eq!(report.read.rows, other.read.rows, "{}", form);
            prop_assert_eq!(report.repeats, other.repeats, "{}", form);
        }
    }

    #[test]
    fn lists_say_what_pairs_say(rows in rows()) {
        let pairs_only: String = rows.iter().map(|(u, i, ..)| format!("{u},{i}\n")).collect();
        // Two items a line at most, and between them users without any.
        let lists: String = rows.chunks(2).map(|c| match c {
            [a, b] if a.0 == b.0 => format!("{} {} {} \n", a.0, a.1, b.1),
            _ => c.iter().map(|(u, i, ..)| format!("{u} {i}\n99 \n")).collect(),
        }).collect();
        prop_assert_eq!(text(&pairs_only, &all()).unwrap().0, text(&lists, &all()).unwrap().0);
    }

    /// Weights and times take the last row of a pair.
    #[test]
    fn the_last_row_of_a_pair_counts(rows in rows()) {
        let options = PrepareOptions { weights: true, ..all() };
        let (dataset, _) = text(&csv(&rows), &options).unwrap();
        let users = dataset.users.lookup();
        let items = dataset.items.lookup();
        for (at, row) in rows.iter().enumerate() {
            if rows[at + 1..].iter().any(|later| (later.0, later.1) == (row.0, row.1)) {
                continue;
            }
            let (user, item) = (users[row.0.to_string().as_str()], items[row.1.to_string().as_str()]);
            let place = dataset.train.row(user).binary_search(&item).unwrap();
            prop_assert_eq!(f64::from(dataset.train.row_values(user).unwrap()[place]), row.2);
        }
    }

    #[test]
    fn the_order_of_rows_changes_nothing(mut rows in rows(), seed in any::<u64>()) {
        let filter = Filter { min_user: 2, min_item: 2, k_core: true };
        let options = PrepareOptions { filter, seed, split: Split::Ratio { validation: 0.0, test: 0.3 }, ..all() };
        let prepared = text(&csv(&rows), &options);
        rows.reverse();
        match (prepared, text(&csv(&rows), &options)) {
            (Ok((a, _)), Ok((b, _))) => prop_assert_eq!(a, b),
            (a, b) => prop_assert_eq!(message(a.map(|_| ())), message(b.map(|_| ()))),
        }
    }

    /// Ids are opaque: they come back as they went in.
    #[test]
    fn ids_are_opaque(ids in prop::collection::hash_set("[^\\s\\x00-\\x1f\"]([^\\x00-\\x1f\"]{0,12}[^\\s\\x00-\\x1f\"])?", 1..20)) {
        let mut file = "user,item\n".to_owned();
        ids.iter().for_each(|id| file += &format!("\"{id}\",\"x{id}\"\n"));
        let (dataset, _) = text(&file, &all()).unwrap();
        let mut expected: Vec<_> = ids.iter().map(|id| id.trim_ascii_ends()).collect();
        let mut found: Vec<_> = dataset.users.iter().map(str::to_owned).collect();
        expected.sort();
        found.sort();
        prop_assert_eq!(found, expected);
    }

    /// No bytes bring it down.
    #[test]
    fn any_bytes_are_ratings_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        format in 0..7_usize,
        start in 0..9_usize,
    ) {
        let starts: [&[u8]; 9] = [
            b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1", b"1:\n", b"userId,movieId\n",
            b"I,4,\"x\"\nC,\"1\",1\n", b"1::2::3\n",
        ];
        let formats = [
            None, Some(Format::Table), Some(Format::Dat), Some(Format::List), Some(Format::Netflix),
            Some(Format::Msweb), Some(Format::Parquet),
        ];
        let read = ReadOptions { format: formats[format], skip_bad_lines: true, ..ReadOptions::default() };
        let _ = common::bytes(&[starts[start], &bytes].concat(), &PrepareOptions { read, ..over_three() });
    }

    /// Nor do files that were whole once, and none takes long.
    #[test]
    fn damaged_files_are_ratings_or_an_error(
        rows in rows(),
        form in any::<prop::sample::Index>(),
        edits in prop::collection::vec(edit(), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        skip_bad_lines in any::<bool>(),
        values in any::<bool>(),
    ) {
        let rows = &rows[..rows.len().min(20)];
        let mut forms = forms(rows);
        forms.extend(more_forms(rows));
        let (form, mut bytes) = forms.swap_remove(form.index(forms.len()));
        edits.iter().for_each(|edit| edit.make(&mut bytes));
        cut.iter().for_each(|at| bytes.truncate(at.index(bytes.len() + 1)));
        let read = ReadOptions { skip_bad_lines, ..ReadOptions::default() };
        let from = std::time::Instant::now();
        let _ = common::bytes(&bytes, &PrepareOptions { read, ..if values { over_three() } else { all() } });
        prop_assert!(from.elapsed().as_secs() < 10, "{} took {:?}", form, from.elapsed());
    }
}

/// The forms that have no values, and containers around other forms than tables.
fn more_forms(rows: &[Row]) -> Vec<(&'static str, Vec<u8>)> {
    let lists: String =
        rows.chunks(3).map(|c| c.iter().fold(c[0].0.to_string(), |l, r| format!("{l} {}", r.1)) + "\n").collect();
    let visits: String = rows.iter().map(|r| format!("C,\"{0}\",{0}\nV,{1},1\n", r.0, r.1)).collect();
    let dat: String = rows.iter().map(|(u, i, v, t)| format!("{u}::{i}::{v}::{t}\n")).collect();
    let netflix: String = rows.iter().map(|(u, i, v, _)| format!("{i}:\n{u},{v},2005-09-06\n")).collect();
    vec![
        ("lists in zstd", zstd::encode_all(lists.as_bytes(), 3).unwrap()),
        ("lists", lists.into_bytes()),
        ("msweb", format!("I,4,\"www.microsoft.com\",\"x\"\nA,1,1,\"a\",\"/a\"\n{visits}").into_bytes()),
        ("ratings.dat in zip", zip(&[("ml/ratings.dat", dat.as_bytes())])),
        ("Netflix in tar", tar("x/combined_data_1.txt", netflix.as_bytes())),
        ("Parquet in zip", zip(&[("ratings.parquet", &parquet_of(rows))])),
    ]
}

/// What may happen to the bytes of a file.
#[derive(Clone, Debug)]
enum Edit {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Delete(prop::sample::Index, usize),
    /// Bytes from one place, again at another.
    Repeat(prop::sample::Index, usize, prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = || any::<prop::sample::Index>();
    // What means something to some reader comes often.
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(&b"\"\n\r,;|\t: \0\xff09"[..])];
    prop_oneof![
        (at(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), prop::collection::vec(byte(), 1..9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1..40_usize).prop_map(|(at, n)| Edit::Delete(at, n)),
        (at(), 1..40_usize, at()).prop_map(|(from, n, to)| Edit::Repeat(from, n, to)),
    ]
}

impl Edit {
    fn make(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let place = |at: &prop::sample::Index| at.index(len.max(1));
        let end = |from: usize, n: usize| (from + n).min(len);
        match self {
            _ if len == 0 => {}
            Self::Set(at, byte) => bytes[place(at)] = *byte,
            Self::Flip(at, bit) => bytes[place(at)] ^= 1 << bit,
            Self::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
            Self::Delete(at, n) => drop(bytes.drain(place(at)..end(place(at), *n))),
            Self::Repeat(from, n, to) => {
                let again = bytes[place(from)..end(place(from), *n)].to_vec();
                drop(bytes.splice(place(to)..place(to), again));
            }
        }
    }
}

/// Blanks around an id do not count.
trait TrimEnds {
    fn trim_ascii_ends(&self) -> String;
}

impl TrimEnds for String {
    fn trim_ascii_ends(&self) -> String {
        String::from_utf8(self.as_bytes().trim_ascii().to_vec()).unwrap()
    }
}

#[test]
fn latin_1_and_utf_8_are_one_id() {
    let (dataset, _) = bytes(b"user,item\nJos\xe9,1\nJos\xc3\xa9,2\n", &all()).unwrap();
    assert_eq!(dataset.users.iter().collect::<Vec<_>>(), ["José"]);
}

#[test]
fn plain_and_padded_integers_differ() {
    let (dataset, _) = text("user,item\n7,1\n07,1\n7 ,2\n-7,1\n99999999999999999999,1\n", &all()).unwrap();
    assert_eq!(dataset.users.len(), 4);
}

#[test]
fn rows_without_an_id_are_dropped_and_counted() {
    let (dataset, report) = text("CustomerID,StockCode\n17850,85123A\n,85123A\n17850,\n", &all()).unwrap();
    assert_eq!((dataset.train.events(), report.read.missing_id, report.read.rows), (1, 2, 3));
}

#[test]
fn columns_are_chosen_by_name_or_number() {
    let file = "package,dependency,n\na,b,1\na,c,2\n";
    let chosen = |user: &str, item: &str| {
        let read = ReadOptions { user: Some(user.into()), item: Some(item.into()), ..ReadOptions::default() };
        text(file, &PrepareOptions { read, ..all() })
    };
    let (named, _) = chosen("package", "dependency").unwrap();
    assert_eq!(named, chosen("1", "2").unwrap().0);
    assert_eq!(named.train.events(), 2);
    assert_eq!(
        message(chosen("package", "rating")),
        "stdin: there is no column `rating` for the item; the columns are `package`, `dependency`, `n`"
    );
    let error = text(file, &all()).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains("choose one with --user"), "{error}");
    // Two columns are a user and an item, once it is said that there is a header.
    let read = ReadOptions { header: Some(true), ..ReadOptions::default() };
    let (two, _) = text("package,dependency\na,b\na,c\n", &PrepareOptions { read, ..all() }).unwrap();
    assert_eq!((two.train.users(), two.train.items(), two.train.events()), (1, 2, 2));
}

#[test]
fn bad_lines_are_named_or_counted() {
    let file = "userId,movieId,rating\n1,2,4\n1,3,good\n2\n1,4,NaN\n2,2,5\n";
    let error = text(file, &over_three()).unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert_eq!(
        error.to_string(),
        "stdin:3: `good` in column 3 (rating) is not a number; stdin:4: 1 field but column 3 (rating) is needed; \
         stdin:5: `NaN` in column 3 (rating) is not a number; correct the file, or leave such lines out with \
         --skip-bad-lines"
    );
    let read = ReadOptions { skip_bad_lines: true, ..ReadOptions::default() };
    let (dataset, report) = text(file, &PrepareOptions { read, ..over_three() }).unwrap();
    assert_eq!((dataset.train.events(), report.read.rows, report.read.bad_lines), (2, 2, 3));
    // The first five are shown, whatever follows.
    let many = format!("userId,movieId,rating\n{}", "1,2,x\n".repeat(50));
    assert_eq!(message(text(&many, &over_three())).matches("stdin:").count(), 5);
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let whole = csv(&[(1, 2, 4.0, 3), (2, 3, 5.0, 4)].repeat(500));
    let packed = gzip(whole.as_bytes());
    let frame = zstd::encode_all(whole.as_bytes(), 3).unwrap();
    let cases: [(&[u8], &str); 11] = [
        (b"", "the file is empty"),
        (b"userId,movieId,rating\n", "no user is left of 0"),
        (b"\xff\xfeu\0s\0", "UTF-16"),
        (b"one\ntwo\n", "--delimiter"),
        (b"1,2\n", "there is no"),
        (b"\x7fELF\0\0\0", "no form of ratings"),
        (b"1 2 3\n2 3 4\n", "a list of items has neither values nor times"),
        (&packed[..packed.len() / 2], "the gzip data is damaged or ends early"),
        (&frame[..frame.len() / 2], "the zstd data is damaged or ends early"),
        (b"PAR1PAR1PAR1", "the Parquet file is damaged"),
        (b"PK\x03\x04 and nothing", "the zip archive is damaged"),
    ];
    for (file, part) in cases {
        let error = bytes(file, &over_three()).unwrap_err();
        let wanted = if part == "there is no" { "it cannot be told which column is the value" } else { part };
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        assert!(matches!(error.kind(), Kind::Data | Kind::Usage), "{error}");
    }
    let none = zip(&[("a/links.csv", b"1,2\n"), ("a/tags.csv", b"1,2\n")]);
    assert!(message(bytes(&none, &all())).contains("a/links.csv, a/tags.csv"));
    let missing = prepare(std::path::Path::new("/nowhere/ratings.csv").into(), &all()).unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/ratings.csv: there is no such file or folder");
}

#[test]
fn a_quote_left_open_is_found() {
    struct Endless;
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b'x');
            Ok(buffer.len())
        }
    }
    let start: &[u8] = b"user,item\n1,2\n3,\"4\n";
    let stream = Box::new(std::io::Read::chain(start, Endless));
    let source = vaecf_core::ratings::Source::Stream("stdin".to_owned(), stream);
    let read = ReadOptions { quoting: Some(true), ..ReadOptions::default() };
    let error = message(prepare(Input::Ratings(vec![source]), &PrepareOptions { read, ..all() }));
    assert!(error.starts_with("stdin:3: a line of more than 64 MiB"), "{error}");
}

/// Quotes that enclose nothing lose no rows: near the top they are told by the content, further down
/// they are a bad line.
#[test]
fn quotes_that_enclose_nothing_lose_no_rows() {
    let rows = |quotes: &[usize]| -> String {
        let item = |n: usize| if quotes.contains(&n) { format!("\"Heroes {n}") } else { format!("Lost {n}") };
        (0..8000).map(|n| format!("u{n}\t{}\t{}\n", item(n), 1 + n % 5)).collect()
    };
    for quotes in [&[0][..], &[7], &[99, 2500], &[150, 151, 7999]] {
        for file in [rows(quotes), format!("user\titem\trating\n{}", rows(quotes))] {
            for file in [file.replace('\n', "\r\n"), file] {
                let (dataset, report) = text(&file, &all()).unwrap();
                assert_eq!((report.read.rows, dataset.train.events()), (8000, 8000), "{quotes:?}");
                assert!(dataset.items.iter().any(|item| item == format!("\"Heroes {}", quotes[0])));
                let format = &report.read.sources[0].format;
                assert!(format.contains("quotes are plain characters"), "{format}");
            }
        }
    }
    // Beyond the sample of 64 KiB: rows 7400 and 7500 open and close one field.
    let read = |quoting, skip_bad_lines| ReadOptions { quoting, skip_bad_lines, ..ReadOptions::default() };
    for (end, options) in [("\n", over_three()), ("\r\n", all())] {
        let file = format!("user\titem\trating\n\n{}", rows(&[7400, 7500])).replace('\n', end);
        assert_eq!(
            message(text(&file, &options)),
            "stdin:7403: a quote opens a field and 101 lines are one row; --quoting false reads quotes as plain \
             characters; correct the file, or leave such lines out with --skip-bad-lines"
        );
        let (_, report) = text(&file, &PrepareOptions { read: read(None, true), ..options.clone() }).unwrap();
        assert_eq!((report.read.rows, report.read.bad_lines), (7899, 1));
        let (_, report) = text(&file, &PrepareOptions { read: read(Some(false), false), ..options }).unwrap();
        assert_eq!((report.read.rows, report.read.bad_lines), (8000, 0));
    }
    // One that is never closed takes the rest of the file.
    let file = format!("user\titem\trating\n{}", rows(&[7400]));
    for file in [file.trim_end(), &file, &file.replace('\n', "\r\n"), file.replace('\n', "\r\n").trim_end()] {
        let error = message(text(file, &over_three()));
        assert!(error.starts_with("stdin:7402: a quote opens a field and 600 lines are one row"), "{error}");
    }
}

#[test]
fn quotes_that_enclose_fields_stay_what_they_are() {
    // Every row has a comma in quotes, so without quoting the rows are equally long as well.
    let names: String = (0..50).map(|n| format!("{n},\"Doe, John {n}\",5\n")).collect();
    let (dataset, report) = text(&names, &all()).unwrap();
    assert!(dataset.items.iter().all(|item| item.starts_with("Doe, John")));
    assert!(!report.read.sources[0].format.contains("plain characters"), "{:?}", report.read.sources);
    let plain = ReadOptions { quoting: Some(false), ..ReadOptions::default() };
    let (dataset, _) = text(&names, &PrepareOptions { read: plain, ..all() }).unwrap();
    assert!(dataset.items.iter().all(|item| item == "\"Doe"));
    // Reviews run over lines as they like, where they are not read.
    let reviews: String = (0..3000).map(|n| format!("u{n},i{},4,\"good,\nas \"\"{n}\"\"\n\nsaid\"\n", n % 7)).collect();
    for file in [format!("user,item,rating,review\n{reviews}"), reviews] {
        let (dataset, report) = text(&file, &over_three()).unwrap();
        assert_eq!((report.read.rows, dataset.train.events(), dataset.items.len()), (3000, 3000, 7));
    }
}

/// Blank lines and either line end count as the lines that they are.
#[test]
fn bad_lines_are_counted_as_editors_count() {
    for end in ["\n", "\r\n"] {
        for last in ["", end] {
            let file = "user,item,rating,text\n\n1,2,4,\"a\nb\"\n\n\n1,2,x,y\n1,2,z,y".replace('\n', end) + last;
            let error = message(text(&file, &over_three()));
            assert!(error.starts_with("stdin:7: `x`") && error.contains("stdin:8: `z`"), "{end:?} {error}");
        }
    }
}

#[test]
fn lists_may_begin_with_users_without_items() {
    let pair = |user: &str, item: &str| (user.to_owned(), item.to_owned());
    for (file, events) in [
        ("0\n1 5 6 7\n2 5 8 6\n", 6),
        ("0\n1\n2 \n3 5 6\n4 7\n", 3),
        ("0\r\n1 5\r\n2 5\r\n", 2),
        ("alice\nbob x y\ncarol z\n", 3),
        ("1 5\n2 6\n3\n", 2),
    ] {
        let (dataset, report) = text(file, &all()).unwrap();
        assert!(report.read.sources[0].format.starts_with("lists"), "{file:?}");
        assert_eq!(dataset.train.events(), events, "{file:?}");
    }
    assert_eq!(pairs(&text("0\n1 5\n2 6\n", &all()).unwrap().0), [pair("1", "5"), pair("2", "6")]);
    // A number of rows above rows is no user, and a title no list.
    for file in ["3\n1 5 6\n1 6 6\n2 5 7\n", "ratings\n1 5 6\n2 6 6\n", "0\n1\n2\n"] {
        assert!(message(text(file, &all())).contains("it cannot be told which column"), "{file:?}");
    }
}

#[test]
fn two_colons_delimit_only_where_nothing_else_does() {
    let items = ["Foo::Bar", "Std::Vec", "plain", "a::b::c", "2001:db8::1", "x::y"];
    let ids: String = items.iter().enumerate().map(|(n, item)| format!("p{n},{item}\n")).collect();
    for delimiter in [",", "\t", ";"] {
        let (dataset, _) = text(&ids.replace(',', delimiter), &all()).unwrap();
        assert_eq!((dataset.users.len(), dataset.items.len()), (6, 6));
        assert!(dataset.items.iter().all(|item| items.contains(&item)));
    }
    for (file, format) in [
        ("1::5\n2::6\n", "`::`"),
        ("1::Toy Story, The (1995)::5::9\n2::Heat::4::9\n", "`::`"),
        ("1::Alien: Covenant::5::9\n2::Alien::4::9\n2:1::A:::4::9\n", "`::`"),
        ("1::5::4::9\n2::6::4\n3::6::4::9\n", "`::`"),
    ] {
        let (dataset, report) = text(file, &all()).unwrap();
        assert!(report.read.sources[0].format.contains(format), "{file:?}");
        assert_eq!(dataset.train.events(), file.lines().count() as u64, "{file:?}");
    }
    let (dataset, _) = text("1::Alien: Covenant::5::9\n2::Heat::4::9\n3::M::1::9\n", &over_three()).unwrap();
    assert_eq!(dataset.items.iter().collect::<Vec<_>>(), ["Alien: Covenant", "Heat"]);
}

#[test]
fn folders_are_read_by_the_names_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(message(prepare(folder.path().into(), &all())).contains("no file in the folder"));
    write("movie_titles.txt", "1,2003,Dinosaur Planet\n");
    write("mv_0000001.txt", "1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n");
    write("mv_0000002.txt", "2:\n822109,4,2005-09-05\n");
    let (netflix, report) = prepare(folder.path().into(), &over_three()).unwrap();
    assert_eq!(pairs(&netflix), [("822109".into(), "1".into()), ("822109".into(), "2".into())]);
    assert_eq!(report.read.sources.len(), 1);
    write("train.txt", "0 5 6\n1 5\n2\n");
    write("test.txt", "0 5 7\n1 6\n3 5\n");
    let (given, report) = prepare(folder.path().into(), &all()).unwrap();
    let test = given.test.unwrap();
    assert_eq!((given.train.users(), given.train.events(), test.users), (2, 3, vec![0, 1]));
    assert_eq!((test.target.row(0), test.target.row(1)), (&[][..], &[1][..]));
    let split = report.split;
    assert_eq!((split.unknown_item, split.unknown_user, split.already_seen), (1, 1, 1));
}

/// The real thing: counts that the data's own descriptions give.
#[test]
fn real_files_have_their_known_sizes() {
    let over = |limit| PrepareOptions { threshold: Some(Threshold::Above(limit)), ..all() };
    let debian = ReadOptions { user: Some("package".into()), item: Some("dependency".into()), ..Default::default() };
    let cases = [
        ("ml-100k/u.data", all(), 943, 1682, 100_000),
        ("ml-latest-small/ml-latest-small.zip", all(), 610, 9724, 100_836),
        ("ml-1m/ratings.csv.zst", all(), 6040, 3706, 1_000_209),
        ("msweb/anonymous-msweb.data.zst", all(), 32_711, 285, 98_654),
        ("gowalla-lightgcn/train.csv.zst", all(), 29_858, 40_981, 810_128),
        ("globo-news/clicks.csv.zst", all(), 322_897, 46_033, 2_950_710),
        ("debian-depends/debian-depends.csv.zst", PrepareOptions { read: debian, ..all() }, 56_926, 41_405, 303_239),
        ("netflix-pieces/netflix-user-ratings-10k.csv", over(0.0), 9687, 3451, 10_000),
        ("ml-20m-pieces/kaggle_rating_sample.csv.zst", over(0.0), 8990, 3370, 10_000),
        ("online-retail/transactions.csv.zst", all(), 4372, 3684, 267_615),
    ];
    for (file, options, users, items, events) in cases {
        let Some(path) = data("real_files_have_their_known_sizes", file) else { continue };
        let (dataset, report) = prepare(path.into(), &options).unwrap();
        let found = (dataset.train.users(), dataset.train.items(), dataset.train.events());
        assert_eq!(found, (users, items, events), "{file}");
        assert_eq!(report.read.bad_lines, 0);
    }
}
