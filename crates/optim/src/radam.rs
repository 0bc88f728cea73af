//! RAdam: Adam that is momentum alone until the variance of its second moment is known, as `torch.optim.RAdam`. Source:
//! Liu et al. 2020, arXiv:1908.03265, Algorithm 2.

use crate::adamw::AdamMoments;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of RAdam.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct RAdam {
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay shrinks the weight; otherwise it joins the gradient.
    pub decoupled_weight_decay: bool,
}

impl RAdam {
    /// What the step along `m / sqrt(v)` is multiplied by; `None` while the variance is not tractable.
    fn rectification(beta2: f64, at: &Step) -> Option<f64> {
        let (rest, longest) = (at.correction(beta2), 2.0 / (1.0 - beta2) - 1.0);
        let length = longest - 2.0 * at.step as f64 * (1.0 - rest) / rest;
        let ratio = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
        (length > 5.0).then(|| (ratio * rest).sqrt())
    }
}

impl Optimizer for RAdam {
    fn name(&self) -> &'static str {
        "RAdam"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["exp_avg", "exp_avg_sq"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let [beta1, beta2] = at.betas.unwrap_or(self.betas);
        let (lr, rectification) = (at.lr / at.correction(beta1), Self::rectification(beta2, at));
        let rule = Numbers {
            plain: rectification.map_or(lr, |_| 0.0) as f32,
            adaptive: rectification.map_or(0.0, |factor| lr * factor) as f32,
            moments: AdamMoments::new([beta1, beta2], at.decay(self.decoupled_weight_decay)),
            eps: self.eps as f32,
        };
        shard.update(queue, at.grad_scale, rule)
    }
}

/// One of the two rates is 0.
struct Numbers {
    plain: f32,
    adaptive: f32,
    moments: AdamMoments,
    eps: f32,
}

impl ElementRule for Numbers {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, v, _]: States) -> (f32, States) {
        let (_, m, v) = self.moments.after(param, grad, m, v);
        // With eps 0 and no gradient yet the quotient is not a number; its rate says whether it is wanted at all.
        let adaptive = if self.adaptive == 0.0 { 0.0 } else { self.adaptive / (v.sqrt() + self.eps) };
        (param * self.moments.decay.keep - m * (self.plain + adaptive), [m, v, 0.0])
    }
}
