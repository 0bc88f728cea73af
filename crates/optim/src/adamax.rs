//! Adamax: Adam with the largest gradient in place of the second moment, as `torch.optim.Adamax`. Source: Kingma & Ba 2015,
//! arXiv:1412.6980, Algorithm 2.

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of Adamax.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Adamax {
    /// Decay of the first moment and of the largest gradient, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the size of each gradient.
    pub eps: f64,
}

impl Optimizer for Adamax {
    fn name(&self) -> &'static str {
        "Adamax"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["exp_avg", "exp_inf"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let [beta1, beta2] = at.betas.unwrap_or(self.betas);
        let rule = Numbers {
            lr: (at.lr / at.correction(beta1)) as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            eps: self.eps as f32,
            decay: at.decay(false),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    rest1: f32,
    beta2: f32,
    eps: f32,
    decay: Decay,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, largest, _]: States) -> (f32, States) {
        let g = grad + self.decay.l2 * param;
        let m = m + (g - m) * self.rest1;
        let (kept, now) = (largest * self.beta2, g.abs() + self.eps);
        let largest = if now > kept { now } else { kept };
        (param - self.lr * m / largest, [m, largest, 0.0])
    }
}
