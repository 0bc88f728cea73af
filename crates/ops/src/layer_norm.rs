//! LayerNorm: `y = (x - mean) / sqrt(var + eps) * weight + bias`, row by row. Source: Ba et al. 2016, arXiv:1607.06450.
//!
//! Saved: `x` and two numbers a row; the normalised values are made again in backward.

use crate::{Cost, Cx, Env, Op, ParamId, Result, Var};
use tensor::{DType, LayerNormArgs, LayerNormBackwardArgs, MemoryKind, Tensor};

struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f32,
    /// x, mean, 1 / standard deviation.
    saved: Option<(Tensor, Tensor, Tensor)>,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let rows = x.shape().rows();
        let (y, mean, inv_std) = (env.alloc(x.shape())?, env.alloc_f32([rows])?, env.alloc_f32([rows])?);
        let (weight, bias) = (env.params.weight(self.weight)?, env.params.weight(self.bias)?);
        let (w, b, eps) = (&weight, &bias, self.eps);
        let args = LayerNormArgs { x, weight: w, bias: b, eps, y: &y, mean: &mean, inv_std: &inv_std };
        (env.queue.backend().layer_norm)(env.queue, args)?;
        self.saved = Some((x.clone(), mean, inv_std));
        Ok(y)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, mean, inv_std) = self.saved.expect("LayerNorm::backward: before forward");
        let (dx, weight) = (env.alloc(x.shape())?, env.params.weight(self.weight)?);
        // Both are made in one pass; where one is frozen its gradient goes to scratch.
        let scratch = || env.queue.alloc(MemoryKind::Workspace, DType::F32, weight.shape());
        let (w, b) = (env.params.gradient(self.weight)?, env.params.gradient(self.bias)?);
        let accumulate = w.as_ref().or(b.as_ref()).is_some_and(|slot| slot.accumulate);
        let (dweight, dbias) =
            (w.map_or_else(scratch, |slot| Ok(slot.tensor))?, b.map_or_else(scratch, |slot| Ok(slot.tensor))?);
        let args = LayerNormBackwardArgs {
            x: &x,
            weight: &weight,
            mean: &mean,
            inv_std: &inv_std,
            dy: &dy,
            dx: &dx,
            dweight: &dweight,
            dbias: &dbias,
            accumulate,
        };
        (env.queue.backend().layer_norm_backward)(env.queue, args)?;
        Ok(vec![Some(dx)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 8 * elements, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// LayerNorm of [N, D].
    pub fn layer_norm(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32) -> Result<Var> {
        let trains = self.env.params.is_trained(weight) || self.env.params.is_trained(bias);
        self.apply_with(LayerNorm { weight, bias, eps, saved: None }, &[x], trains)
    }
}
