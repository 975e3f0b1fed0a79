//! Object storage, the truth: per view version a log of commits, and the Parquet files that they name.
//!
//! ```text
//! views/airport_weather/3f2a9c1d0b4e/log/000000000007.json      commit: files, watermark, rows
//! views/airport_weather/3f2a9c1d0b4e/state/000000000064.json    checkpoint: what the commits up to this one add up to
//! views/airport_weather/3f2a9c1d0b4e/data/000000000007-1.parquet
//! ```
//!
//! A data file holds the key columns, the feature columns, and the two times under names that no SQL column has. Others may
//! stand after them: a file that was merged from several ([`ViewCommitKind::Compact`]) has the number of the commit that
//! wrote each row ([`COMMIT`]).
//! A crash before the commit leaves files that no commit names: garbage, never half a refresh.

mod commits;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::arrow::async_writer::AsyncArrowWriter;
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::object_reader::ObjectReader;
use super::set_aside::{SetAside, table_or_none, table_told_of};
use crate::catalog::{Checkpoints, CommitLog, Head, Signature};
use crate::definition::{Column, FeatureView, Pinned, timestamp_type};
use crate::time::Timestamp;
use crate::{Error, Result};

/// The event-time column of data files.
pub const EVENT_TIME: &str = "@event_time";

/// The available-time column of data files.
pub const AVAILABLE_TIME: &str = "@available_time";

/// The first column of a row's place in the order of writes (rule T5): the position of the push that brought it.
pub const WRITE_POSITION: &str = "@position";

/// The second: its row in that push.
pub const WRITE_WITHIN: &str = "@within";

/// The column of merged data files that tells which commit wrote each row first.
pub const COMMIT: &str = "@commit";

/// What a view commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewCommitKind {
    /// Added the rows that became visible since the last watermark.
    Refresh,
    /// Replaced everything: a static view's rows.
    Replace,
    /// Added the rows of pushed events.
    Push,
    /// Replaced the rows of a stretch of event time: it names all files that count.
    Backfill,
    /// Set the watermark back: a producer had said too much, and a person corrected it. It has no rows.
    Correct,
    /// Put files in the place of others that hold the same rows: nobody who has the commits before needs to read them.
    Compact,
    /// Added the rows of events that had been set aside, and that the view's query takes now.
    Retry,
    /// Let events go that had been set aside: a person said so. It has no rows.
    Drop,
}

impl ViewCommitKind {
    /// Whether the commit's files are all that count, those of earlier commits included.
    pub fn replaces(self) -> bool {
        matches!(self, Self::Replace | Self::Backfill)
    }
}

/// Which pushes rows are from, by their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedRange {
    /// Those after this one,
    pub after: u64,
    /// up to this one.
    pub until: u64,
    /// The log whose process wrote them: what a tier has of a log beyond what was committed is that log's own.
    #[serde(default)]
    pub log: u64,
}

/// A Parquet file of a view, or of pushed events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its path in the store.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// What its rows add up to ([`Fingerprint`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<u64>,
    /// The least and the greatest event time among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_times: Option<(Timestamp, Timestamp)>,
    /// The number of the commit that wrote its rows first, where that is an earlier one; of several the greatest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<u64>,
    /// Of a file of pushed events: their positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PushedRange>,
    /// The least of them, where its rows are of several commits: they then have the column [`COMMIT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_commit: Option<u64>,
    /// Of a file of pushed events: the least and the greatest time in each column of times, by its name. A column that is not
    /// named may have any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub times: BTreeMap<String, (Timestamp, Timestamp)>,
}

impl DataFile {
    /// Whether a row of a file of pushed events may have a time in a column from one to another, both included.
    pub fn may_have(&self, column: &str, (from, until): (Timestamp, Timestamp)) -> bool {
        self.times.get(column).is_none_or(|(least, greatest)| *least <= until && from <= *greatest)
    }

    /// The least and the greatest number of the commits that wrote its rows first, of a file that `number` is told for.
    pub fn commits(&self, number: u64) -> (u64, u64) {
        (self.first_commit.unwrap_or(number), number)
    }
}

/// A file of a table that a view's sources read, as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryFile {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// What the store says of its content: its tag, or when it was last changed.
    pub state: String,
}

/// The files of the tables that a view's sources read, by table.
pub type HistoryFiles = BTreeMap<String, Vec<HistoryFile>>;

