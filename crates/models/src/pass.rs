//! One pass over a model's blocks: forward, or forward and backward, on one rank.
//!
//! # Order of events
//! 1. Forward, block by block: [`Residency::gather`], the block on a fresh segment, [`Residency::release`]. Under recompute
//!    a segment is not recorded; what flowed into the block is kept instead.
//! 2. Backward, last block first: gather, under recompute the block's forward again (same seed, same dropout), the
//!    segment's backward, [`Residency::reduce`], release.
//!
//! # Invariants
//! - Weights are read only between gather and release of a block that lists them.
//! - The head is never recomputed: its segment runs backward right after its forward.
//! - Backward stops at the first block with a trained parameter; blocks below it record nothing.

use crate::block::Model;
use ops::{Cost, Cx, Env, Flow, HeadRequest, OpError, Result, Segment, Var};
use tensor::{FillArgs, Tensor};

/// Makes a block's weights available while it runs. ZeRO-3 gathers here; whole resident weights need nothing.
pub trait Residency {
    /// Before a block runs, forward or backward.
    fn gather(&self, _model: &Model, _block: usize) -> Result<()> {
        Ok(())
    }
    /// After gather and before a block's gradients are made: they need memory from here on. The head makes its own while it
    /// runs forward, the other blocks backward.
    fn before_gradients(&self, _model: &Model, _block: usize) -> Result<()> {
        Ok(())
    }
    /// After a block's backward: its gradients of this micro-batch are complete.
    fn reduce(&self, _model: &Model, _block: usize) -> Result<()> {
        Ok(())
    }
    /// Whether a block is left out of this pass: its input is its output, forward and backward. Asked again under recompute,
    /// so the answer must not change while a pass runs. Only for blocks whose input and output have one shape.
    fn leaves_out(&self, _model: &Model, _block: usize) -> bool {
        false
    }
    /// After a block ran.
    fn release(&self, _model: &Model, _block: usize) -> Result<()> {
        Ok(())
    }
}

/// All weights are here all the time.
pub struct Resident;

impl Residency for Resident {}

/// Runs a model on one rank.
pub struct Pass<'a> {
    /// The blocks.
    pub model: &'a Model,
    /// Where the weights of a block come from.
    pub residency: &'a dyn Residency,
}

/// What a forward and backward pass gives besides gradients.
pub struct PassOutput {
    /// f32 `[N]`: the log-probability of each target.
    pub logprobs: Tensor,
    /// f32 `[1]` each: the losses that blocks declared.
    pub losses: Vec<(&'static str, Tensor)>,
    /// Of the forward pass.
    pub cost: Cost,
}

/// A forward pass that waits for its backward.
pub struct Recorded {
    /// Of each block from the first one with a trained parameter on.
    held: Vec<Held>,
    first_trained: usize,
    logprobs: Tensor,
}

/// What a block's forward leaves for its backward.
struct Held {
    /// Recorded ops, or `None` under recompute.
    segment: Option<Segment>,
    inputs: Flow<Tensor>,
    input_vars: Flow,
    output_vars: Flow,
    output: Option<Var>,
    losses: Vec<Var>,
}

/// What a block's forward is recorded for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    /// No backward.
    Nothing,
    /// Gradients of its own parameters; nothing below is trained.
    FromHere,
    /// Those and the gradients of what flows in.
    Through,
}

/// A block's forward.
struct Ran {
    held: Held,
    flow: Flow<Tensor>,
    output: Option<Tensor>,
    losses: Vec<(&'static str, Tensor)>,
    cost: Cost,
}

impl Pass<'_> {
    /// What the head gives for [`Env::head`], without anything for backward, and the cost.
    pub fn forward(&self, env: &Env<'_>) -> Result<(Tensor, Cost)> {
        let (mut flow, mut output, mut cost) = (Flow::default(), None, Cost::default());
        for block in 0..self.model.blocks.len() {
            self.residency.gather(self.model, block)?;
            let ran = self.run_block(env, block, flow, Record::Nothing)?;
            self.residency.release(self.model, block)?;
            cost += ran.cost;
            (flow, output) = (ran.flow, ran.output.or(output));
        }
        Ok((output.expect("Pass::forward: no block declared an output"), cost))
    }

