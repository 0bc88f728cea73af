//! Gradients and masters in 16 bits: `data_types.grad_accum_dtype`, `bf16_master_weights_and_grads`,
//! `fp16_master_weights_and_grads`.
//!
//! Arithmetic is f32 in any case. What is kept between micro-batches, or between steps, is rounded.
//!
//! # Gradients
//! A block's gradients of one micro-batch are made in f32, in scratch; when they are complete they are added to the sums
//! and rounded to nearest ([`Summed`]). At the update one parameter at a time is widened again.
//!
//! # Masters
//! A master in 16 bits is also what products read. The update widens it, applies the rule and rounds: bf16 up or down by
//! chance, a function of (seed, step, parameter, element), so that updates smaller than half a unit are not lost on average;
//! fp16 to nearest.
//!
//! Source: DeepSpeed's precision configuration. Where we differ: DeepSpeed rounds bf16 masters to nearest; its sums are those
//! of PyTorch's own gradients, rounded in each product.

use crate::config::{ConfigError, RunConfig};
use crate::error::Result;
use crate::precision::shown;
use models::{Model, Residency};
use ops::{KeptTokens, OpError, ParamStore};
use optim::{Moments, Shard};
use tensor::{CopyArgs, DType, ElementRule, MAX_STATES, MemoryKind, Queue, Tensor, rng};

/// Told apart from the sites of other draws of a step.
const MASTER_SITES: u64 = 1 << 34;

/// What is kept in 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Halves {
    /// The format of masters, if it is not f32.
    pub(crate) masters: Option<DType>,
    /// The format of sums of gradients, if it is not f32.
    pub(crate) gradients: Option<DType>,
}

impl Halves {
    /// What a run file asks for. Masters in 16 bits bring gradients in 16 bits with them unless the file says otherwise.
    pub(crate) fn of(config: &RunConfig) -> Self {
        let in_bf16 = config.bf16.enabled && config.bf16.bf16_master_weights_and_grads;
        let in_fp16 = config.fp16.enabled && config.fp16.fp16_master_weights_and_grads;
        let masters = in_bf16.then_some(DType::BF16).or(in_fp16.then_some(DType::F16));
        let gradients = match config.data_types.grad_accum_dtype.as_deref() {
            Some("bf16" | "bfloat16") => Some(DType::BF16),
            Some("fp16" | "float16" | "half") => Some(DType::F16),
            Some(_) => None,
            None => masters,
        };
        Self { masters, gradients }
    }

    /// Refuses moments that two keys want in two formats.
    pub(crate) fn check(config: &RunConfig) -> std::result::Result<(), ConfigError> {
        let wanted = config.bf16.enabled && config.bf16.bf16_optimizer_states;
        match &config.optimizer {
            Some(optimizer) if wanted && optimizer.moments != Moments::Bf16 => Err(config.error(format!(
                "bf16.bf16_optimizer_states is true and optimizer.moments is {}; keep one of them",
                serde_json::json!(optimizer.moments)
            ))),
            _ => Ok(()),
        }
    }

    /// What `plan` says of them behind the mode.
    pub(crate) fn line(self) -> String {
        let masters = shown(self.masters.unwrap_or(DType::F32));
        let gradients = self.gradients.map(|dtype| format!(", gradients summed in {}", shown(dtype)));
        format!("weights in {masters}{}", gradients.unwrap_or_default())
    }
}

/// Moves a block's gradients from f32 scratch into the store's 16-bit sums when they are complete. On one rank: sums of
/// several are f32.
pub(crate) struct Summed<'a> {
    pub(crate) inner: &'a dyn Residency,
    pub(crate) store: &'a ParamStore,
    pub(crate) queue: &'a Queue,
}

impl Residency for Summed<'_> {
    fn gather(&self, model: &Model, block: usize) -> std::result::Result<(), OpError> {
        self.inner.gather(model, block)?;
        model.blocks[block].params.iter().try_for_each(|id| self.store.open_gradient(*id, self.queue))
    }

    fn before_gradients(&self, model: &Model, block: usize) -> std::result::Result<(), OpError> {
        self.inner.before_gradients(model, block)
    }

    fn reduce(&self, model: &Model, block: usize) -> std::result::Result<(), OpError> {
        model.blocks[block].params.iter().try_for_each(|id| self.store.add_to_sum(*id, self.queue))?;
        self.inner.reduce(model, block)
    }

    fn leaves_out(&self, model: &Model, block: usize) -> bool {
        self.inner.leaves_out(model, block)
    }

    fn tokens(&self, model: &Model, block: usize) -> Option<&KeptTokens> {
        self.inner.tokens(model, block)
    }

    fn release(&self, model: &Model, block: usize) -> std::result::Result<(), OpError> {
        model.blocks[block].params.iter().for_each(|id| self.store.close_gradient(*id));
        self.inner.release(model, block)
    }
}

/// The same values in f32: the tensor itself if it is.
pub(crate) fn widened(queue: &Queue, x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return Ok(x.clone());
    }
    let wide = queue.alloc(MemoryKind::Workspace, DType::F32, x.shape())?;
    (queue.backend().copy)(queue, CopyArgs { x, out: &wide })?;
    Ok(wide)
}

/// Writes values back into the tensor that was [`widened`], rounded to nearest.
pub(crate) fn narrow(queue: &Queue, wide: &Tensor, x: &Tensor) -> Result<()> {
    if x.dtype() != DType::F32 {
        (queue.backend().copy)(queue, CopyArgs { x: wide, out: x })?;
    }
    Ok(())
}

/// Keeps the parameter as its only state.
struct Keep;

impl ElementRule for Keep {
    #[inline(always)]
    fn update(&self, param: f32, _: f32, _: [f32; MAX_STATES]) -> (f32, [f32; MAX_STATES]) {
        (param, [param, 0.0, 0.0])
    }
}

/// Rounds an updated master. `grad`: f32, of its shape, unused; `param`: its number, `(seed, step)` as for the update.
pub(crate) fn round_master(
    queue: &Queue,
    wide: &Tensor,
    grad: &Tensor,
    master: &Tensor,
    (seed, step, param): (u64, u64, u32),
) -> Result<()> {
    if master.dtype() != DType::BF16 {
        return narrow(queue, wide, master);
    }
    // The driver of optimizers rounds bf16 states by chance.
    let key = rng::site_key(seed, step, MASTER_SITES + u64::from(param));
    let states = std::slice::from_ref(master);
    Ok(Shard { param: wide, grad, states, compute: None, first: 0, key }.update(queue, 1.0, Keep)?)
}
