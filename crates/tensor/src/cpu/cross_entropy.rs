//! Handles to slices for the kernel of the head's loss.

use super::{Done, Read, cpu, float, input, output};
use crate::*;
use kernels::cross_entropy as kernel;

pub(super) fn cross_entropy(queue: &Queue, a: CrossEntropyArgs<&Tensor>) -> Done {
    const K: &str = "cross_entropy";
    let (vocab, logits, targets) = (a.logits.shape().width(), input(K, a.logits), input(K, a.targets));
    let soft = a.soft_targets.map(|soft| soft_inputs(K, soft));
    let objective = objective(&targets, &soft, a.terms);
    let (mut logprobs, mut log_sum_exp) = (output(K, a.logprobs), output(K, a.log_sum_exp));
    kernel::forward(cpu(queue), &logits, vocab, &objective, &mut logprobs, &mut log_sum_exp);
    Ok(())
}

pub(super) fn cross_entropy_backward(queue: &Queue, a: CrossEntropyBackwardArgs<&Tensor>) -> Done {
    const K: &str = "cross_entropy_backward";
    let (vocab, logits, targets) = (a.logits.shape().width(), input(K, a.logits), input(K, a.targets));
    let soft = a.soft_targets.map(|soft| soft_inputs(K, soft));
    let objective = objective(&targets, &soft, a.terms);
    let (log_sum_exp, scale) = (input(K, a.log_sum_exp), input(K, a.scale));
    float!(K, a.dlogits.dtype(), T => kernel::backward::<T>(
        cpu(queue), &logits, vocab, &objective, &log_sum_exp, &scale, &mut output(K, a.dlogits),
    ));
    Ok(())
}

/// Memory of the lists of soft targets while a kernel reads them.
type SoftInputs<'a> = (Read<'a, u32>, Read<'a, u32>, Read<'a, f32>);

fn soft_inputs<'a>(kernel: &str, soft: SoftTargets<&'a Tensor>) -> SoftInputs<'a> {
    (input(kernel, soft.starts), input(kernel, soft.ids), input(kernel, soft.probabilities))
}

fn objective<'a>(targets: &'a [i32], soft: &'a Option<SoftInputs<'_>>, terms: LossTerms) -> kernel::Objective<'a> {
    let soft = soft.as_ref().map(|(starts, ids, probabilities)| kernel::SoftTargets { starts, ids, probabilities });
    kernel::Objective { targets, soft, terms }
}
