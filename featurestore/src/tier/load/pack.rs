//! Rows of data files as tiers have them: packed by their keys, or as chunks of tiles.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use futures::StreamExt;

use crate::aggregate::{Arguments, EntityTiles, TileLayout};
use crate::definition::{Column, FeatureView, Windowed};
use crate::encoding::{ChunkId, ChunkLayout, EncodedKeys, KeyCodec, RowHeader, RowLayout, RowsByKey, WriteOrder};
use crate::tier::KeyedRow;
use crate::tier::object::{AVAILABLE_TIME, COMMIT, DataFile, EVENT_TIME, ViewLog, WRITE_POSITION, WRITE_WITHIN};
use crate::time::Timestamp;
use crate::{Error, Result};

/// Batches that are packed at once, while the one before them is stored.
const PACKED_AT_ONCE: usize = 2;

/// Turns batches of a view's data files into keyed packed rows, or into keyed chunks of tiles.
#[derive(Debug, Clone)]
pub struct Packer {
    keys: KeyCodec,
    /// A packed row's layout; of a windowed view that of its newest event's times.
    layout: RowLayout,
    columns: Vec<Column>,
    tiles: Option<TilePacker>,
}

/// Turns events into chunks of tiles.
#[derive(Debug, Clone)]
struct TilePacker {
    windowed: Windowed,
    layout: TileLayout,
    chunks: ChunkLayout,
}

impl Packer {
    /// A packer for a view's columns.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when its key columns cannot be keys.
    pub fn new(view: &FeatureView) -> Result<Self> {
        let tiles = match &view.windowed {
            None => None,
            Some(windowed) => {
                let layout = TileLayout::new(windowed)?;
                Some(TilePacker { windowed: windowed.clone(), chunks: ChunkLayout::new(&layout), layout })
            }
        };
        let packed: &[Column] = if tiles.is_some() { &[] } else { &view.features };
        Ok(Self {
            keys: KeyCodec::new(&view.keys)?,
            layout: RowLayout::new(packed),
            columns: view.row_columns().to_vec(),
            tiles,
        })
    }

    /// Reads a file's rows of wanted commits; `each` gets how many rows a batch had, and what they are packed to.
    pub(super) async fn read(
        &self,
        log: &ViewLog,
        number: u64,
        file: &DataFile,
        wanted: &(dyn Fn(u64) -> bool + Sync),
        mut each: impl FnMut(u64, Vec<KeyedRow>) -> Result<()>,
    ) -> Result<()> {
        let packed = log.read(file).await?.map(|batch| {
            let this = self.clone();
            let wanted = batch.and_then(|batch| Ok((batch.num_rows() as u64, of_commits(batch, wanted)?)));
            async move {
                let (read, batch) = wanted?;
                let work = move || Ok((read, this.pack(&batch, number)?));
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|error| Error::internal("packing rows panicked").source(error))?
            }
        });
        let mut packed = std::pin::pin!(packed.buffered(PACKED_AT_ONCE));
        while let Some(batch) = packed.next().await {
            let (read, rows) = batch.map_err(|error: Error| error.with("path", &file.path))?;
            each(read, rows)?;
        }
        Ok(())
    }

    /// Packs a batch. Rows that do not tell their place in the order of writes have that of the commit that wrote them: the one
    /// that each tells ([`COMMIT`]), else `number`. A windowed view's events come before all others then, and are told apart by
    /// their values, as in training sets. Rows without a whole key are left out.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when the batch does not have the view's columns.
    pub fn pack(&self, batch: &RecordBatch, number: u64) -> Result<Vec<KeyedRow>> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .cloned()
                .ok_or_else(|| Error::damaged("a data file lacks a column").with("column", name))
        };
        let columns =
            |names: &[Column]| -> Result<Vec<ArrayRef>> { names.iter().map(|named| column(&named.name)).collect() };
        let keys = self.keys.encode(&columns(self.keys.columns())?)?;
        let (event, available) = (column(EVENT_TIME)?, column(AVAILABLE_TIME)?);
        let (event, available) = (times(&event)?, times(&available)?);
        let written = written(batch, self.tiles.is_none().then_some(number))?;
        let headers: Vec<RowHeader> = (0..batch.num_rows())
            .map(|row| RowHeader {
                event_time: Timestamp::from_micros(event.value(row)),
                available_time: Timestamp::from_micros(available.value(row)),
                written: written(row),
            })
            .collect();
        let columns = columns(&self.columns)?;
        if let Some(tiles) = &self.tiles {
            return tiles.pack(&keys, &headers, &columns, &self.layout);
        }
        let rows = self.layout.encode(&headers, &columns)?;
        let keyed =
            keys.iter().zip(rows).filter_map(|(key, row)| Some((Bytes::copy_from_slice(key?), Bytes::from(row))));
        Ok(keyed.collect())
    }
}

