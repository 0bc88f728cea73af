//! Lion: steps of one size, along the sign of a momentum. Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2; DeepSpeed's
//! FusedLion is the same.

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of Lion.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Lion {
    /// Share of the momentum in the step, and what is kept of it, each in [0, 1).
    pub betas: [f64; 2],
}

impl Optimizer for Lion {
    fn name(&self) -> &'static str {
        "Lion"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["exp_avg"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let [beta1, beta2] = at.betas.unwrap_or(self.betas);
        let rule = Numbers {
            lr: at.lr as f32,
            beta1: beta1 as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            decay: at.decay(true),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    decay: Decay,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, ..]: States) -> (f32, States) {
        let direction = self.beta1 * m + self.rest1 * grad;
        // Along 0 there is no step, and what is no number must show in the weight.
        let step = if direction.abs() > 0.0 { self.lr.copysign(direction) } else { direction };
        (param * self.decay.keep - step, [self.beta2 * m + self.rest2 * grad, 0.0, 0.0])
    }
}
