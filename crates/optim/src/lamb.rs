//! LAMB, as DeepSpeed's FusedLamb. The formula stands with its kernel, `kernels::lamb`. Source: You et al. 2020,
//! arXiv:1904.00962, Algorithm 2.

use crate::{Granularity, Optimizer, Shard, State, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, LambArgs, LambParams, Queue, Shape};

/// The constants of LAMB.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Lamb {
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Put `sqrt(1 - beta2^step) / (1 - beta1^step)` into the rate.
    pub bias_correction: bool,
    /// Lowest ratio of the norms of parameter and update.
    pub min_coeff: f64,
    /// Highest ratio.
    pub max_coeff: f64,
}

impl Optimizer for Lamb {
    fn name(&self) -> &'static str {
        "Lamb"
    }

    fn granularity(&self) -> Granularity {
        Granularity::Matrix
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        ["exp_avg", "exp_avg_sq"].map(|name| State::exact(name, shape)).to_vec()
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let betas = at.betas.unwrap_or(self.betas);
        let correction = at.correction(betas[1]).sqrt() / at.correction(betas[0]);
        let params = LambParams {
            step_size: (if self.bias_correction { at.lr * correction } else { at.lr }) as f32,
            betas,
            eps: self.eps as f32,
            weight_decay: at.weight_decay as f32,
            coeff: [self.min_coeff as f32, self.max_coeff as f32],
            grad_scale: at.grad_scale,
        };
        let [exp_avg, exp_avg_sq] = shard.states else { panic!("Lamb::step: {} states", shard.states.len()) };
        let Shard { param, grad, compute, .. } = *shard;
        (queue.backend().lamb)(queue, LambArgs { param, grad, exp_avg, exp_avg_sq, compute, params })
    }
}
