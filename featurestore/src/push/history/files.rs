//! The files of pushed events: how they are written, merged and read.
//!
//! A file has the columns of its source, and each event's place in the order of writes: its push's position and its row in
//! that push. Events lie in that order, so files that follow each other are merged by writing one behind the other, and a
//! stretch of positions is read without the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::arrow::async_writer::AsyncArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

use super::PushHistory;
use crate::tier::{DataFile, Fingerprint, ObjectReader, PushedRange, WRITE_POSITION, WRITE_WITHIN};
use crate::time::Timestamp;
use crate::{Error, Result};

/// Rows that are read at once: a push of more is put together from several batches.
const READ_ROWS: usize = 8 << 10;

/// The bytes of a group of rows, about: whoever wants a stretch of positions reads no less.
const GROUP_BYTES: usize = 4 << 20;

impl PushHistory {
    /// Writes a flush's events of a source: a file, or several where the source has gained a column in the middle of it.
    pub(super) async fn write_flushed(
        &self,
        (source, name): (&str, &str),
        batches: &[RecordBatch],
        positions: PushedRange,
    ) -> Result<Vec<DataFile>> {
        let runs: Vec<_> = batches.chunk_by(|one, other| one.schema_ref() == other.schema_ref()).collect();
        let (mut files, mut after) = (Vec::new(), positions.after);
        for (index, run) in runs.iter().enumerate() {
            let name = if index == 0 { name.to_owned() } else { format!("{name}-{index}") };
            let is_last = index + 1 == runs.len();
            let until = if is_last { positions.until } else { last_position(run).unwrap_or(after) };
            let mut writer = EventsWriter::begin(&self.store, &path_of(source, &name), run[0].schema())?;
            for batch in *run {
                writer.write(batch).await?;
            }
            let range = PushedRange { after, until, ..positions };
            files.push(DataFile { positions: Some(range), ..writer.finish().await? });
            after = until;
        }
        Ok(files)
    }

    /// Writes the events of files of a source that follow each other and have the same columns as one, which nothing reads
    /// until it takes their place ([`Self::replace`]). `name` is nobody else's.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for a file that cannot be read or does not follow the one before, and
    /// [`crate::ErrorKind::Unavailable`].
    pub async fn merge(&self, source: &str, name: &str, files: &[DataFile]) -> Result<DataFile> {
        let (mut writer, mut last, mut positions) = (None, 0, None::<PushedRange>);
        for file in files {
            let mut batches = self.read(file, None).await?;
            while let Some(batch) = batches.try_next().await.map_err(|error| damaged(&file.path, error))? {
                let Some(order) = positions_of(&batch) else { return Err(out_of_order(file)) };
                if order.values().first().is_some_and(|first| first.cast_unsigned() < last) {
                    return Err(out_of_order(file));
                }
                last = order.values().last().map_or(last, |position| position.cast_unsigned());
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(EventsWriter::begin(&self.store, &path_of(source, name), batch.schema())?),
                };
                writer.write(&batch).await?;
            }
            let range = file.positions.ok_or_else(|| out_of_order(file))?;
            positions = Some(PushedRange { after: positions.map_or(range.after, |of| of.after), ..range });
        }
        let writer = match (writer, files.first()) {
            (Some(writer), _) => writer,
            (None, None) => return Err(Error::internal("there are no files to merge").with("source", source)),
            // Pushes without events.
            (None, Some(file)) => {
                let columns = Arc::clone(self.open(file).await?.schema());
                EventsWriter::begin(&self.store, &path_of(source, name), columns)?
            }
        };
        Ok(DataFile { positions, ..writer.finish().await? })
    }

    /// The columns of a file; none of one from before positions were kept, which is not merged.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when it cannot be read.
    pub async fn columns_of(&self, file: &DataFile) -> Result<Option<SchemaRef>> {
        let schema = Arc::clone(self.open(file).await?.schema());
        let has = |name: &str| schema.field_with_name(name).is_ok_and(|field| *field.data_type() == DataType::Int64);
        Ok((has(WRITE_POSITION) && has(WRITE_WITHIN)).then_some(schema))
    }

    /// Reads a file; of one with several groups of rows those alone that may have positions after one and up to another.
    pub(super) async fn read(
        &self,
        file: &DataFile,
        positions: Option<(u64, u64)>,
    ) -> Result<ParquetRecordBatchStream<ObjectReader>> {
        let mut builder = self.open(file).await?.with_batch_size(READ_ROWS);
        if let Some(positions) = positions {
            let groups = groups_with(builder.metadata(), positions);
            builder = builder.with_row_groups(groups);
        }
        builder.build().map_err(|error| damaged(&file.path, error))
    }

    pub(super) async fn open(&self, file: &DataFile) -> Result<ParquetRecordBatchStreamBuilder<ObjectReader>> {
        let reader = ObjectReader::new(Arc::clone(&self.store), Path::from(file.path.as_str()), file.bytes);
        ParquetRecordBatchStreamBuilder::new(reader).await.map_err(|error| damaged(&file.path, error))
    }
}

