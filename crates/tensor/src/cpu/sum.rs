//! Sums of tensors that several ranks of this process hold.

use super::*;

/// `out = x0 + x1 + ...` along a binary tree over the numbers of the terms, in f32 for floats with one rounding at the end;
/// whole numbers wrap. One term is copied, bit for bit. See [`kernels::tree_sum`].
///
/// Terms may belong to other queues of this process: they are only read. All are contiguous, of one format and as many
/// elements as `out`.
///
/// # Panics
/// If they are not, if `queue` is no CPU queue, or if somebody writes to one of the tensors meanwhile.
pub fn tree_sum(queue: &Queue, terms: &[Tensor], out: &Tensor) {
    match out.dtype() {
        DType::F32 => typed::<f32>(queue, terms, out),
        DType::BF16 => typed::<bf16>(queue, terms, out),
        DType::F16 => typed::<f16>(queue, terms, out),
        DType::U32 => typed::<u32>(queue, terms, out),
        DType::I32 => typed::<i32>(queue, terms, out),
    }
}

fn typed<T: Scalar + kernels::tree_sum::Summand>(queue: &Queue, terms: &[Tensor], out: &Tensor) {
    const K: &str = "tree_sum";
    let locked: Vec<Read<'_, T>> = terms.iter().map(|term| input(K, term)).collect();
    let terms: Vec<&[T]> = locked.iter().map(|term| &**term).collect();
    kernels::tree_sum::tree_sum(cpu(queue), &terms, &mut output(K, out));
}
