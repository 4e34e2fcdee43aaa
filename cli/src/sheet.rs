//! Rows to a file or to standard output: CSV, Parquet, or one JSON object a line.

use std::{
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use vaecf_core::{Error, Result};

/// The form of a file of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Csv,
    Parquet,
}

impl Form {
    /// The form that a file's ending names.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Error::usage(format!("{}: the file must end in .csv or .parquet", path.display()))),
        }
    }
}

/// The cells of one column in a batch of rows.
#[derive(Clone, Debug)]
pub(crate) enum Column {
    Text(Vec<String>),
    Count(Vec<u32>),
    Number(Vec<f64>),
    Flag(Vec<bool>),
}

impl Column {
    fn cell(&self, row: usize) -> String {
        match self {
            Self::Text(cells) => cells[row].clone(),
            Self::Count(cells) => cells[row].to_string(),
            Self::Number(cells) => cells[row].to_string(),
            Self::Flag(cells) => cells[row].to_string(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(cells) => cells.len(),
            Self::Count(cells) => cells.len(),
            Self::Number(cells) => cells.len(),
            Self::Flag(cells) => cells.len(),
        }
    }
}

/// A file of rows that is being written, a batch at a time.
pub(crate) enum Sheet<W: Write + Send> {
    Csv(Box<csv::Writer<W>>),
    Parquet(SerializedFileWriter<W>),
}

impl<W: Write + Send> Sheet<W> {
    /// Begins a file with columns of these names; `like` says what they hold.
    pub(crate) fn new(form: Form, to: W, names: &[&str], like: &[Column]) -> std::io::Result<Self> {
        if form == Form::Csv {
            let mut writer = csv::Writer::from_writer(to);
            writer.write_record(names)?;
            return Ok(Self::Csv(Box::new(writer)));
        }
        let field = |(name, column): (&&str, &Column)| -> std::result::Result<Arc<Type>, ParquetError> {
            let (physical, logical) = match column {
                Column::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
                Column::Count(_) => (Physical::INT32, Some(LogicalType::integer(32, false))),
                Column::Number(_) => (Physical::DOUBLE, None),
                Column::Flag(_) => (Physical::BOOLEAN, None),
            };
            let field = Type::primitive_type_builder(name, physical).with_repetition(Repetition::REQUIRED);
            Ok(Arc::new(field.with_logical_type(logical).build()?))
        };
        let fields = names.iter().zip(like).map(field).collect::<std::result::Result<_, _>>().map_err(other)?;
        let schema = Type::group_type_builder("rows").with_fields(fields).build().map_err(other)?;
        let level = ZstdLevel::default();
        let settings = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        SerializedFileWriter::new(to, Arc::new(schema), Arc::new(settings)).map(Self::Parquet).map_err(other)
    }

    /// Appends a batch of rows, which is a row group of its own in Parquet.
    pub(crate) fn write(&mut self, columns: &[Column]) -> std::io::Result<()> {
        match self {
            Self::Csv(writer) => {
                for row in 0..columns.first().map_or(0, Column::len) {
                    writer.write_record(columns.iter().map(|column| column.cell(row)))?;
                }
                Ok(())
            }
            Self::Parquet(writer) => write_group(writer, columns).map_err(other),
        }
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            Self::Parquet(writer) => writer.close().map(|_| ()).map_err(other),
        }
    }
}

fn write_group<W: Write + Send>(
    file: &mut SerializedFileWriter<W>,
    columns: &[Column],
) -> std::result::Result<(), ParquetError> {
    let mut group = file.next_row_group()?;
    for column in columns {
        let Some(mut writer) = group.next_column()? else { break };
        match column {
            Column::Text(cells) => {
                let cells: Vec<_> = cells.iter().map(|cell| ByteArray::from(cell.as_str())).collect();
                writer.typed::<ByteArrayType>().write_batch(&cells, None, None)?;
            }
            Column::Count(cells) => {
                let cells: Vec<_> = cells.iter().map(|&cell| cell.cast_signed()).collect();
                writer.typed::<Int32Type>().write_batch(&cells, None, None)?;
            }
            Column::Number(cells) => {
                writer.typed::<DoubleType>().write_batch(cells, None, None)?;
            }
            Column::Flag(cells) => {
                writer.typed::<BoolType>().write_batch(cells, None, None)?;
            }
        }
        writer.close()?;
    }
    group.close()?;
    Ok(())
}

/// The parquet crate wraps what the file system said; here it is taken out again.
fn other(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(inner) => *inner,
            Err(inner) => std::io::Error::other(inner),
        },
        error => std::io::Error::other(error),
    }
}

/// A whole file of rows, written whole or not at all.
pub(crate) fn write_file(path: &Path, names: &[&str], columns: &[Column]) -> Result<()> {
    let form = Form::of(path)?;
    vaecf_core::files::write_atomic(path, |to: &mut BufWriter<&std::fs::File>| {
        Sheet::new(form, to, names, columns)
            .and_then(|mut sheet| sheet.write(columns).and_then(|()| sheet.finish()))
            .map_err(|e| Error::io("writing", path, &e))
    })
}