/// Rows that were committed once would be others today: files that they came from have been replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restated {
    /// The files that have changed, are gone or came late, `table: path`.
    pub files: Vec<String>,
    /// The rows that history gave until then,
    pub rows_before: u64,
    /// and gives now; absent where nobody can tell, since pushes are among them.
    pub rows_now: Option<u64>,
    /// How many of the committed rows history does not give any more as they are, together with those that it gives and
    /// that are not committed; absent where nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_changed: Option<u64>,
    /// The events of new files that had been known by the last read, and that no committed row has counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late_events: u64,
}

impl Restated {
    /// What was found last, with the names of what had been found before and is not mended.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self };
        let new = std::mem::replace(&mut self.files, before.files.clone());
        self.files.extend(new.into_iter().filter(|file| !before.files.contains(file)));
        // The rows were compared with all that is committed, the events alone with new files.
        self.late_events += before.late_events;
        self
    }
}

/// One commit of a view's data: files and watermark together (rule T6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewCommit {
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// What it did.
    pub kind: ViewCommitKind,
    /// Every event that was visible up to this time has been processed.
    pub watermark: Timestamp,
    /// Until when history was read, where that is not the watermark: what is pushed tells its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_until: Option<Timestamp>,
    /// The pushes among its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<PushedRange>,
    /// The events that it left out because they became known later than their source's `LATENESS` allows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// The files of the tables that were read, where they are not those of the commit before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryFiles>,
    /// What was found about them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restated: Option<Restated>,
    /// The paths of the files whose place those of a compaction take; of other kinds none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<String>,
    /// The files that it adds, or replaces all others with.
    pub files: Vec<DataFile>,
    /// When the first of those pushes came: from then on serving had them, long before they were flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_from: Option<Timestamp>,
    /// The events that are set aside from it on, where they are not those of the commit before.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "table_told_of")]
    pub set_aside: Option<SetAside>,
    /// Of one that a person wanted (how far the view has got set back, events that are set aside tried again or dropped): who,
    /// and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signature>,
}

impl ViewCommit {
    /// A commit with neither files nor anything else that a commit may tell.
    pub fn new(at: Timestamp, kind: ViewCommitKind, watermark: Timestamp) -> Self {
        Self {
            at,
            kind,
            watermark,
            read_until: None,
            pushed: None,
            late: 0,
            history: None,
            restated: None,
            replaced: Vec::new(),
            files: Vec::new(),
            pushed_from: None,
            set_aside: None,
            signed: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde hands over")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A view's data after some commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewLogState {
    /// The newest commit's number; 0 before the first.
    pub number: u64,
    /// The watermark.
    pub watermark: Option<Timestamp>,
    /// Until when history has been read.
    pub read_until: Option<Timestamp>,
    /// The position up to which pushes are among the rows.
    pub pushed: u64,
    /// The log whose process committed the last of them.
    #[serde(default)]
    pub pushed_log: u64,
    /// Events left out as too late, over all commits.
    pub late: u64,
    /// The files of tables as they were last read.
    pub history: HistoryFiles,
    /// The last finding that history is not what it was, until a backfill.
    pub restated: Option<Restated>,
    /// The pushed events that the view does without, since its query fails on them.
    #[serde(default, deserialize_with = "table_or_none")]
    pub set_aside: SetAside,
    /// The newest commit that replaced files.
    pub replaced: u64,
    /// The files that count, each with the number of the commit that added it.
    pub files: Vec<(u64, DataFile)>,
}

impl ViewLogState {
    fn apply(&mut self, number: u64, commit: ViewCommit) {
        if commit.kind.replaces() {
            self.files.clear();
            self.restated = None;
            self.replaced = number;
        }
        if !commit.replaced.is_empty() {
            let gone: HashSet<&str> = commit.replaced.iter().map(String::as_str).collect();
            self.files.retain(|(_, file)| !gone.contains(file.path.as_str()));
        }
        self.number = number;
        self.watermark = Some(commit.watermark);
        self.read_until = Some(commit.read_until.unwrap_or(commit.watermark));
        if let Some(range) = commit.pushed {
            (self.pushed, self.pushed_log) = (range.until, range.log);
        }
        self.late += commit.late;
        self.set_aside = commit.set_aside.unwrap_or_else(|| std::mem::take(&mut self.set_aside));
        self.history = commit.history.unwrap_or_else(|| std::mem::take(&mut self.history));
        self.restated = commit.restated.or_else(|| self.restated.take());
        self.files.extend(commit.files.into_iter().map(|file| (file.commit.unwrap_or(number), file)));
    }
}

/// The states of views that a process has seen last: what is new since is all that it reads.
#[derive(Debug, Clone, Default)]
pub struct RememberedStates(Arc<Mutex<HashMap<Pinned, ViewLogState>>>);

impl RememberedStates {
    fn of(&self, view: &Pinned) -> Option<ViewLogState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(view).cloned()
    }

    fn keep(&self, view: &Pinned, state: &ViewLogState) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two that look at once the one that saw less may come last.
        if states.get(view).is_none_or(|kept| kept.number < state.number) {
            states.insert(view.clone(), state.clone());
        }
    }
}

