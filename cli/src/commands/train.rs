//! `train`: a small neural network on a training set, as a package folder.

use std::path::{Path, PathBuf};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, concat_batches, filter_record_batch, is_not_null};
use arrow::datatypes::{DataType, Float32Type};
use clap::Args;
use serde::Serialize;
use springhouse_featurestore::definition::{Contract, Pinned};
use springhouse_featurestore::parquet_file::ParquetFileReader;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::model::neural::{TrainOptions, train};
use springhouse_serving::package::{Package, Training, sha256};

use crate::project::Project;
use crate::render::{note, show};

/// Train a small neural network on a training set.
#[derive(Debug, Args)]
pub struct Train {
    /// The contract's name
    contract: String,
    /// The Parquet file that training-set wrote
    #[arg(long)]
    training_set: PathBuf,
    /// The column to predict: 0 or 1, or a boolean; rows where it is null are left out
    #[arg(long)]
    label: String,
    /// The folder to write the package to
    #[arg(long)]
    out: PathBuf,
    /// The seed: the same data and seed give the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Serialize)]
struct TrainedPackage {
    folder: PathBuf,
    digest: String,
    training: Training,
}

impl Train {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(&self.contract)?;
        let options = TrainOptions { seed: self.seed, ..TrainOptions::default() };
        let package = train_package(contract, &self.training_set, &self.label, &options)?;
        package.write(&self.out)?;
        let trained = TrainedPackage {
            folder: self.out.clone(),
            digest: package.digest().to_owned(),
            training: package.manifest()?.training,
        };
        show(json, &trained, || {
            let auc = trained.training.metrics.get("train_auc").copied().unwrap_or(f64::NAN);
            let rows = trained.training.rows;
            format!("{} in {} ({rows} rows, AUC on them {auc:.3})", trained.digest, trained.folder.display())
        })
    }
}

/// Trains on a file that was made for this contract version.
pub fn train_package(contract: &Contract, file: &Path, label: &str, options: &TrainOptions) -> Result<Package> {
    let names: Vec<String> = contract.inputs.iter().map(|input| input.name.clone()).collect();
    let (inputs, labels) = read_labelled(file, &names, label, Some(&contract.pinned()))?;
    let trained =
        train(&inputs, &names, &labels, options, |epoch, loss| note(&format!("epoch {epoch}: loss {loss:.4}")))?;
    let bytes = std::fs::read(file).map_err(|error| {
        Error::unavailable("the training set cannot be read").with("file", file.display()).source(error)
    })?;
    let training = Training {
        training_set: sha256(&bytes),
        rows: labels.len(),
        label: label.to_owned(),
        seed: options.seed,
        metrics: trained.metrics,
    };
    Package::of_perceptron(contract, names, options.hidden.clone(), trained.weights, training)
}

/// The inputs and labels of a training set's rows that have a label.
pub fn read_labelled(
    file: &Path,
    inputs: &[String],
    label: &str,
    contract: Option<&Pinned>,
) -> Result<(RecordBatch, Vec<f32>)> {
    let reader = ParquetFileReader::open(file)?;
    let made_for = reader.metadata().get("springhouse.contract").cloned();
    if let Some(contract) = contract
        && made_for.as_ref() != Some(&contract.to_string())
    {
        return Err(Error::invalid("the training set was made for another contract version")
            .with("file", file.display())
            .with("made for", made_for.unwrap_or_else(|| "none".to_owned()))
            .with("contract", contract)
            .remedy("make it again: springhouse training-set"));
    }
    let schema = reader.schema().clone();
    let column = |name: &str| {
        schema.index_of(name).map_err(|error| {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            Error::invalid("the training set lacks a column")
                .with("file", file.display())
                .with("column", name)
                .with("columns", names.join(", "))
                .source(error)
        })
    };
    let label_index = column(label)?;
    let mut indices = inputs.iter().map(|name| column(name)).collect::<Result<Vec<usize>>>()?;
    indices.push(label_index);
    let projected = std::sync::Arc::new(schema.project(&indices)?);
    let mut batches = Vec::new();
    for batch in reader {
        let batch = batch?.project(&indices)?;
        let labelled: BooleanArray = is_not_null(batch.column(indices.len() - 1))?;
        batches.push(filter_record_batch(&batch, &labelled)?);
    }
    let all = concat_batches(&projected, &batches)?;
    let labels: ArrayRef = cast(all.column(indices.len() - 1), &DataType::Float32)?;
    let labels = labels.as_primitive::<Float32Type>().values().to_vec();
    let inputs = all.project(&(0..indices.len() - 1).collect::<Vec<_>>())?;
    Ok((inputs, labels))
}
