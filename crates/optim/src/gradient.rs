//! What may be done to a gradient between its making and its norm: penalties on the weights, and clipping by value.
//!
//! `gradient += l1 sign(w) + l2 w`, then every element is cut to `[-largest, largest]`. The penalties are the gradients of
//! `l1 sum |w|` and `l2 / 2 sum w^2`: unlike decoupled decay they pass through the moments of the optimizer.
//!
//! What is not finite stays as it is: an overflow must be found behind this.

use crate::rule::zip;
use crate::{ElementRule, States};
use tensor::{KernelError, Queue, Tensor};

/// Penalties and clipping of one gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientEdit {
    /// Times the sign of the weight; that of 0 is 0.
    pub l1: f32,
    /// Times the weight.
    pub l2: f32,
    /// Largest magnitude of an element, penalties included; infinity: any.
    pub largest: f32,
}

impl GradientEdit {
    /// Edits `grad` in place; `weights` are f32 and of its shape.
    ///
    /// # Errors
    /// The device has no kernel for it, or failed.
    pub fn apply(self, queue: &Queue, grad: &Tensor, weights: &Tensor) -> Result<(), KernelError> {
        zip(queue, grad, weights, self)
    }

    /// The same for a gradient that is `1 / factor` of what this is meant for.
    pub fn over(self, factor: f64) -> Self {
        let scaled = |x: f32| (f64::from(x) / factor) as f32;
        Self { l1: scaled(self.l1), l2: scaled(self.l2), largest: scaled(self.largest) }
    }
}

impl ElementRule for GradientEdit {
    #[inline(always)]
    fn update(&self, grad: f32, weight: f32, states: States) -> (f32, States) {
        let sign = if weight > 0.0 { 1.0 } else { 0.0 } - if weight < 0.0 { 1.0 } else { 0.0 };
        let sum = grad + (self.l1 * sign + self.l2 * weight);
        let cut = sum.max(-self.largest).min(self.largest);
        // `max` and `min` would turn NaN and infinities into the bound.
        (if sum.abs() < f32::INFINITY { cut } else { sum }, states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{Isa, MemoryKind, cpu};

    fn edited(edit: GradientEdit, grad: &[f32], weights: &[f32]) -> Vec<f32> {
        let queue = cpu::queue(1, false, Isa::detect());
        let upload = |values: &[f32]| queue.upload(MemoryKind::Workspace, [values.len()], values).unwrap();
        let (grad, weights) = (upload(grad), upload(weights));
        edit.apply(&queue, &grad, &weights).unwrap();
        queue.read(&grad).unwrap()
    }

    #[test]
    fn penalties_pull_every_weight_towards_zero_and_leave_zero_alone() {
        let edit = GradientEdit { l1: 0.5, l2: 0.25, largest: f32::INFINITY };
        assert_eq!(edited(edit, &[1.0; 4], &[2.0, -2.0, 0.0, -0.0]), [2.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn elements_are_cut_to_the_largest_magnitude_and_what_is_not_finite_stays() {
        let edit = GradientEdit { l1: 0.0, l2: 0.0, largest: 2.0 };
        let got = edited(edit, &[1.5, 3.0, -3.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN], &[1.0; 6]);
        assert_eq!(got[..5], [1.5, 2.0, -2.0, f32::INFINITY, f32::NEG_INFINITY]);
        assert!(got[5].is_nan());
    }

    #[test]
    fn an_edit_of_a_sum_is_that_of_the_mean_scaled_up() {
        let edit = GradientEdit { l1: 0.5, l2: 0.0, largest: 2.0 };
        // The gradient is 8 times the mean.
        assert_eq!(edited(edit.over(0.125), &[4.0, 80.0], &[1.0, 1.0]), [8.0, 16.0]);
    }
}
