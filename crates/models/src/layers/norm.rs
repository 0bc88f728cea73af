//! Normalisation of the residual stream.

use ops::{Cx, ParamId, Result, Var};

/// The norm a family uses.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    /// With mean and bias: GPT-2.
    Layer {
        /// `[D]`.
        weight: ParamId,
        /// `[D]`.
        bias: ParamId,
        /// Added to the variance.
        eps: f32,
    },
    /// Without: Llama.
    Rms {
        /// `[D]`.
        weight: ParamId,
        /// 0, or 1 where the file holds `weight - 1` (Gemma).
        weight_offset: f32,
        /// Added to the mean square.
        eps: f32,
    },
}

impl Norm {
    /// [N, D] to [N, D].
    pub fn forward(&self, cx: &mut Cx<'_>, x: Var) -> Result<Var> {
        match *self {
            Norm::Layer { weight, bias, eps } => cx.layer_norm(x, weight, bias, eps),
            Norm::Rms { weight, weight_offset, eps } => cx.rms_norm(x, weight, weight_offset, eps),
        }
    }
}
