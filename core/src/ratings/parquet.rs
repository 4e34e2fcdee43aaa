//! Parquet: the columns needed, batch by batch.

use std::fs::File;

use parquet::{
    basic::Type,
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::{ParquetError, Result as Parsed},
    file::reader::{FileReader, RowGroupReader, SerializedFileReader},
};

use super::{Id, Place, Reader, columns::Columns, value};
use crate::error::{Error, Result};

/// Rows taken at a time.
const BATCH: usize = 8192;

impl Reader<'_> {
    pub(super) fn parquet(&mut self, name: &str, file: File) -> Result<()> {
        // The library panics on some files that are damaged in the wrong place.
        let read = std::panic::AssertUnwindSafe(|| self.columns(name, file));
        std::panic::catch_unwind(read)
            .unwrap_or_else(|_| Err(Error::data(format!("{name}: the Parquet file is damaged; fetch it again"))))
    }

    fn columns(&mut self, name: &str, file: File) -> Result<()> {
        let damaged =
            |e: ParquetError| Error::data(format!("{name}: the Parquet file is damaged ({e}); fetch it again"));
        let parquet = SerializedFileReader::new(file).map_err(damaged)?;
        let schema = parquet.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let columns = Columns::resolve(name, &names, true, self.options, self.keep)?;
        self.format = format!("Parquet; {}", columns.describe(self.keep));
        self.valueless = self.keep.if_any && columns.value == usize::MAX;
        let mut wanted = vec![columns.user, columns.item];
        if self.needs_value() {
            wanted.push(columns.value);
        }
        if self.keep.times {
            wanted.push(columns.time);
        }
        for &column in &wanted {
            let found = schema.column(column);
            let known = [Type::INT32, Type::INT64, Type::FLOAT, Type::DOUBLE, Type::BYTE_ARRAY];
            if !known.contains(&found.physical_type()) || found.max_rep_level() > 0 {
                return Err(Error::data(format!(
                    "{name}: {} is neither integer, float nor text, one a row; choose another column",
                    columns.name(column)
                )));
            }
        }
        // Caught here, these do not get as far as a panic, which would print.
        let chunks = || parquet.metadata().row_groups().iter().flat_map(|group| group.columns());
        if chunks().any(|chunk| {
            let start = chunk.dictionary_page_offset().unwrap_or(0).min(chunk.data_page_offset());
            start < 0 || chunk.compressed_size() < 0 || chunk.num_values() < 0
        }) {
            return Err(damaged(ParquetError::General("a column lies at a negative offset".to_owned())));
        }
        let mut line = 0;
        for group in 0..parquet.num_row_groups() {
            let group = parquet.get_row_group(group).map_err(damaged)?;
            let opened = wanted.iter().map(|&column| Column::new(&*group, column)).collect::<Parsed<Vec<_>>>();
            let mut cells = opened.map_err(damaged)?;
            loop {
                for column in &mut cells {
                    column.fill().map_err(damaged)?;
                }
                let rows = cells[0].cells.len();
                if cells.iter().any(|column| column.cells.len() != rows) {
                    return Err(Error::data(format!("{name}: the columns differ in length; fetch the file again")));
                }
                if rows == 0 {
                    break;
                }
                self.batch(name, &cells, &columns, line)?;
                line += rows as u64;
            }
        }
        self.check()
    }

    /// Rows of which every cell is here; the first is row `line`, counted from 0.
    fn batch(&mut self, name: &str, cells: &[Column], columns: &Columns, line: u64) -> Result<()> {
        let [users, items, rest @ ..] = cells else { return Ok(()) };
        let mut text = (String::new(), String::new());
        for (at, (user, item)) in users.cells.iter().zip(&items.cells).enumerate() {
            let place = Place { file: name, line: line + at as u64 + 1 };
            let (Some(user), Some(item)) = (user.id(&mut text.0), item.id(&mut text.1)) else {
                self.report.rows += 1;
                self.report.missing_id += 1;
                continue;
            };
            let value = if self.needs_value() { rest[0].cells[at].number() } else { Some(1.0) };
            let Some(value) = value else {
                self.bad(place, &format!("the cell in {} is not a number", columns.name(columns.value)))?;
                continue;
            };
            let time = if self.keep.times { rest[rest.len() - 1].cells[at].time() } else { Some(0) };
            let Some(time) = time else {
                self.bad(place, &format!("the cell in {} is not a time", columns.name(columns.time)))?;
                continue;
            };
            if self.event(user, item, value, time)?.is_some() {
                let column = columns.name(columns.value);
                self.bad(place, &format!("{value} in {column} is not a weight; weights are at least 0"))?;
            }
        }
        Ok(())
    }
}

