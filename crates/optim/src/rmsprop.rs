//! RMSprop, as `torch.optim.RMSprop`. Sources: Tieleman & Hinton 2012, lecture 6.5; the centered form from Graves 2013,
//! arXiv:1308.0850.

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of RMSprop.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct RmsProp {
    /// Decay of the mean square, in [0, 1).
    pub alpha: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Share of the last update that is kept; 0: none is stored.
    pub momentum: f64,
    /// Divide by the root of the variance instead of that of the mean square.
    pub centered: bool,
}

impl Optimizer for RmsProp {
    fn name(&self) -> &'static str {
        "RMSprop"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        let (momentum, mean) = (("momentum_buffer", self.momentum > 0.0), ("grad_avg", self.centered));
        let names = [("square_avg", true), momentum, mean].into_iter().filter(|(_, is_kept)| *is_kept);
        State::moments(&names.map(|(name, _)| name).collect::<Vec<_>>(), shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let rule = Numbers {
            lr: at.lr as f32,
            alpha: self.alpha as f32,
            rest: (1.0 - self.alpha) as f32,
            eps: self.eps as f32,
            momentum: self.momentum as f32,
            centered: self.centered,
            decay: at.decay(false),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    alpha: f32,
    rest: f32,
    eps: f32,
    momentum: f32,
    centered: bool,
    decay: Decay,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [square, second, third]: States) -> (f32, States) {
        // The states that are kept come first: without momentum the mean is the second.
        let has_momentum = self.momentum > 0.0;
        let (buffer, mean) = if has_momentum { (second, third) } else { (0.0, second) };
        let g = grad + self.decay.l2 * param;
        let square = square * self.alpha + self.rest * g * g;
        let mean = if self.centered { mean + (g - mean) * self.rest } else { 0.0 };
        // Moments that are rounded apart may leave less than nothing.
        let variance = (square - mean * mean).max(0.0);
        let buffer = buffer * self.momentum + g / (variance.sqrt() + self.eps);
        let kept = if has_momentum { [square, buffer, mean] } else { [square, mean, 0.0] };
        (param - self.lr * buffer, kept)
    }
}
