//! `predict`: ask the running worker.

use clap::Args;
use springhouse_featurestore::Result;
use springhouse_serving::predict::TextColumn;

use super::lookup::pairs;
use crate::project::Project;
use crate::render::show;

/// Ask the running worker for a prediction.
#[derive(Debug, Args)]
pub struct Predict {
    /// The contract's name
    contract: String,
    /// Request columns: origin=JFK distance=2475 scheduled_at=2013-12-01T15:00:00Z; one that is left out is null
    #[arg(required = true)]
    columns: Vec<String>,
    /// The worker's address; the settings' when it is not given
    #[arg(long)]
    worker: Option<String>,
}

impl Predict {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let client = project.remote_worker(self.worker.as_ref())?;
        let metadata = client.metadata(&self.contract).await?;
        let columns: Vec<TextColumn> =
            pairs(&self.columns)?.into_iter().map(|(name, value)| (name, vec![Some(value)])).collect();
        let prediction = client.infer(&metadata, &columns).await?;
        show(json, &prediction, || {
            let outputs = prediction.outputs.iter().map(|(name, values)| format!("{name} = {}", values[0]));
            let mut said: Vec<String> =
                prediction.parameters.iter().map(|(name, value)| format!("  {name}: {value}")).collect();
            said.sort();
            outputs.chain(said).collect::<Vec<_>>().join("\n")
        })
    }
}
