//! The head: log-probabilities of the targets from hidden states, in chunks of tokens, so that training never holds the
//! tokens x vocabulary logits.
//!
//! `logits = x W^T`, `logprob = logit[target] - log_sum_exp(logits)`. The output is the log-probability of each target; the
//! mean cross-entropy, preference losses and distillation are all made of it. Soft targets take its expectation, and label
//! smoothing and z-loss come in where the request has [`LossTerms`]; the formula is that of `kernels::cross_entropy`.
//!
//! Two ways backward:
//! - General: the log-sum-exp is saved, logits are made again chunk by chunk, `dlogits = g (onehot - softmax)`.
//! - One pass ([`Cx::output_head`] under [`HeadRequest::TokenLogprobs`] with a seed): the gradient of every log-probability
//!   is one known constant, so `dx` and `dW` are made in forward while the chunk's logits are at hand. Backward then hands
//!   `dx` out.

use crate::{Cost, Cx, Env, Family, HeadRequest, Linear, Op, Result, Var};
use std::ops::Range;
use tensor::{
    CopyArgs, CrossEntropyArgs, CrossEntropyBackwardArgs, DType, FillArgs, LossTerms, MemoryKind, SoftTargets, Tensor,
};

/// f32 logits of one chunk take about this much memory.
const CHUNK_BYTES: usize = 64 << 20;

struct Head {
    linear: Linear,
    /// Whether gradients will be asked for.
    record: bool,
    /// Whether nothing stands between the log-probabilities and the loss, so that one pass may be taken.
    is_output: bool,
    /// Label smoothing and z-loss, from the request.
    terms: LossTerms,
    saved: Option<Saved>,
}

enum Saved {
    /// x, log-sum-exp.
    General(Tensor, Tensor),
    /// dx.
    OnePass(Tensor),
}

impl Head {
    fn vocab_size(&self, env: &Env<'_>) -> usize {
        env.params.shape(self.linear.weight).rows()
    }

    /// Ranges of tokens, cut by shape alone: as few as memory allows and as equal, since a short product is a slow one.
    fn chunks(&self, env: &Env<'_>, num_tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let fitting = (CHUNK_BYTES / (size_of::<f32>() * self.vocab_size(env))).max(16);
        let len = num_tokens.div_ceil(num_tokens.div_ceil(fitting).max(1)).next_multiple_of(16);
        (0..num_tokens.div_ceil(len)).map(move |i| i * len..((i + 1) * len).min(num_tokens))
    }

    fn logits(&self, env: &Env<'_>, x: &Tensor) -> Result<Tensor> {
        let shape = [x.shape().rows(), self.vocab_size(env)];
        let logits = env.queue.alloc(MemoryKind::Workspace, DType::F32, shape)?;
        self.linear.forward(env, x, &logits)?;
        Ok(logits)
    }

    fn targets<'a>(&self, env: &'a Env<'_>) -> &'a Tensor {
        env.batch.targets.as_ref().expect("Head: log-probabilities need targets")
    }

    /// `dx`, and the gradient of the weights, for one chunk. `scale` f32 `[chunk]`: gradient of each log-probability.
    fn backward_chunk(
        &self,
        env: &Env<'_>,
        rows: Range<usize>,
        chunk: &Chunk<'_>,
        scale: &Tensor,
        dx: &Tensor,
    ) -> Result<()> {
        let dlogits = env.queue.alloc(MemoryKind::Workspace, env.dtype, chunk.logits.shape())?;
        let soft = env.batch.soft_targets.as_ref().map(|soft| soft.rows(rows.clone()));
        let args = CrossEntropyBackwardArgs {
            logits: chunk.logits,
            targets: &self.targets(env).rows(rows.clone()),
            soft_targets: soft.as_ref().map(SoftTargets::borrowed),
            terms: self.terms,
            log_sum_exp: &chunk.log_sum_exp,
            scale,
            dlogits: &dlogits,
        };
        (env.queue.backend().cross_entropy_backward)(env.queue, args)?;
        self.linear.backward_input(env, &dlogits, &dx.rows(rows), false)?;
        self.linear.backward_weight(env, &chunk.x, &dlogits)
    }

