//! The end of a layer: `out = x + dropout(y + bias)`, and dropout alone.
//!
//! The bias is added here, after `leave`, and not in the product before it: under tensor parallelism that product is one
//! term of a sum. Saved: nothing; dropout draws its mask again from its key.

use crate::cx::DropoutSite;
use crate::{Cost, Cx, Env, Family, GradSlot, Op, ParamId, Result, ShapeError, Var};
use tensor::{ColumnSumArgs, DropoutOpArgs, ResidualArgs, ResidualBackwardArgs, Tensor};

struct Residual {
    bias: Option<ParamId>,
    dropout: DropoutSite,
}

impl Op for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Residual)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let (x, y) = (&inputs[0], &inputs[1]);
        if x.shape() != y.shape() {
            let rule = format!("it must be as x, {}", x.shape());
            return Err(ShapeError { op: "residual", arg: "y", got: y.shape(), rule }.into());
        }
        let out = env.alloc(x.shape())?;
        let bias = self.bias.map(|bias| env.weight(bias)).transpose()?;
        let dropout = env.dropout_args(self.dropout);
        let args = ResidualArgs { x, y, bias: bias.as_ref(), dropout, out: &out };
        (env.queue.backend().residual)(env.queue, args)?;
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dout: Tensor) -> Result<Vec<Option<Tensor>>> {
        let slot = self.bias.map(|bias| env.params.gradient(bias)).transpose()?.flatten();
        let Some(dropout) = env.dropout_args(self.dropout) else {
            if let Some(GradSlot { tensor, accumulate }) = slot {
                (env.queue.backend().column_sum)(env.queue, ColumnSumArgs { x: &dout, out: &tensor, accumulate })?;
            }
            return Ok(vec![Some(dout.clone()), Some(dout)]);
        };
        let dy = env.alloc(dout.shape())?;
        let accumulate = slot.as_ref().is_some_and(|slot| slot.accumulate);
        let dbias = slot.as_ref().map(|slot| &slot.tensor);
        let args = ResidualBackwardArgs { dout: &dout, dropout: Some(dropout), dy: &dy, dbias, accumulate };
        (env.queue.backend().residual_backward)(env.queue, args)?;
        Ok(vec![Some(dout), Some(dy)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 2 * elements, bytes: 3 * elements * env.dtype.size() as u64 }
    }
}

struct Dropout(DropoutSite);

impl Dropout {
    fn apply(&self, env: &Env<'_>, x: Tensor) -> Result<Tensor> {
        let Some(dropout) = env.dropout_args(self.0) else { return Ok(x) };
        let y = env.alloc(x.shape())?;
        (env.queue.backend().dropout)(env.queue, DropoutOpArgs { x: &x, dropout: Some(dropout), y: &y })?;
        Ok(y)
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        self.apply(env, inputs[0].clone())
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.apply(env, dy)?)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: elements, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// `x + dropout(y + bias)`, all [N, D].
    pub fn residual(&mut self, x: Var, y: Var, bias: Option<ParamId>, dropout: f32) -> Result<Var> {
        let dropout = self.dropout_site(dropout);
        let trains = bias.is_some_and(|bias| self.env.params.is_trained(bias));
        self.apply_with(Residual { bias, dropout }, &[x, y], trains)
    }

    /// Dropout of [N, D].
    pub fn dropout(&mut self, x: Var, probability: f32) -> Result<Var> {
        let site = self.dropout_site(probability);
        if self.env.dropout.is_none() || probability == 0.0 {
            return Ok(x);
        }
        self.apply(Dropout(site), &[x])
    }
}
