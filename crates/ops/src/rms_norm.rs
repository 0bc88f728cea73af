//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * (offset + weight)`. Source: Zhang & Sennrich 2019, arXiv:1910.07467.
//!
//! `offset` is 0 for Llama (the normalised value is rounded to the compute dtype before the product, as Transformers does)
//! and 1 for Gemma. Saved: `x` and one number a row.

use crate::{Cost, Cx, Env, Family, GradSlot, Kept, Op, ParamId, Result, Var};
use tensor::{DType, MemoryKind, RmsNormArgs, RmsNormBackwardArgs, Tensor};

struct RmsNorm {
    weight: ParamId,
    weight_offset: f32,
    eps: f32,
    x: Option<Tensor>,
    /// 1 / root mean square.
    inv_rms: Option<Tensor>,
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Norm)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let (y, inv_rms) = (env.alloc(x.shape())?, env.alloc_f32([x.shape().rows()])?);
        let weight = env.weight(self.weight)?;
        let (weight_offset, eps) = (self.weight_offset, self.eps);
        let args = RmsNormArgs { x, weight: &weight, weight_offset, eps, y: &y, inv_rms: &inv_rms };
        (env.queue.backend().rms_norm)(env.queue, args)?;
        (self.x, self.inv_rms) = (Some(x.clone()), Some(inv_rms));
        Ok(y)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, inv_rms) = self.x.zip(self.inv_rms).expect("RmsNorm::backward: before forward");
        let (dx, weight) = (env.alloc(x.shape())?, env.weight(self.weight)?);
        let slot = match env.params.gradient(self.weight)? {
            Some(slot) => slot,
            None => {
                let tensor = env.queue.alloc(MemoryKind::Workspace, DType::F32, weight.shape())?;
                GradSlot { tensor, accumulate: false }
            }
        };
        let args = RmsNormBackwardArgs {
            x: &x,
            weight: &weight,
            weight_offset: self.weight_offset,
            inv_rms: &inv_rms,
            dy: &dy,
            dx: &dx,
            dweight: &slot.tensor,
            accumulate: slot.accumulate,
        };
        (env.queue.backend().rms_norm_backward)(env.queue, args)?;
        Ok(vec![Some(dx)])
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.x)]
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 4 * elements, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// RMSNorm of [N, D]; `weight_offset` is 0, or 1 for the Gemma kind.
    pub fn rms_norm(&mut self, x: Var, weight: ParamId, weight_offset: f32, eps: f32) -> Result<Var> {
        let trains = self.env.params.is_trained(weight);
        self.apply_with(RmsNorm { weight, weight_offset, eps, x: None, inv_rms: None }, &[x], trains)
    }
}
