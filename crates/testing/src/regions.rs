//! Tensor parallelism in its smallest form: heads and feed-forward width are split, sums cross the ranks.
//!
//! It shows that model code names enough regions to be split without being touched. Real runs use `parallel`.

use models::param::{HEADS, KV_HEADS, MLP};
use ops::{Env, OpError, Part, Regions, Result};
use tensor::{CopyArgs, MemoryKind, Tensor};

use crate::ranks::Rank;

/// [`Regions`] of one rank that holds its share of `heads`, `kv_heads` and `mlp` and the whole of every other axis.
pub struct SplitLayers<'a>(pub &'a Rank);

impl SplitLayers<'_> {
    /// The sum over ranks, in f32 and in the order of ranks: the same bits on each.
    fn sum(&self, region: &'static str, env: &Env<'_>, term: &Tensor) -> Result<Tensor> {
        let terms = self.0.all_gather(env.queue.read_f32(term)?);
        let terms = terms.map_err(|error| OpError::Region { region, message: error.to_string() })?;
        let mut sum = terms[0].clone();
        for term in &terms[1..] {
            sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
        }
        let wide = env.queue.upload(MemoryKind::Activations, term.shape(), &sum)?;
        let out = env.queue.alloc(MemoryKind::Activations, term.dtype(), term.shape())?;
        (env.queue.backend().copy)(env.queue, CopyArgs { x: &wide, out: &out })?;
        Ok(out)
    }
}

impl Regions for SplitLayers<'_> {
    fn part(&self, axis: &str) -> Part {
        if [HEADS, KV_HEADS, MLP].contains(&axis) {
            Part { index: self.0.index, count: self.0.count }
        } else {
            Part::WHOLE
        }
    }

    fn enter_backward(&self, env: &Env<'_>, dx: Tensor) -> Result<Tensor> {
        self.sum("enter", env, &dx)
    }

    fn leave(&self, env: &Env<'_>, y: Tensor) -> Result<Tensor> {
        self.sum("leave", env, &y)
    }
}
