//! Local Parquet files that people name: training sets going out and coming in.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::{Error, Result};

/// A Parquet file being written beside its final name; it appears there when it is finished.
pub struct ParquetFileWriter {
    writer: ArrowWriter<File>,
    partial: PathBuf,
    path: PathBuf,
    rows: u64,
}

/// How our files are written: compressed, with dictionaries for texts alone. Numbers and times rarely repeat, and to look
/// for repeats takes longer than all the rest; integers and times are written as differences, which are small in files in
/// order, and leave little to compress. Floats have no statistics: those would leave NaN out, and readers that
/// compare with them would miss it.
pub(crate) fn properties(schema: &SchemaRef) -> WriterPropertiesBuilder {
    let builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false);
    schema.fields().iter().fold(builder, |builder, field| {
        // The names of a list's levels are the format's, and Arrow's for its elements.
        let (path, kind) = match field.data_type() {
            DataType::List(element) => {
                (vec![field.name().clone(), "list".to_owned(), element.name().clone()], element.data_type())
            }
            kind => (vec![field.name().clone()], kind),
        };
        let column = ColumnPath::new(path);
        match kind {
            DataType::Utf8 => builder.set_column_dictionary_enabled(column, true),
            kind if kind.is_floating() => builder.set_column_statistics_enabled(column, EnabledStatistics::None),
            kind if kind.is_integer() || matches!(kind, DataType::Timestamp(..) | DataType::Date32) => {
                builder.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
            }
            _ => builder,
        }
    })
}

impl ParquetFileWriter {
    /// Begins a file with key-value metadata.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the folder cannot be written.
    pub fn create(path: &Path, schema: SchemaRef, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let partial = path.with_extension("parquet.partial");
        let file = File::create(&partial).map_err(|error| failed(path, error))?;
        let metadata = metadata.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone())).collect();
        // People read these files at once, and everything reads Snappy; the store's own are written small.
        let properties = properties(&schema).set_compression(Compression::SNAPPY);
        let properties = properties.set_key_value_metadata(Some(metadata)).build();
        let writer = ArrowWriter::try_new(file, schema, Some(properties)).map_err(|error| failed(path, error))?;
        Ok(Self { writer, partial, path: path.to_owned(), rows: 0 })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).map_err(|error| failed(&self.path, error))
    }

    /// Completes the file and gives it its name. Returns its rows.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn finish(self) -> Result<u64> {
        let Self { writer, partial, path, rows } = self;
        writer.close().map_err(|error| failed(&path, error))?;
        std::fs::rename(partial, &path).map_err(|error| failed(&path, error))?;
        Ok(rows)
    }
}

/// An open Parquet file.
pub struct ParquetFileReader {
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
    metadata: BTreeMap<String, String>,
    rows: usize,
    path: PathBuf,
}

impl ParquetFileReader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when it is missing or not Parquet.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::invalid("not a Parquet file that can be read").with("file", path.display()).source(error)
        };
        let file = File::open(path).map_err(|error| wrong(error.into()))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| wrong(error.into()))?;
        let file_metadata = builder.metadata().file_metadata();
        let rows = usize::try_from(file_metadata.num_rows()).unwrap_or(0);
        let pairs = file_metadata.key_value_metadata().into_iter().flatten();
        let metadata = pairs.filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect();
        let schema = builder.schema().clone();
        let reader = builder.build().map_err(|error| wrong(error.into()))?;
        Ok(Self { reader, schema, metadata, rows, path: path.to_owned() })
    }

    /// Its columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Its key-value metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Its number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl Iterator for ParquetFileReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        Some(batch.map_err(|error| {
            Error::damaged("a Parquet file cannot be read to its end").with("file", self.path.display()).source(error)
        }))
    }
}

fn failed(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("a file cannot be written").with("file", path.display()).source(error)
}
