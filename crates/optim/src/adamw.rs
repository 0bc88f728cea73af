//! Adam and AdamW. Sources: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101, with the decay
//! multiplied by the scheduled rate as PyTorch and DeepSpeed do.

use crate::{Optimizer, Shard, Step};
use tensor::{AdamWArgs, AdamWParams, KernelError, Queue};

/// The constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay shrinks the weight (AdamW); otherwise it joins the gradient (L2).
    pub decoupled: bool,
    /// Divide the moments by `1 - beta^step`.
    pub bias_correction: bool,
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        if self.decoupled { "AdamW" } else { "Adam" }
    }

    fn states(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        assert!(at.step >= 1, "AdamW::step: steps count from 1");
        let correction = |beta: f64| if self.bias_correction { 1.0 - beta.powf(at.step as f64) } else { 1.0 };
        let params = AdamWParams {
            lr: at.lr as f32,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps as f32,
            weight_decay: at.weight_decay as f32,
            decoupled: self.decoupled,
            bias_correction1: correction(self.beta1) as f32,
            bias_correction2: correction(self.beta2) as f32,
            grad_scale: at.grad_scale,
        };
        let [exp_avg, exp_avg_sq] = shard.states else { panic!("AdamW::step: {} states", shard.states.len()) };
        let Shard { param, grad, compute, .. } = *shard;
        (queue.backend().adamw)(queue, AdamWArgs { param, grad, exp_avg, exp_avg_sq, compute, params })
    }
}
