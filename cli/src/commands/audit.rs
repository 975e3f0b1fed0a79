//! `audit`: online lookups against the training set, value by value.

use std::process::ExitCode;

use clap::Args;
use springhouse_featurestore::Result;
use springhouse_sql::spine::SpineSubset;

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
    /// The share of the spine that is compared, from 0 to 1, chosen by keys: all rows of a key, or none
    #[arg(long, default_value = "1", value_parser = parse_share)]
    sample: f64,
}

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("'{text}' is not a share: write a number above 0 and up to 1, such as 0.05")),
    }
}

impl Audit {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<ExitCode> {
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(&self.contract)?;
        let subset = if self.sample < 1.0 { SpineSubset::Sample { share: self.sample } } else { SpineSubset::Whole };
        let spine = self.spine.source(&state)?;
        let report = project.jobs()?.audit(&state, contract, (&spine, subset), &Bar::default()).await?;
        show(json, &report, || report.to_string())?;
        Ok(if report.mismatches == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
