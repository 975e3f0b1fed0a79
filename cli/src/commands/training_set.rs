//! `training-set`: a contract's inputs for each row of a spine, as of its time.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::SpineOrder;
use tokio::sync::mpsc;

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
    /// The Parquet file to write; with --parts the folder
    #[arg(long, required_unless_present = "explain")]
    out: Option<PathBuf>,
    /// Write this many files, part-00000.parquet and so on, with the rows dealt out in turns
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    parts: Option<u32>,
    /// Memory for sorting, such as 512MiB; beyond it rows are spilled to disk. The settings' when it is not given
    #[arg(long, value_parser = super::parse_bytes)]
    memory: Option<usize>,
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
    fn jobs(&self, project: &Project) -> Result<Jobs> {
        let jobs = project.jobs()?;
        Ok(match self.memory {
            Some(bytes) => jobs.with_memory(bytes),
            None => jobs,
        })
    }

    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let request = TrainingSetRequest {
            spine: self.spine.source(&state)?,
            rows: if self.from_sources { RowsFrom::Sources } else { RowsFrom::Committed },
            as_of: self.as_of.chosen(),
            with_features: self.with_features,
            order: SpineOrder::AsGiven,
        };
        let Some(out) = self.out.as_ref().filter(|_| !self.explain) else {
            let contract = state.current_contract(&self.contract)?;
            say(&self.jobs(project)?.training_set(&state, contract, &request).await?.explain().await?);
            return Ok(());
        };
        let files = match self.parts {
            None => vec![out.clone()],
            Some(parts) => {
                std::fs::create_dir_all(out).map_err(|error| {
                    Error::unavailable("the folder cannot be made").with("folder", out.display()).source(error)
                })?;
                (0..parts).map(|part| out.join(format!("part-{part:05}.parquet"))).collect()
            }
        };
        let rows = write_files(project, &self.jobs(project)?, &self.contract, &request, &files).await?;
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(&self.contract)?.pinned().to_string();
        let written = Written { file: out.clone(), rows, contract };
        show(json, &written, || format!("{} rows for {} in {}", written.rows, written.contract, written.file.display()))
    }
}

/// Writes a training set batch by batch; returns its rows.
pub async fn write(project: &Project, contract: &str, request: &TrainingSetRequest, out: &Path) -> Result<u64> {
    write_files(project, &project.jobs()?, contract, request, &[out.to_owned()]).await
}

/// Writes a training set to several files, its batches dealt out in turns; returns its rows.
async fn write_files(
    project: &Project,
    jobs: &Jobs,
    contract: &str,
    request: &TrainingSetRequest,
    files: &[PathBuf],
) -> Result<u64> {
    let (_, state) = project.catalog().await?;
    let contract = state.current_contract(contract)?;
    let set = jobs.training_set(&state, contract, request).await?;
    let create = |path: &PathBuf| ParquetFileWriter::create(path, set.schema().clone(), set.metadata());
    let mut files = files.iter().map(create).collect::<Result<Vec<_>>>()?;
    let mut batches = set.execute();
    // Written while the next ones are computed.
    let (sender, mut computed) = mpsc::channel::<RecordBatch>(2);
    let written = tokio::task::spawn_blocking(move || {
        let mut turn = (0..files.len()).cycle();
        while let Some(batch) = computed.blocking_recv() {
            files[turn.next().unwrap_or(0)].write(&batch)?;
        }
        Ok::<_, Error>(files)
    });
    let bar = Bar::default();
    bar.begin("training set", 0);
    while let Some(batch) = batches.try_next().await? {
        bar.advance(batch.num_rows() as u64);
        if sender.send(batch).await.is_err() {
            // The writer has failed, and says so.
            break;
        }
    }
    drop(sender);
    bar.end();
    // Named only now: of a training set that failed there is no file.
    let files = written.await.map_err(|error| Error::internal("the writer panicked").source(error))??;
    files.into_iter().map(ParquetFileWriter::finish).sum()
}
