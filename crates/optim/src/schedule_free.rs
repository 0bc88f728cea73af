//! Schedule-free AdamW: no decaying rate, but a weighted average of the iterates, at which the model is evaluated. Source:
//! Defazio et al. 2024, arXiv:2405.15682, Algorithm 1, in the form of the authors' `AdamWScheduleFree`.
//!
//! Three sequences of weights: `z` takes the steps, `average` (the paper's x) is what is evaluated and exported, and the
//! parameter itself (the paper's y), where gradients are taken, lies between them.
//!
//! Where we differ: `average` is kept instead of being worked out from the other two (4 bytes more for each weight), and the
//! weight of a step in the average follows from the warm-up of the rule itself, so that a schedule beside it is refused.

use crate::{AVERAGE, ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of schedule-free AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct ScheduleFree {
    /// Where gradients are taken between `z` (0) and the average (1); decay of the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps over which the rate rises to its full size.
    pub warmup_steps: u64,
}

impl ScheduleFree {
    /// The share of the full rate at a step.
    fn warmup(&self, step: u64) -> f64 {
        (step as f64 / self.warmup_steps.max(1) as f64).min(1.0)
    }

    /// The weight of this step in the average: the square of its rate over the sum of all so far.
    fn share(&self, step: u64) -> f64 {
        let (warm, width) = (step.min(self.warmup_steps) as f64, self.warmup_steps.max(1) as f64);
        let rising = warm * (warm + 1.0) * (2.0 * warm + 1.0) / (6.0 * width * width);
        self.warmup(step).powi(2) / (rising + (step - step.min(self.warmup_steps)) as f64)
    }
}

impl Optimizer for ScheduleFree {
    fn name(&self) -> &'static str {
        "AdamWScheduleFree"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        let mut states = State::moments(&["exp_avg_sq"], shape);
        states.extend(["z", AVERAGE].map(|name| State::exact(name, shape)));
        states
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let [beta1, beta2] = self.betas;
        let rule = Numbers {
            lr: (at.lr * self.warmup(at.step)) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            correction: at.correction(beta2) as f32,
            eps: self.eps as f32,
            weight_decay: at.weight_decay as f32,
            share: self.share(at.step) as f32,
            is_first: at.is_first(),
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    lr: f32,
    beta1: f32,
    beta2: f32,
    rest2: f32,
    correction: f32,
    eps: f32,
    weight_decay: f32,
    share: f32,
    is_first: bool,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [v, z, average]: States) -> (f32, States) {
        let (z, average) = if self.is_first { (param, param) } else { (z, average) };
        let v = v * self.beta2 + self.rest2 * grad * grad;
        let direction = grad / ((v / self.correction).sqrt() + self.eps) + self.weight_decay * param;
        let z = z - self.lr * direction;
        let average = average + (z - average) * self.share;
        (z + (average - z) * self.beta1, [v, z, average])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_step_is_its_squared_rate_over_their_sum() {
        for warmup_steps in [0, 1, 5, 100] {
            let rule = ScheduleFree { betas: [0.9, 0.999], eps: 1e-8, warmup_steps };
            let mut sum = 0.0;
            for step in 1..=200 {
                let weight = rule.warmup(step).powi(2);
                sum += weight;
                assert!((rule.share(step) - weight / sum).abs() < 1e-12, "{warmup_steps}, step {step}");
            }
        }
    }
}
