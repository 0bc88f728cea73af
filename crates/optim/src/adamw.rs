//! Adam and AdamW, with AMSGrad. Sources: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101, with
//! the decay multiplied by the scheduled rate as PyTorch and DeepSpeed do; Reddi et al. 2018, arXiv:1904.09237, with the
//! largest second moment taken before the bias correction, as PyTorch.

use crate::rule::Decay;
use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use tensor::{KernelError, Queue, Shape};

/// The constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay shrinks the weight (AdamW); otherwise it joins the gradient (L2).
    pub decoupled: bool,
    /// Divide the moments by `1 - beta^step`.
    pub bias_correction: bool,
    /// Divide by the largest second moment so far.
    pub amsgrad: bool,
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        if self.decoupled { "AdamW" } else { "Adam" }
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        let names: &[_] = &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];
        State::moments(if self.amsgrad { names } else { &names[..2] }, shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        assert!(at.step >= 1, "AdamW::step: steps count from 1");
        let [beta1, beta2] = at.betas.unwrap_or(self.betas);
        let correction = |beta: f64| if self.bias_correction { at.correction(beta) as f32 } else { 1.0 };
        let adam = Adam {
            moments: AdamMoments::new([beta1, beta2], at.decay(self.decoupled)),
            step_size: at.lr as f32 / correction(beta1),
            root: correction(beta2).sqrt(),
            eps: self.eps as f32,
        };
        if self.amsgrad {
            shard.update(queue, at.grad_scale, AmsGrad(adam))
        } else {
            shard.update(queue, at.grad_scale, adam)
        }
    }
}

/// The two moments of Adam and its kin.
pub(crate) struct AdamMoments {
    rest1: f32,
    beta2: f32,
    rest2: f32,
    pub(crate) decay: Decay,
}

impl AdamMoments {
    pub(crate) fn new([beta1, beta2]: [f64; 2], decay: Decay) -> Self {
        Self { rest1: (1.0 - beta1) as f32, beta2: beta2 as f32, rest2: (1.0 - beta2) as f32, decay }
    }

    /// The gradient with the decay that joins it, and the moments behind it.
    #[inline(always)]
    pub(crate) fn after(&self, param: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let g = grad + self.decay.l2 * param;
        (g, m + (g - m) * self.rest1, v * self.beta2 + self.rest2 * g * g)
    }
}

/// The numbers of one step.
struct Adam {
    moments: AdamMoments,
    step_size: f32,
    root: f32,
    eps: f32,
}

impl Adam {
    #[inline(always)]
    fn moved(&self, param: f32, m: f32, v: f32) -> f32 {
        let denom = v.sqrt() / self.root + self.eps;
        param * self.moments.decay.keep - self.step_size * m / denom
    }
}

impl ElementRule for Adam {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, v, _]: States) -> (f32, States) {
        let (_, m, v) = self.moments.after(param, grad, m, v);
        (self.moved(param, m, v), [m, v, 0.0])
    }
}

struct AmsGrad(Adam);

impl ElementRule for AmsGrad {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, v, largest]: States) -> (f32, States) {
        let (_, m, v) = self.0.moments.after(param, grad, m, v);
        let largest = if v > largest { v } else { largest };
        (self.0.moved(param, m, largest), [m, v, largest])
    }
}
