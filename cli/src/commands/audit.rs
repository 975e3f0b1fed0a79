//! `audit`: online lookups against the training set, value by value.

use std::process::ExitCode;

use clap::Args;
use springhouse_featurestore::Result;

use super::SpineArgs;
use crate::project::Project;
use crate::render::{Bar, show};

/// Compare online lookups with the training set, value by value; exits with 1 on any difference.
#[derive(Debug, Args)]
pub struct Audit {
    /// The contract's name
    contract: String,
    #[command(flatten)]
    spine: SpineArgs,
}

impl Audit {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<ExitCode> {
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(&self.contract)?;
        let report = project.jobs()?.audit(&state, contract, &self.spine.source(), &Bar::default()).await?;
        show(json, &report, || report.to_string())?;
        Ok(if report.mismatches == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
