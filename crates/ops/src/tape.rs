//! The tape: ops in the order they ran, one segment per block.
//!
//! # Order of events
//! 1. [`Cx`](crate::Cx) runs a block forward; each op is appended with what it saved.
//! 2. [`Tape::finish`] closes the segment: values that no op saved are freed, inputs and outputs are known by number.
//! 3. [`Segment::backward`] runs the ops in reverse, once, and returns the gradients of the segment's inputs.
//!
//! # Invariants
//! - A gradient tensor may be shared by several values; it is written in place only when nobody else holds it.
//! - Ops that lead to no trained weight and to no input that wants a gradient are not recorded.

use crate::{Env, Op, Result, Saw, Site};
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

struct Node {
    op: Box<dyn Op>,
    run: Run,
    inputs: Vec<Var>,
    output: Var,
}

/// Values and ops of one segment while it is being made.
pub struct Tape {
    values: Vec<Option<Tensor>>,
    /// Per value: whether a gradient must reach it.
    needs_grad: Vec<bool>,
    nodes: Vec<Node>,
    record: bool,
}

/// A finished segment.
pub struct Segment {
    nodes: Vec<Node>,
    needs_grad: Vec<bool>,
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
        (Segment { nodes: self.nodes, needs_grad: self.needs_grad }, tensors)
    }
}

impl Segment {
    /// Runs backward. `seeds` are the gradients of outputs; returns those of `inputs` (`None`: nothing flowed there).
    pub fn backward(self, env: &Env<'_>, seeds: Vec<(Var, Tensor)>, inputs: &[Var]) -> Result<Vec<Option<Tensor>>> {
        let mut grads: BTreeMap<Var, Tensor> = BTreeMap::new();
        for (var, grad) in seeds {
            add_grad(env, &mut grads, var, grad)?;
        }
        for node in self.nodes.into_iter().rev() {
            // No gradient: the output was not used, or only by ops nothing flows back through.
            let Some(grad) = grads.remove(&node.output) else { continue };
            let env = &Env { dtype: node.run.dtype, ..*env };
            let watched = env.precision.filter(|precision| precision.watches()).zip(node.run.site);
            if let Some((precision, site)) = watched.filter(|_| node.inputs.is_empty()) {
                precision.saw(env, site, Saw::Gradient, &grad, None)?;
            }
            let input_grads = node.op.backward(env, grad)?;
            debug_assert_eq!(input_grads.len(), node.inputs.len());
            for grad in input_grads.iter().flatten() {
                if let Some((precision, site)) = watched {
                    precision.saw(env, site, Saw::Gradient, grad, None)?;
                }
            }
            for (&var, grad) in node.inputs.iter().zip(input_grads) {
                if let Some(grad) = grad
                    && self.needs_grad[var.index()]
                {
                    add_grad(env, &mut grads, var, grad)?;
                }
            }
        }
        Ok(inputs.iter().map(|var| grads.remove(var)).collect())
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
