//! The norm of a gradient that is spread over ranks.
//!
//! Squares are summed by units of 4,096 elements where the gradient lies; the sums of units go to every rank, which adds
//! them in f64 in the order of the model: within a weight, then over weights. Shares are cut at units, so the bits are those
//! of one rank that has everything.

use crate::error::Result;
use crate::partition::Stage;
use crate::zero::{Owned, Zero};
use ops::ParamId;
use tensor::{CopyArgs, DType, MemoryKind, Queue, SUM_SQUARES_UNIT, SumSquaresArgs, Tensor};

/// The L2 norm over all elements of the gradients of trained weights, not yet multiplied by any factor; not finite if an
/// element is not. `owned`: what [`Zero::finish`] gave.
///
/// # Errors
/// A rank is lost, or the device failed.
pub fn grad_norm(queue: &Queue, zero: &Zero, owned: &[Owned]) -> Result<f64> {
    let (partition, comm) = (zero.partition(), zero.comm());
    let shares = zero.stage() > Stage::Nothing;
    let ranks = if shares { partition.ranks() } else { 1 };
    let units = |id: ParamId, rank: usize| {
        let elements = if shares { partition.share(id, rank).len() } else { partition.elements_of(id) };
        elements.div_ceil(SUM_SQUARES_UNIT)
    };
    let trained: Vec<ParamId> = partition.ids().filter(|id| partition.is_trained(*id)).collect();
    let counts: Vec<usize> = (0..ranks).map(|rank| trained.iter().map(|id| units(*id, rank)).sum()).collect();
    let own = counts[if shares { comm.index() } else { 0 }];
    let partials = queue.alloc(MemoryKind::Workspace, DType::F32, [own])?;
    let mut at = 0;
    for Owned { grad, .. } in owned {
        let partial = partials.rows(at..at + grad.shape().elements().div_ceil(SUM_SQUARES_UNIT));
        (queue.backend().sum_squares)(queue, SumSquaresArgs { x: &in_f32(queue, grad)?, partial: &partial })?;
        at += partial.shape().elements();
    }
    assert!(at == own, "grad_norm: {at} units of gradients, {own} owned");
    let all: Vec<f32> = if shares {
        let all = queue.alloc(MemoryKind::Workspace, DType::F32, [counts.iter().sum()])?;
        comm.control().all_gather(queue, &partials, &counts, &all)?;
        queue.read(&all)?
    } else {
        queue.read(&partials)?
    };
    // Where the next unit of each rank stands.
    let mut next: Vec<usize> = counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count))).collect();
    let mut sum = 0.0f64;
    for id in trained {
        let mut of_weight = 0.0f64;
        for (rank, next) in next.iter_mut().enumerate() {
            let own = &all[*next..*next + units(id, rank)];
            own.iter().for_each(|unit| of_weight += f64::from(*unit));
            *next += own.len();
        }
        sum += of_weight;
    }
    Ok(sum.sqrt())
}

/// The same values in f32: the tensor itself if it is.
fn in_f32(queue: &Queue, x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return Ok(x.clone());
    }
    let out = queue.alloc(MemoryKind::Workspace, DType::F32, x.shape())?;
    (queue.backend().copy)(queue, CopyArgs { x, out: &out })?;
    Ok(out)
}
