//! Rotary position embedding of packed [q | k | v] rows. Source: Su et al. 2021, arXiv:2104.09864; the first half of a head
//! is rotated with the second, as Transformers does, not neighbouring pairs.
//!
//! A rotation: backward turns the gradient by the negative angle. Nothing is saved; both directions work in place.

use crate::{Cost, Cx, Env, Family, Op, ParamId, Result, ShapeError, Var};
use tensor::{CopyArgs, RopeArgs, Tensor};

struct Rope {
    cos: ParamId,
    sin: ParamId,
    num_heads: usize,
    head_dim: usize,
}

impl Rope {
    fn rotate(&self, env: &Env<'_>, x: Tensor, inverse: bool) -> Result<Tensor> {
        let x = if x.is_unique() {
            x
        } else {
            let own = env.alloc(x.shape())?;
            (env.queue.backend().copy)(env.queue, CopyArgs { x: &x, out: &own })?;
            own
        };
        let (cos, sin) = (env.params.weight(self.cos)?, env.params.weight(self.sin)?);
        let args = RopeArgs {
            x: &x,
            num_heads: self.num_heads,
            head_dim: self.head_dim,
            cos: &cos,
            sin: &sin,
            positions: &env.batch.positions,
            inverse,
        };
        (env.queue.backend().rope)(env.queue, args)?;
        Ok(x)
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Attention)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let shape = inputs[0].shape();
        if shape.width() < self.num_heads * self.head_dim {
            let rule = format!("its last axis must hold {} heads of {}", self.num_heads, self.head_dim);
            return Err(ShapeError { op: "rope", arg: "qkv", got: shape, rule }.into());
        }
        // The tape gave this value up: its memory is ours unless an op before saved it.
        self.rotate(env, inputs[0].clone(), false)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.rotate(env, dy, true)?)])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = (inputs[0].shape().rows() * self.num_heads * self.head_dim) as u64;
        Cost { flops: 3 * elements, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// Rotates the first `num_heads` heads (queries, then keys) of packed rows by the position of each token.
    /// `cos`, `sin`: constants f32 [positions, rotary_dim / 2]. Consumes `qkv`.
    pub fn rope(&mut self, qkv: Var, cos: ParamId, sin: ParamId, num_heads: usize, head_dim: usize) -> Result<Var> {
        self.apply_in_place(Rope { cos, sin, num_heads, head_dim }, qkv)
    }
}
