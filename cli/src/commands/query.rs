//! `query`: SQL over the project's tables and sources, and over what sources reject.

use arrow::json::ArrayWriter;
use arrow::util::pretty::pretty_format_batches;
use clap::Args;
use springhouse_featurestore::{Error, Result};

use crate::project::Project;
use crate::render::say;

/// Run SQL over the project's tables and sources; what a source `s` with LATENESS rejects is the table `s_rejects`.
#[derive(Debug, Args)]
pub struct Query {
    /// A SELECT
    sql: String,
}

impl Query {
    /// Runs it; the whole result is held in memory.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let session = project.jobs()?.full_session(&state).await?;
        let batches = session.query(&self.sql).await?;
        if !json {
            say(&pretty_format_batches(&batches)?.to_string());
            return Ok(());
        }
        let mut writer = ArrayWriter::new(Vec::new());
        writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
        writer.finish()?;
        let text = String::from_utf8(writer.into_inner());
        say(&text.map_err(|error| Error::internal("the result is not text").source(error))?);
        Ok(())
    }
}
