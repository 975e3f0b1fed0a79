//! Lookups while a generation of ten million rows is loaded beside the one that answers, and switched to: their latency
//! against that of the same lookups before it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::Float64Type;
use springhouse_featurestore::catalog::Catalog;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::{BackfillAsked, DiskTier, open_store};
use springhouse_featurestore::time::{DrivenClock, Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::FeatureServer;
use springhouse_serving::app::{App, StorePart, bind};
use springhouse_serving::flight::FlightServer;
use springhouse_serving::security::Security;
use springhouse_sql::change_plan::changes;
use springhouse_sql::check::check;
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::SessionOptions;
use tokio::sync::watch;

use crate::house::commit;
use crate::load::{CALLERS, note, now, open_loop_while, percentile, say};
use crate::lookups::{Asker, Exchange};
use crate::outage::copy_folder;

/// Rows of a generation, one of each entity.
const ROWS: i64 = 10_000_000;

/// Rows that are written at once.
const CHUNK: i64 = 500_000;

/// Keys of a lookup, and lookups a second.
const KEYS: i64 = 10;
const RATE: f64 = 1_000.0;

/// How long is measured before.
const IDLE: Duration = Duration::from_secs(10);

const DEFINITIONS: &str = "
CREATE EXTERNAL TABLE events STORED AS PARQUET LOCATION 'events.parquet';
CREATE SOURCE payments EVENT TIME at AS SELECT user_id, at, amount FROM events;
CREATE ENTITY account KEY (user_id BIGINT);
CREATE FEATURE VIEW latest ENTITY account REFRESH EVERY '1 hour' AS SELECT user_id, at, amount FROM payments;
CREATE CONTRACT limits TIER batch REQUEST (user_id BIGINT NOT NULL)
  FEATURES (latest FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (latest.amount AS amount) OUTPUT (limit FLOAT);";

/// Writes an event of each entity, all of this amount.
fn write_events(path: &Path, amount: f64) -> Result<()> {
    let begin = Timestamp::parse("2024-01-01T00:00:00Z")?.micros();
    let chunk = |first: i64| -> Result<RecordBatch> {
        let users = first..(first + CHUNK).min(ROWS);
        let times = users.clone().map(|user| begin + user);
        let columns: [(&str, ArrayRef); 3] = [
            ("user_id", Arc::new(Int64Array::from_iter_values(users.clone()))),
            ("at", Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))),
            ("amount", Arc::new(Float64Array::from_iter_values(users.map(|_| amount)))),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    };
    let mut file = ParquetFileWriter::create(path, chunk(0)?.schema(), &[].into())?;
    for first in (0..ROWS).step_by(usize::try_from(CHUNK).unwrap_or(1)) {
        file.write(&chunk(first)?)?;
    }
    file.finish().map(|_| ())
}

/// Serves a store on a port; it is followed each second.
async fn serve(features: Arc<FeatureServer>, jobs: Jobs) -> Result<SocketAddr> {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr().map_err(|error| Error::internal("no address").source(error))?;
    let flight = FlightServer::new(Arc::clone(&features), Arc::new(WireQueries::start(jobs)?), None);
    let app = App {
        listeners: vec![listener],
        store: Some(StorePart { features, flight, socket: None }),
        worker: None,
        http: None,
        security: Security::open(),
    };
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let _stop = stop;
        app.run(stopping).await
    });
    Ok(address)
}

fn keys() -> Result<RecordBatch> {
    let users = (0..KEYS).map(|key| key * (ROWS / KEYS));
    let users: ArrayRef = Arc::new(Int64Array::from_iter_values(users));
    Ok(RecordBatch::try_from_iter([("user_id", users)])?)
}

/// Whether the generation of this amount answers.
fn answers(features: &FeatureServer, amount: f64) -> Result<bool> {
    let plan = features.plan("limits")?;
    let answer = features.lookup_with(&plan, &keys()?)?;
    Ok((answer["latest.amount"].as_primitive::<Float64Type>().value(0) - amount).abs() < 1e-9)
}

