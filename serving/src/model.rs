//! Models: what is loaded from a package, behind one small trait.

pub mod neural;

use arrow::array::{ArrayRef, RecordBatch};
use serde::{Deserialize, Serialize};
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::Contract;

use crate::package::Package;
use neural::NeuralModel;

/// The kinds of model, as a manifest declares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelKind {
    /// A multi-layer perceptron over standardised inputs, `ReLU` between layers, a sigmoid at the end.
    MultiLayerPerceptron {
        /// The widths of the hidden layers.
        hidden: Vec<usize>,
    },
}

/// A loaded model.
pub trait Model: Send + Sync + std::fmt::Debug {
    /// Predicts for a batch of inputs; the columns of the contract's output, row for row.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when the inputs are not those of the package.
    fn predict(&self, inputs: &RecordBatch) -> Result<Vec<ArrayRef>>;
}

/// Loads a package's model for the contract that it implements.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] when the package is for another contract version or its weights do
/// not have the declared shape.
pub fn load(package: &Package, contract: &Contract) -> Result<Box<dyn Model>> {
    let manifest = package.manifest()?;
    if manifest.contract != contract.pinned() {
        return Err(springhouse_featurestore::Error::invalid("the package is for another contract version")
            .with("package", &manifest.contract)
            .with("contract", contract.pinned())
            .remedy("train a package for this version"));
    }
    match &manifest.model {
        ModelKind::MultiLayerPerceptron { hidden } => {
            let weights = package.file(&manifest.weights)?;
            Ok(Box::new(NeuralModel::load(weights, &manifest.inputs, hidden, contract)?))
        }
    }
}
