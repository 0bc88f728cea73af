//! Recompute of chosen ops: their outputs are let go at the end of a segment's forward and computed again in its backward.
//!
//! # Order of events
//! 1. [`Tape::finish_forgetting`] takes the outputs of the chosen ops from the ops that keep them, and keeps the inputs that
//!    the chosen ops will run on again.
//! 2. Before a node runs backward, [`Segment::restore`] puts back what was taken from it: it runs the op that makes the value
//!    again, and before that those that make its inputs, as far as they are gone too.
//! 3. A value made again goes when the last op that wanted it has run backward.
//!
//! # Invariants
//! - What is made again has the bits it had: the same op on the same inputs.
//! - The output of an op that costs nothing ([`Op::is_cheap`]: a crossing between ranks, a rotation) goes with its input.
//! - What the segment hands out stays.

use crate::tape::{Node, Segment, Tape, Var};
use crate::{Cost, Env, Op, Result};
use tensor::Tensor;

/// An op whose output need not be kept for backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecomputedOp {
    /// LayerNorm and RMSNorm.
    Norm,
    /// GELU.
    Gelu,
    /// The gate of SwiGLU.
    SiluMul,
    /// Attention between its projections.
    Attention,
    /// Products with a weight.
    Linear,
}

impl RecomputedOp {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Norm, Self::Gelu, Self::SiluMul, Self::Attention, Self::Linear];

    /// The name in a run file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::Gelu => "gelu",
            Self::SiluMul => "silu_mul",
            Self::Attention => "attention",
            Self::Linear => "linear",
        }
    }

    fn is(self, op: &dyn Op) -> bool {
        let is_norm = matches!(op.name(), "layer_norm" | "rms_norm");
        !op.is_cheap() && (op.name() == self.name() || (self == Self::Norm && is_norm))
    }
}

/// Which value a tensor is that an op keeps for backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The input with this number.
    Input(usize),
    /// The output.
    Output,
}

impl Tape {
    /// As [`Tape::finish`], without the outputs of `ops`.
    pub fn finish_forgetting(mut self, outputs: &[Var], ops: &[RecomputedOp]) -> (Segment, Vec<Tensor>) {
        let gone = self.gone(outputs, ops);
        let (mut made_again, mut values) = (vec![false; gone.len()], vec![None; gone.len()]);
        // Backwards, so that whoever wants a value is seen before the op that makes it.
        for node in self.nodes.iter_mut().rev() {
            for (kept, slot) in node.op.kept() {
                let var = kept.var(&node.inputs, node.output).index();
                if gone[var] {
                    made_again[var] |= slot.take().is_some();
                }
            }
            if made_again[node.output.index()] {
                for var in node.inputs.iter().map(|var| var.index()) {
                    made_again[var] |= gone[var];
                    values[var] = self.values[var].clone().filter(|_| !gone[var]);
                }
            }
        }
        let (mut segment, tensors) = self.finish(outputs);
        segment.values = values;
        (segment, tensors)
    }

    /// Per value: whether it is let go. Its op must be on the tape, with inputs that are there or can be made again.
    fn gone(&self, outputs: &[Var], ops: &[RecomputedOp]) -> Vec<bool> {
        let mut gone = vec![false; self.values.len()];
        for node in &self.nodes {
            let is_chosen = ops.iter().any(|op| op.is(&*node.op));
            let follows = node.op.is_cheap() && node.inputs.iter().any(|var| gone[var.index()]);
            let can = node.inputs.iter().all(|var| gone[var.index()] || self.values[var.index()].is_some());
            gone[node.output.index()] = can && (is_chosen || follows) && !outputs.contains(&node.output);
        }
        gone
    }
}

impl Kept {
    fn var(self, inputs: &[Var], output: Var) -> Var {
        match self {
            Self::Input(index) => inputs[index],
            Self::Output => output,
        }
    }
}

impl Segment {
    /// Puts back what was taken from the last node. `cost` grows by what runs again.
    pub(crate) fn restore(&mut self, env: &Env<'_>, cost: &mut Cost) -> Result<()> {
        let Some(last) = self.nodes.len().checked_sub(1).filter(|_| !self.values.is_empty()) else {
            return Ok(());
        };
        for index in 0..self.nodes[last].op.kept().len() {
            let node = &mut self.nodes[last];
            let (kept, slot) = &node.op.kept()[index];
            if slot.is_some() {
                continue;
            }
            let var = kept.var(&node.inputs, node.output);
            let value = self.make_again(env, var, cost)?;
            *self.nodes[last].op.kept()[index].1 = Some(value);
        }
        Ok(())
    }

    /// After the backward of the op that made `output` of `inputs`: lets go of what no op on the tape is made of.
    pub(crate) fn forget(&mut self, inputs: &[Var], output: Var) {
        for var in inputs.iter().chain([&output]) {
            let is_wanted = self.nodes.iter().any(|node| node.inputs.contains(var));
            if !is_wanted && let Some(value) = self.values.get_mut(var.index()) {
                *value = None;
            }
        }
    }

    fn make_again(&mut self, env: &Env<'_>, var: Var, cost: &mut Cost) -> Result<Tensor> {
        if let Some(value) = &self.values[var.index()] {
            return Ok(value.clone());
        }
        let producer = self.nodes.iter().rposition(|node| node.output == var);
        let producer = producer.expect("Segment::make_again: what is let go has an op on the tape");
        let vars = self.nodes[producer].inputs.clone();
        let inputs = vars.into_iter().map(|var| self.make_again(env, var, cost)).collect::<Result<Vec<_>>>()?;
        let Node { op, run, .. } = &mut self.nodes[producer];
        let env = &Env { dtype: run.dtype, ..*env };
        *cost += op.cost(env, &inputs);
        let value = op.forward(env, &inputs)?;
        self.values[var.index()] = Some(value.clone());
        Ok(value)
    }
}