    /// Log-probabilities of the targets, with gradients added to the store, and the cost of the forward pass:
    /// [`Pass::forward_recorded`] and [`Pass::backward`].
    pub fn forward_backward(&self, env: &Env<'_>, loss_weight: f32, recompute: bool) -> Result<PassOutput> {
        let (output, recorded) = self.forward_recorded(env, recompute)?;
        self.backward(env, recorded, loss_weight)?;
        Ok(output)
    }

    /// The forward half: log-probabilities of the targets, and what [`Pass::backward`] goes back through. The gradients of
    /// the head's own weights are already in the store: they are made while the logits are at hand.
    ///
    /// - `env.head` must be [`HeadRequest::TokenLogprobs`] with a seed: the gradient of the loss with respect to each
    ///   counted log-probability.
    /// - `recompute`: keep only what flows between blocks and run them again for backward.
    pub fn forward_recorded(&self, env: &Env<'_>, recompute: bool) -> Result<(PassOutput, Recorded)> {
        let last = self.model.blocks.len() - 1;
        let first_trained = self.first_trained(env).unwrap_or(last + 1);
        let (mut held, mut flow, mut cost, mut logprobs) = (Vec::new(), Flow::default(), Cost::default(), None);
        let mut losses = Vec::new();
        for block in 0..=last {
            let record = match block {
                _ if block < first_trained || (recompute && block < last) => Record::Nothing,
                _ if block == first_trained => Record::FromHere,
                _ => Record::Through,
            };
            self.residency.gather(self.model, block)?;
            if block == last && record != Record::Nothing {
                self.residency.before_gradients(self.model, block)?;
            }
            let ran = self.run_block(env, block, flow, record)?;
            self.residency.release(self.model, block)?;
            cost += ran.cost;
            if block >= first_trained {
                held.push(ran.held);
            }
            losses.extend(ran.losses);
            (flow, logprobs) = (ran.flow, ran.output);
        }
        let logprobs = logprobs.expect("Pass::forward_recorded: the last block declared no output");
        let recorded = Recorded { held, first_trained, logprobs: logprobs.clone() };
        Ok((PassOutput { logprobs, losses, cost }, recorded))
    }

    /// The backward half: adds the gradients of what was recorded to the store. `env` is that of the forward half.
    ///
    /// `loss_weight`: the gradient of the step's loss with respect to blocks' own losses.
    pub fn backward(&self, env: &Env<'_>, recorded: Recorded, loss_weight: f32) -> Result<()> {
        let HeadRequest::TokenLogprobs { seed: Some(seed) } = env.head else {
            panic!("Pass::backward: the head was not asked for log-probabilities with a seed");
        };
        let Recorded { mut held, first_trained, logprobs } = recorded;
        let dlogprobs = env.alloc_f32(logprobs.shape())?;
        (env.queue.backend().fill)(env.queue, FillArgs { out: &dlogprobs, value: seed })?;
        let mut grads = Flow::default();
        let mut output_grad = Some(dlogprobs);
        for block in (first_trained..self.model.blocks.len()).rev() {
            let block_held = held.pop().expect("one per block from first_trained on");
            self.residency.gather(self.model, block)?;
            if block + 1 < self.model.blocks.len() {
                self.residency.before_gradients(self.model, block)?;
            }
            grads = self.run_backward(env, block, block_held, grads, output_grad.take(), loss_weight)?;
            self.residency.reduce(self.model, block)?;
            self.residency.release(self.model, block)?;
        }
        Ok(())
    }

    /// The first block that reads a trained parameter.
    fn first_trained(&self, env: &Env<'_>) -> Option<usize> {
        self.model.blocks.iter().position(|block| block.params.iter().any(|id| env.params.is_trained(*id)))
    }

    /// The name of the first block whose hidden states or output are not finite, looking at them on the host.
    pub fn first_non_finite(&self, env: &Env<'_>) -> Result<Option<String>> {
        let mut flow = Flow::default();
        for (block, named) in self.model.blocks.iter().enumerate() {
            self.residency.gather(self.model, block)?;
            let ran = self.run_block(env, block, flow, Record::Nothing)?;
            self.residency.release(self.model, block)?;
            for tensor in ran.flow.hidden.iter().chain(&ran.output) {
                if env.queue.read_f32(tensor)?.iter().any(|x| !x.is_finite()) {
                    return Ok(Some(named.name.clone()));
                }
            }
            flow = ran.flow;
        }
        Ok(None)
    }

