//! A multi-layer perceptron in candle: inference, and the seeded training that makes its weights.
//!
//! Inputs are standardised with the training set's means and deviations, which are part of the weights. An input that
//! is null (a fresh null, or one that a rule put there and no `coalesce` replaced) reads as the training mean. The
//! device is chosen in one place: CUDA where the build has it and the machine too, else the CPU.

mod forward;
mod train;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use candle_core::{Device, Tensor};
use springhouse_featurestore::definition::Contract;
use springhouse_featurestore::{Error, Result};

use forward::Forward;
pub use train::{TrainOptions, Trained, area_under_curve, train};

use super::Model;

/// The device that models run on.
///
/// # Errors
/// [`Error::internal`] when CUDA is built in but cannot be opened.
pub fn device() -> Result<Device> {
    Device::cuda_if_available(0).map_err(candle_error)
}

pub(crate) fn candle_error(error: candle_core::Error) -> Error {
    Error::internal("candle failed").source(error)
}

/// A loaded perceptron.
#[derive(Debug)]
pub struct NeuralModel {
    inputs: Vec<String>,
    network: Network,
    /// The forward pass as one operation, on devices that have it.
    forward: Option<Forward>,
    /// What a null reads as: the means.
    filling: Vec<f32>,
    output: DataType,
}

/// The layers: `y = x W^T + b`, shapes `W [out, in]`, `b [out]`.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) mean: Tensor,
    pub(crate) deviation: Tensor,
    pub(crate) layers: Vec<(Tensor, Tensor)>,
}

impl Network {
    /// The last layer's value before the sigmoid, `[rows]`, for standardised inputs `[rows, inputs]`.
    pub(crate) fn logits(&self, standardised: &Tensor) -> candle_core::Result<Tensor> {
        let mut value = standardised.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            value = value.matmul(&weight.t()?)?.broadcast_add(bias)?;
            if index + 1 < self.layers.len() {
                value = value.relu()?;
            }
        }
        value.squeeze(1)
    }

    pub(crate) fn standardise(&self, raw: &Tensor) -> candle_core::Result<Tensor> {
        raw.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)
    }
}

impl NeuralModel {
    /// Loads weights in the safetensors format.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when a tensor is missing or has another shape than declared.
    pub fn load(bytes: &[u8], inputs: &[String], hidden: &[usize], contract: &Contract) -> Result<Self> {
        let [output] = contract.output.as_slice() else {
            return Err(Error::invalid("a perceptron answers one column").with("contract", contract.pinned()));
        };
        let tensors = candle_core::safetensors::load_buffer(bytes, &device()?)
            .map_err(|error| Error::invalid("the weights are not a safetensors file").source(error))?;
        let widths: Vec<usize> = [inputs.len()].into_iter().chain(hidden.iter().copied()).chain([1]).collect();
        let mut layers = Vec::with_capacity(widths.len() - 1);
        for (index, pair) in widths.windows(2).enumerate() {
            let weight = tensor(&tensors, &format!("layer.{index}.weight"), &[pair[1], pair[0]])?;
            let bias = tensor(&tensors, &format!("layer.{index}.bias"), &[pair[1]])?;
            layers.push((weight, bias));
        }
        let mean = tensor(&tensors, "input.mean", &[inputs.len()])?;
        let deviation = tensor(&tensors, "input.deviation", &[inputs.len()])?;
        let filling = mean.to_vec1().map_err(candle_error)?;
        let network = Network { mean, deviation, layers };
        let on_cpu = network.mean.device().is_cpu();
        Ok(Self {
            inputs: inputs.to_vec(),
            filling,
            forward: on_cpu.then(|| Forward::new(&network)).transpose().map_err(candle_error)?,
            network,
            output: output.column_type.to_arrow(),
        })
    }
}

fn tensor(tensors: &HashMap<String, Tensor>, name: &str, shape: &[usize]) -> Result<Tensor> {
    let found = tensors.get(name).ok_or_else(|| Error::invalid("the weights lack a tensor").with("tensor", name))?;
    if found.dims() != shape {
        return Err(Error::invalid("a tensor has another shape than the manifest declares")
            .with("tensor", name)
            .with("expected", format!("{shape:?}"))
            .with("found", format!("{:?}", found.dims())));
    }
    Ok(found.clone())
}

impl Model for NeuralModel {
    fn predict(&self, inputs: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let (raw, rows) = matrix(inputs, &self.inputs, &self.filling)?;
        let forward = || -> candle_core::Result<Vec<f32>> {
            let raw = Tensor::from_vec(raw, (rows, self.inputs.len()), self.network.mean.device())?;
            if let Some(forward) = &self.forward {
                return raw.apply_op1_no_bwd(forward)?.to_vec1();
            }
            let logits = self.network.logits(&self.network.standardise(&raw)?)?;
            candle_nn::ops::sigmoid(&logits)?.to_vec1()
        };
        let scores: ArrayRef = Arc::new(arrow::array::Float32Array::from(forward().map_err(candle_error)?));
        Ok(vec![cast(&scores, &self.output)?])
    }
}

/// Input columns by name as one row-major matrix; a null becomes its column's filling.
pub(crate) fn matrix(inputs: &RecordBatch, names: &[String], filling: &[f32]) -> Result<(Vec<f32>, usize)> {
    let rows = inputs.num_rows();
    let mut values = vec![0.0; rows * names.len()];
    for (index, name) in names.iter().enumerate() {
        let column = inputs
            .column_by_name(name)
            .ok_or_else(|| Error::invalid("an input of the model is missing").with("input", name))?;
        // Casting a column to its own type only shares it.
        let column = cast(column, &DataType::Float32)?;
        let column = column.as_primitive::<Float32Type>();
        let cells = values.iter_mut().skip(index).step_by(names.len());
        let filled = |value: f32| if value.is_nan() { filling[index] } else { value };
        if column.null_count() == 0 {
            cells.zip(column.values()).for_each(|(cell, value)| *cell = filled(*value));
        } else {
            cells.zip(column).for_each(|(cell, value)| *cell = value.map_or(filling[index], filled));
        }
    }
    Ok((values, rows))
}
