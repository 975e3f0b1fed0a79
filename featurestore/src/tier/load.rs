//! Bringing an online tier up to object storage: what is new commit by commit, or everything anew.

use std::collections::BTreeMap;
use std::fmt::Debug;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Mutex, MutexGuard};

use super::object::{
    AVAILABLE_TIME, DataFile, EVENT_TIME, ViewCommit, ViewCommitKind, ViewLog, ViewLogState, WRITE_POSITION,
    WRITE_WITHIN,
};
use super::{KeyedRow, Mark, OnlineTier, merge_rows};
use crate::aggregate::{Arguments, EntityTiles, TileLayout};
use crate::definition::{Column, FeatureView, Windowed};
use crate::encoding::{ChunkId, ChunkLayout, EncodedKeys, KeyCodec, RowHeader, RowLayout, RowsByKey, WriteOrder};
use crate::push::EventSink;
use crate::time::Timestamp;
use crate::{Error, Result};

/// A commit of more rows than this is loaded as a new generation: beyond it sorting beats single writes.
const APPLY_AT_MOST_ROWS: u64 = 200_000;

/// Batches that are packed at once, while the one before them is stored.
const PACKED_AT_ONCE: usize = 2;

/// Told how a load gets on; the command line draws a bar from it.
pub trait Progress: Send + Sync + Debug {
    /// A load of this many rows begins.
    fn begin(&self, what: &str, rows: u64);
    /// So many more rows are done.
    fn advance(&self, rows: u64);
    /// It is over.
    fn end(&self);
}

/// Nobody is told.
impl Progress for () {
    fn begin(&self, _what: &str, _rows: u64) {}
    fn advance(&self, _rows: u64) {}
    fn end(&self) {}
}

/// Brings a view in `tier` up to its log's newest commit. Returns the mark reached.
///
/// A tier that holds nothing, that holds a commit which the log does not have (another store's folder), or that is
/// behind by a replacement or by much, is loaded anew; else the commits that it lacks are applied one by one.
///
/// # Errors
/// Those of the log and of the tier; the tier is then at a mark that it has had.
pub async fn catch_up(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    view: &FeatureView,
    progress: &dyn Progress,
) -> Result<Mark> {
    catch_up_with(tier, log, view, progress, None).await
}

/// Those who change a tier beside the one who follows commits.
#[derive(Debug, Clone, Copy)]
pub struct Pushing<'a> {
    /// Who takes pushes.
    pub sink: &'a dyn EventSink,
    /// Held by whoever changes the tier, for as long as that takes, and not for reading storage.
    pub changing: &'a Mutex<()>,
}

/// As [`catch_up`], beside pushes: a view that is loaded anew has what the sink holds of its pushes before it is seen, and
/// storage is read without keeping pushes from the tier. One at a time may follow a view.
///
/// # Errors
/// As [`catch_up`].
pub async fn catch_up_with(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    view: &FeatureView,
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    let mark = tier.mark(log.view())?;
    let packer = Packer::new(view)?;
    let commits = log.commits_after(mark.commit).await?;
    let unknown = mark.commit > 0 && !log.has(mark).await?;
    if commits.is_empty() && !unknown {
        return Ok(mark);
    }
    let (mut rows, mut anew, mut then) = (0, unknown, mark);
    for (number, commit) in &commits {
        match PushedRows::of(commit, then) {
            PushedRows::Held => {}
            PushedRows::Wanted => rows += commit.files.iter().map(|file| file.rows).sum::<u64>(),
            PushedRows::Mixed => anew = true,
        }
        then = then.after(*number, commit);
        anew |= commit.kind.replaces();
    }
    if anew || rows > APPLY_AT_MOST_ROWS {
        return load_anew(tier, log, (view, &packer), progress, pushing).await;
    }
    let mut reached = mark;
    for (number, commit) in commits {
        let mut held = BTreeMap::new();
        if PushedRows::of(&commit, reached) == PushedRows::Wanted {
            for file in &commit.files {
                packer.read(log, number, file, |_, rows| merge_rows(&mut held, rows)).await?;
            }
        }
        let changing = lock(pushing).await;
        // Pushes may have come meanwhile.
        let now = tier.mark(log.view())?;
        match PushedRows::of(&commit, now) {
            PushedRows::Wanted => {}
            PushedRows::Held => held.clear(),
            PushedRows::Mixed => {
                drop(changing);
                return load_anew(tier, log, (view, &packer), progress, pushing).await;
            }
        }
        reached = now.after(number, &commit);
        tier.apply(log.view(), held.into_iter().collect(), reached)?;
    }
    Ok(reached)
}

