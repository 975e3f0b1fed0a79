//! Seeded training: the same data, options and build give the same bytes.

use std::collections::{BTreeMap, HashMap};

use arrow::array::RecordBatch;
use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::{Error, Result};

use super::{Network, candle_error, device, matrix};

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// The widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the data.
    pub epochs: usize,
    /// Rows of a step.
    pub batch_rows: usize,
    /// The optimiser's step length at the start; it falls to a tenth by the end.
    pub learning_rate: f64,
    /// For initial weights and the order of rows.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { hidden: vec![32, 16], epochs: 6, batch_rows: 1024, learning_rate: 3e-3, seed: 1 }
    }
}

/// Trained weights.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The weights in the safetensors format.
    pub weights: Vec<u8>,
    /// Measurements on the training rows.
    pub metrics: BTreeMap<String, f64>,
}

/// Trains a perceptron to predict a label of 0 or 1. `progress` is told after each epoch.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] when there are no rows, or labels of one class only.
pub fn train(
    inputs: &RecordBatch,
    names: &[String],
    labels: &[f32],
    options: &TrainOptions,
    mut progress: impl FnMut(usize, f64),
) -> Result<Trained> {
    let positives = labels.iter().filter(|label| **label > 0.5).count();
    if positives == 0 || positives == labels.len() {
        return Err(Error::invalid("the labels are all the same; there is nothing to learn")
            .with("rows", labels.len())
            .with("positives", positives));
    }
    let (raw, rows) = matrix(inputs, names, &vec![f32::NAN; names.len()])?;
    let (mean, deviation) = moments(&raw, names.len());
    let filled: Vec<f32> = raw
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let column = at % names.len();
            if value.is_nan() { 0.0 } else { (value - mean[column]) / deviation[column] }
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut run = || -> candle_core::Result<Trained> {
        let device = device().map_err(candle_core::Error::wrap)?;
        let mut fit = Fit::new(names.len(), &mean, &deviation, options, &mut rng, &device)?;
        let mut order: Vec<usize> = (0..rows).collect();
        let steps = options.epochs * rows.div_ceil(options.batch_rows);
        for epoch in 0..options.epochs {
            shuffle(&mut order, &mut rng);
            let mut total = 0.0;
            for chunk in order.chunks(options.batch_rows) {
                total += fit.step(&filled, labels, chunk, options, steps)? * f64_of(chunk.len());
            }
            progress(epoch + 1, total / f64_of(rows));
        }
        let scores = fit.network.logits(&Tensor::from_slice(&filled, (rows, names.len()), &device)?)?.to_vec1()?;
        let metrics = BTreeMap::from([("train_auc".to_owned(), area_under_curve(&scores, labels))]);
        Ok(Trained { weights: fit.bytes()?, metrics })
    };
    run().map_err(candle_error)
}

struct Fit {
    network: Network,
    variables: Vec<Var>,
    optimiser: AdamW,
    done: usize,
}

impl Fit {
    fn new(
        inputs: usize,
        mean: &[f32],
        deviation: &[f32],
        options: &TrainOptions,
        rng: &mut ChaCha8Rng,
        device: &candle_core::Device,
    ) -> candle_core::Result<Self> {
        let widths: Vec<usize> = [inputs].into_iter().chain(options.hidden.iter().copied()).chain([1]).collect();
        let (mut layers, mut variables) = (Vec::new(), Vec::new());
        for pair in widths.windows(2) {
            // He initialisation, uniform: bound sqrt(6 / fan-in).
            let bound = (6.0 / f32_of(pair[0])).sqrt();
            let values: Vec<f32> = (0..pair[0] * pair[1]).map(|_| rng.random_range(-bound..bound)).collect();
            let weight = Var::from_tensor(&Tensor::from_vec(values, (pair[1], pair[0]), device)?)?;
            let bias = Var::from_tensor(&Tensor::zeros(pair[1], candle_core::DType::F32, device)?)?;
            layers.push((weight.as_tensor().clone(), bias.as_tensor().clone()));
            variables.extend([weight, bias]);
        }
        let network = Network {
            mean: Tensor::from_slice(mean, mean.len(), device)?,
            deviation: Tensor::from_slice(deviation, deviation.len(), device)?,
            layers,
        };
        let parameters = ParamsAdamW { lr: options.learning_rate, weight_decay: 1e-4, ..ParamsAdamW::default() };
        let optimiser = AdamW::new(variables.clone(), parameters)?;
        Ok(Self { network, variables, optimiser, done: 0 })
    }

