//! Adadelta, as `torch.optim.Adadelta`. Source: Zeiler 2012, arXiv:1212.5701, Algorithm 1, with a rate and decay.

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of Adadelta.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Adadelta {
    /// Decay of the two mean squares, in [0, 1).
    pub rho: f64,
    /// Added to both mean squares.
    pub eps: f64,
}

impl Optimizer for Adadelta {
    fn name(&self) -> &'static str {
        "Adadelta"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["square_avg", "acc_delta"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let rule = Numbers {
            lr: at.lr as f32,
            rho: self.rho as f32,
            rest: (1.0 - self.rho) as f32,
            eps: self.eps as f32,
            decay: at.decay(false),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    rho: f32,
    rest: f32,
    eps: f32,
    decay: Decay,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [square, deltas, _]: States) -> (f32, States) {
        let g = grad + self.decay.l2 * param;
        let square = square * self.rho + self.rest * g * g;
        let delta = (deltas + self.eps).sqrt() / (square + self.eps).sqrt() * g;
        let deltas = deltas * self.rho + self.rest * delta * delta;
        (param - self.lr * delta, [square, deltas, 0.0])
    }
}
