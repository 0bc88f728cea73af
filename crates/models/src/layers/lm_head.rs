//! The last block: hidden states to what was asked for, log-probabilities or logits.

use crate::block::Block;
use crate::layers::Norm;
use ops::{Cx, Flow, Linear, Result};

/// Final norm and language-model head; the matrix may be that of the embedding.
pub struct LmHead {
    /// Before the product.
    pub norm: Norm,
    /// `[D]` to `[V]`.
    pub linear: Linear,
}

impl Block for LmHead {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x_ND = flow.expect_hidden("LmHead");
        let x_ND = self.norm.forward(cx, x_ND)?;
        cx.output_head(x_ND, self.linear)?;
        Ok(Flow { hidden: None, ..flow })
    }
}
