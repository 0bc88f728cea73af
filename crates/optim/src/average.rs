//! The exponential moving average of weights (EMA). Source: Polyak & Juditsky 1992, in the exponential form that diffusion
//! and language models are evaluated with.

use crate::rule::zip;
use crate::{ElementRule, States};
use tensor::{KernelError, Queue, Tensor};

/// `average = decay * average + (1 - decay) * weights`; both f32 of one shape, `decay` in [0, 1).
///
/// # Errors
/// The device has no kernel for it, or failed.
pub fn average(queue: &Queue, average: &Tensor, weights: &Tensor, decay: f64) -> Result<(), KernelError> {
    zip(queue, average, weights, Lerp { entering: (1.0 - decay) as f32 })
}

struct Lerp {
    entering: f32,
}

impl ElementRule for Lerp {
    #[inline(always)]
    fn update(&self, average: f32, weight: f32, states: States) -> (f32, States) {
        (average + (weight - average) * self.entering, states)
    }
}
