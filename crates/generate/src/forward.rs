//! A model that can be run forward: what [`ops::Env`] needs besides the batch.

use models::{Model, Pass, Residency};
use ops::{Batch, Env, HeadRequest, KvCache, OpError, Params, Precision, Regions, Result};
use tensor::{DType, LossTerms, Queue, Tensor};

/// Everything that a forward pass needs and that does not change from batch to batch. Never drops anything out.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// The device.
    pub queue: &'a Queue,
    /// The blocks.
    pub model: &'a Model,
    /// The weights.
    pub params: &'a dyn Params,
    /// What happens where ranks share a layer. With more than one rank, all of them run the same passes.
    pub regions: &'a dyn Regions,
    /// Where the weights of a block come from.
    pub residency: &'a dyn Residency,
    /// The format of activations.
    pub dtype: DType,
    /// The format of each op; none: all run in `dtype`.
    pub precision: Option<&'a dyn Precision>,
    /// Tokens a row may have: what the model was built for.
    pub positions: usize,
}

impl Forward<'_> {
    /// The log-probability of every target of a batch, `[N]` in f32, on the host; 0 where a target is not counted.
    pub(crate) fn token_logprobs(&self, batch: &Batch) -> Result<Vec<f32>> {
        let logprobs = self.run(batch, HeadRequest::TokenLogprobs { seed: None, terms: LossTerms::default() }, None)?;
        Ok(self.queue.read(&logprobs)?)
    }

    /// Every logit that the head gives, f32, row after row on the host: for a classifier `[documents, C]`.
    pub(crate) fn logits(&self, batch: &Batch) -> Result<Vec<f32>> {
        Ok(self.queue.read(&self.run(batch, HeadRequest::AllLogits, None)?)?)
    }

    /// The logits after the last token of a batch of one document that continues what `cache` holds, `[V]`, on the host.
    pub(crate) fn last_logits(&self, batch: &Batch, cache: &KvCache) -> Result<Vec<f32>> {
        let logits = self.run(batch, HeadRequest::LastLogits, Some(cache))?;
        cache.advance(batch.num_tokens);
        self.queue.read_f32(&logits).map_err(OpError::from)
    }

    fn run(&self, batch: &Batch, head: HeadRequest, cache: Option<&KvCache>) -> Result<Tensor> {
        let Self { queue, model, params, regions, residency, dtype, precision, .. } = *self;
        let env = Env { queue, params, regions, batch, dtype, precision, head, dropout: None, cache, probe: None };
        let (output, _) = Pass { model, residency }.forward(&env)?;
        Ok(output)
    }
}
