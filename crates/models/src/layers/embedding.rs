//! The first block: tokens to hidden states.

use crate::block::Block;
use ops::{Cx, Flow, ParamId, Result};

/// Token embedding, learned positions where the family has them, dropout.
pub struct Embedding {
    /// [V, D].
    pub tokens: ParamId,
    /// [positions, D].
    pub positions: Option<ParamId>,
    /// Chance that an element is dropped.
    pub dropout: f32,
}

impl Block for Embedding {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x_ND = cx.embedding(self.tokens, self.positions)?;
        let x_ND = cx.lookup(x_ND)?;
        let x_ND = cx.dropout(x_ND, self.dropout)?;
        Ok(Flow { hidden: Some(x_ND), ..flow })
    }
}