    fn run_block(&self, env: &Env<'_>, block: usize, inputs: Flow<Tensor>, record: Record) -> Result<Ran> {
        let records = record != Record::Nothing;
        let mut cx = Cx::new(env, block, records);
        let mut input = |tensor: &Tensor| cx.input(tensor.clone(), record == Record::Through);
        let input_vars = Flow {
            hidden: inputs.hidden.as_ref().map(&mut input),
            sides: inputs.sides.iter().map(|(name, tensor)| (*name, input(tensor))).collect(),
        };
        // With a recorded segment the ops hold what they need; only recompute needs the inputs again.
        let inputs = if records { Flow::default() } else { inputs };
        let output_vars = if self.residency.leaves_out(self.model, block) {
            input_vars.clone()
        } else {
            self.model.blocks[block].block.forward(&mut cx, input_vars.clone())?
        };
        let (output, cost) = (cx.output(), cx.cost());
        let losses: Vec<(&'static str, Var)> = cx.losses().to_vec();
        let wanted: Vec<Var> = (output_vars.hidden.iter())
            .chain(output_vars.sides.iter().map(|(_, var)| var))
            .chain(&output)
            .chain(losses.iter().map(|(_, var)| var))
            .copied()
            .collect();
        let (segment, tensors) = cx.finish(&wanted);
        let mut tensors = tensors.into_iter();
        let flow = Flow {
            hidden: output_vars.hidden.and_then(|_| tensors.next()),
            sides: output_vars.sides.iter().filter_map(|(name, _)| Some((*name, tensors.next()?))).collect(),
        };
        let output_tensor = output.and_then(|_| tensors.next());
        let loss_tensors = losses.iter().zip(tensors).map(|((name, _), tensor)| (*name, tensor)).collect();
        let segment = records.then_some(segment);
        let losses = losses.into_iter().map(|(_, var)| var).collect();
        let held = Held { segment, inputs, input_vars, output_vars, output, losses };
        Ok(Ran { held, flow, output: output_tensor, losses: loss_tensors, cost })
    }

    fn run_backward(
        &self,
        env: &Env<'_>,
        block: usize,
        mut held: Held,
        grads: Flow<Tensor>,
        output_grad: Option<Tensor>,
        loss_weight: f32,
    ) -> Result<Flow<Tensor>> {
        if held.segment.is_none() {
            let first = self.first_trained(env) == Some(block);
            let record = if first { Record::FromHere } else { Record::Through };
            held = self.run_block(env, block, held.inputs, record)?.held;
        }
        let side_names = held.input_vars.sides.iter().map(|(name, _)| *name);
        let inputs: Vec<Var> =
            held.input_vars.hidden.into_iter().chain(held.input_vars.sides.iter().map(|(_, var)| *var)).collect();
        let outputs = held.output_vars.hidden.iter().zip(grads.hidden);
        let mut seeds: Vec<(Var, Tensor)> = outputs.map(|(var, grad)| (*var, grad)).collect();
        for (name, grad) in grads.sides {
            let var = held.output_vars.sides.iter().find(|(side, _)| *side == name);
            seeds.extend(var.map(|(_, var)| (*var, grad)));
        }
        seeds.extend(held.output.zip(output_grad));
        for loss in held.losses {
            let seed = env.alloc_f32([1])?;
            (env.queue.backend().fill)(env.queue, FillArgs { out: &seed, value: loss_weight })?;
            seeds.push((loss, seed));
        }
        let segment = held.segment.expect("Pass::run_backward: recorded above");
        let mut grads = segment.backward(env, seeds, &inputs)?.into_iter();
        let hidden = held.input_vars.hidden.and_then(|_| grads.next()).flatten();
        let sides = side_names.zip(grads).filter_map(|(name, grad)| Some((name, grad?))).collect();
        Ok(Flow { hidden, sides })
    }
}

impl Model {
    /// Checks that a row of `len` tokens fits the model's positions.
    pub fn check_length(&self, len: usize) -> Result<()> {
        match self.max_positions {
            Some(max) if len > max => Err(OpError::TooLong(format!(
                "a row of {len} tokens is longer than the model's {max} positions; shorten it or set data.sequence_length"
            ))),
            _ => Ok(()),
        }
    }
}
