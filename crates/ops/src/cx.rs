//! What a block sees while it runs.

use crate::probe::{Probe, watched};
use crate::{Batch, Cost, KvCache, Op, Params, RecomputedOp, Regions, Result, Segment, Tape, Var};
use std::cell::Cell;
use tensor::{DType, DropoutArgs, MemoryKind, Queue, Shape, Tensor};

/// What the head is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadRequest {
    /// The log-probability of every target, f32 `[N]`.
    ///
    /// `seed`: the gradient of the loss with respect to every counted log-probability, when it is one constant known
    /// beforehand (mean cross-entropy): forward and backward of the head then run in one pass over the logits.
    TokenLogprobs {
        /// See above.
        seed: Option<f32>,
    },
    /// The logits after the last token of each document, f32 [documents, V].
    LastLogits,
    /// The logits after every token, f32 [N, V]: for tests and small inputs.
    AllLogits,
}

/// What the head gave: log-probabilities or logits, as was asked.
pub type HeadOutput = Tensor;

/// Everything of a step that does not change from op to op.
pub struct Env<'a> {
    /// The device.
    pub queue: &'a Queue,
    /// Weights and gradients.
    pub params: &'a dyn Params,
    /// What happens where ranks share a layer.
    pub regions: &'a dyn Regions,
    /// The tokens.
    pub batch: &'a Batch,
    /// The format of activations.
    pub dtype: DType,
    /// What the head is asked for.
    pub head: HeadRequest,
    /// (seed, step) when dropout is on.
    pub dropout: Option<(u64, u64)>,
    /// Keys and values of earlier tokens, in generation.
    pub cache: Option<&'a KvCache>,
    /// Hears of every op; none: nobody watches.
    pub probe: Option<&'a dyn Probe>,
}

impl Env<'_> {
    /// A tensor for a value on the tape.
    pub fn alloc(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.queue.alloc(MemoryKind::Activations, self.dtype, shape)?)
    }

    /// An f32 tensor for statistics on the tape.
    pub fn alloc_f32(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.queue.alloc(MemoryKind::Activations, DType::F32, shape)?)
    }

    /// The arguments of a dropout at a site, or `None` if nothing is dropped.
    pub(crate) fn dropout_args(&self, site: DropoutSite) -> Option<DropoutArgs<&Tensor>> {
        let (seed, step) = self.dropout.filter(|_| site.probability > 0.0)?;
        Some(DropoutArgs {
            probability: site.probability,
            key: tensor::rng::site_key(seed, step, site.site),
            samples: &self.batch.samples,
            positions: &self.batch.row_positions,
            first_feature: 0,
        })
    }
}

/// One place of the model where values are dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutSite {
    pub(crate) probability: f32,
    pub(crate) site: u64,
}

/// What flows from block to block: the hidden states and named side tensors (the wire format of a pipeline).
#[derive(Clone, Debug, PartialEq)]
pub struct Flow<T = Var> {
    /// [N, D]; absent before the first block.
    pub hidden: Option<T>,
    /// Declared by the family: encoder output, vision tokens, value residuals.
    pub sides: Vec<(&'static str, T)>,
}

impl<T> Default for Flow<T> {
    fn default() -> Self {
        Self { hidden: None, sides: Vec::new() }
    }
}

impl Flow {
    /// A flow of hidden states alone.
    pub fn hidden(hidden: Var) -> Self {
        Self { hidden: Some(hidden), sides: Vec::new() }
    }

