//! NAdam: Adam with Nesterov's momentum, as `torch.optim.NAdam`. Source: Dozat 2016, "Incorporating Nesterov Momentum into
//! Adam", with its schedule of the momentum. Where we differ: PyTorch multiplies the momenta up as they were; here, under a
//! schedule that moves beta1, those of earlier steps are taken at today's.

use crate::adamw::AdamMoments;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of NAdam.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct NAdam {
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The momentum of step `t` is `beta1 * (1 - 0.96^(t * momentum_decay) / 2)`.
    pub momentum_decay: f64,
    /// Decay shrinks the weight; otherwise it joins the gradient.
    pub decoupled_weight_decay: bool,
}

impl NAdam {
    fn momentum(&self, beta1: f64, step: u64) -> f64 {
        beta1 * (1.0 - 0.5 * 0.96f64.powf(step as f64 * self.momentum_decay))
    }

    /// The product of the momenta of all steps so far. It falls below what 1 minus it can show within a few hundred.
    fn product(&self, beta1: f64, steps: u64) -> f64 {
        let mut product = 1.0;
        for step in 1..=steps {
            product *= self.momentum(beta1, step);
            if product < f64::EPSILON / 16.0 {
                return 0.0;
            }
        }
        product
    }
}

impl Optimizer for NAdam {
    fn name(&self) -> &'static str {
        "NAdam"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["exp_avg", "exp_avg_sq"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let [beta1, beta2] = at.betas.unwrap_or(self.betas);
        let (now, next) = (self.momentum(beta1, at.step), self.momentum(beta1, at.step + 1));
        let product = self.product(beta1, at.step);
        let rule = Numbers {
            from_grad: (at.lr * (1.0 - now) / (1.0 - product)) as f32,
            from_momentum: (at.lr * next / (1.0 - product * next)) as f32,
            moments: AdamMoments::new([beta1, beta2], at.decay(self.decoupled_weight_decay)),
            correction: at.correction(beta2) as f32,
            eps: self.eps as f32,
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

struct Numbers {
    from_grad: f32,
    from_momentum: f32,
    moments: AdamMoments,
    correction: f32,
    eps: f32,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, v, _]: States) -> (f32, States) {
        let (g, m, v) = self.moments.after(param, grad, m, v);
        let denom = (v / self.correction).sqrt() + self.eps;
        (param * self.moments.decay.keep - self.from_grad * g / denom - self.from_momentum * m / denom, [m, v, 0.0])
    }
}
