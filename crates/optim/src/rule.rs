//! The contract of an optimizer.

use tensor::{KernelError, Queue, Tensor};

/// What a rule needs to see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Any range of elements: shards may be cut anywhere.
    Element,
    /// Whole matrices (Muon).
    Matrix,
}

/// The part of one parameter that a rank owns. All tensors have one shape.
pub struct Shard<'a> {
    /// f32: the master weights, updated in place.
    pub param: &'a Tensor,
    /// f32: sum over all micro-batches and ranks, before [`Step::grad_scale`].
    pub grad: &'a Tensor,
    /// f32, in the order of [`Optimizer::states`]; zero before the first step.
    pub states: &'a [Tensor],
    /// The rounded copy that products read, written in the same pass; `None` where products read the masters.
    pub compute: Option<&'a Tensor>,
}

/// What one step has in common for all parameters of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// 1 at the first update that is applied.
    pub step: u64,
    /// After the schedule.
    pub lr: f64,
    /// Of this group: 0 where nothing decays.
    pub weight_decay: f64,
    /// Multiplies the gradient: clip factor and loss scale.
    pub grad_scale: f32,
}

/// An update rule.
pub trait Optimizer: Send {
    /// The type's name in the run file.
    fn name(&self) -> &'static str;

    /// What it needs to see at once.
    fn granularity(&self) -> Granularity {
        Granularity::Element
    }

    /// Names of the state tensors it keeps for every element, as checkpoints call them.
    fn states(&self) -> &'static [&'static str];

    /// One update, in place, in one pass over the shard.
    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError>;
}
