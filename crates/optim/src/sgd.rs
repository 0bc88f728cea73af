//! Stochastic gradient descent with momentum, as `torch.optim.SGD`: the decay joins the gradient, and the first momentum is
//! the first gradient.

use crate::{Optimizer, Shard, Step};
use tensor::{KernelError, Queue, SgdArgs, SgdParams};

/// The constants of SGD.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Share of the momentum that is kept; 0: none is stored.
    pub momentum: f64,
    /// Step along the gradient plus the kept share of the new momentum.
    pub nesterov: bool,
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "SGD"
    }

    fn states(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let params = SgdParams {
            lr: at.lr as f32,
            momentum: self.momentum as f32,
            dampening: 0.0,
            nesterov: self.nesterov,
            weight_decay: at.weight_decay as f32,
            first_step: at.step == 1,
            grad_scale: at.grad_scale,
        };
        let Shard { param, grad, compute, .. } = *shard;
        (queue.backend().sgd)(queue, SgdArgs { param, grad, momentum: shard.states.first(), compute, params })
    }
}
