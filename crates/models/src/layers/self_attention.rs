//! Self-attention: project to packed [q | k | v] rows, rotate, attend, project back.

use crate::param::{HEADS, KV_HEADS};
use ops::{AttentionLayout, Cx, Linear, ParamId, Result, Var};

/// The attention half of a block. Sizes are the model's; each rank runs its share of the heads.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    /// One fused projection, or q, k and v.
    pub qkv: Vec<Linear>,
    /// [H hd] to `[D]`, without its bias.
    pub out: Linear,
    /// Heads, scale, window, dropout.
    pub layout: AttentionLayout,
    /// Tables of cosines and sines, where positions are rotary.
    pub rope: Option<(ParamId, ParamId)>,
}

impl SelfAttention {
    /// [N, D] to [N, D]: what the layer adds to the stream, before the output's bias.
    pub fn forward(&self, cx: &mut Cx<'_>, x_ND: Var) -> Result<Var> {
        let layout = AttentionLayout {
            num_heads: cx.share(HEADS, self.layout.num_heads),
            num_kv_heads: cx.share(KV_HEADS, self.layout.num_kv_heads),
            ..self.layout
        };
        let x_ND = cx.enter(x_ND)?;
        let mut qkv = cx.linear_concat(x_ND, &self.qkv)?;
        if let Some((cos, sin)) = self.rope {
            qkv = cx.rope(qkv, cos, sin, layout.num_heads + layout.num_kv_heads, layout.head_dim)?;
        }
        let heads = cx.self_attention(qkv, layout)?;
        let partial_ND = cx.linear(heads, self.out)?;
        cx.leave(partial_ND)
    }
}