/// Measures it.
pub async fn measure() -> Result<()> {
    let failed = |error: std::io::Error| Error::unavailable("no folder").source(error);
    let folder = tempfile::tempdir().map_err(failed)?;
    let (made, followed) = (folder.path().join("store"), folder.path().join("followed"));
    std::fs::create_dir_all(&followed).map_err(failed)?;
    let store = open_store(&made.to_string_lossy(), [])?;
    let clock = Arc::new(DrivenClock::still(Timestamp::parse("2024-01-01T01:00:00Z")?));
    let partitions = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = SessionOptions { project: folder.path().to_owned(), memory_bytes: 1 << 30, partitions };
    let jobs = Jobs::new(Arc::clone(&store), options, clock.clone(), 1);
    write_events(&folder.path().join("events.parquet"), 1.0)?;
    let catalog = Catalog::new(Arc::clone(&store));
    let mut state = catalog.state().await?;
    let source = SourceFile { name: "switching.sql".to_owned(), text: DEFINITIONS.to_owned() };
    let checked = check(&[source], &state, &jobs.session()?).await?;
    let defined = changes(&checked, &state);
    commit(&catalog, &mut state, clock.as_ref(), defined).await?;
    let view = state.live_views().into_iter().next().ok_or_else(|| Error::internal("the view was not applied"))?;
    let rows = jobs.refresh(&state, view).await?.rows;
    copy_folder(&made, &followed)?;
    let disk = DiskTier::open(&folder.path().join("disk"))?;
    let followed_store = open_store(&followed.to_string_lossy(), [])?;
    let features = Arc::new(FeatureServer::new(followed_store, disk, 256 << 20, clock.clone()));
    features.follow(&()).await?;
    // The next generation is computed before anything is measured, where the server does not see it.
    write_events(&folder.path().join("events.parquet"), 2.0)?;
    jobs.backfill(&state, view, BackfillAsked { from: None, until: None, every: Span::from_secs(86_400) }, &()).await?;
    let address = serve(Arc::clone(&features), jobs).await?;
    let keys = keys()?;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(Asker { exchange: Exchange::open_for(address, "limits", &keys).await?, keys: keys.clone() });
    }
    let (_, callers) = open_loop_while(RATE, callers, |passed| passed < Duration::from_secs(1)).await?;
    let (idle, callers) = open_loop_while(RATE, callers, |passed| passed < IDLE).await?;
    let (start, switched) = (now(), Arc::new(AtomicBool::new(false)));
    let watching = tokio::spawn({
        let (features, switched, made, followed) = (Arc::clone(&features), Arc::clone(&switched), made, followed);
        async move {
            copy_folder(&made, &followed)?;
            while !answers(&features, 2.0)? {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let took = start.elapsed();
            // What the switch leaves behind is let go of.
            tokio::time::sleep(Duration::from_secs(1)).await;
            switched.store(true, Ordering::Relaxed);
            Ok::<_, Error>(took)
        }
    });
    let (loading, _) =
        open_loop_while(RATE, callers, |_| !switched.load(Ordering::Relaxed) && !watching.is_finished()).await?;
    let took = watching.await.map_err(|error| Error::internal("the watch panicked").source(error))??;
    note(&format!("{rows} rows were loaded and switched to in {:.1} s", took.as_secs_f64()));
    let (before, beside) = (percentile(&idle, 99), percentile(&loading, 99));
    say(&format!(
        "| lookups of {KEYS} keys, {RATE:.0} a second, while a generation of {} M rows is loaded and switched to ({:.0} s), peer: \
         before it | p99 {beside:.2} ms | p99 {before:.2} ms | {:.2} | {:.2} / {beside:.2} ms |",
        rows / 1_000_000,
        took.as_secs_f64(),
        beside / before,
        percentile(&loading, 50)
    ));
    Ok(())
}
