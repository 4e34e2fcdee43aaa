//! Every form of ratings says the same, whatever it is wrapped in; what is wrong is said with its place.
#![cfg(feature = "files")]

mod common;

use std::io::Write;

use common::{all, bytes, data, message, pairs, text};
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
    #![proptest_config(ProptestConfig::with_cases(64))]

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

    /// Nor do files that were whole once.
    #[test]
    fn damaged_files_are_ratings_or_an_error(
        rows in rows(),
        form in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let forms = forms(&rows[..rows.len().min(20)]);
        let (_, mut bytes) = forms[form.index(forms.len())].clone();
        edits.iter().for_each(|(at, byte)| {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        });
        cut.iter().for_each(|at| bytes.truncate(at.index(bytes.len())));
        let _ = common::bytes(&bytes, &over_three());
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
    let error = message(prepare(Input::Ratings(vec![source]), &all()));
    assert!(error.starts_with("stdin:3: a line of more than 64 MiB"), "{error}");
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
        let Some(path) = data(file) else { continue };
        let (dataset, report) = prepare(path.into(), &options).unwrap();
        let found = (dataset.train.users(), dataset.train.items(), dataset.train.events());
        assert_eq!(found, (users, items, events), "{file}");
        assert_eq!(report.read.bad_lines, 0);
    }
}
