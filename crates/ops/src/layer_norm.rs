//! LayerNorm: `y = (x - mean) / sqrt(var + eps) * weight + bias`, row by row. Source: Ba et al. 2016, arXiv:1607.06450.
//!
//! Saved: `x` and two numbers a row; the normalised values are made again in backward.

use crate::{Cost, Cx, Env, Family, GradSlot, Kept, Op, ParamId, Result, Var};
use tensor::{DType, FillArgs, LayerNormArgs, LayerNormBackwardArgs, MemoryKind, Tensor};

struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f32,
    x: Option<Tensor>,
    /// mean, 1 / standard deviation.
    saved: Option<(Tensor, Tensor)>,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Norm)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let rows = x.shape().rows();
        let (y, mean, inv_std) = (env.alloc(x.shape())?, env.alloc_f32([rows])?, env.alloc_f32([rows])?);
        let (weight, bias) = (env.weight(self.weight)?, env.weight(self.bias)?);
        let (w, b, eps) = (&weight, &bias, self.eps);
        let args = LayerNormArgs { x, weight: w, bias: b, eps, y: &y, mean: &mean, inv_std: &inv_std };
        (env.queue.backend().layer_norm)(env.queue, args)?;
        (self.x, self.saved) = (Some(x.clone()), Some((mean, inv_std)));
        Ok(y)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, (mean, inv_std)) = self.x.zip(self.saved).expect("LayerNorm::backward: before forward");
        let (dx, weight) = (env.alloc(x.shape())?, env.weight(self.weight)?);
        // Both are made in one pass, which adds to both or to none. A frozen one goes to scratch; one that is fresh where
        // the other is not (blocks may share only one of them) starts from zero.
        let slots = [env.params.gradient(self.weight)?, env.params.gradient(self.bias)?];
        let accumulate = slots.iter().flatten().any(|slot| slot.accumulate);
        let gradient = |slot: Option<GradSlot>| -> Result<Tensor> {
            let (tensor, holds_sum) = match slot {
                Some(slot) => (slot.tensor, slot.accumulate),
                None => (env.queue.alloc(MemoryKind::Workspace, DType::F32, weight.shape())?, false),
            };
            if accumulate && !holds_sum {
                (env.queue.backend().fill)(env.queue, FillArgs { out: &tensor, value: 0.0 })?;
            }
            Ok(tensor)
        };
        let [w, b] = slots;
        let (dweight, dbias) = (gradient(w)?, gradient(b)?);
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

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.x)]
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
        self.apply_with(LayerNorm { weight, bias, eps, x: None, saved: None }, &[x], trains)
    }
}
