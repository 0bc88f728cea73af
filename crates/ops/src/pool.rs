//! The hidden state of each document's last token: what a classification head reads.
//!
//! `y[d] = x[last token of d]`. Backward: `dx` is 0 but for those rows. Nothing is saved.

use crate::{Cost, Cx, Env, Op, Result, ShapeError, Var};
use tensor::{CopyArgs, FillArgs, Tensor};

struct PoolLast;

/// The number of each document's last token.
fn last_tokens<'a>(env: &'a Env<'_>) -> impl Iterator<Item = usize> + 'a {
    env.batch.segments.iter().map(|segment| segment.q_start + segment.q_len - 1)
}

impl Op for PoolLast {
    fn name(&self) -> &'static str {
        "pool_last"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        if x.shape().rows() != env.batch.num_tokens {
            let rule = format!("it must have one row for each of the {} tokens", env.batch.num_tokens);
            return Err(ShapeError { op: "pool_last", arg: "x", got: x.shape(), rule }.into());
        }
        let out = env.alloc([env.batch.segments.len(), x.shape().width()])?;
        for (row, token) in last_tokens(env).enumerate() {
            let args = CopyArgs { x: &x.rows(token..token + 1), out: &out.rows(row..row + 1) };
            (env.queue.backend().copy)(env.queue, args)?;
        }
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = env.alloc([env.batch.num_tokens, dy.shape().width()])?;
        (env.queue.backend().fill)(env.queue, FillArgs { out: &dx, value: 0.0 })?;
        for (row, token) in last_tokens(env).enumerate() {
            let args = CopyArgs { x: &dy.rows(row..row + 1), out: &dx.rows(token..token + 1) };
            (env.queue.backend().copy)(env.queue, args)?;
        }
        Ok(vec![Some(dx)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = (env.batch.segments.len() * inputs[0].shape().width()) as u64;
        Cost { flops: 0, bytes: 2 * elements * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// The last token of each document, [N, D] to [documents, D].
    pub fn pool_last(&mut self, x: Var) -> Result<Var> {
        self.apply(PoolLast, &[x])
    }
}
