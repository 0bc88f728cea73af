//! The contract of an operation.

use crate::{Env, Family, Kept, Result};
use std::ops::AddAssign;
use tensor::Tensor;

/// What an op costs, for `plan` and for profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions, forward. Backward of a product with a weight is twice that.
    pub flops: u64,
    /// Bytes read and written at least once, forward.
    pub bytes: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// A differentiable operation: one value of the type is one use of it on a tape.
///
/// Weights are named by id and resolved through [`Env::params`] in forward and again in backward: they may not be in
/// memory in between.
pub trait Op: Send {
    /// The name in errors and profiles.
    fn name(&self) -> &'static str;

    /// With which ops it shares its format; none: it runs in the format of what flows in.
    fn family(&self) -> Option<Family> {
        None
    }

    /// Checks the shapes, computes the output, and keeps in `self` what backward needs.
    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor>;

    /// The gradient of each input, given that of the output; `None` where nothing flows back. Gradients of weights are
    /// added to [`crate::Params::gradient`]. `grad` may be written in place if it is unique.
    fn backward(self: Box<Self>, env: &Env<'_>, grad: Tensor) -> Result<Vec<Option<Tensor>>>;

    /// Every input and the output that is kept for backward, for recompute to take away and put back. After forward each is
    /// there; forward may run once more, on the same inputs. An op that shows none keeps what it keeps.
    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        Vec::new()
    }

    /// Whether the op costs so little that its output need not outlive its input.
    fn is_cheap(&self) -> bool {
        false
    }

    /// Cost of the forward pass on these inputs.
    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost;
}
