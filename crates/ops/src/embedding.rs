//! Token embedding, with learned positions where a family has them: `y = tokens[id] + positions[position]`.
//!
//! Backward adds each token's gradient to its row, in f32 and in token order. Nothing is saved but ids.

use crate::{Cost, Cx, Env, Family, GradSlot, Op, ParamId, Result, Var};
use tensor::{EmbeddingArgs, EmbeddingBackwardArgs, FillArgs, Tensor};

struct Embedding {
    tokens: ParamId,
    positions: Option<ParamId>,
}

fn backward_table(env: &Env<'_>, table: ParamId, ids: &Tensor, dy: &Tensor) -> Result<()> {
    let Some(GradSlot { tensor: dtable, accumulate }) = env.params.gradient(table)? else { return Ok(()) };
    if !accumulate {
        (env.queue.backend().fill)(env.queue, FillArgs { out: &dtable, value: 0.0 })?;
    }
    let args = EmbeddingBackwardArgs { dy, ids, dtable: &dtable };
    Ok((env.queue.backend().embedding_backward)(env.queue, args)?)
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Embedding)
    }

    fn forward(&mut self, env: &Env<'_>, _: &[Tensor]) -> Result<Tensor> {
        let table = env.weight(self.tokens)?;
        let y = env.alloc([env.batch.num_tokens, table.shape().width()])?;
        let args = EmbeddingArgs { table: &table, ids: &env.batch.ids, y: &y, accumulate: false };
        (env.queue.backend().embedding)(env.queue, args)?;
        if let Some(positions) = self.positions {
            let table = env.weight(positions)?;
            let args = EmbeddingArgs { table: &table, ids: &env.batch.positions, y: &y, accumulate: true };
            (env.queue.backend().embedding)(env.queue, args)?;
        }
        Ok(y)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        backward_table(env, self.tokens, &env.batch.ids, &dy)?;
        if let Some(positions) = self.positions {
            backward_table(env, positions, &env.batch.positions, &dy)?;
        }
        Ok(Vec::new())
    }

    fn cost(&self, env: &Env<'_>, _: &[Tensor]) -> Cost {
        let elements = (env.batch.num_tokens * env.params.shape(self.tokens).width()) as u64;
        let tables = 1 + u64::from(self.positions.is_some());
        Cost { flops: (tables - 1) * elements, bytes: (1 + tables) * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// The embedding of the batch's tokens, [N, D]; `positions`: a table of learned positions to add.
    pub fn embedding(&mut self, tokens: ParamId, positions: Option<ParamId>) -> Result<Var> {
        let params = self.env.params;
        let trains = params.is_trained(tokens) || positions.is_some_and(|positions| params.is_trained(positions));
        self.apply_with(Embedding { tokens, positions }, &[], trains)
    }
}
