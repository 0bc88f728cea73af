//! A device that measures another: every kernel call is timed and passed on.
//!
//! Calls of the inner device must be done when they return, as the CPU's are; a device that defers work would have its
//! time shown under whatever waits for it. Products are told apart by form and shape, with their FLOPs.

use crate::{AttentionArgs, AttentionBackwardArgs, Backend, KernelError, MatmulArgs, Queue, Segment, Tensor};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// How many.
    pub calls: u64,
    /// In all.
    pub seconds: f64,
    /// Multiplications and additions in all, where they are counted; else 0.
    pub flops: u64,
}

struct Profiled {
    inner: Queue,
    times: Mutex<BTreeMap<String, Times>>,
}

/// A queue whose kernels are those of `inner`, timed.
pub fn queue(inner: Queue) -> Queue {
    Queue::new(&PROFILED, inner.ordinal(), Box::new(Profiled { inner, times: Mutex::default() }))
}

/// What has been measured since the last call of this, longest first.
///
/// # Panics
/// If the queue was not made by [`queue`].
pub fn take(queue: &Queue) -> Vec<(String, Times)> {
    let times = &queue.state::<Profiled>().times;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let mut times: Vec<(String, Times)> = times.into_iter().collect();
    times.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
    times
}

/// Runs one call on the inner device and enters its time.
fn timed(
    queue: &Queue,
    name: impl FnOnce() -> String,
    flops: u64,
    call: impl FnOnce(&Queue) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let state = queue.state::<Profiled>();
    let start = Instant::now();
    let result = call(&state.inner);
    let seconds = start.elapsed().as_secs_f64();
    let mut times = state.times.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = times.entry(name()).or_default();
    (entry.calls, entry.seconds, entry.flops) = (entry.calls + 1, entry.seconds + seconds, entry.flops + flops);
    result
}

macro_rules! profiled_backend {
    ($($kernel:ident: $args:ident),*) => {
        const EVERY_KERNEL: Backend = Backend {
            name: "profiled",
            allocate: |queue, bytes| {
                let inner = &queue.state::<Profiled>().inner;
                (inner.backend().allocate)(inner, bytes)
            },
            write: |queue, out, bytes| {
                timed(queue, || "write".to_owned(), 0, |inner| (inner.backend().write)(inner, out, bytes))
            },
            read: |queue, x, bytes| timed(queue, || "read".to_owned(), 0, |inner| (inner.backend().read)(inner, x, bytes)),
            $($kernel: |queue, args| {
                timed(queue, || stringify!($kernel).to_owned(), 0, |inner| (inner.backend().$kernel)(inner, args))
            }),*
        };
    };
}
for_each_kernel!(profiled_backend);

static PROFILED: Backend = Backend { matmul, attention, attention_backward, ..EVERY_KERNEL };

fn matmul(queue: &Queue, args: MatmulArgs<&Tensor>) -> Result<(), KernelError> {
    let (m, n) = (args.out.shape().rows(), args.out.shape().width());
    let k = if args.transpose_a { args.a.shape().rows() } else { args.a.shape().width() };
    let form = |transposed: bool| if transposed { "T" } else { "" };
    let (a, b, dtype) = (form(args.transpose_a), form(args.transpose_b), args.out.dtype());
    let name = || format!("matmul A{a} B{b} {m} x {k} x {n} to {dtype}");
    timed(queue, name, 2 * (m * n * k) as u64, |inner| (inner.backend().matmul)(inner, args))
}

fn attention(queue: &Queue, args: AttentionArgs<&Tensor>) -> Result<(), KernelError> {
    let flops = 4 * visible_pairs(&args.segments) * args.out.shape().width() as u64;
    timed(queue, || "attention".to_owned(), flops, |inner| (inner.backend().attention)(inner, args))
}

fn attention_backward(queue: &Queue, args: AttentionBackwardArgs<&Tensor>) -> Result<(), KernelError> {
    let flops = 10 * visible_pairs(&args.segments) * args.out.shape().width() as u64;
    timed(queue, || "attention_backward".to_owned(), flops, |inner| (inner.backend().attention_backward)(inner, args))
}

/// Query-key pairs under causality; a window is not taken into account.
fn visible_pairs(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| (0..s.q_len).map(|i| (s.q_position + i + 1).min(s.k_len) as u64).sum::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Isa, MemoryKind, cpu};

    #[test]
    fn a_product_is_listed_with_its_shape_calls_and_flops_and_gives_the_inner_devices_numbers() {
        let queue = queue(cpu::queue(1, false, Isa::PORTABLE));
        let a = queue.upload(MemoryKind::Activations, [2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let out = queue.alloc(MemoryKind::Activations, DType::F32, [2, 2]).unwrap();
        let (transpose_a, transpose_b, bias, accumulate) = (false, true, None, false);
        let args = MatmulArgs { a: &a, transpose_a, b: &a, transpose_b, bias, out: &out, accumulate };
        (queue.backend().matmul)(&queue, args).unwrap();
        assert_eq!(queue.read::<f32>(&out).unwrap(), [14.0, 32.0, 32.0, 77.0]);
        let times = take(&queue);
        let product = &times.iter().find(|(name, _)| name == "matmul A BT 2 x 3 x 2 to f32").expect("the product").1;
        assert_eq!((product.calls, product.flops), (1, 24));
        assert!(take(&queue).is_empty());
    }
}
