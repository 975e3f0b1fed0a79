//! A training set over few, skewed keys: windows of distinct counts, sketches and top-k against windows of sums alone, over
//! the same events and the same spine.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use futures::TryStreamExt;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::catalog::{Catalog, CatalogState};
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::open_store;
use springhouse_featurestore::time::{DrivenClock, Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::change_plan::changes;
use springhouse_sql::check::check;
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::SessionOptions;
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::house::commit;
use crate::load::{Compared, now, say};

const KEYS: f64 = 16.0;
const EVENTS: usize = 300_000;
const ASKED: usize = 10_000;
const DAYS: i64 = 30;
const ROUNDS: usize = 3;

const DEFINITIONS: &str = "
CREATE EXTERNAL TABLE events STORED AS PARQUET LOCATION 'events.parquet';
CREATE EXTERNAL TABLE asked STORED AS PARQUET LOCATION 'asked.parquet';
CREATE SOURCE payments EVENT TIME at AS SELECT user_id, at, merchant, amount FROM events;
CREATE ENTITY account KEY (user_id BIGINT);
CREATE FEATURE VIEW sums ENTITY account WINDOWS ('1 day', '7 days', '30 days') STEP '5 minutes' REFRESH EVERY '1 hour'
  AS SELECT user_id, count(*) AS n, sum(amount) AS total, avg(amount) AS mean FROM payments GROUP BY user_id;
CREATE FEATURE VIEW sketches ENTITY account WINDOWS ('1 day', '7 days', '30 days') STEP '5 minutes' REFRESH EVERY '1 hour'
  AS SELECT user_id, count(*) AS n, count(DISTINCT merchant) AS merchants, approx_distinct(merchant) AS about,
            approx_median(amount) AS middle, approx_top_k(merchant, 5) AS usual, last_value(merchant) AS latest
     FROM payments GROUP BY user_id;
CREATE CONTRACT of_sums TIER batch REQUEST (user_id BIGINT NOT NULL)
  FEATURES (sums FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (sums.n_30d AS n, sums.mean_30d AS mean) OUTPUT (limit FLOAT);
CREATE CONTRACT of_sketches TIER batch REQUEST (user_id BIGINT NOT NULL)
  FEATURES (sketches FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (sketches.n_30d AS n, sketches.merchants_30d AS merchants, sketches.middle_30d AS middle) OUTPUT (limit FLOAT);";

/// Rows of some times in the month: keys of which the first have most of them, merchants likewise, and amounts.
fn rows(count: usize, seed: u64) -> Result<RecordBatch> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let month = DAYS * 86_400_000_000;
    let begin = Timestamp::parse("2024-01-01T00:00:00Z")?.micros();
    let (mut keys, mut times, mut merchants, mut amounts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let mut skewed = |most: f64| {
            let draw: f64 = random.random_range(0.0..1.0);
            #[expect(clippy::cast_possible_truncation, reason = "a whole number below the most")]
            let number = (most * draw.powi(3)) as i64;
            number
        };
        keys.push(skewed(KEYS));
        merchants.push(skewed(20_000.0));
        times.push(begin + random.random_range(0..month));
        amounts.push(random.random_range(0.01..1_000.0));
    }
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
    let columns: [(&str, ArrayRef); 4] = [
        ("user_id", Arc::new(Int64Array::from(keys))),
        ("at", times),
        ("merchant", Arc::new(Int64Array::from(merchants))),
        ("amount", Arc::new(Float64Array::from(amounts))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

fn write(path: &Path, rows: &RecordBatch) -> Result<()> {
    let mut file = ParquetFileWriter::create(path, rows.schema(), &[].into())?;
    file.write(rows)?;
    file.finish().map(|_| ())
}

/// Measures it.
pub async fn measure() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::unavailable("no folder").source(error))?;
    write(&folder.path().join("events.parquet"), &rows(EVENTS, 1)?)?;
    write(&folder.path().join("asked.parquet"), &rows(ASKED, 2)?.project(&[0, 1])?)?;
    let store = open_store(&folder.path().join("store").to_string_lossy(), [])?;
    let clock = Arc::new(DrivenClock::still(Timestamp::parse("2024-02-01T00:00:00Z")?));
    let partitions = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = SessionOptions { project: folder.path().to_owned(), memory_bytes: 1 << 30, partitions };
    let jobs = Jobs::new(Arc::clone(&store), options, clock.clone(), 1);
    let catalog = Catalog::new(store);
    let mut state = catalog.state().await?;
    let source = SourceFile { name: "skewed.sql".to_owned(), text: DEFINITIONS.to_owned() };
    let checked = check(&[source], &state, &jobs.session()?).await?;
    let defined = changes(&checked, &state);
    commit(&catalog, &mut state, clock.as_ref(), defined).await?;
    for view in state.live_views() {
        jobs.refresh(&state, view).await?;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let sketches = rate(&jobs, &state, "of_sketches").await?;
        rounds.push((sketches, rate(&jobs, &state, "of_sums").await?));
    }
    say(&Compared::of(&rounds).row(
        "training set of 10,000 rows over 16 skewed keys, 3 windows of distinct counts, sketches and top-k, peer: sums alone",
        "rows/s",
        &[],
    ));
    Ok(())
}

/// Rows of a contract's training set a second.
async fn rate(jobs: &Jobs, state: &CatalogState, contract: &str) -> Result<f64> {
    let request = TrainingSetRequest {
        spine: SpineSource { from: "SELECT user_id, at FROM asked".to_owned(), time: "at".to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    let (start, mut rows) = (now(), 0);
    let set = jobs.training_set(state, state.current_contract(contract)?, &request).await?;
    let mut batches = set.execute();
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows();
    }
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
    Ok(rows as f64 / start.elapsed().as_secs_f64())
}
