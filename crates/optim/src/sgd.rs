//! Stochastic gradient descent with momentum, as `torch.optim.SGD`: the rate multiplies the whole update, the decay joins the
//! gradient, and the first momentum is the first gradient, without dampening. Source: Sutskever et al. 2013.
//!
//! Products are fused with the sum behind them, as in PyTorch: a weight that passes near 0 keeps PyTorch's digits.

use crate::{ElementRule, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{KernelError, Queue, Shape};

/// The constants of SGD.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Sgd {
    /// Share of the momentum that is kept; 0: none is stored.
    pub momentum: f64,
    /// Share of the gradient that does not enter the momentum.
    pub dampening: f64,
    /// Step along the gradient plus the kept share of the new momentum.
    pub nesterov: bool,
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "SGD"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }, shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let (lr, weight_decay) = (at.lr as f32, at.weight_decay as f32);
        if self.momentum == 0.0 {
            return shard.update(queue, at.grad_scale, Plain { lr, weight_decay });
        }
        let momentum = self.momentum as f32;
        let (kept, entering) = if at.is_first() { (0.0, 1.0) } else { (momentum, (1.0 - self.dampening) as f32) };
        let (from_grad, from_momentum) = if self.nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        shard.update(queue, at.grad_scale, Momentum { lr, weight_decay, kept, entering, from_grad, from_momentum })
    }
}

struct Plain {
    lr: f32,
    weight_decay: f32,
}

impl ElementRule for Plain {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, states: States) -> (f32, States) {
        let g = self.weight_decay.mul_add(param, grad);
        ((-self.lr).mul_add(g, param), states)
    }
}

struct Momentum {
    lr: f32,
    weight_decay: f32,
    kept: f32,
    entering: f32,
    /// The step is along `from_grad * gradient + from_momentum * momentum`.
    from_grad: f32,
    from_momentum: f32,
}

impl ElementRule for Momentum {
    #[inline(always)]
    fn update(&self, param: f32, grad: f32, [m, ..]: States) -> (f32, States) {
        let g = self.weight_decay.mul_add(param, grad);
        let m = g.mul_add(self.entering, m * self.kept);
        let step = m.mul_add(self.from_momentum, g * self.from_grad);
        ((-self.lr).mul_add(step, param), [m, 0.0, 0.0])
    }
}
