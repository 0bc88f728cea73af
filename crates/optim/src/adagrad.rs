//! Adagrad, as `torch.optim.Adagrad`; with its defaults DeepSpeed's CPU Adagrad. Source: Duchi et al. 2011, "Adaptive
//! Subgradient Methods".

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of Adagrad.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Adagrad {
    /// The rate is divided by `1 + (step - 1) * lr_decay`.
    pub lr_decay: f64,
    /// What the sum of squares begins with.
    pub initial_accumulator_value: f64,
    /// Added to the root of the sum of squares.
    pub eps: f64,
}

impl Optimizer for Adagrad {
    fn name(&self) -> &'static str {
        "Adagrad"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["sum"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let rule = Numbers {
            lr: (at.lr / (1.0 + (at.step - 1) as f64 * self.lr_decay)) as f32,
            start: if at.is_first() { self.initial_accumulator_value as f32 } else { 0.0 },
            eps: self.eps as f32,
            decay: at.decay(false),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    start: f32,
    eps: f32,
    decay: Decay,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [sum, ..]: States) -> (f32, States) {
        let g = grad + self.decay.l2 * param;
        let sum = sum + self.start + g * g;
        (param - self.lr * g / (sum.sqrt() + self.eps), [sum, 0.0, 0.0])
    }
}
