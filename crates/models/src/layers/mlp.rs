//! The feed-forward half of a block: `down(act(up x))`, or gated: `down(silu(gate x) * up x)`.

use ops::{Cx, Linear, Result, Var};
use tensor::Gelu;

/// What stands between the two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// One projection up, then GELU.
    Gelu(Gelu),
    /// Two projections, `[gate | up]`: SwiGLU.
    SiluMul,
}

/// The feed-forward part.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `up`, or `gate` and `up`, or one fused `[gate | up]`.
    pub up: Vec<Linear>,
    /// Between the products.
    pub activation: Activation,
    /// `[F]` to `[D]`, without its bias.
    pub down: Linear,
}

impl Mlp {
    /// [N, D] to [N, D]: what the layer adds to the stream, before the output's bias.
    pub fn forward(&self, cx: &mut Cx<'_>, x_ND: Var) -> Result<Var> {
        let x_ND = cx.enter(x_ND)?;
        let up = cx.linear_concat(x_ND, &self.up)?;
        let hidden_NF = match self.activation {
            Activation::Gelu(kind) => cx.gelu(up, kind)?,
            Activation::SiluMul => cx.silu_mul(up)?,
        };
        let partial_ND = cx.linear(hidden_NF, self.down)?;
        cx.leave(partial_ND)
    }
}