    /// The hidden states.
    ///
    /// # Panics
    /// If the block that reads them is the first of its model.
    pub fn expect_hidden(&self, block: &str) -> Var {
        self.hidden.unwrap_or_else(|| panic!("{block}: no hidden states; a block before it must make them"))
    }
}

/// A block's view of one forward pass: applies ops and puts them on the tape.
pub struct Cx<'a> {
    /// What does not change from op to op.
    pub env: &'a Env<'a>,
    tape: Tape,
    block: usize,
    num_sites: Cell<u64>,
    cost: Cost,
    output: Option<Var>,
    losses: Vec<(&'static str, Var)>,
}

impl<'a> Cx<'a> {
    /// For block number `block` of the model. `record`: whether backward will be asked for.
    pub fn new(env: &'a Env<'a>, block: usize, record: bool) -> Self {
        let (num_sites, cost, output, losses) = Default::default();
        Self { env, tape: Tape::new(record), block, num_sites, cost, output, losses }
    }

    /// Whether backward will be asked for.
    pub(crate) fn records(&self) -> bool {
        self.tape.records()
    }

    /// Number of this block in the model.
    pub fn block(&self) -> usize {
        self.block
    }

    /// A tensor that comes from outside.
    pub fn input(&mut self, value: Tensor, needs_grad: bool) -> Var {
        self.tape.input(value, needs_grad)
    }

    /// The tensor of a value.
    pub fn value(&self, var: Var) -> &Tensor {
        self.tape.value(var)
    }

    /// This rank's share of `count` things along an axis.
    ///
    /// # Panics
    /// If the ranks do not divide them: the plan checks that before anything runs.
    pub fn share(&self, axis: &str, count: usize) -> usize {
        let part = self.env.regions.part(axis);
        assert!(count.is_multiple_of(part.count), "Cx::share: {count} {axis} on {} ranks", part.count);
        count / part.count
    }

    /// Applies an op without weights. Users' own ops come in here too.
    pub fn apply(&mut self, op: impl Op + 'static, inputs: &[Var]) -> Result<Var> {
        self.apply_with(op, inputs, false)
    }

    /// Applies an op; `trains`: whether it has a trained weight.
    pub(crate) fn apply_with(&mut self, op: impl Op + 'static, vars: &[Var], trains: bool) -> Result<Var> {
        let inputs: Vec<Tensor> = vars.iter().map(|v| self.tape.value(*v).clone()).collect();
        self.cost += op.cost(self.env, &inputs);
        self.tape.append(watched(op, self.env, self.block), self.env, vars, &inputs, trains)
    }

    /// Applies an op that may write its output over its input, which nobody may use afterwards.
    pub(crate) fn apply_in_place(&mut self, op: impl Op + 'static, var: Var) -> Result<Var> {
        let input = self.tape.consume(var);
        self.cost += op.cost(self.env, std::slice::from_ref(&input));
        self.tape.append(watched(op, self.env, self.block), self.env, &[var], &[input], false)
    }

    /// The next dropout site of this block.
    pub(crate) fn dropout_site(&self, probability: f32) -> DropoutSite {
        let index = self.num_sites.replace(self.num_sites.get() + 1);
        DropoutSite { probability, site: (self.block as u64) << 32 | index }
    }

    /// Declares what the head made; the executor reads it after the pass.
    pub fn set_output(&mut self, output: Var) {
        self.output = Some(output);
    }

    /// Adds a loss of the block's own (balance of experts, z-loss): a scalar with its factor already applied.
    pub fn add_loss(&mut self, name: &'static str, loss: Var) {
        self.losses.push((name, loss));
    }

    /// What [`Cx::set_output`] declared.
    pub fn output(&self) -> Option<Var> {
        self.output
    }

    /// What [`Cx::add_loss`] declared.
    pub fn losses(&self) -> &[(&'static str, Var)] {
        &self.losses
    }

    /// Cost of what has run.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Closes the segment: see [`Tape::finish`].
    pub fn finish(self, outputs: &[Var]) -> (Segment, Vec<Tensor>) {
        self.tape.finish(outputs)
    }

    /// Closes the segment without the outputs of `ops`: see [`Tape::finish_forgetting`].
    pub fn finish_forgetting(self, outputs: &[Var], ops: &[RecomputedOp]) -> (Segment, Vec<Tensor>) {
        self.tape.finish_forgetting(outputs, ops)
    }
}