/// The data of one view version on object storage.
#[derive(Debug, Clone)]
pub struct ViewLog {
    store: Arc<dyn ObjectStore>,
    view: Pinned,
    prefix: Path,
    log: CommitLog<ViewCommit>,
    checkpoints: Checkpoints<ViewLogState>,
    head: Head,
    remembered: Option<RememberedStates>,
}

impl ViewLog {
    /// The log of a view version.
    pub fn new(store: Arc<dyn ObjectStore>, view: &Pinned) -> Self {
        let prefix = Path::from_iter(["views", &view.name, view.version.as_str()]);
        let log = CommitLog::new(Arc::clone(&store), prefix.clone().join("log"));
        let checkpoints = Checkpoints::new(Arc::clone(&store), prefix.clone().join("state"));
        let head = Head::of_view(Arc::clone(&store), view);
        Self { store, view: view.clone(), prefix, log, checkpoints, head, remembered: None }
    }

    /// The same log, for a process that looks at it again and again.
    #[must_use]
    pub fn remembering(self, states: &RememberedStates) -> Self {
        Self { remembered: Some(states.clone()), ..self }
    }

    /// The view version.
    pub fn view(&self) -> &Pinned {
        &self.view
    }

    /// Where all of it lies.
    pub fn folder(&self) -> &Path {
        &self.prefix
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a commit that is damaged or missing.
    pub async fn state(&self) -> Result<ViewLogState> {
        let remembered = self.remembered.as_ref().and_then(|states| states.of(&self.view));
        let (mut state, told) = match remembered {
            Some(state) => (state, None),
            None => {
                // In this order: a commit is there before its head tells of it.
                let told = self.head.told().await?;
                (self.checkpoints.newest().await?.unwrap_or_default(), told)
            }
        };
        for (number, commit) in self.log.read_after_as_told(state.number, told).await? {
            state.apply(number, commit);
        }
        self.remember(&state);
        Ok(state)
    }

    fn remember(&self, state: &ViewLogState) {
        if let Some(states) = &self.remembered {
            states.keep(&self.view, state);
        }
    }

    /// The commits after `number`.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn commits_after(&self, number: u64) -> Result<Vec<(u64, ViewCommit)>> {
        self.log.read_after(number).await
    }

    /// The commit of a number.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn commit_at(&self, number: u64) -> Result<Option<ViewCommit>> {
        self.log.read(number).await
    }

    /// Writes the commit that follows `state`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another writer has committed since.
    pub async fn commit(&self, state: &mut ViewLogState, commit: ViewCommit) -> Result<()> {
        let number = state.number + 1;
        self.log.append(number, &commit).await?;
        state.apply(number, commit);
        self.remember(state);
        self.head.tell(number).await;
        self.checkpoints.write(number, state).await;
        Ok(())
    }

    /// The commits as a log.
    pub fn log(&self) -> &CommitLog<ViewCommit> {
        &self.log
    }

    /// Begins a data file of this name: that of the commit it is for, and of the writer that tries to commit it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when Parquet refuses the schema.
    pub fn write(&self, view: &FeatureView, name: &str) -> Result<ViewWriter> {
        self.write_columns(view, name, data_schema(view))
    }

    /// The same, of a file with these columns: the view's, and after them others, which its fingerprint leaves out.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_columns(&self, view: &FeatureView, name: &str, schema: SchemaRef) -> Result<ViewWriter> {
        let path = self.prefix.clone().join("data").join(format!("{name}.parquet"));
        let fingerprint = Fingerprint::new(&data_schema(view))?;
        let object = BufWriter::new(Arc::clone(&self.store), path.clone());
        let properties = crate::parquet_file::properties(&schema).build();
        let writer = AsyncArrowWriter::try_new(object, schema, Some(properties))
            .map_err(|error| Error::internal("a data file cannot be begun").with("path", &path).source(error))?;
        Ok(ViewWriter { writer, path, fingerprint })
    }

    /// Reads a data file as batches, with all of its columns.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when it is not the Parquet file that the commit describes.
    pub async fn read(&self, file: &DataFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        read_data_file(&self.store, file).await
    }

    /// The columns that a data file has after the view's own.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn further_columns(&self, view: &FeatureView, file: &DataFile) -> Result<Vec<FieldRef>> {
        let own = data_schema(view);
        let columns = open(&self.store, file).await?.schema().fields().clone();
        Ok(columns.iter().filter(|column| own.field_with_name(column.name()).is_err()).cloned().collect())
    }
}

