//! Which format an op runs in: a function of its block and its family.
//!
//! Without a [`Precision`] in [`Env::precision`] everything runs in [`Env::dtype`]. With one, [`Cx`](crate::Cx) asks it for
//! every op that has a family, casts what flows in where the formats differ ([`Cast`]) and hands the op an [`Env`] in its
//! own format; backward gets the same one. Ops without a family (crossings of ranks, dropout, ops of a user's own) run in
//! the format of what flows in.
//!
//! # Invariants
//! - The gradient of a value has the format of the value.
//! - Where the formats agree there is no cast: a table that says the same of every family gives the bits of none.
//! - A weight is read in the op's format: from the masters for f32, from the rounded copy otherwise ([`Params::weight_in`]
//!   (crate::Params::weight_in)).

use crate::{Cost, Env, Op, Result};
use tensor::{CopyArgs, DType, Tensor};

/// Ops that run alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Tokens and positions to hidden states.
    Embedding,
    /// Products with a weight, but the head's.
    Linear,
    /// Rotation of queries and keys, scores, softmax, sum of values.
    Attention,
    /// LayerNorm, RMSNorm.
    Norm,
    /// What stands between two products.
    Activation,
    /// Sums with the residual stream.
    Residual,
    /// The product with the vocabulary. Logits, softmax and loss are f32 in any case.
    Head,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] =
        [Self::Embedding, Self::Linear, Self::Attention, Self::Norm, Self::Activation, Self::Residual, Self::Head];

    /// As a user writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::Norm => "norm",
            Self::Activation => "activation",
            Self::Residual => "residual",
            Self::Head => "head",
        }
    }
}

/// A family of ops in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Number of the block in the model.
    pub block: usize,
    /// The family.
    pub family: Family,
}

/// What is shown to [`Precision::saw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saw {
    /// What an op gave, and what it gives in f32 where [`Precision::compares`] asked for that.
    Output,
    /// The gradient of what flowed into an op; of its output, where nothing flows in.
    Gradient,
}

/// The formats of a model's ops.
pub trait Precision {
    /// f32, or the run's 16-bit format. The same for a site from a forward to its backward.
    fn dtype(&self, site: Site) -> DType;

    /// Whether [`Precision::saw`] wants to see anything of this pass.
    fn watches(&self) -> bool {
        false
    }

    /// Whether the forward of this site is to run in f32 as well, for comparison.
    fn compares(&self, _site: Site) -> bool {
        false
    }

    /// Told of every output and gradient of a site, in the order they are made, in a pass that it watches. `exact`: the
    /// same in f32, if it was asked for.
    fn saw(&self, _env: &Env<'_>, _site: Site, _what: Saw, _value: &Tensor, _exact: Option<&Tensor>) -> Result<()> {
        Ok(())
    }
}

/// `y = x` in another format; backward casts the gradient back.
pub(crate) struct Cast {
    /// Of `x`.
    pub(crate) from: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        env.cast(&inputs[0], env.dtype)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(env.cast(&dy, self.from)?)])
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 0, bytes: elements * (self.from.size() + env.dtype.size()) as u64 }
    }
}

impl Env<'_> {
    /// A tensor of activations in another format; a new one in any case.
    pub(crate) fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let out = self.queue.alloc(tensor::MemoryKind::Activations, dtype, x.shape())?;
        (self.queue.backend().copy)(self.queue, CopyArgs { x, out: &out })?;
        Ok(out)
    }

    /// A weight in the format of the op that reads it.
    pub(crate) fn weight(&self, id: crate::ParamId) -> Result<Tensor> {
        let weight = self.params.weight_in(id, self.dtype)?;
        if weight.dtype() == self.dtype {
            return Ok(weight);
        }
        let out = self.queue.alloc(tensor::MemoryKind::Workspace, self.dtype, weight.shape())?;
        (self.queue.backend().copy)(self.queue, CopyArgs { x: &weight, out: &out })?;
        Ok(out)
    }
}
