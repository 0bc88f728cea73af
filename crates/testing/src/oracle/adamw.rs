//! AdamW in f64, as PyTorch computes it: the decay is `lr * weight_decay * weight`, apart from the moments.
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.

use super::{Gradients, Oracle};

/// The settings of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields carry the names the field gives them")]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Applied to every weight, norms and biases too.
    pub weight_decay: f64,
}

/// What AdamW remembers from one step to the next; `default()` before the first.
#[derive(Clone, Debug, Default)]
pub struct AdamWState {
    /// Updates made.
    pub step: i32,
    /// First moment by weight.
    pub m: Gradients,
    /// Second moment by weight.
    pub v: Gradients,
}

impl Oracle {
    /// One update of every weight.
    ///
    /// # Panics
    /// If a weight has no gradient.
    pub fn adamw_step(&mut self, gradients: &Gradients, state: &mut AdamWState, h: &AdamW) {
        state.step += 1;
        let m_scale = 1.0 / (1.0 - h.beta1.powi(state.step));
        let v_scale = 1.0 / (1.0 - h.beta2.powi(state.step));
        for (name, (_, weight)) in &mut self.weights {
            let gradient = gradients.get(name).unwrap_or_else(|| panic!("adamw_step: {name} has no gradient"));
            let m = state.m.entry(name.clone()).or_insert_with(|| vec![0.0; weight.len()]);
            let v = state.v.entry(name.clone()).or_insert_with(|| vec![0.0; weight.len()]);
            for i in 0..weight.len() {
                m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * gradient[i];
                v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * gradient[i] * gradient[i];
                let update = m[i] * m_scale / ((v[i] * v_scale).sqrt() + h.eps);
                weight[i] -= h.lr * (update + h.weight_decay * weight[i]);
            }
        }
    }
}