fn path_of(source: &str, name: &str) -> Path {
    Path::from_iter(["pushes", "data", source, &format!("{name}.parquet")])
}

pub(super) fn damaged(path: &str, error: ParquetError) -> Error {
    Error::damaged("a file of pushed events cannot be read")
        .with("path", path)
        .remedy("restore the object from a backup of the store")
        .source(error)
}

fn out_of_order(file: &DataFile) -> Error {
    Error::damaged("a file of pushed events does not follow those before it").with("path", &file.path)
}

/// The groups of rows that may have positions after one and up to another.
pub(super) fn groups_with(metadata: &ParquetMetaData, (after, until): (u64, u64)) -> Vec<usize> {
    let columns = metadata.file_metadata().schema_descr();
    let column = columns.columns().iter().position(|column| column.name() == WRITE_POSITION);
    let may_have = |group: usize| {
        let statistics = column.and_then(|column| metadata.row_group(group).column(column).statistics());
        let Some(Statistics::Int64(positions)) = statistics else { return true };
        let (least, greatest) = (positions.min_opt(), positions.max_opt());
        least.is_none_or(|least| least.cast_unsigned() <= until)
            && greatest.is_none_or(|greatest| greatest.cast_unsigned() > after)
    };
    (0..metadata.num_row_groups()).filter(|group| may_have(*group)).collect()
}

/// The positions of a batch's events; none where it does not have them all.
pub(super) fn positions_of(batch: &RecordBatch) -> Option<&Int64Array> {
    let positions = batch.column_by_name(WRITE_POSITION)?.as_primitive_opt::<Int64Type>()?;
    (positions.null_count() == 0).then_some(positions)
}

/// The greatest position of batches in order.
fn last_position(batches: &[RecordBatch]) -> Option<u64> {
    let last = batches.iter().rev().find(|batch| batch.num_rows() > 0)?;
    positions_of(last)?.values().last().map(|position| position.cast_unsigned())
}

/// A file of events being written; nothing reads it until a commit names it.
struct EventsWriter {
    writer: AsyncArrowWriter<BufWriter>,
    path: Path,
    fingerprint: Fingerprint,
    times: BTreeMap<String, (Timestamp, Timestamp)>,
}

impl EventsWriter {
    fn begin(store: &Arc<dyn ObjectStore>, path: &Path, schema: SchemaRef) -> Result<Self> {
        let fingerprint = Fingerprint::of_events(&schema)?;
        let object = BufWriter::new(Arc::clone(store), path.clone());
        let properties = crate::parquet_file::properties(&schema).set_max_row_group_bytes(Some(GROUP_BYTES)).build();
        let writer =
            AsyncArrowWriter::try_new(object, schema, Some(properties)).map_err(|error| failed(path, error))?;
        Ok(Self { writer, path: path.clone(), fingerprint, times: BTreeMap::new() })
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.fingerprint.add(batch)?;
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() else { continue };
            let (Some(least), Some(greatest)) = (arrow::compute::min(times), arrow::compute::max(times)) else {
                continue;
            };
            let (least, greatest) = (Timestamp::from_micros(least), Timestamp::from_micros(greatest));
            match self.times.get_mut(field.name()) {
                Some(range) => *range = (range.0.min(least), range.1.max(greatest)),
                None => drop(self.times.insert(field.name().clone(), (least, greatest))),
            }
        }
        self.writer.write(batch).await.map_err(|error| failed(&self.path, error))
    }

    async fn finish(mut self) -> Result<DataFile> {
        self.writer.finish().await.map_err(|error| failed(&self.path, error))?;
        Ok(DataFile {
            path: self.path.to_string(),
            rows: self.fingerprint.rows(),
            bytes: self.writer.bytes_written() as u64,
            fingerprint: Some(self.fingerprint.sum()),
            times: self.times,
            ..DataFile::default()
        })
    }
}

fn failed(path: &Path, error: ParquetError) -> Error {
    Error::unavailable("pushed events cannot be written").with("path", path).source(error)
}
