//! A small project in a folder of its own: definitions, a Parquet file of events, a clock that stands still.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, CatalogState};
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::{ObjectStore, open_store};
use springhouse_featurestore::time::{DrivenClock, Timestamp};
use springhouse_materializer::Jobs;
use springhouse_sql::change_plan::changes;
use springhouse_sql::check::{Checked, check};
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::{Session, SessionOptions};

/// An event: user, seconds of event time, seconds of available time, amount.
pub type Event = (&'static str, i64, i64, Option<f64>);

/// A project.
pub struct TestProject {
    pub folder: tempfile::TempDir,
    pub clock: Arc<DrivenClock>,
    pub store: Arc<dyn ObjectStore>,
}

/// Tells processes apart.
static WRITERS: AtomicU64 = AtomicU64::new(1);

/// The definitions of most tests.
pub const DEFINITIONS: &str = "
CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
CREATE SOURCE paid EVENT TIME paid_at AVAILABLE AT known_at
  AS SELECT user_name, paid_at, known_at, amount FROM payments;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW last_payment ENTITY user_account REFRESH EVERY '1 minute' TTL '1 hour'
  AS SELECT user_name, paid_at, known_at, amount FROM paid;
CREATE CONTRACT fraud TIER interactive
  REQUEST (user_name VARCHAR, country VARCHAR NOT NULL)
  FEATURES (last_payment FRESH WITHIN '2 minutes' MAX AGE '30 minutes' ON STALE SERVE ON EXPIRED DEFAULT ON MISSING DEFAULT)
  INPUTS (coalesce(last_payment.amount, -1) AS amount, country = 'NL' AS domestic)
  OUTPUT (fraud_probability FLOAT);
";

/// A time in seconds after 1970.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

impl TestProject {
    /// A project with the usual definitions and these events.
    pub fn new(events: &[Event]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_events(&folder.path().join("payments.parquet"), events);
        let store = open_store(&folder.path().join("store").to_string_lossy(), []).expect("a store");
        Self { folder, clock: Arc::new(DrivenClock::still(at(0))), store }
    }

    pub fn jobs(&self) -> Jobs {
        self.jobs_on(&self.store)
    }

    /// Jobs on another store, as those of a process of its own.
    pub fn jobs_on(&self, store: &Arc<dyn ObjectStore>) -> Jobs {
        Jobs::new(Arc::clone(store), self.options(), self.clock.clone(), WRITERS.fetch_add(1, Ordering::Relaxed))
    }

    /// Jobs on another store, at another clock's time, by a writer of its own: those of another process.
    pub fn jobs_of(&self, store: &Arc<dyn ObjectStore>, clock: &Arc<DrivenClock>, writer: u64) -> Jobs {
        Jobs::new(Arc::clone(store), self.options(), Arc::clone(clock) as _, writer)
    }

    /// Jobs whose queries have this much memory.
    pub fn jobs_within(&self, memory_bytes: usize) -> Jobs {
        self.jobs().with_memory(memory_bytes)
    }

    /// The options of its jobs' sessions.
    pub fn options(&self) -> SessionOptions {
        SessionOptions { project: self.folder.path().to_owned(), memory_bytes: 256 << 20, partitions: 2 }
    }

    /// Checks definitions against the catalog.
    pub async fn check(&self, text: &str) -> Result<Checked> {
        let file = SourceFile { name: "definitions.sql".to_owned(), text: text.to_owned() };
        check(&[file], &self.state().await, &Session::new(&self.options())?).await
    }

    /// Checks that each change of good definitions is refused with what is expected, at its place.
    pub async fn check_faults(&self, definitions: &str, faults: &[(&str, &str, &str)]) {
        for (good, bad, expected) in faults {
            assert!(definitions.contains(good), "{good}");
            let error = self.check(&definitions.replacen(good, bad, 1)).await.expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}\n{error}");
            assert!(error.contains("--> definitions.sql:") && error.contains('^'), "{error}");
        }
    }

    /// Checks and commits.
    pub async fn apply(&self, text: &str) -> Result<CatalogState> {
        let catalog = Catalog::new(Arc::clone(&self.store));
        let mut state = catalog.state().await?;
        let checked = self.check(text).await?;
        let changes = changes(&checked, &state);
        let commit = CatalogCommit::new(at(0), "test", "test", changes);
        catalog.commit(&mut state, commit).await?;
        Ok(state)
    }

    pub async fn state(&self) -> CatalogState {
        Catalog::new(Arc::clone(&self.store)).state().await.expect("readable")
    }
}

/// Writes events as the table `payments`.
pub fn write_events(path: &Path, events: &[Event]) {
    let seconds = |second: i64| second * 1_000_000;
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.0)));
    let times = |pick: fn(&Event) -> i64| -> ArrayRef {
        let values = events.iter().map(|event| seconds(pick(event)));
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter(events.iter().map(|event| event.3)));
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("user_name", users, true),
        ("paid_at", times(|event| event.1), true),
        ("known_at", times(|event| event.2), true),
        ("amount", amounts, true),
    ])
    .expect("four columns");
    let mut file = ParquetFileWriter::create(path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
}
