//! GELU, by the error function or its tanh approximation. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
//!
//! Saved: `x`.

use crate::{Cost, Cx, Env, Family, Kept, Op, Result, Var};
use tensor::{Gelu, GeluArgs, GeluBackwardArgs, Tensor};

struct GeluOp {
    kind: Gelu,
    x: Option<Tensor>,
}

impl Op for GeluOp {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Activation)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let (x, y) = (&inputs[0], env.alloc(inputs[0].shape())?);
        (env.queue.backend().gelu)(env.queue, GeluArgs { kind: self.kind, x, y: &y })?;
        self.x = Some(x.clone());
        Ok(y)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = self.x.as_ref().expect("GeluOp::backward: before forward");
        let dx = env.alloc(x.shape())?;
        let args = GeluBackwardArgs { kind: self.kind, x, dy: &dy, dx: &dx };
        (env.queue.backend().gelu_backward)(env.queue, args)?;
        Ok(vec![Some(dx)])
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.x)]
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 15 * elements, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// GELU, element by element.
    pub fn gelu(&mut self, x: Var, kind: Gelu) -> Result<Var> {
        self.apply(GeluOp { kind, x: None }, &[x])
    }
}
