//! Tokens out of a micro-batch and back into it: what lets a block run on some of the tokens only.
//!
//! `gather_tokens`: `y[i] = x[rows[i]]`. `scatter_tokens`: `out[rows[i]] = y[i]`, all other rows are those of `x`. Rows
//! ascend, so each is met once. Saved: nothing but the row numbers.
//!
//! Backward of the two around a block gives each token one path: the gradient of a row that was gathered comes through the
//! block, that of any other passes by. Source: Yao et al. 2022, arXiv:2211.11586, section 3 (random-LTD).

use crate::{Cost, Cx, Env, Op, Result, ShapeError, Var};
use tensor::{CopyArgs, EmbeddingArgs, FillArgs, ScatterRowsArgs, Shape, Tensor};

/// `y[i] = x[rows[i]]`.
fn gather(env: &Env<'_>, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let y = env.alloc([rows.shape().elements(), x.shape().width()])?;
    let args = EmbeddingArgs { table: x, ids: rows, y: &y, accumulate: false };
    (env.queue.backend().embedding)(env.queue, args)?;
    Ok(y)
}

/// `out[rows[i]] = x[i]`; without an `x`, 0.
fn scatter(env: &Env<'_>, x: Option<&Tensor>, rows: &Tensor, out: &Tensor) -> Result<()> {
    Ok((env.queue.backend().scatter_rows)(env.queue, ScatterRowsArgs { x, rows, out })?)
}

fn copied(env: &Env<'_>, x: &Tensor) -> Result<Tensor> {
    let own = env.alloc(x.shape())?;
    (env.queue.backend().copy)(env.queue, CopyArgs { x, out: &own })?;
    Ok(own)
}

/// Reads and writes of some rows, no arithmetic.
fn cost_of(env: &Env<'_>, rows: usize, width: usize) -> Cost {
    Cost { flops: 0, bytes: (2 * rows * width * env.dtype.size()) as u64 }
}

struct GatherTokens {
    rows: Tensor,
    /// Of the input; known after forward.
    shape: Option<Shape>,
}

impl Op for GatherTokens {
    fn name(&self) -> &'static str {
        "gather_tokens"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        self.shape = Some(inputs[0].shape());
        gather(env, &inputs[0], &self.rows)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = env.alloc(self.shape.expect("GatherTokens::backward: before forward"))?;
        (env.queue.backend().fill)(env.queue, FillArgs { out: &dx, value: 0.0 })?;
        scatter(env, Some(&dy), &self.rows, &dx)?;
        Ok(vec![Some(dx)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        cost_of(env, self.rows.shape().elements(), inputs[0].shape().width())
    }
}

struct ScatterTokens {
    rows: Tensor,
}

impl Op for ScatterTokens {
    fn name(&self) -> &'static str {
        "scatter_tokens"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let (x, y) = (&inputs[0], &inputs[1]);
        let want = Shape::from([self.rows.shape().elements(), x.shape().width()]);
        if y.shape() != want {
            let rule = format!("it must be {want}: a row for each token that was gathered, as wide as x");
            return Err(ShapeError { op: "scatter_tokens", arg: "y", got: y.shape(), rule }.into());
        }
        let out = copied(env, x)?;
        scatter(env, Some(y), &self.rows, &out)?;
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dout: Tensor) -> Result<Vec<Option<Tensor>>> {
        let dy = gather(env, &dout, &self.rows)?;
        let dx = if dout.is_unique() { dout } else { copied(env, &dout)? };
        scatter(env, None, &self.rows, &dx)?;
        Ok(vec![Some(dx), Some(dy)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        cost_of(env, inputs[0].shape().rows() + inputs[1].shape().rows(), inputs[0].shape().width())
    }
}

impl Cx<'_> {
    /// The rows of `x` [N, D] with the numbers `rows`, u32 `[R]`, ascending and below N: [R, D].
    pub fn gather_tokens(&mut self, x: Var, rows: &Tensor) -> Result<Var> {
        self.apply(GatherTokens { rows: rows.clone(), shape: None }, &[x])
    }

    /// `x` [N, D] with the rows of those numbers replaced by `y` [R, D].
    pub fn scatter_tokens(&mut self, x: Var, y: Var, rows: &Tensor) -> Result<Var> {
        self.apply(ScatterTokens { rows: rows.clone() }, &[x, y])
    }
}