    fn token_logprobs(&mut self, env: &Env<'_>, x: &Tensor, seed: Option<f32>) -> Result<Tensor> {
        let num_tokens = x.shape().rows();
        let (logprobs, log_sum_exp) = (env.alloc_f32([num_tokens])?, env.alloc_f32([num_tokens])?);
        let one_pass = seed.filter(|_| self.record && self.is_output);
        let dx = one_pass.map(|_| env.alloc(x.shape())).transpose()?;
        for rows in self.chunks(env, num_tokens) {
            let x = x.rows(rows.clone());
            let logits = self.logits(env, &x)?;
            let soft = env.batch.soft_targets.as_ref().map(|soft| soft.rows(rows.clone()));
            let chunk = Chunk { x, logits: &logits, log_sum_exp: log_sum_exp.rows(rows.clone()) };
            let args = CrossEntropyArgs {
                logits: &logits,
                targets: &self.targets(env).rows(rows.clone()),
                soft_targets: soft.as_ref().map(SoftTargets::borrowed),
                terms: self.terms,
                logprobs: &logprobs.rows(rows.clone()),
                log_sum_exp: &chunk.log_sum_exp,
            };
            (env.queue.backend().cross_entropy)(env.queue, args)?;
            if let (Some(seed), Some(dx)) = (one_pass, &dx) {
                let scale = env.queue.alloc(MemoryKind::Workspace, DType::F32, [rows.len()])?;
                (env.queue.backend().fill)(env.queue, FillArgs { out: &scale, value: seed })?;
                self.backward_chunk(env, rows, &chunk, &scale, dx)?;
            }
        }
        self.saved = match (self.record, dx) {
            (false, _) => None,
            (true, Some(dx)) => Some(Saved::OnePass(dx)),
            (true, None) => Some(Saved::General(x.clone(), log_sum_exp)),
        };
        Ok(logprobs)
    }

    fn last_logits(&self, env: &Env<'_>, x: &Tensor) -> Result<Tensor> {
        let segments = &env.batch.segments;
        let last = env.alloc([segments.len(), x.shape().width()])?;
        for (row, segment) in segments.iter().enumerate() {
            let end = segment.q_start + segment.q_len;
            let args = CopyArgs { x: &x.rows(end - 1..end), out: &last.rows(row..row + 1) };
            (env.queue.backend().copy)(env.queue, args)?;
        }
        self.logits(env, &last)
    }
}

/// Tokens of one chunk.
struct Chunk<'a> {
    x: Tensor,
    logits: &'a Tensor,
    log_sum_exp: Tensor,
}

impl Op for Head {
    fn name(&self) -> &'static str {
        "head"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Head)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        match env.head {
            HeadRequest::TokenLogprobs { seed, terms } => {
                self.terms = terms;
                self.token_logprobs(env, &inputs[0], seed)
            }
            HeadRequest::LastLogits => self.last_logits(env, &inputs[0]),
            HeadRequest::AllLogits => self.logits(env, &inputs[0]),
        }
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dlogprobs: Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, log_sum_exp) = match &self.saved {
            Some(Saved::OnePass(dx)) => return Ok(vec![Some(dx.clone())]),
            Some(Saved::General(x, log_sum_exp)) => (x, log_sum_exp),
            None => panic!("Head::backward: logits were asked for, which have no backward"),
        };
        let dx = env.alloc(x.shape())?;
        for rows in self.chunks(env, x.shape().rows()) {
            let x = x.rows(rows.clone());
            let logits = self.logits(env, &x)?;
            let chunk = Chunk { x, logits: &logits, log_sum_exp: log_sum_exp.rows(rows.clone()) };
            self.backward_chunk(env, rows.clone(), &chunk, &dlogprobs.rows(rows), &dx)?;
        }
        Ok(vec![Some(dx)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let rows = match env.head {
            HeadRequest::LastLogits => env.batch.segments.len(),
            _ => inputs[0].shape().rows(),
        } as u64;
        let (vocab, width) = (self.vocab_size(env) as u64, inputs[0].shape().width() as u64);
        Cost { flops: 2 * rows * vocab * width, bytes: env.dtype.size() as u64 * (rows * width + vocab * width) }
    }
}

impl Cx<'_> {
    /// What [`Env::head`] asks for, of hidden states [N, D] and the head's weights ([V, D] as stored), for blocks that go
    /// on with it: weighted losses, preferences. Backward takes the general way.
    pub fn head(&mut self, x: Var, linear: Linear) -> Result<Var> {
        self.apply_head(x, linear, false)
    }

    /// The same as the output of the model: the last thing a model does. Backward takes the one pass where it can.
    pub fn output_head(&mut self, x: Var, linear: Linear) -> Result<()> {
        let output = self.apply_head(x, linear, true)?;
        self.set_output(output);
        Ok(())
    }

    fn apply_head(&mut self, x: Var, linear: Linear, is_output: bool) -> Result<Var> {
        let x = self.loss(x)?;
        let trains = self.env.params.is_trained(linear.weight);
        let record = self.records();
        self.apply_with(Head { linear, record, is_output, terms: LossTerms::default(), saved: None }, &[x], trains)
    }
}
