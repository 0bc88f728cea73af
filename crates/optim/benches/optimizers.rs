//! A step of each element-wise optimizer over 124 million parameters, against the time to move its bytes.
//!
//!     cargo bench -p bessemer-optim --bench optimizers -- [THREADS]
//!
//! The bandwidth is that of `a += b` over arrays as large, on as many threads: two numbers read and one written, measured
//! again before each line, because neighbours on the machine take their share. Times are the best of five.

use optim::{Adagrad, AdamW, Lion, Moments, Optimizer, Sgd, Shard, Step};
use std::time::Instant;
use tensor::{DType, Isa, MemoryKind, Queue, Shape, Tensor, cpu};

const PARAMETERS: usize = 124_439_808;
const ADAMW: AdamW = AdamW { betas: [0.9, 0.999], eps: 1e-8, decoupled: true, bias_correction: true, amsgrad: false };

fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..runs).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// Bytes a second of `a += b`.
fn bandwidth(threads: usize) -> f64 {
    let (mut a, b) = (vec![1.0f32; PARAMETERS], vec![1.0f32; PARAMETERS]);
    let part = PARAMETERS.div_ceil(threads);
    let seconds = best(5, || {
        std::thread::scope(|scope| {
            for (a, b) in a.chunks_mut(part).zip(b.chunks(part)) {
                scope.spawn(move || a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
            }
        });
    });
    12.0 * PARAMETERS as f64 / seconds
}

fn main() {
    let threads = std::env::args().filter_map(|text| text.parse().ok()).next().unwrap_or(2);
    let queue = cpu::queue(threads, true, Isa::detect());
    println!("{threads} threads, {} kernels", Isa::detect());
    println!("{:<28} {:>8} {:>8} {:>8} {:>14}", "", "ms", "B/param", "GB/s", "of a += b, x");
    let rules: [(&str, &dyn Optimizer, Moments, bool); 8] = [
        ("AdamW", &ADAMW, Moments::F32, false),
        ("AdamW, bf16 copy", &ADAMW, Moments::F32, true),
        ("AdamW, amsgrad", &AdamW { amsgrad: true, ..ADAMW }, Moments::F32, false),
        ("AdamW, moments in bf16", &ADAMW, Moments::Bf16, false),
        ("AdamW, moments in 8 bits", &ADAMW, Moments::Int8, false),
        ("SGD", &Sgd { momentum: 0.9, dampening: 0.0, nesterov: true }, Moments::F32, false),
        ("Adagrad", &Adagrad { lr_decay: 0.0, initial_accumulator_value: 0.0, eps: 1e-10 }, Moments::F32, false),
        ("Lion", &Lion { betas: [0.9, 0.99] }, Moments::F32, false),
    ];
    for (name, rule, moments, has_copy) in rules {
        let bandwidth = bandwidth(threads);
        let (seconds, bytes) = measure(&queue, rule, moments, has_copy);
        let moved = bytes * PARAMETERS as f64 / seconds;
        let (ms, moved, share) = (seconds * 1e3, moved / 1e9, bandwidth / moved);
        println!("{name:<28} {ms:>8.1} {bytes:>8.1} {moved:>8.1} {:>8.1} {share:>5.2}", bandwidth / 1e9);
    }
}

/// Seconds of a step, and the bytes that it must read and write for each parameter.
fn measure(queue: &Queue, rule: &dyn Optimizer, moments: Moments, has_copy: bool) -> (f64, f64) {
    let shape = Shape::from([PARAMETERS]);
    let param = &queue.zeros(MemoryKind::Weights, DType::F32, shape).expect("memory");
    let grad = &queue.zeros(MemoryKind::Gradients, DType::F32, shape).expect("memory");
    let copy = has_copy.then(|| queue.zeros(MemoryKind::Weights, DType::BF16, shape).expect("memory"));
    let states: Vec<Tensor> =
        rule.states(shape).iter().map(|state| state.allocate(queue, moments).expect("memory")).collect();
    let held: usize = states.iter().map(|state| state.shape().elements() * state.dtype().size()).sum();
    let bytes = 12.0 + 2.0 * held as f64 / PARAMETERS as f64 + if has_copy { 2.0 } else { 0.0 };
    let mut step = 0;
    let seconds = best(5, || {
        step += 1;
        let at = Step { step, lr: 1e-3, weight_decay: 0.1, grad_scale: 1.0, betas: None };
        let shard = Shard { param, grad, states: &states, compute: copy.as_ref(), first: 0, key: [0; 2] };
        rule.step(queue, &shard, &at).expect("a step");
    });
    (seconds, bytes)
}
