//! `training-set`: a contract's inputs for each row of a spine, as of its time.

use std::path::{Path, PathBuf};

use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::Result;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::Progress;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::SpineOrder;

use super::SpineArgs;
use crate::project::Project;
use crate::render::{Bar, say, show};

/// Write a contract's inputs for each row of a spine, as of its time.
#[derive(Debug, Args)]
pub struct TrainingSet {
    /// The contract's name
    contract: String,
    #[command(flatten)]
    spine: SpineArgs,
    /// The Parquet file to write
    #[arg(long, required_unless_present = "explain")]
    out: Option<PathBuf>,
    /// Add the features, their statuses and their event times
    #[arg(long)]
    with_features: bool,
    /// Compute features from the sources instead of reading what refreshes have committed
    #[arg(long)]
    from_sources: bool,
    #[command(flatten)]
    as_of: AsOfArgs,
    /// Print the plan instead
    #[arg(long)]
    explain: bool,
}

/// Which rows of a view count at a row's time, where not all that were known by then.
#[derive(Debug, Args)]
struct AsOfArgs {
    /// Features as serving had them, lag included, instead of all that was known at each row's time
    #[arg(long)]
    as_served: bool,
    /// Features of all that had happened by each row's time, known or not: nobody could have served them
    #[arg(long, conflicts_with = "as_served")]
    as_of_event_time: bool,
}

impl AsOfArgs {
    fn chosen(&self) -> AsOf {
        match (self.as_served, self.as_of_event_time) {
            (true, _) => AsOf::Served,
            (_, true) => AsOf::EventTime,
            _ => AsOf::Known,
        }
    }
}

#[derive(Serialize)]
struct Written {
    file: PathBuf,
    rows: u64,
    contract: String,
}

impl TrainingSet {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let request = TrainingSetRequest {
            spine: self.spine.source(),
            rows: if self.from_sources { RowsFrom::Sources } else { RowsFrom::Committed },
            as_of: self.as_of.chosen(),
            with_features: self.with_features,
            order: SpineOrder::AsGiven,
        };
        let Some(out) = self.out.as_ref().filter(|_| !self.explain) else {
            let (_, state) = project.catalog().await?;
            let contract = state.current_contract(&self.contract)?;
            say(&project.jobs()?.training_set(&state, contract, &request).await?.explain().await?);
            return Ok(());
        };
        let rows = write(project, &self.contract, &request, out).await?;
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(&self.contract)?.pinned().to_string();
        let written = Written { file: out.clone(), rows, contract };
        show(json, &written, || format!("{} rows for {} in {}", written.rows, written.contract, written.file.display()))
    }
}

/// Writes a training set batch by batch; returns its rows.
pub async fn write(project: &Project, contract: &str, request: &TrainingSetRequest, out: &Path) -> Result<u64> {
    let (_, state) = project.catalog().await?;
    let contract = state.current_contract(contract)?;
    let set = project.jobs()?.training_set(&state, contract, request).await?;
    let mut file = ParquetFileWriter::create(out, set.schema().clone(), set.metadata())?;
    let mut batches = set.execute();
    let bar = Bar::default();
    bar.begin("training set", 0);
    while let Some(batch) = batches.try_next().await? {
        file.write(&batch)?;
        bar.advance(batch.num_rows() as u64);
    }
    bar.end();
    file.finish()
}
