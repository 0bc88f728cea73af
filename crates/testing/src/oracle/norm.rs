//! LayerNorm and RMSNorm: `y = weight * x_hat + bias` with `x_hat = (x - mean) / sqrt(mean((x - mean)^2) + eps)`;
//! RMSNorm takes 0 for the mean and has no bias.
//!
//! Backward, with `d_hat = dy * weight` and means over one token:
//! `dx = (d_hat - mean(d_hat) - x_hat * mean(d_hat * x_hat)) / sqrt(...)`; RMSNorm lacks the `mean(d_hat)`.
//! Source: Ba et al. 2016, arXiv:1607.06450; Zhang & Sennrich 2019, arXiv:1910.07467.

use super::{Gradients, Tensors};

/// One norm of the model; it is a LayerNorm if it has a bias.
pub(super) struct Norm<'a> {
    name: &'a str,
    weight: &'a [f64],
    bias: Option<&'a [f64]>,
    eps: f64,
}

impl<'a> Norm<'a> {
    pub(super) fn new(weights: &'a Tensors<f64>, name: &'a str, eps: f64) -> Self {
        let weight = &weights[&format!("{name}.weight")].1;
        let bias = weights.get(&format!("{name}.bias")).map(|(_, bias)| bias.as_slice());
        Self { name, weight, bias, eps }
    }

    /// `x` `[T, D]`, token by token.
    pub(super) fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut y = Vec::with_capacity(x.len());
        for token in x.chunks(self.weight.len()) {
            let (x_hat, _) = self.normalize(token);
            y.extend((0..x_hat.len()).map(|d| self.weight[d] * x_hat[d] + self.bias.map_or(0.0, |bias| bias[d])));
        }
        y
    }

    /// `dy` `[T, D]` to `dx` `[T, D]`; adds to the gradients of weight and bias.
    pub(super) fn backward(&self, x: &[f64], dy: &[f64], gradients: &mut Gradients) -> Vec<f64> {
        let size = self.weight.len();
        let mut d_weight = vec![0.0; size];
        let mut d_bias = vec![0.0; size];
        let mut dx = Vec::with_capacity(x.len());
        for (token, dy) in x.chunks(size).zip(dy.chunks(size)) {
            let (x_hat, inverse) = self.normalize(token);
            let d_hat: Vec<f64> = (0..size).map(|d| dy[d] * self.weight[d]).collect();
            let mean_d_hat = if self.bias.is_some() { d_hat.iter().sum::<f64>() / size as f64 } else { 0.0 };
            let mean_product = (0..size).map(|d| d_hat[d] * x_hat[d]).sum::<f64>() / size as f64;
            for d in 0..size {
                d_weight[d] += dy[d] * x_hat[d];
                d_bias[d] += dy[d];
                dx.push((d_hat[d] - mean_d_hat - x_hat[d] * mean_product) * inverse);
            }
        }
        super::add(gradients, &format!("{}.weight", self.name), &d_weight);
        if self.bias.is_some() {
            super::add(gradients, &format!("{}.bias", self.name), &d_bias);
        }
        dx
    }

    /// `x_hat` of one token, and what its deviation was multiplied by.
    fn normalize(&self, token: &[f64]) -> (Vec<f64>, f64) {
        let size = token.len() as f64;
        let mean = if self.bias.is_some() { token.iter().sum::<f64>() / size } else { 0.0 };
        let variance = token.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / size;
        let inverse = 1.0 / (variance + self.eps).sqrt();
        (token.iter().map(|x| (x - mean) * inverse).collect(), inverse)
    }
}
