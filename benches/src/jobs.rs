//! Jobs: refresh against DataFusion writing the same query to Parquet; training set against DuckDB on the same spine.

use std::process::Command;
use std::sync::Arc;

use datafusion::dataframe::DataFrameWriteOptions;
use futures::TryStreamExt;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::open_store;
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::EventRange;
use springhouse_sql::view_rows::Sources;

use crate::house::{House, example, training_set};
use crate::load::{Compared, now, say};

/// Rounds of a job.
const JOB_ROUNDS: usize = 5;

/// Measures both.
pub async fn measure(house: &House) -> Result<()> {
    refresh(house).await?;
    training(house).await
}

async fn refresh(house: &House) -> Result<()> {
    let view = house.state.live_views().into_iter().find(|view| view.name == "plane_landings");
    let view = view.ok_or_else(|| Error::internal("the example has no plane_landings"))?;
    let until = springhouse_featurestore::time::Clock::now(house.clock.as_ref());
    let mut rounds = Vec::new();
    for round in 0..JOB_ROUNDS {
        let folder = house.folder.path().join(format!("refresh-{round}"));
        let store = open_store(&folder.to_string_lossy(), [])?;
        let jobs = springhouse_materializer::Jobs::new(store, options(), house.clock.clone(), 1);
        let start = now();
        let done = jobs.refresh(&house.state, view).await?;
        let ours = rate(done.rows, start);
        let session = house.jobs().session()?;
        let sources = Sources { catalog: &house.state, store: &house.store, pushed: &PushedEvents::default() };
        sources.add(&session, view, EventRange::known_by(until)).await?;
        let start = now();
        let path = folder.join("peer.parquet").to_string_lossy().into_owned();
        let options = DataFrameWriteOptions::new().with_single_file_output(true);
        let frame = session.context().sql(&view.query).await.map_err(springhouse_sql::session::query_error)?;
        let written = frame.write_parquet(&path, options, None).await.map_err(springhouse_sql::session::query_error)?;
        drop(written);
        // The same input rows: DataFusion keeps duplicates in time that a refresh folds into one.
        rounds.push((ours, rate(done.rows, start)));
    }
    say(&Compared::of(&rounds).row(
        "refresh of plane_landings, peer: DataFusion writing its query to Parquet",
        "rows/s",
        &[],
    ));
    Ok(())
}

async fn training(house: &House) -> Result<()> {
    let python =
        std::env::var("SPRINGHOUSE_PYTHON").map_err(|_| Error::invalid("run make bench, which prepares DuckDB"))?;
    let script = format!("{}/duckdb_training_set.py", env!("CARGO_MANIFEST_DIR"));
    let mut rounds = Vec::new();
    for round in 0..JOB_ROUNDS {
        let start = now();
        let set = house.jobs().training_set(&house.state, &house.contract, &training_set()).await?;
        let path = house.folder.path().join(format!("training-{round}.parquet"));
        let mut file = ParquetFileWriter::create(&path, Arc::clone(set.schema()), set.metadata())?;
        let mut batches = set.execute();
        while let Some(batch) = batches.try_next().await? {
            file.write(&batch)?;
        }
        let rows = file.finish()?;
        let ours = rate(rows, start);
        let arguments = [
            script.clone(),
            example().to_string_lossy().into_owned(),
            house.folder.path().to_string_lossy().into_owned(),
        ];
        let output = Command::new(&python).args(arguments).output();
        let output = output.map_err(|error| Error::unavailable("DuckDB's side does not run").source(error))?;
        let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|error| {
            Error::unavailable("DuckDB's side failed")
                .with("said", String::from_utf8_lossy(&output.stderr))
                .source(error)
        })?;
        #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
        rounds.push((ours, rows as f64 / seconds));
    }
    say(&Compared::of(&rounds).row(
        "training set of 281,297 flights x 6 views, peer: DuckDB's ASOF joins and running sums of the same rows",
        "rows/s",
        &[],
    ));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
fn rate(rows: u64, start: std::time::Instant) -> f64 {
    rows as f64 / start.elapsed().as_secs_f64()
}

fn options() -> springhouse_sql::session::SessionOptions {
    let partitions = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    springhouse_sql::session::SessionOptions { project: example(), memory_bytes: 1 << 30, partitions }
}
