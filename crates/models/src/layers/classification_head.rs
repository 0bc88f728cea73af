//! The last block of a classifier: the class of each row from its last token.

use crate::block::Block;
use crate::layers::Norm;
use ops::{Cx, Flow, Linear, Result};

/// The last token of each row, final norm, and a matrix without bias: `GPT2ForSequenceClassification`,
/// `LlamaForSequenceClassification`.
///
/// Transformers norms every token and picks the last one's logits; a norm looks at one token alone, so picking first gives
/// the same numbers.
pub struct ClassificationHead {
    /// Before the product.
    pub norm: Norm,
    /// `[D]` to `[C]`.
    pub linear: Linear,
}

impl Block for ClassificationHead {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x_ND = flow.expect_hidden("ClassificationHead");
        let x_SD = cx.pool_last(x_ND)?; // S: rows of the micro-batch
        let x_SD = self.norm.forward(cx, x_SD)?;
        cx.output_head(x_SD, self.linear)?;
        Ok(Flow { hidden: None, ..flow })
    }
}
