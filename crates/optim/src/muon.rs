//! Muon: momentum whose matrix is replaced by the nearest one with equal singular values. For hidden matrices; what else a
//! model has goes to AdamW, as the run's groups say. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers", in the
//! form of `torch.optim.Muon`.
//!
//! Where we differ from PyTorch: it orthogonalises in bf16, we in f32. From DeepSpeed: nothing but that.
//!
//! # Order of events
//! 1. Momentum, and the gradient looked at along it (Nesterov).
//! 2. Newton-Schulz steps of degree five bring the singular values near 1; the products are on the smaller side.
//! 3. Decay and step.

use crate::rule::{Decay, zip};
use crate::{ElementRule, Granularity, Optimizer, Shard, State, States, Step};
use serde::{Deserialize, Serialize};
use tensor::{DType, KernelError, MatmulArgs, MemoryKind, NormalizeArgs, Queue, Shape, Tensor};

/// The polynomial `a x + b x^3 + c x^5` of a Newton-Schulz step.
const POLYNOMIAL: [f32; 3] = [3.4445, -4.775, 2.0315];

/// Lowest norm that a matrix is divided by.
const EPS: f32 = 1e-7;

/// The constants of Muon.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Muon {
    /// Share of the momentum that is kept, in [0, 1).
    pub momentum: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
    /// Newton-Schulz steps.
    pub ns_steps: u32,
    /// How the rate depends on the shape.
    pub adjust_lr_fn: AdjustLr,
}

/// How the rate depends on the shape `[rows, columns]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// Times `sqrt(max(1, rows / columns))`.
    #[default]
    Original,
    /// Times `0.2 sqrt(max(rows, columns))`: steps as large as AdamW's (Liu et al. 2025, arXiv:2502.16982).
    MatchRmsAdamw,
}

impl AdjustLr {
    fn factor(self, rows: usize, columns: usize) -> f64 {
        match self {
            Self::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
            Self::MatchRmsAdamw => 0.2 * (rows.max(columns) as f64).sqrt(),
        }
    }
}

impl Optimizer for Muon {
    fn name(&self) -> &'static str {
        "Muon"
    }

    fn granularity(&self) -> Granularity {
        Granularity::Matrix
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["momentum_buffer"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let shape = shard.param.shape();
        assert!(shape.dims().len() == 2, "Muon::step: a parameter of shape {shape}; it must be a matrix");
        let update = queue.alloc(MemoryKind::Workspace, DType::F32, shape)?;
        let momentum = self.momentum as f32;
        let ahead = if self.nesterov { momentum } else { 1.0 };
        let look = Shard { param: &update, compute: None, ..*shard };
        look.update(queue, at.grad_scale, Look { entering: (1.0 - self.momentum) as f32, ahead })?;
        self.orthogonalize(queue, &update)?;
        let lr = (at.lr * self.adjust_lr_fn.factor(shape.rows(), shape.width())) as f32;
        let decay = at.decay(true);
        Shard { grad: &update, states: &[], ..*shard }.update(queue, 1.0, Move { lr, decay })
    }
}

impl Muon {
    /// Newton-Schulz steps on `x` f32 `[R, C]`, in place.
    fn orthogonalize(&self, queue: &Queue, x: &Tensor) -> Result<(), KernelError> {
        let [a, b, c] = POLYNOMIAL;
        let (rows, columns) = (x.shape().rows(), x.shape().width());
        let (is_tall, side) = (rows > columns, rows.min(columns));
        let scratch = |shape: Shape| queue.alloc(MemoryKind::Workspace, DType::F32, shape);
        let (gram, squared) = (scratch([side, side].into())?, scratch([side, side].into())?);
        let turned = scratch(x.shape())?;
        let product = |a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, out: &Tensor| {
            let args = MatmulArgs { a, transpose_a, b, transpose_b, bias: None, out, accumulate: false };
            (queue.backend().matmul)(queue, args)
        };
        (queue.backend().normalize)(queue, NormalizeArgs { x, eps: EPS })?;
        for _ in 0..self.ns_steps {
            product(x, is_tall, x, !is_tall, &gram)?;
            product(&gram, false, &gram, false, &squared)?;
            combine(queue, &gram, b, &squared, c)?;
            if is_tall {
                product(x, false, &gram, false, &turned)?;
            } else {
                product(&gram, false, x, false, &turned)?;
            }
            combine(queue, x, a, &turned, 1.0)?;
        }
        Ok(())
    }
}

/// `x = a x + b y`
fn combine(queue: &Queue, x: &Tensor, a: f32, y: &Tensor, b: f32) -> Result<(), KernelError> {
    zip(queue, x, y, Combine { a, b })
}

struct Combine {
    a: f32,
    b: f32,
}

impl ElementRule for Combine {
    #[inline(always)]
    fn update(&self, x: f32, y: f32, states: States) -> (f32, States) {
        (self.a * x + self.b * y, states)
    }
}

/// The momentum, and the point that is orthogonalised in place of the parameter.
struct Look {
    entering: f32,
    /// Share of the momentum in that point; the rest is the gradient.
    ahead: f32,
}

impl ElementRule for Look {
    #[inline(always)]
    fn update(&self, _: f32, grad: f32, [m, ..]: States) -> (f32, States) {
        let m = m + (grad - m) * self.entering;
        (grad + (m - grad) * self.ahead, [m, 0.0, 0.0])
    }
}

struct Move {
    lr: f32,
    decay: Decay,
}

impl ElementRule for Move {
    #[inline(always)]
    fn update(&self, param: f32, step: f32, states: States) -> (f32, States) {
        (param * self.decay.keep - self.lr * step, states)
    }
}
