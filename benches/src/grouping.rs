//! A peer of `scale.py`: plain DataFusion in a process of its own, with as many partitions as there are cores and a
//! session's memory for what is ours.

use std::sync::Arc;

use datafusion::execution::context::SessionContext;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{ParquetReadOptions, SessionConfig};
use springhouse_featurestore::{Error, Result};

/// As much as the binary takes where no setting says otherwise.
const MEMORY_BYTES: usize = 1 << 30;

/// Runs a statement over a folder of Parquet files that it calls `events`.
pub async fn run(folder: &str, sql: &str) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed = |error| Error::internal("DataFusion failed").source(error);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY_BYTES, 1.0).build().map_err(failed)?;
    let config = SessionConfig::new().with_target_partitions(threads);
    let session = SessionContext::new_with_config_rt(config, Arc::new(runtime));
    session.register_parquet("events", folder, ParquetReadOptions::default()).await.map_err(failed)?;
    session.sql(sql).await.map_err(failed)?.collect().await.map_err(failed).map(|_| ())
}
