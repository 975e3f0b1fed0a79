//! One entity whose windows are full: 3 windows x 5 aggregates, 30 days of an event every 5 minutes. What a read of it
//! from memory takes against a bare hit of the same cache, and what it takes on disk against a plain list of its tiles.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use bytes::Bytes;
use moka::sync::Cache;
use springhouse_featurestore::aggregate::Total;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Definition, FeatureView};
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::{AVAILABLE_TIME, DiskTier, EVENT_TIME, Mark, MemoryTier, OnlineTier, Packer};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_sql::check::check;
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::{Session, SessionOptions};

use crate::load::{Compared, ROUNDS, now, say};

const ENTITIES: i64 = 200;
const EVENTS: i64 = 30 * 288;
const STEP: i64 = 300_000_000;

/// Reads of a round.
const READS: u32 = 20_000;

/// A plain tile: its time, a count, a sum, the least and the greatest.
const PLAIN_TILE_BYTES: i64 = 40;

const DEFINITIONS: &str = "
CREATE EXTERNAL TABLE events STORED AS PARQUET LOCATION 'events.parquet';
CREATE SOURCE payments EVENT TIME at AS SELECT user_id, at, amount FROM events;
CREATE ENTITY account KEY (user_id BIGINT);
CREATE FEATURE VIEW spent ENTITY account WINDOWS ('1 hour', '1 day', '30 days') STEP '5 minutes' REFRESH EVERY '1 hour'
  AS SELECT user_id, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, min(amount) AS least, max(amount) AS most
     FROM payments GROUP BY user_id;
CREATE CONTRACT limits TIER interactive REQUEST (user_id BIGINT NOT NULL)
  FEATURES (spent FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (spent.n_1h AS n) OUTPUT (limit FLOAT);";

fn events(entity: i64, names: [&str; 2]) -> Result<RecordBatch> {
    let times =
        || TimestampMicrosecondArray::from_iter_values((1..=EVENTS).map(|event| event * STEP)).with_timezone("UTC");
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values((0..EVENTS).map(|_| entity)));
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let amounts = (0..EVENTS).map(|event| ((event * 7_919 + entity * 31) % 100_000) as f64 / 100.0);
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter_values(amounts));
    let columns = [("user_id", keys), (names[0], amounts), (names[1], Arc::new(times()) as ArrayRef)];
    let known: ArrayRef = Arc::new(times());
    Ok(RecordBatch::try_from_iter(columns.into_iter().chain([(AVAILABLE_TIME, known)]))?)
}

/// Measures both.
pub async fn measure() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::unavailable("no folder").source(error))?;
    let sample = events(0, ["amount", "at"])?.project(&[0, 1, 2])?;
    let mut file = ParquetFileWriter::create(&folder.path().join("events.parquet"), sample.schema(), &[].into())?;
    file.write(&sample)?;
    file.finish()?;
    let options = SessionOptions { project: folder.path().to_owned(), memory_bytes: 1 << 30, partitions: 1 };
    let source = SourceFile { name: "entity.sql".to_owned(), text: DEFINITIONS.to_owned() };
    let checked = check(&[source], &CatalogState::default(), &Session::new(&options)?).await?;
    let (mut views, mut contract): (Vec<FeatureView>, _) = (Vec::new(), None);
    for definition in checked.definitions {
        match definition {
            Definition::FeatureView(view) => views.push(view),
            Definition::Contract(defined) => contract = Some(defined),
            _ => {}
        }
    }
    let contract = contract.ok_or_else(|| Error::internal("there is no contract"))?;
    let view = &views[0];
    let memory = MemoryTier::new(DiskTier::open(&folder.path().join("disk"))?, 256 << 20);
    let packer = Packer::new(view)?;
    let at = Timestamp::from_micros(EVENTS * STEP + 1);
    let mut bytes = 0;
    for entity in 0..ENTITIES {
        let rows = packer.pack(&events(entity, ["argument_0", EVENT_TIME])?, 1)?;
        bytes += rows.iter().map(|(key, row)| key.len() + row.len()).sum::<usize>();
        memory.apply(&view.pinned(), rows, Mark::of_commit(entity.cast_unsigned() + 1, Some(at)))?;
    }
    sums();
    reads(&memory, &LookupPlan::new(&contract, &views)?, view, at)?;
    let (plain, held) = (EVENTS * PLAIN_TILE_BYTES, i64::try_from(bytes).unwrap_or(i64::MAX) / ENTITIES);
    say(&format!(
        "\nOn disk such an entity takes {held} bytes (5-minute, hour and day tiles with exact states, before compression); \
         a plain list of its 5-minute tiles of {PLAIN_TILE_BYTES} bytes takes {plain}."
    ));
    Ok(())
}

/// Exact sums, which are the same in any order, against plain ones.
fn sums() {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let values: Vec<f64> = (0..1_000_000_i64).map(|i| (i * 7_919 % 100_000) as f64 / 100.0).collect();
    let mut rounds = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "a million")]
    let rate = |start: std::time::Instant| values.len() as f64 / start.elapsed().as_secs_f64();
    for _ in 0..ROUNDS {
        let start = now();
        let mut exact = Total::default();
        for value in &values {
            exact.add(*value);
        }
        std::hint::black_box(exact.sum());
        let ours = rate(start);
        let start = now();
        let mut plain = 0.0;
        for value in &values {
            plain = std::hint::black_box(plain + value);
        }
        rounds.push((ours, rate(start)));
    }
    say(&Compared::of(&rounds).row("exact sum of a million amounts, peer: a plain sum of doubles", "values/s", &[]));
}

fn reads(memory: &MemoryTier<DiskTier>, plan: &LookupPlan, view: &FeatureView, at: Timestamp) -> Result<()> {
    let bare: Cache<Box<[u8]>, Bytes> = Cache::new(10_000);
    let keys: Vec<Vec<ArrayRef>> =
        (0..ENTITIES).map(|entity| vec![Arc::new(Int64Array::from(vec![entity])) as ArrayRef]).collect();
    let row = vec![0_u8; 8 * view.features.len() + 32];
    for entity in 0..ENTITIES {
        plan.lookup(memory, &keys[usize::try_from(entity).unwrap_or(0)], at)?;
        bare.insert(entity.to_be_bytes().into(), Bytes::from(row.clone()));
    }
    let (mut whole, mut rows) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = now();
        for read in 0..READS {
            let answer = plan.lookup(memory, &keys[read as usize % keys.len()], at)?;
            std::hint::black_box(answer);
        }
        let ours = f64::from(READS) / start.elapsed().as_secs_f64();
        let start = now();
        for read in 0..READS {
            let key = i64::from(read) % ENTITIES;
            std::hint::black_box(bare.get(key.to_be_bytes().as_slice()));
        }
        let peer = f64::from(READS) / start.elapsed().as_secs_f64();
        let all: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(0..ENTITIES))];
        let start = now();
        for _ in 0..u64::from(READS) / ENTITIES.cast_unsigned() {
            std::hint::black_box(plan.lookup(memory, &all, at)?);
        }
        whole.push((ours, peer));
        rows.push((f64::from(READS) / start.elapsed().as_secs_f64(), peer));
    }
    say(&Compared::of(&whole).row(
        "read of one entity, 3 windows x 5 aggregates, from memory to Arrow, peer: a bare moka hit",
        "/s",
        &[],
    ));
    say(&Compared::of(&rows).row("the same, 200 entities in a batch, per entity", "/s", &[]));
    Ok(())
}
