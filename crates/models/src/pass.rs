//! One pass over a model's blocks: forward, or forward and backward, on one rank.
//!
//! # Order of events
//! 1. Forward, block by block: [`Residency::gather`], the block on a fresh segment, [`Residency::release`]. A block that will
//!    be run again ([`Recompute`]) is not recorded; what flowed into the first of its segment is kept instead.
//! 2. Backward, last segment first: the blocks that were not recorded are run again (same seed, same dropout); then, block by
//!    block from the last: gather, the segment's backward, [`Residency::reduce`], release.
//!
//! # Invariants
//! - Weights are read only between gather and release of a block that lists them. The last block of those that are run again
//!   stays gathered for its backward.
//! - The head is never recomputed: its segment runs backward right after its forward.
//! - Backward stops at the first block with a trained parameter; blocks below it record nothing.
//! - A block that runs on some tokens only ([`Residency::tokens`]) leaves the hidden states of the others as they are.

use crate::block::Model;
use crate::recompute::Recompute;
use ops::{Cost, Cx, Env, Flow, HeadRequest, KeptTokens, OpError, RecomputedOp, Result, Segment, Var};
use std::ops::Range;
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
    /// The tokens that a block runs on, if it is not all of them; the others pass it by. As for [`Residency::leaves_out`], the
    /// answer must not change while a pass runs, and such a block has no side tensors.
    fn tokens(&self, _model: &Model, _block: usize) -> Option<&KeptTokens> {
        None
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
    /// Of what was run again for backward.
    pub recomputed: Cost,
}

/// A forward pass that waits for its backward.
pub struct Recorded {
    /// From the first block with a trained parameter on.
    stretches: Vec<Stretch>,
    first_trained: usize,
    logprobs: Tensor,
}