impl TilePacker {
    /// The chunks of a batch of events, and the times of each entity's newest.
    fn pack(
        &self,
        keys: &EncodedKeys,
        headers: &[RowHeader],
        arguments: &[ArrayRef],
        newest: &RowLayout,
    ) -> Result<Vec<KeyedRow>> {
        let arguments = Arguments::new(&self.windowed, arguments)?;
        let event_of = |row: u32| headers[row as usize];
        let value_of = |argument, row: u32| arguments.value(argument, row as usize);
        let mut keyed = Vec::new();
        for (key, rows) in RowsByKey::new(keys).iter() {
            let mut tiles = EntityTiles::default();
            tiles.add_finest(&self.layout, rows, event_of, value_of);
            tiles.roll_up(&self.layout);
            let Some((event_time, available_time)) = tiles.newest() else { continue };
            let last = RowHeader::of_times(event_time, available_time);
            let entry = |id: ChunkId| {
                let mut key = key.to_vec();
                id.write(&mut key);
                Bytes::from(key)
            };
            for row in newest.encode(&[last], &[])? {
                keyed.push((entry(ChunkId::NEWEST), Bytes::from(row)));
            }
            let chunks = self.chunks.encode(&self.layout, &tiles);
            keyed.extend(chunks.into_iter().map(|(id, bytes)| (entry(id), Bytes::from(bytes))));
        }
        Ok(keyed)
    }
}

/// The place of each row of a batch in the order of writes: what it tells, else that of the commit that wrote it, which is
/// `number` where the row does not tell that either. Without a number it is before all others then.
fn written(batch: &RecordBatch, number: Option<u64>) -> Result<impl Fn(usize) -> WriteOrder> {
    let [position, within] = [WRITE_POSITION, WRITE_WITHIN]
        .map(|name| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>()).cloned());
    let commits = commits_of(batch)?.cloned();
    Ok(move |row: usize| match (&position, &within) {
        (Some(position), Some(within)) if position.is_valid(row) && within.is_valid(row) => {
            WriteOrder { position: position.value(row), within: within.value(row) }
        }
        _ => number.map_or_else(WriteOrder::default, |number| {
            WriteOrder::of_commit(0, commits.as_ref().map_or(number, |commits| commits.value(row).cast_unsigned()))
        }),
    })
}

/// The commits that wrote the rows of a batch of a merged file.
fn commits_of(batch: &RecordBatch) -> Result<Option<&PrimitiveArray<Int64Type>>> {
    let Some(commits) = batch.column_by_name(COMMIT) else { return Ok(None) };
    let commits = commits.as_primitive_opt().filter(|commits| commits.null_count() == 0);
    let wrong = || Error::damaged("a data file's commit column is not made of numbers").with("column", COMMIT);
    commits.map(Some).ok_or_else(wrong)
}

/// The rows of a batch that wanted commits wrote; all of a file that was not merged.
fn of_commits(batch: RecordBatch, wanted: &(dyn Fn(u64) -> bool + Sync)) -> Result<RecordBatch> {
    let Some(commits) = commits_of(&batch)? else { return Ok(batch) };
    let kept: BooleanArray = commits.values().iter().map(|commit| Some(wanted(commit.cast_unsigned()))).collect();
    if kept.true_count() == batch.num_rows() { Ok(batch) } else { Ok(filter_record_batch(&batch, &kept)?) }
}

fn times(array: &ArrayRef) -> Result<&PrimitiveArray<TimestampMicrosecondType>> {
    array
        .as_primitive_opt()
        .filter(|times| times.null_count() == 0)
        .ok_or_else(|| Error::damaged("a data file's time column is not made of times"))
}
