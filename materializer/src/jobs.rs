//! What every job needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use springhouse_featurestore::catalog::{Catalog, CatalogState};
use springhouse_featurestore::definition::{Contract, FeatureView};
use springhouse_featurestore::push::{PushHistory, RememberedPushes};
use springhouse_featurestore::tier::{DataFile, ObjectStore, Progress, RememberedStates, ViewLog};
use springhouse_featurestore::time::Clock;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_sql::session::{QueryPool, Session, SessionOptions};
use springhouse_sql::view_rows::RowStream;

use crate::on_top::ATTEMPTS_ON_TOP;
use crate::set_aside::SetAsideTables;

/// The store, the session's options and the clock that jobs run with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    store: Arc<dyn ObjectStore>,
    /// Where the store lies, if that is a folder.
    folder: Option<PathBuf>,
    options: SessionOptions,
    clock: Arc<dyn Clock>,
    writer: u64,
    /// Counts the files that it has begun.
    begun: Arc<AtomicU64>,
    /// Of jobs that share their memory.
    pool: Option<QueryPool>,
    states: RememberedStates,
    pushes: RememberedPushes,
    piece_bytes: u64,
}

/// Pushed events that are worked on together, by the bytes of their files.
const PIECE_BYTES: u64 = 16 << 20;

/// Events take about so many times the bytes of their files in memory.
const UNPACKED: u64 = 4;

impl Jobs {
    /// Jobs on a store. `writer` tells concurrent processes apart in the names of files that are not yet committed.
    pub fn new(store: Arc<dyn ObjectStore>, options: SessionOptions, clock: Arc<dyn Clock>, writer: u64) -> Self {
        let (begun, pool, states, pushes) = Default::default();
        let folder = None;
        Self { store, folder, options, clock, writer, begun, pool, states, pushes, piece_bytes: PIECE_BYTES }
    }

    /// The same jobs, of a store that lies in a folder, if there is one: what was cut off in it is garbage.
    #[must_use]
    pub fn in_folder(self, folder: Option<PathBuf>) -> Self {
        Self { folder, ..self }
    }

    /// The folder in which the store lies, where that is known.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The object store.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// This writer's number.
    pub fn writer(&self) -> u64 {
        self.writer
    }

    /// Marks the name of a file as nobody else's: a commit of which it is not known whether it succeeded may name a file of
    /// the same commit's number, from an attempt before.
    pub(crate) fn mark(&self) -> String {
        format!("{:x}-{}", self.writer, self.begun.fetch_add(1, Ordering::Relaxed))
    }

    /// The catalog.
    pub fn catalog(&self) -> Catalog {
        Catalog::new(Arc::clone(&self.store))
    }

