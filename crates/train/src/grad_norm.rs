//! Norms of tensors, and the factor that clipping a gradient asks for; the norm of the whole gradient is
//! [`parallel::grad_norm()`].
//!
//! Squares are summed by units of 4,096 elements on the device, and the units on the host in f64: the same bits on any number
//! of threads.

use crate::error::Result;
use crate::precision::half::widened;
use tensor::{DType, MemoryKind, Queue, SUM_SQUARES_UNIT, SumSquaresArgs, Tensor};

/// The L2 norm over all elements of some tensors.
pub(crate) fn norm<'a>(queue: &Queue, tensors: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut partials = Vec::new();
    for grad in tensors {
        let grad = &widened(queue, grad)?;
        let units = grad.shape().elements().div_ceil(SUM_SQUARES_UNIT);
        let partial = queue.alloc(MemoryKind::Workspace, DType::F32, [units])?;
        (queue.backend().sum_squares)(queue, SumSquaresArgs { x: grad, partial: &partial })?;
        partials.push(partial);
    }
    let mut sum = 0.0f64;
    for partial in &partials {
        sum += queue.read::<f32>(partial)?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// What the gradient is multiplied by so that its norm is at most `max_norm`; 0 turns clipping off.
/// As `torch.nn.utils.clip_grad_norm_`: `max_norm / (norm + 1e-6)`, at most 1; a norm that is NaN stays one.
pub(crate) fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm == 0.0 || factor > 1.0 { 1.0 } else { factor }
}