async fn open(store: &Arc<dyn ObjectStore>, file: &DataFile) -> Result<ParquetRecordBatchStreamBuilder<ObjectReader>> {
    let reader = ObjectReader::new(Arc::clone(store), Path::from(file.path.as_str()), file.bytes);
    ParquetRecordBatchStreamBuilder::new(reader).await.map_err(|error| unreadable(&file.path, error))
}

/// Reads a data file, of a view or of flushed pushes, as batches.
///
/// # Errors
/// As [`ViewLog::read`].
pub async fn read_data_file(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let stream = open(store, file).await?.build().map_err(|error| unreadable(&file.path, error))?;
    let path = file.path.clone();
    Ok(stream.map_err(move |error| unreadable(&path, error)).boxed())
}

/// The columns of a view's data files: keys, features (or the arguments of a windowed view's events), event time,
/// available time; where it counts ([`FeatureView::keeps_order`]) also their place in the order of writes, which older files
/// lack.
pub fn data_schema(view: &FeatureView) -> SchemaRef {
    let columns = view.keys.iter().chain(view.row_columns()).map(Column::to_field);
    let times = [EVENT_TIME, AVAILABLE_TIME].map(|name| Field::new(name, timestamp_type(), false));
    let order = [WRITE_POSITION, WRITE_WITHIN].map(|name| Field::new(name, DataType::Int64, true));
    let order = order.into_iter().filter(|_| view.keeps_order());
    Arc::new(Schema::new(columns.chain(times).chain(order).collect::<Vec<_>>()))
}

/// A data file being written; nothing reads it until a commit names it.
pub struct ViewWriter {
    writer: AsyncArrowWriter<BufWriter>,
    path: Path,
    fingerprint: Fingerprint,
}

impl ViewWriter {
    /// Adds a batch of the view's data schema.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.fingerprint.add(batch)?;
        self.writer.write(batch).await.map_err(|error| failed(&self.path, error))
    }

    /// Completes the file.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn finish(mut self) -> Result<DataFile> {
        self.writer.finish().await.map_err(|error| failed(&self.path, error))?;
        Ok(DataFile {
            path: self.path.to_string(),
            rows: self.fingerprint.rows(),
            bytes: self.writer.bytes_written() as u64,
            fingerprint: Some(self.fingerprint.sum()),
            event_times: self.fingerprint.event_times(),
            ..DataFile::default()
        })
    }
}

fn unreadable(path: &str, error: parquet::errors::ParquetError) -> Error {
    Error::damaged("a data file cannot be read")
        .with("path", path)
        .remedy("restore the object from a backup of the store, or drop and refresh the view")
        .source(error)
}

fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
    Error::unavailable("a data file cannot be written").with("path", path).source(error)
}

/// Reads a whole object.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] or [`crate::ErrorKind::Unavailable`].
pub async fn get_object(store: &Arc<dyn ObjectStore>, path: &str) -> Result<bytes::Bytes> {
    Ok(store.get(&Path::from(path)).await?.bytes().await?)
}

/// Writes a whole object.
///
/// # Errors
/// [`crate::ErrorKind::Unavailable`].
pub async fn put_object(store: &Arc<dyn ObjectStore>, path: &str, bytes: bytes::Bytes) -> Result<()> {
    store.put(&Path::from(path), bytes.into()).await?;
    Ok(())
}

/// The paths of all objects below a folder.
///
/// # Errors
/// [`crate::ErrorKind::Unavailable`].
pub async fn list_objects(store: &Arc<dyn ObjectStore>, folder: &str) -> Result<Vec<String>> {
    let objects: Vec<_> = store.list(Some(&Path::from(folder))).try_collect().await?;
    Ok(objects.into_iter().map(|object| object.location.to_string()).collect())
}