async fn lock(pushing: Option<Pushing<'_>>) -> Option<MutexGuard<'_, ()>> {
    match pushing {
        Some(pushing) => Some(pushing.changing.lock().await),
        None => None,
    }
}

impl Mark {
    /// The mark with a commit.
    fn after(self, number: u64, commit: &ViewCommit) -> Self {
        let reached = commit.pushed.filter(|range| range.until > self.pushed);
        let (pushed, log) = reached.map_or((self.pushed, self.log), |range| (range.until, range.log));
        let watermark = match commit.kind {
            ViewCommitKind::Correct => Some(commit.watermark),
            _ => Some(commit.watermark).max(self.watermark),
        };
        Self { commit: number, watermark, committed: Some(commit.watermark), pushed, log }
    }
}

/// What a tier has of a commit's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PushedRows {
    /// All of them: they were pushed, and applied before they were committed.
    Held,
    /// None.
    Wanted,
    /// Some, or nobody knows.
    Mixed,
}

impl PushedRows {
    /// Of a commit, in a tier at a mark. Beyond what was committed a position says something in its own log alone.
    fn of(commit: &ViewCommit, mark: Mark) -> Self {
        match commit.pushed {
            None => Self::Wanted,
            Some(range) if range.after >= mark.pushed => Self::Wanted,
            Some(range)
                if range.until <= mark.pushed && range.log == mark.log && commit.kind == ViewCommitKind::Push =>
            {
                Self::Held
            }
            Some(_) => Self::Mixed,
        }
    }
}

async fn load_anew(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    (view, packer): (&FeatureView, &Packer),
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    let ViewLogState { number, watermark, pushed, pushed_log, files, .. } = log.state().await?;
    progress.begin(&format!("loading {}", log.view().name), files.iter().map(|(_, file)| file.rows).sum());
    let mut batches = tier.begin_generation(log.view())?;
    for (number, file) in &files {
        packer
            .read(log, *number, file, |read, rows| {
                progress.advance(read);
                batches.add(rows)
            })
            .await?;
    }
    batches.settle()?;
    let mut mark = Mark { pushed, log: pushed_log, ..Mark::of_commit(number, watermark) };
    let _changing = lock(pushing).await;
    if let Some(pushing) = pushing {
        let (rows, with_pushes) = pushing.sink.rows_after(view, mark).await?;
        batches.add(rows)?;
        mark = with_pushes;
    }
    batches.finish(mark)?;
    progress.end();
    Ok(mark)
}

impl ViewLog {
    /// Whether the log has the commit that a tier says it is at.
    async fn has(&self, mark: Mark) -> Result<bool> {
        let found = self.commits_after(mark.commit - 1).await?;
        Ok(found
            .first()
            .is_some_and(|(number, commit)| *number == mark.commit && Some(commit.watermark) == mark.committed))
    }
}

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

    /// Reads a file; `each` gets how many rows a batch had, and what they are packed to.
    async fn read(
        &self,
        log: &ViewLog,
        number: u64,
        file: &DataFile,
        mut each: impl FnMut(u64, Vec<KeyedRow>) -> Result<()>,
    ) -> Result<()> {
        let packed = log.read(file).await?.map(|batch| {
            let this = self.clone();
            async move {
                let batch = batch?;
                let work = move || Ok((batch.num_rows() as u64, this.pack(&batch, number)?));
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

    /// Packs a batch. Rows that do not tell their place in the order of writes have that of commit `number`; rows without a
    /// whole key are left out.
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
        let written = written(batch, WriteOrder::of_commit(0, number));
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
        let event_of = |row: u32| {
            let header = &headers[row as usize];
            (header.event_time, header.available_time)
        };
        let value_of = |argument, row: u32| arguments.value(argument, row as usize);
        let mut keyed = Vec::new();
        for (key, rows) in RowsByKey::new(keys).iter() {
            let mut tiles = EntityTiles::default();
            tiles.add_finest(&self.layout, rows, event_of, value_of);
            tiles.roll_up(&self.layout);
            let Some((event_time, available_time)) = tiles.newest() else { continue };
            let last = RowHeader { event_time, available_time, written: WriteOrder::default() };
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

/// The place of each row of a batch in the order of writes, where it tells.
fn written(batch: &RecordBatch, otherwise: WriteOrder) -> impl Fn(usize) -> WriteOrder {
    let [position, within] = [WRITE_POSITION, WRITE_WITHIN]
        .map(|name| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>()).cloned());
    move |row| match (&position, &within) {
        (Some(position), Some(within)) if position.is_valid(row) && within.is_valid(row) => {
            WriteOrder { position: position.value(row), within: within.value(row) }
        }
        _ => otherwise,
    }
}

fn times(array: &ArrayRef) -> Result<&PrimitiveArray<TimestampMicrosecondType>> {
    array
        .as_primitive_opt()
        .filter(|times| times.null_count() == 0)
        .ok_or_else(|| Error::damaged("a data file's time column is not made of times"))
}
