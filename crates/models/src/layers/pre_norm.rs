//! The block of GPT-2, Llama and most since: `x += attention(norm x)`, `x += mlp(norm x)`.

use crate::block::Block;
use crate::layers::{Mlp, Norm, SelfAttention};
use ops::{Cx, Flow, ParamId, Result};

/// A pre-norm transformer block.
pub struct PreNorm {
    /// Before attention.
    pub attention_norm: Norm,
    /// The attention half.
    pub attention: SelfAttention,
    /// Bias of the attention's output, added after ranks have summed their terms.
    pub attention_bias: Option<ParamId>,
    /// Before the feed-forward part.
    pub mlp_norm: Norm,
    /// The feed-forward half.
    pub mlp: Mlp,
    /// Bias of the feed-forward output.
    pub mlp_bias: Option<ParamId>,
    /// Chance that an element of what a half adds is dropped.
    pub dropout: f32,
}

impl Block for PreNorm {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x_ND = flow.expect_hidden("PreNorm");
        let normed_ND = self.attention_norm.forward(cx, x_ND)?;
        let added_ND = self.attention.forward(cx, normed_ND)?;
        let x_ND = cx.residual(x_ND, added_ND, self.attention_bias, self.dropout)?;
        let normed_ND = self.mlp_norm.forward(cx, x_ND)?;
        let added_ND = self.mlp.forward(cx, normed_ND)?;
        let x_ND = cx.residual(x_ND, added_ND, self.mlp_bias, self.dropout)?;
        Ok(Flow { hidden: Some(x_ND), ..flow })
    }
}
