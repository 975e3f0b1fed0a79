//! The perceptron's forward pass on a CPU, as one candle operation.
//!
//! Each row is computed by itself and in a fixed order, so an answer does not depend on who else is in the batch: a
//! blocked matrix product may sum a row in another order in another batch. It is also quicker for networks of this
//! size, since candle's matrix product asks the operating system for the number of cores on every call.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::Network;

/// `[rows, inputs]`, raw, to probabilities `[rows]`.
#[derive(Debug, Clone)]
pub(super) struct Forward {
    mean: Vec<f32>,
    deviation: Vec<f32>,
    layers: Vec<Dense>,
}

/// Rows that go through the network side by side: two vectors of the smallest common instruction set.
const LANES: usize = 8;

/// One value of each row.
type Lanes = [f32; LANES];

/// `y = x W^T + b`; the weights lie output by output.
#[derive(Debug, Clone)]
struct Dense {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Forward {
    /// The operation of a network, with a copy of its weights.
    pub(super) fn new(network: &Network) -> Result<Self> {
        let dense = |(weight, bias): &(Tensor, Tensor)| -> Result<Dense> {
            Ok(Dense { weights: weight.flatten_all()?.to_vec1()?, bias: bias.to_vec1()? })
        };
        Ok(Self {
            mean: network.mean.to_vec1()?,
            deviation: network.deviation.to_vec1()?,
            layers: network.layers.iter().map(dense).collect::<Result<_>>()?,
        })
    }

    /// Probabilities of up to [`LANES`] rows, which go through the network side by side, each in its own lane: a lane's
    /// sums are taken in the same order whatever its neighbours hold. `value` and `next` are room to work in.
    fn rows(&self, raw: &[f32], value: &mut Vec<Lanes>, next: &mut Vec<Lanes>, scores: &mut Vec<f32>) {
        let inputs = self.mean.len();
        value.clear();
        value.extend(self.mean.iter().zip(&self.deviation).enumerate().map(|(input, (mean, deviation))| {
            let mut lanes = [0.0; LANES];
            for (lane, row) in lanes.iter_mut().zip(raw.chunks_exact(inputs)) {
                *lane = (row[input] - mean) / deviation;
            }
            lanes
        }));
        for (index, layer) in self.layers.iter().enumerate() {
            next.clear();
            next.extend(layer.bias.iter().zip(layer.weights.chunks_exact(value.len())).map(|(bias, weights)| {
                let mut sums = [*bias; LANES];
                for (lanes, weight) in value.iter().zip(weights) {
                    for lane in 0..LANES {
                        sums[lane] += lanes[lane] * weight;
                    }
                }
                sums
            }));
            if index + 1 < self.layers.len() {
                next.iter_mut().flatten().for_each(|sum| *sum = sum.max(0.0));
            }
            std::mem::swap(value, next);
        }
        scores.extend(value[0].iter().take(raw.len() / inputs).map(|logit| 1.0 / (1.0 + (-logit).exp())));
    }
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        "perceptron"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("the inputs are not contiguous") };
        let raw = &storage.as_slice::<f32>()?[start..end];
        let (mut value, mut next) = (Vec::new(), Vec::new());
        let mut scores = Vec::with_capacity(raw.len() / self.mean.len());
        for rows in raw.chunks(self.mean.len() * LANES) {
            self.rows(rows, &mut value, &mut next, &mut scores);
        }
        let shape = Shape::from(scores.len());
        Ok((CpuStorage::F32(scores), shape))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn tensor(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("its shape")
    }

    fn network(rng: &mut ChaCha8Rng) -> Network {
        let deviation = tensor(rng, &[7]).abs().and_then(|deviation| deviation + 0.5).expect("positive");
        let layers = [(7, 32), (32, 16), (16, 1)];
        let layers = layers.map(|(from, to)| (tensor(rng, &[to, from]), tensor(rng, &[to]))).to_vec();
        Network { mean: tensor(rng, &[7]), deviation, layers }
    }

    #[test]
    fn the_operation_answers_as_the_tensors_do() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let network = network(&mut rng);
        let raw = tensor(&mut rng, &[100, 7]);
        let ours: Vec<f32> = raw
            .apply_op1_no_bwd(&Forward::new(&network).expect("on the CPU"))
            .and_then(|scores| scores.to_vec1())
            .expect("runs");
        let theirs: Vec<f32> = network
            .standardise(&raw)
            .and_then(|standardised| network.logits(&standardised))
            .and_then(|logits| candle_nn::ops::sigmoid(&logits)?.to_vec1())
            .expect("runs");
        assert_eq!(ours.len(), 100);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
        }
    }

    #[test]
    fn an_answer_does_not_depend_on_its_batch() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let forward = Forward::new(&network(&mut rng)).expect("on the CPU");
        let raw = tensor(&mut rng, &[64, 7]);
        let scores = |raw: &Tensor| -> Vec<f32> {
            raw.contiguous().and_then(|raw| raw.apply_op1_no_bwd(&forward)?.to_vec1()).expect("runs")
        };
        let together = scores(&raw);
        for (row, score) in together.iter().enumerate() {
            assert_eq!(scores(&raw.narrow(0, row, 1).expect("a row"))[0].to_bits(), score.to_bits());
        }
    }
}