    /// An empty session.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self) -> Result<Session> {
        match &self.pool {
            Some(pool) => Session::sharing(&self.options, pool),
            None => Session::new(&self.options),
        }
    }

    /// How many threads a job uses.
    pub fn threads(&self) -> usize {
        self.options.partitions.max(1)
    }

    /// The same jobs with this much memory for their queries.
    #[must_use]
    pub fn with_memory(mut self, bytes: usize) -> Self {
        self.options.memory_bytes = bytes;
        self
    }

    /// The same jobs, which work on no more pushed events at once than files of so many bytes have, where a view lacks many.
    #[must_use]
    pub fn in_pieces_of(mut self, bytes: u64) -> Self {
        self.piece_bytes = bytes;
        self
    }

    /// The bytes of memory of the pushed events that are worked on together.
    pub(crate) fn piece_bytes(&self) -> u64 {
        self.piece_bytes.saturating_mul(UNPACKED)
    }

    /// The same jobs, of which so many at once share the memory that one has.
    #[must_use]
    pub(crate) fn shared_by(mut self, several: usize) -> Self {
        self.pool = Some(QueryPool::new(self.options.memory_bytes));
        self.options.memory_bytes /= several.max(1);
        self
    }

    /// An empty session of one thread, and of its share of the memory among several at once.
    pub(crate) fn session_of(&self, several: usize) -> Result<Session> {
        let memory_bytes = self.options.memory_bytes / several.max(1);
        Session::new(&SessionOptions { memory_bytes, partitions: 1, ..self.options.clone() })
    }

    /// A session with all current tables and sources, for queries that people write; what a source `s` rejects is the
    /// table `s_rejects`, and what a view `v` has set aside the table `set_aside.v`.
    ///
    /// # Errors
    /// Those of adding a table or a source.
    pub async fn full_session(&self, catalog: &CatalogState) -> Result<Session> {
        use springhouse_featurestore::definition::Definition;
        let session = self.session()?;
        let pushed = self.pushed().state().await?.events();
        let now = self.clock.now();
        session.add_schema("set_aside", Arc::new(SetAsideTables::of(self.clone(), catalog)))?;
        for definition in catalog.definitions() {
            match definition.as_ref() {
                Definition::Table(table) => session.add_table(table).await?,
                Definition::Source(source) => {
                    session.add_events(source, None, true, &pushed, &self.store).await?;
                    if let Some(rejected) = session.rejected_events(source, &pushed, &self.store, None, now).await? {
                        session.add_view(&format!("{}_rejects", source.name), rejected)?;
                    }
                }
                _ => {}
            }
        }
        Ok(session)
    }

    /// The pushed events on object storage.
    pub fn pushed(&self) -> PushHistory {
        PushHistory::new(Arc::clone(&self.store)).remembering(&self.pushes)
    }

    /// The log of a view's data.
    pub fn log(&self, view: &FeatureView) -> ViewLog {
        ViewLog::new(Arc::clone(&self.store), &view.pinned()).remembering(&self.states)
    }
}

/// How often rows are computed again after another writer came first.
const ATTEMPTS: usize = 5;

/// Tries to commit to a view's log until no other writer comes first; each attempt looks at the newest state, and computes
/// anew.
///
/// # Errors
/// The attempt's own; [`ErrorKind::Conflict`] when others came first every time.
pub(crate) async fn until_first<T, F: Future<Output = Result<T>>>(
    view: &FeatureView,
    attempt: impl Fn() -> F,
) -> Result<T> {
    until_first_of(view, ATTEMPTS, attempt).await
}

/// The same for attempts that compute nothing anew: flushes that come first again and again do not end it.
///
/// # Errors
/// As [`until_first`].
pub(crate) async fn until_on_top<T, F: Future<Output = Result<T>>>(
    view: &FeatureView,
    attempt: impl Fn() -> F,
) -> Result<T> {
    until_first_of(view, ATTEMPTS_ON_TOP, attempt).await
}

async fn until_first_of<T, F: Future<Output = Result<T>>>(
    view: &FeatureView,
    attempts: usize,
    attempt: impl Fn() -> F,
) -> Result<T> {
    for number in 1..attempts {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::info!(view = %view.name, attempt = number, "another writer came first; looking again");
            }
            done => return done,
        }
    }
    attempt().await
}

/// Writes rows of a view as a file of this name; without any there is none.
///
/// # Errors
/// Those of computing the rows and of the store.
pub(crate) async fn write_file(
    log: &ViewLog,
    view: &FeatureView,
    name: &str,
    mut rows: RowStream,
    progress: &dyn Progress,
) -> Result<Option<DataFile>> {
    let mut writer = None;
    while let Some(batch) = rows.try_next().await? {
        progress.advance(batch.num_rows() as u64);
        if batch.num_rows() == 0 {
            continue;
        }
        if writer.is_none() {
            // With what columns they have beside the view's own.
            writer = Some(log.write_columns(view, name, batch.schema())?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch).await?;
        }
    }
    match writer {
        Some(writer) => writer.finish().await.map(Some),
        None => Ok(None),
    }
}

/// The views that a contract pins, in the order of its rules.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks one.
pub(crate) fn views_of<'a>(catalog: &'a CatalogState, contract: &Contract) -> Result<Vec<&'a FeatureView>> {
    contract.features.iter().map(|rule| catalog.view(&rule.view)).collect()
}