/// One value of any type.
enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(ByteArray),
}

impl Cell {
    /// The id, in `text` where it has to be written out; none where the cell is empty.
    fn id<'a>(&'a self, text: &'a mut String) -> Option<Id<'a>> {
        match self {
            Self::Null => None,
            Self::Text(bytes) => Some(bytes.data().trim_ascii()).filter(|id| !id.is_empty()).map(Id::of),
            Self::Real(real) if real.is_nan() => None,
            &Self::Integer(id) if id >= 0 => Some(Id::Integer(id as u64)),
            // A column of integers with gaps is stored as floats by some tools: 17850.0 is 17850.
            Self::Integer(_) | Self::Real(_) => {
                *text = match self {
                    Self::Real(real) => real.to_string(),
                    Self::Integer(id) => id.to_string(),
                    _ => return None,
                };
                Some(Id::of(text.as_bytes()))
            }
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Null => None,
            &Self::Integer(number) => Some(number as f64),
            &Self::Real(number) => Some(number).filter(|number| number.is_finite()),
            Self::Text(bytes) => value::number(bytes.data().trim_ascii()),
        }
    }

    fn time(&self) -> Option<i64> {
        match self {
            Self::Null => None,
            &Self::Integer(time) => Some(time),
            &Self::Real(time) => Some(time.floor() as i64).filter(|_| time.is_finite()),
            Self::Text(bytes) => value::time(bytes.data().trim_ascii()),
        }
    }
}

/// A column and the batch of it that was read last.
struct Column {
    reader: ColumnReader,
    /// The definition level of a cell that is there.
    defined: i16,
    cells: Vec<Cell>,
}

impl Column {
    fn new(group: &dyn RowGroupReader, column: usize) -> Parsed<Self> {
        let defined = group.metadata().column(column).column_descr().max_def_level();
        Ok(Self { reader: group.get_column_reader(column)?, defined, cells: Vec::new() })
    }

    fn fill(&mut self) -> Parsed<()> {
        self.cells.clear();
        let (defined, cells) = (self.defined, &mut self.cells);
        match &mut self.reader {
            ColumnReader::Int32ColumnReader(r) => fill(r, defined, cells, |n| Cell::Integer(n.into())),
            ColumnReader::Int64ColumnReader(r) => fill(r, defined, cells, Cell::Integer),
            ColumnReader::FloatColumnReader(r) => fill(r, defined, cells, |n| Cell::Real(n.into())),
            ColumnReader::DoubleColumnReader(r) => fill(r, defined, cells, Cell::Real),
            ColumnReader::ByteArrayColumnReader(r) => fill(r, defined, cells, Cell::Text),
            _ => Err(ParquetError::General("a column of a type that was refused before".to_owned())),
        }
    }
}

fn fill<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    defined: i16,
    cells: &mut Vec<Cell>,
    cell: impl Fn(T::T) -> Cell,
) -> Parsed<()> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, ..) = reader.read_records(BATCH, Some(&mut levels), None, &mut values)?;
    let mut values = values.into_iter();
    cells.extend((0..rows).map(|row| {
        let there = defined == 0 || levels.get(row) == Some(&defined);
        if there { values.next().map_or(Cell::Null, &cell) } else { Cell::Null }
    }));
    Ok(())
}
