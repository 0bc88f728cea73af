//! `y = x W + b`, with W stored as Hugging Face stores it.

use super::{Gradients, Tensors};

/// One matrix of the model and its bias if it has one.
pub(super) struct Linear<'a> {
    name: &'a str,
    weight: &'a [f64],
    bias: Option<&'a [f64]>,
    num_in: usize,
    num_out: usize,
    /// Distance in `weight` of neighbours along `in` and along `out`.
    strides: (usize, usize),
}

impl<'a> Linear<'a> {
    /// The matrix `{name}.weight`, stored `[in, out]` if `in_out` (GPT-2's Conv1D), else `[out, in]`.
    pub(super) fn new(weights: &'a Tensors<f64>, name: &'a str, in_out: bool) -> Self {
        let (shape, weight) = &weights[&format!("{name}.weight")];
        let bias = weights.get(&format!("{name}.bias")).map(|(_, bias)| bias.as_slice());
        let (num_in, num_out) = if in_out { (shape[0], shape[1]) } else { (shape[1], shape[0]) };
        let strides = if in_out { (num_out, 1) } else { (1, num_in) };
        Self { name, weight, bias, num_in, num_out, strides }
    }

    /// `x` `[T, in]` to `[T, out]`.
    pub(super) fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut y = Vec::with_capacity(x.len() / self.num_in * self.num_out);
        for token in x.chunks(self.num_in) {
            for o in 0..self.num_out {
                let product: f64 = (0..self.num_in).map(|i| token[i] * self.weight[self.index(i, o)]).sum();
                y.push(product + self.bias.map_or(0.0, |bias| bias[o]));
            }
        }
        y
    }

    /// `dy` `[T, out]` to `dx` `[T, in]`; adds to the gradients of the matrix and of the bias.
    pub(super) fn backward(&self, x: &[f64], dy: &[f64], gradients: &mut Gradients) -> Vec<f64> {
        if self.bias.is_some() {
            let d_bias = gradients.get_mut(&format!("{}.bias", self.name)).expect("a gradient for every weight");
            for dy_token in dy.chunks(self.num_out) {
                for o in 0..self.num_out {
                    d_bias[o] += dy_token[o];
                }
            }
        }
        let d_weight = gradients.get_mut(&format!("{}.weight", self.name)).expect("a gradient for every weight");
        let mut dx = vec![0.0; x.len()];
        for (t, dy_token) in dy.chunks(self.num_out).enumerate() {
            for i in 0..self.num_in {
                for o in 0..self.num_out {
                    dx[t * self.num_in + i] += dy_token[o] * self.weight[self.index(i, o)];
                    d_weight[self.index(i, o)] += x[t * self.num_in + i] * dy_token[o];
                }
            }
        }
        dx
    }

    fn index(&self, i: usize, o: usize) -> usize {
        i * self.strides.0 + o * self.strides.1
    }
}
