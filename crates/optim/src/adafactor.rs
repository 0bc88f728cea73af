//! Adafactor, as `torch.optim.Adafactor`. The formula stands with its kernel, `kernels::adafactor`. Source: Shazeer & Stern
//! 2018, arXiv:1804.04235. Where we differ from PyTorch: a tensor of more than two axes counts as a matrix of its last.

use crate::{Granularity, Optimizer, Shard, State, Step};
use serde::{Deserialize, Serialize};
use tensor::{AdafactorArgs, AdafactorParams, KernelError, Queue, Shape};

/// The constants of Adafactor.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Adafactor {
    /// The share of new squares in the second moment is `step ^ beta2_decay`; below 0.
    pub beta2_decay: f64,
    /// Floor of the root of the second moment (`None`: the distance from 1 to the next f32), and of the root mean square of
    /// the parameter, which the rate is relative to (`None`: 0.001).
    pub eps: [Option<f64>; 2],
    /// Largest root mean square of the update.
    pub d: f64,
}

impl Optimizer for Adafactor {
    fn name(&self) -> &'static str {
        "Adafactor"
    }

    fn granularity(&self) -> Granularity {
        Granularity::Matrix
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        if shape.dims().len() == 1 {
            return vec![State::exact("variance", shape)];
        }
        vec![State::exact("row_var", [shape.rows()].into()), State::exact("col_var", [shape.width()].into())]
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let step = at.step as f64;
        let params = AdafactorParams {
            rate: at.lr.min(1.0 / step.sqrt()) as f32,
            entering: step.powf(self.beta2_decay) as f32,
            eps: [self.eps[0].unwrap_or(f32::EPSILON.into()), self.eps[1].unwrap_or(1e-3)].map(|eps| eps as f32),
            clip: self.d as f32,
            keep: (1.0 - at.lr * at.weight_decay) as f32,
            grad_scale: at.grad_scale,
        };
        let Shard { param, grad, compute, .. } = *shard;
        let (row, column) = (&shard.states[0], shard.states.get(1));
        (queue.backend().adafactor)(queue, AdafactorArgs { param, grad, row, column, compute, params })
    }
}
