//! `run`: every view refreshed by its `REFRESH EVERY`, until it is stopped.

use std::time::Duration;

use clap::Args;
use springhouse_featurestore::Result;
use springhouse_featurestore::time::{Clock, SystemClock};
use springhouse_materializer::schedule::TurnDone;

use crate::project::Project;
use crate::render::{complain, note};

/// How often the catalog is looked at for new views.
const POLL: Duration = Duration::from_secs(1);

/// Refresh every view by its REFRESH EVERY, until stopped.
#[derive(Debug, Args)]
pub struct Run {
    /// Stop by itself after this long
    #[arg(long, value_parser = super::parse_span)]
    stop_after: Option<springhouse_featurestore::time::Span>,
}

impl Run {
    /// Runs it; a running store loads what is committed by itself.
    pub async fn run(&self, project: &Project) -> Result<()> {
        let jobs = project.jobs()?;
        let seed = SystemClock.now().micros().cast_unsigned();
        note("refreshing views by their REFRESH EVERY; stop with Ctrl-C");
        let schedule = jobs.run_schedule(seed, POLL, told);
        let over = async {
            match self.stop_after {
                Some(span) => tokio::time::sleep(Duration::from_secs_f64(span.as_secs_f64())).await,
                None => std::future::pending().await,
            }
        };
        // A refresh that is cut off has changed nothing that a reader sees.
        tokio::select! {
            ended = schedule => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
            () = over => Ok(()),
        }
    }
}

fn told(done: &TurnDone) {
    match &done.result {
        Ok(refreshed) => {
            note(&format!("{:30} {:>8} rows, watermark {}", done.view.name, refreshed.rows, refreshed.watermark));
        }
        Err(error) => complain(&format!("{}, {} in a row: {}", done.view.name, done.failures, error.chain())),
    }
}