/// What a recorded block's forward leaves for its backward.
struct Held {
    segment: Segment,
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

/// Blocks next to each other, with what their backward starts from.
struct Stretch {
    blocks: Range<usize>,
    /// Of [`Recompute::segment_of`].
    segment: Option<usize>,
    kept: Kept,
}

enum Kept {
    /// Of one block.
    Recorded(Held),
    /// What flowed into the first block.
    Input(Flow<Tensor>),
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
            let ran = self.run_block(env, block, flow, Record::Nothing, &[])?;
            self.residency.release(self.model, block)?;
            cost += ran.cost;
            (flow, output) = (ran.flow, ran.output.or(output));
        }
        Ok((output.expect("Pass::forward: no block declared an output"), cost))
    }

    /// Log-probabilities of the targets, with gradients added to the store, and the cost: [`Pass::forward_recorded`] and
    /// [`Pass::backward`].
    pub fn forward_backward(&self, env: &Env<'_>, loss_weight: f32, recompute: &Recompute) -> Result<PassOutput> {
        let (output, recorded) = self.forward_recorded(env, recompute)?;
        let recomputed = self.backward(env, recorded, loss_weight)?;
        Ok(PassOutput { recomputed, ..output })
    }

    /// The forward half: log-probabilities of the targets, and what [`Pass::backward`] goes back through. The gradients of
    /// the head's own weights are already in the store: they are made while the logits are at hand.
    ///
    /// `env.head` must be [`HeadRequest::TokenLogprobs`] with a seed: the gradient of the loss with respect to each counted
    /// log-probability.
    pub fn forward_recorded(&self, env: &Env<'_>, recompute: &Recompute) -> Result<(PassOutput, Recorded)> {
        let num_blocks = self.model.blocks.len();
        let first_trained = self.first_trained(env).unwrap_or(num_blocks);
        let (mut stretches, mut flow, mut cost, mut logprobs) = (Vec::new(), Flow::default(), Cost::default(), None);
        let mut losses = Vec::new();
        for block in 0..num_blocks {
            let segment = recompute.segment_of(block, num_blocks).filter(|_| block >= first_trained);
            if segment.is_some() {
                keep_input(&mut stretches, block, segment, &flow);
            }
            let is_recorded = block >= first_trained && segment.is_none();
            let record = if is_recorded { self.record(block, first_trained) } else { Record::Nothing };
            self.residency.gather(self.model, block)?;
            if block + 1 == num_blocks && is_recorded {
                self.residency.before_gradients(self.model, block)?;
            }
            let ran = self.run_block(env, block, flow, record, recompute.ops())?;
            self.residency.release(self.model, block)?;
            cost += ran.cost;
            if is_recorded {
                stretches.push(Stretch { blocks: block..block + 1, segment, kept: Kept::Recorded(ran.held) });
            }
            losses.extend(ran.losses);
            (flow, logprobs) = (ran.flow, ran.output);
        }
        let logprobs = logprobs.expect("Pass::forward_recorded: the last block declared no output");
        let recorded = Recorded { stretches, first_trained, logprobs: logprobs.clone() };
        Ok((PassOutput { logprobs, losses, cost, recomputed: Cost::default() }, recorded))
    }

    /// The backward half: adds the gradients of what was recorded to the store, and gives the cost of what was run again for
    /// them. `env` is that of the forward half.
    ///
    /// `loss_weight`: the gradient of the step's loss with respect to blocks' own losses.
    pub fn backward(&self, env: &Env<'_>, recorded: Recorded, loss_weight: f32) -> Result<Cost> {
        let HeadRequest::TokenLogprobs { seed: Some(seed), .. } = env.head else {
            panic!("Pass::backward: the head was not asked for log-probabilities with a seed");
        };
        let Recorded { mut stretches, first_trained, logprobs } = recorded;
        let dlogprobs = env.alloc_f32(logprobs.shape())?;
        (env.queue.backend().fill)(env.queue, FillArgs { out: &dlogprobs, value: seed })?;
        let mut backward = Backward {
            first_trained,
            loss_weight,
            grads: Flow::default(),
            output_grad: Some(dlogprobs),
            recomputed: Cost::default(),
        };
        while let Some(stretch) = stretches.pop() {
            self.run_stretch_backward(env, stretch, &mut backward)?;
        }
        Ok(backward.recomputed)
    }

    /// What a block from `first_trained` on is recorded for.
    fn record(&self, block: usize, first_trained: usize) -> Record {
        if block == first_trained { Record::FromHere } else { Record::Through }
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
            let ran = self.run_block(env, block, flow, Record::Nothing, &[])?;
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

    fn run_block(
        &self,
        env: &Env<'_>,
        block: usize,
        inputs: Flow<Tensor>,
        record: Record,
        forgotten: &[RecomputedOp],
    ) -> Result<Ran> {
        let kept = self.residency.tokens(self.model, block);
        let kept_env = kept.map(|kept| kept.env(env));
        let mut cx = Cx::new(kept_env.as_ref().unwrap_or(env), block, record != Record::Nothing);
        let mut input = |tensor: &Tensor| cx.input(tensor.clone(), record == Record::Through);
        let input_vars = Flow {
            hidden: inputs.hidden.as_ref().map(&mut input),
            sides: inputs.sides.iter().map(|(name, tensor)| (*name, input(tensor))).collect(),
        };
        drop(inputs);
        let output_vars = if self.residency.leaves_out(self.model, block) {
            input_vars.clone()
        } else if let Some(kept) = kept {
            self.run_on_tokens(&mut cx, block, &input_vars, kept)?
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
        let is_whole = forgotten.is_empty() || record == Record::Nothing;
        let (segment, tensors) = if is_whole { cx.finish(&wanted) } else { cx.finish_forgetting(&wanted, forgotten) };
        let mut tensors = tensors.into_iter();
        let flow = Flow {
            hidden: output_vars.hidden.and_then(|_| tensors.next()),
            sides: output_vars.sides.iter().filter_map(|(name, _)| Some((*name, tensors.next()?))).collect(),
        };
        let output_tensor = output.and_then(|_| tensors.next());
        let loss_tensors = losses.iter().zip(tensors).map(|((name, _), tensor)| (*name, tensor)).collect();
        let losses = losses.into_iter().map(|(_, var)| var).collect();
        let held = Held { segment, input_vars, output_vars, output, losses };
        Ok(Ran { held, flow, output: output_tensor, losses: loss_tensors, cost })
    }

    /// A block on some of the tokens: what it makes of them goes back to their places.
    fn run_on_tokens(&self, cx: &mut Cx<'_>, block: usize, inputs: &Flow, kept: &KeptTokens) -> Result<Flow> {
        let named = &self.model.blocks[block];
        let x_ND = inputs.expect_hidden(&named.name);
        let x_RD = cx.gather_tokens(x_ND, &kept.rows)?;
        let flow = named.block.forward(cx, Flow::hidden(x_RD))?;
        if !inputs.sides.is_empty() || !flow.sides.is_empty() {
            return Err(OpError::SideTensors { block: named.name.clone() });
        }
        let y_RD = flow.expect_hidden(&named.name);
        Ok(Flow::hidden(cx.scatter_tokens(x_ND, y_RD, &kept.rows)?))
    }

    fn run_stretch_backward(&self, env: &Env<'_>, stretch: Stretch, backward: &mut Backward) -> Result<()> {
        let Stretch { blocks, kept, .. } = stretch;
        let mut is_gathered = matches!(kept, Kept::Input(_));
        let mut held = match kept {
            Kept::Recorded(held) => vec![held],
            Kept::Input(flow) => self.run_again(env, blocks.clone(), flow, backward)?,
        };
        for block in blocks.rev() {
            if !std::mem::take(&mut is_gathered) {
                self.residency.gather(self.model, block)?;
            }
            if block + 1 < self.model.blocks.len() {
                self.residency.before_gradients(self.model, block)?;
            }
            let held = held.pop().expect("Pass::run_stretch_backward: one a block");
            self.run_backward(env, block, held, backward)?;
            self.residency.reduce(self.model, block)?;
            self.residency.release(self.model, block)?;
        }
        Ok(())
    }

    /// Runs blocks forward once more and records them; the last stays gathered.
    fn run_again(
        &self,
        env: &Env<'_>,
        blocks: Range<usize>,
        mut flow: Flow<Tensor>,
        backward: &mut Backward,
    ) -> Result<Vec<Held>> {
        let mut held = Vec::with_capacity(blocks.len());
        for block in blocks.clone() {
            self.residency.gather(self.model, block)?;
            let ran = self.run_block(env, block, flow, self.record(block, backward.first_trained), &[])?;
            if block + 1 < blocks.end {
                self.residency.release(self.model, block)?;
            }
            backward.recomputed += ran.cost;
            held.push(ran.held);
            flow = ran.flow;
        }
        Ok(held)
    }

    fn run_backward(&self, env: &Env<'_>, block: usize, held: Held, state: &mut Backward) -> Result<()> {
        let kept_env = self.residency.tokens(self.model, block).map(|kept| kept.env(env));
        let env = kept_env.as_ref().unwrap_or(env);
        let side_names = held.input_vars.sides.iter().map(|(name, _)| *name);
        let inputs: Vec<Var> =
            held.input_vars.hidden.into_iter().chain(held.input_vars.sides.iter().map(|(_, var)| *var)).collect();
        let grads = std::mem::take(&mut state.grads);
        let outputs = held.output_vars.hidden.iter().zip(grads.hidden);
        let mut seeds: Vec<(Var, Tensor)> = outputs.map(|(var, grad)| (*var, grad)).collect();
        for (name, grad) in grads.sides {
            let var = held.output_vars.sides.iter().find(|(side, _)| *side == name);
            seeds.extend(var.map(|(_, var)| (*var, grad)));
        }
        seeds.extend(held.output.zip(state.output_grad.take()));
        for loss in held.losses {
            let seed = env.alloc_f32([1])?;
            (env.queue.backend().fill)(env.queue, FillArgs { out: &seed, value: state.loss_weight })?;
            seeds.push((loss, seed));
        }
        let ops::Backward { grads, recomputed } = held.segment.backward(env, seeds, &inputs)?;
        state.recomputed += recomputed;
        let mut grads = grads.into_iter();
        let hidden = held.input_vars.hidden.and_then(|_| grads.next()).flatten();
        let sides = side_names.zip(grads).filter_map(|(name, grad)| Some((name, grad?))).collect();
        state.grads = Flow { hidden, sides };
        Ok(())
    }
}

/// A backward pass under way.
struct Backward {
    first_trained: usize,
    /// Of [`Pass::forward_backward`].
    loss_weight: f32,
    /// Of what flows out of the next block to run backward.
    grads: Flow<Tensor>,
    /// Of the head's output, until the head has run backward.
    output_grad: Option<Tensor>,
    /// Of what was run again so far.
    recomputed: Cost,
}

/// Keeps what flows into `block` if that is the first of its segment.
fn keep_input(stretches: &mut Vec<Stretch>, block: usize, segment: Option<usize>, flow: &Flow<Tensor>) {
    match stretches.last_mut() {
        Some(stretch) if stretch.segment == segment => stretch.blocks.end = block + 1,
        _ => stretches.push(Stretch { blocks: block..block + 1, segment, kept: Kept::Input(flow.clone()) }),
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