    /// One step on some rows; the mean loss.
    fn step(
        &mut self,
        values: &[f32],
        labels: &[f32],
        rows: &[usize],
        options: &TrainOptions,
        steps: usize,
    ) -> candle_core::Result<f64> {
        let width = self.network.mean.dims1()?;
        let device = self.network.mean.device().clone();
        let picked: Vec<f32> = rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect();
        let wanted: Vec<f32> = rows.iter().map(|row| labels[*row]).collect();
        let logits = self.network.logits(&Tensor::from_vec(picked, (rows.len(), width), &device)?)?;
        let loss = cross_entropy(&logits, &Tensor::new(wanted, &device)?)?;
        let share = f64_of(self.done) / f64_of(steps);
        self.optimiser.set_learning_rate(options.learning_rate * (1.0 - 0.9 * share));
        self.optimiser.backward_step(&loss)?;
        self.done += 1;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn bytes(&self) -> candle_core::Result<Vec<u8>> {
        let mut tensors: Vec<(String, Tensor)> = vec![
            ("input.mean".to_owned(), self.network.mean.clone()),
            ("input.deviation".to_owned(), self.network.deviation.clone()),
        ];
        for (index, pair) in self.variables.chunks(2).enumerate() {
            for (kind, variable) in ["weight", "bias"].iter().zip(pair) {
                tensors.push((format!("layer.{index}.{kind}"), variable.as_tensor().clone()));
            }
        }
        safetensors::serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None::<HashMap<_, _>>)
            .map_err(candle_core::Error::wrap)
    }
}

/// Mean binary cross-entropy of logits, `max(z, 0) - z y + ln(1 + e^-|z|)`: unlike the logarithm of a sigmoid it stays
/// finite however sure the model is.
fn cross_entropy(logits: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let tail = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((logits.relu()? - (logits * labels)?)? + tail)?.mean_all()
}

/// Mean and deviation of each column, nulls (NaN) left out. A constant column has deviation 1.
fn moments(values: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut sums = vec![(0.0_f64, 0.0_f64, 0.0_f64); width];
    for (at, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
        let (count, sum, squares) = &mut sums[at % width];
        let value = f64::from(*value);
        *count += 1.0;
        *sum += value;
        *squares += value * value;
    }
    #[expect(clippy::cast_possible_truncation, reason = "weights are 32 bits wide")]
    let of = |(count, sum, squares): &(f64, f64, f64)| {
        let mean = sum / count.max(1.0);
        let deviation = (squares / count.max(1.0) - mean * mean).max(0.0).sqrt();
        (mean as f32, if deviation > 1e-9 { deviation as f32 } else { 1.0 })
    };
    sums.iter().map(of).unzip()
}

/// Fisher and Yates.
fn shuffle(order: &mut [usize], rng: &mut impl Rng) {
    for last in (1..order.len()).rev() {
        order.swap(last, rng.random_range(0..=last));
    }
}

/// The area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher, ties
/// counting half (Mann and Whitney). NaN when one class is absent.
pub fn area_under_curve(scores: &[f32], labels: &[f32]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut rank_sum, mut positives, mut at) = (0.0, 0.0, 0);
    while at < order.len() {
        let tied =
            order[at..].iter().take_while(|row| scores[**row].total_cmp(&scores[order[at]]).is_eq()).count().max(1);
        let rank = f64_of(at) + f64_of(tied + 1) / 2.0;
        let among = f64_of(order[at..at + tied].iter().filter(|row| labels[**row] > 0.5).count());
        rank_sum += rank * among;
        positives += among;
        at += tied;
    }
    let negatives = f64_of(scores.len()) - positives;
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn f64_of(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "layer widths are small")]
fn f32_of(count: usize) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float32Array};

    use super::*;

    #[test]
    fn the_area_under_the_curve_counts_ties_as_half() {
        assert!((area_under_curve(&[0.1, 0.4, 0.35, 0.8], &[0.0, 0.0, 1.0, 1.0]) - 0.75).abs() < 1e-12);
        assert!((area_under_curve(&[0.5, 0.5], &[0.0, 1.0]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_network_of_one_input_is_the_sum_that_it_says() {
        let device = candle_core::Device::Cpu;
        let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &device).expect("shape");
        let network = Network {
            mean: tensor(vec![0.0], &[1]),
            deviation: tensor(vec![1.0], &[1]),
            layers: vec![
                (tensor(vec![1.0, -2.0], &[2, 1]), tensor(vec![0.5, 0.0], &[2])),
                (tensor(vec![3.0, 1.0], &[1, 2]), tensor(vec![0.25], &[1])),
            ],
        };
        let logits = network.logits(&tensor(vec![1.0, -1.0, 2.0], &[3, 1])).expect("runs");
        // relu(x + 0.5) * 3 + relu(-2 x) + 0.25
        assert_eq!(logits.to_vec1::<f32>().expect("one column"), [4.75, 2.25, 7.75]);
    }

    #[test]
    fn the_same_data_and_seed_give_the_same_bytes() {
        let x: ArrayRef = Arc::new(Float32Array::from_iter((0..400_u16).map(|i| Some(f32::from(i % 20)))));
        let labels: Vec<f32> = (0..400).map(|i| if i % 20 > 9 { 1.0 } else { 0.0 }).collect();
        let noise: ArrayRef = Arc::new(Float32Array::from_iter((0..400_u16).map(|i| Some(f32::from(i % 13)))));
        let inputs = RecordBatch::try_from_iter([("x", x), ("noise", noise)]).expect("two columns");
        let options = TrainOptions { epochs: 40, batch_rows: 64, ..TrainOptions::default() };
        let run = || {
            train(&inputs, &["x".to_owned(), "noise".to_owned()], &labels, &options, |_, _| {}).expect("two classes")
        };
        let (one, other) = (run(), run());
        assert_eq!(one.weights, other.weights);
        assert!(one.metrics["train_auc"] > 0.99, "{:?}", one.metrics);
    }
}
