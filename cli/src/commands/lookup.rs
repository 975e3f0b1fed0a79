//! `lookup`: features from the running store.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use clap::Args;
use serde_json::{Map, Value};
use springhouse_featurestore::definition::{Contract, Pinned, Version, values_of_texts};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::FeatureSource;

use crate::project::Project;
use crate::render::{show, table};

/// Look features up from the running store.
#[derive(Debug, Args)]
pub struct Lookup {
    /// The contract's name
    contract: String,
    /// Key columns: origin=JFK dest=LAX
    #[arg(required = true)]
    keys: Vec<String>,
    /// The store's address; the settings' when it is not given
    #[arg(long)]
    store: Option<String>,
}

/// `name=value` pairs.
pub fn pairs(arguments: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |argument: &String| {
        argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| {
            Error::invalid("not a column and its value").with("argument", argument).remedy("write name=value")
        })
    };
    arguments.iter().map(pair).collect()
}

/// A key's value in its declared type: keys are request columns. What is no column of the contract, the store names.
fn typed(contract: &Contract, name: &str, value: &str) -> Result<ArrayRef> {
    let texts = StringArray::from(vec![value]);
    match contract.request.iter().find(|column| column.name == name) {
        Some(column) => values_of_texts(column, &texts),
        None => Ok(Arc::new(texts)),
    }
}

impl Lookup {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let keys = pairs(&self.keys)?;
        let remote = project.remote_store(self.store.as_ref())?;
        let (_, state) = project.catalog().await?;
        let contract = match remote.deployments().await?.into_iter().find(|d| d.contract.name == self.contract) {
            Some(deployed) => deployed.contract,
            None => match self.contract.split_once('@') {
                Some((name, version)) => state.contract(&Pinned::new(name, Version::from_text(version)))?.clone(),
                None => state.current_contract(&self.contract)?.clone(),
            },
        };
        let columns = keys.iter().map(|(name, value)| Ok((name, typed(&contract, name, value)?)));
        let batch = RecordBatch::try_from_iter(columns.collect::<Result<Vec<_>>>()?)?;
        let answer = remote.lookup(&contract.pinned(), batch).await?;
        let options = FormatOptions::default().with_null("null");
        let mut cells = Vec::new();
        for (field, column) in answer.schema().fields().iter().zip(answer.columns()) {
            cells.push(vec![field.name().clone(), ArrayFormatter::try_new(column, &options)?.value(0).to_string()]);
        }
        let object: Map<String, Value> =
            cells.iter().map(|cell| (cell[0].clone(), Value::String(cell[1].clone()))).collect();
        show(json, &object, || table(&["feature", "value"], &cells))
    }
}
