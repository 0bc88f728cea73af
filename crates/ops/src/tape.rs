//! The tape: ops in the order they ran, one segment per block.
//!
//! # Order of events
//! 1. [`Cx`](crate::Cx) runs a block forward; each op is appended with what it saved.
//! 2. [`Tape::finish`] closes the segment: values that no op saved are freed, inputs and outputs are known by number.
//! 3. [`Segment::backward`] runs the ops in reverse, once, and returns the gradients of the segment's inputs. What of the
//!    forward was let go is made again on the way (`forget`).
//!
//! # Invariants
//! - A gradient tensor may be shared by several values; it is written in place only when nobody else holds it.
//! - Ops that lead to no trained weight and to no input that wants a gradient are not recorded.

use crate::{Cost, Env, Op, Result, Saw, Site};
use std::collections::BTreeMap;
use tensor::{AddArgs, CopyArgs, DType, MemoryKind, Tensor};

/// A value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Var(pub(crate) u32);

impl Var {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// How an op runs.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// None where its family is of no interest.
    pub(crate) site: Option<Site>,
    /// The format of its output.
    pub(crate) dtype: DType,
}

pub(crate) struct Node {
    pub(crate) op: Box<dyn Op>,
    pub(crate) run: Run,
    pub(crate) inputs: Vec<Var>,
    pub(crate) output: Var,
}

/// Values and ops of one segment while it is being made.
pub struct Tape {
    pub(crate) values: Vec<Option<Tensor>>,
    /// Per value: whether a gradient must reach it.
    needs_grad: Vec<bool>,
    pub(crate) nodes: Vec<Node>,
    record: bool,
}

/// A finished segment.
pub struct Segment {
    pub(crate) nodes: Vec<Node>,
    needs_grad: Vec<bool>,
    /// Inputs of ops that run again, then what those have made; empty where nothing was let go.
    pub(crate) values: Vec<Option<Tensor>>,
}

/// What a segment's backward gives besides gradients of weights.
pub struct Backward {
    /// The gradient of each input that was asked for (`None`: nothing flowed there).
    pub grads: Vec<Option<Tensor>>,
    /// Of the ops that ran again.
    pub recomputed: Cost,
}

impl Tape {
    /// `record`: whether backward will be asked for.
    pub fn new(record: bool) -> Self {
        Self { values: Vec::new(), needs_grad: Vec::new(), nodes: Vec::new(), record }
    }

    /// A value that comes from outside; `needs_grad`: whether its gradient is wanted.
    pub fn input(&mut self, value: Tensor, needs_grad: bool) -> Var {
        self.push(value, needs_grad && self.record)
    }

    pub(crate) fn records(&self) -> bool {
        self.record
    }

    fn push(&mut self, value: Tensor, needs_grad: bool) -> Var {
        self.values.push(Some(value));
        self.needs_grad.push(needs_grad);
        Var(self.values.len() as u32 - 1)
    }

    /// The tensor of a value.
    ///
    /// # Panics
    /// If an op consumed it (its memory now holds that op's output).
    pub fn value(&self, var: Var) -> &Tensor {
        self.values[var.index()].as_ref().expect("Tape::value: an op consumed this value in place")
    }

    /// Forgets a value whose memory an op is about to overwrite.
    pub(crate) fn consume(&mut self, var: Var) -> Tensor {
        self.values[var.index()].take().expect("Tape::consume: consumed twice")
    }

    /// Runs an op on tensors, in the environment of its own format, and appends it. `trains`: whether it has a trained weight of its own.
    pub(crate) fn append(
        &mut self,
        mut op: Box<dyn Op>,
        env: &Env<'_>,
        run: Run,
        vars: &[Var],
        inputs: &[Tensor],
        trains: bool,
    ) -> Result<Var> {
        let output = op.forward(env, inputs)?;
        let needs_grad = self.record && (trains || vars.iter().any(|v| self.needs_grad[v.index()]));
        let output = self.push(output, needs_grad);
        if needs_grad {
            self.nodes.push(Node { op, run, inputs: vars.to_vec(), output });
        }
        Ok(output)
    }

    /// Closes the segment and hands out the tensors of `outputs`.
    pub fn finish(self, outputs: &[Var]) -> (Segment, Vec<Tensor>) {
        let tensors = outputs.iter().map(|v| self.value(*v).clone()).collect();
        (Segment { nodes: self.nodes, needs_grad: self.needs_grad, values: Vec::new() }, tensors)
    }
}

impl Segment {
    /// Runs backward. `seeds` are the gradients of outputs; `inputs` those whose gradients are wanted.
    pub fn backward(mut self, env: &Env<'_>, seeds: Vec<(Var, Tensor)>, inputs: &[Var]) -> Result<Backward> {
        let (mut grads, mut recomputed) = (BTreeMap::new(), Cost::default());
        for (var, grad) in seeds {
            add_grad(env, &mut grads, var, grad)?;
        }
        while let Some(last) = self.nodes.last() {
            // No gradient: the output was not used, or only by ops nothing flows back through.
            if let Some(grad) = grads.remove(&last.output) {
                self.restore(env, &mut recomputed)?;
                self.backward_last(env, grad, &mut grads)?;
            } else {
                self.nodes.pop();
            }
        }
        Ok(Backward { grads: inputs.iter().map(|var| grads.remove(var)).collect(), recomputed })
    }

    fn backward_last(&mut self, env: &Env<'_>, grad: Tensor, grads: &mut BTreeMap<Var, Tensor>) -> Result<()> {
        let Node { op, run, inputs, output } = self.nodes.pop().expect("Segment::backward_last: a node");
        let env = &Env { dtype: run.dtype, ..*env };
        let watched = env.precision.filter(|precision| precision.watches()).zip(run.site);
        if let Some((precision, site)) = watched.filter(|_| inputs.is_empty()) {
            precision.saw(env, site, Saw::Gradient, &grad, None)?;
        }
        let input_grads = op.backward(env, grad)?;
        debug_assert_eq!(input_grads.len(), inputs.len());
        for grad in input_grads.iter().flatten() {
            if let Some((precision, site)) = watched {
                precision.saw(env, site, Saw::Gradient, grad, None)?;
            }
        }
        self.forget(&inputs, output);
        for (&var, grad) in inputs.iter().zip(input_grads) {
            if let Some(grad) = grad
                && self.needs_grad[var.index()]
            {
                add_grad(env, grads, var, grad)?;
            }
        }
        Ok(())
    }
}

fn add_grad(env: &Env<'_>, grads: &mut BTreeMap<Var, Tensor>, var: Var, grad: Tensor) -> Result<()> {
    let Some(held) = grads.remove(&var) else {
        grads.insert(var, grad);
        return Ok(());
    };
    // Addition of two terms commutes bit for bit, so either may be the accumulator.
    let (into, from) = match (held.is_unique(), grad.is_unique()) {
        (true, _) => (held, grad),
        (false, true) => (grad, held),
        (false, false) => {
            let own = env.queue.alloc(MemoryKind::Activations, held.dtype(), held.shape())?;
            (env.queue.backend().copy)(env.queue, CopyArgs { x: &held, out: &own })?;
            (own, grad)
        }
    };
    (env.queue.backend().add)(env.queue, AddArgs { x: &from, out: &into })?;
    grads.insert(var, into);
    Ok(())
}
