//! Speed of matrix products, as a share of what this core can multiply and add in registers, measured in the same run.
//!
//!     cargo bench -p bessemer-kernels --bench gemm -- [threads] [instruction set] [name filter]
//!
//! Each number is the lower quartile of the timed repetitions: neighbours on the machine only ever slow them down. On one
//! thread the time is that which the thread was on a core. The products of generation are bound by memory: for them the
//! bytes of the weight a second are printed as well.

use kernels::aligned::AlignedMemory;
use kernels::gemm::{GemmArgs, GemmInput, Mat, MatMut, gemm};
use kernels::{Cpu, Element, Isa, bf16, f16, peak};
use std::time::Instant;

const TIMED_SECONDS: f64 = 0.3;
const SAMPLE_SECONDS: f64 = 2e-4;

/// The forms of training, by what is transposed: `y = x w^T`, `dx = dy w`, `dw = dy^T x` (which is added to `dw`).
#[derive(Clone, Copy, Debug)]
enum Form {
    Nt,
    Nn,
    Tn,
}

/// m, n, k.
const SHAPES: [(usize, usize, usize); 16] = [
    (1024, 768, 768),
    (1024, 3072, 768),
    (1024, 768, 3072),
    (1024, 50257, 768),
    (1024, 768, 50257),
    (50257, 768, 1024),
    (3072, 768, 1024),
    (768, 384, 128),
    (768, 128, 128),
    (768, 512, 128),
    (768, 128, 512),
    (768, 65, 128),
    (768, 128, 65),
    (128, 128, 768),
    (512, 128, 768),
    (256, 64, 64),
];
const SKINNY: [(usize, usize, usize); 7] =
    [(1, 768, 768), (1, 3072, 768), (1, 50257, 768), (1, 768, 50257), (4, 3072, 768), (8, 3072, 768), (8, 50257, 768)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = args.first().map_or(1, |arg| arg.parse().expect("a number of threads"));
    let isa = args.get(1).map_or(Isa::detect(), |name| Isa::at_most(name).expect("the name of an instruction set"));
    let filter = args.get(2).map_or("", String::as_str);
    let cpu = Cpu::new(threads, true, isa);
    let f32_peak = peak::f32_flops(isa) / 1e9 * threads as f64;
    let bf16_peak = peak::bf16_flops(isa) / 1e9 * threads as f64;
    println!("{isa}, {threads} threads; peak f32 {f32_peak:.0} GFLOP/s, bf16 {bf16_peak:.0} GFLOP/s");
    println!("{:<30} {:>10} {:>10} {:>7}", "product", "us", "GFLOP/s", "peak");
    for (m, n, k) in SHAPES {
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            time::<bf16, bf16>(&cpu, m, n, k, form, bf16_peak, filter);
            time::<bf16, f32>(&cpu, m, n, k, form, bf16_peak, filter);
            time::<f32, f32>(&cpu, m, n, k, form, f32_peak, filter);
        }
    }
    time::<f16, f16>(&cpu, 1024, 768, 768, Form::Nt, f32_peak, filter);
    for (m, n, k) in SKINNY {
        for form in [Form::Nt, Form::Nn] {
            time::<bf16, bf16>(&cpu, m, n, k, form, bf16_peak, filter);
            time::<f32, f32>(&cpu, m, n, k, form, f32_peak, filter);
        }
    }
}

/// Times one product and prints its line. `Tn` accumulates, as gradients do.
fn time<T: GemmInput, C: Element>(cpu: &Cpu, m: usize, n: usize, k: usize, form: Form, peak: f64, filter: &str) {
    let name = format!("{m}x{n}x{k} {form:?} {}->{}", T::NAME, C::NAME);
    if !name.contains(filter) {
        return;
    }
    let memory = |bytes: usize| AlignedMemory::zeroed(bytes).expect("memory for a matrix");
    let numbers = |len: usize| {
        let mut memory = memory(len * size_of::<T>());
        for (i, number) in memory.as_mut_slice::<T>().iter_mut().enumerate() {
            *number = T::from_f32((i % 251) as f32 / 251.0 - 0.5);
        }
        memory
    };
    let (a, b, mut c) = (numbers(m * k), numbers(k * n), memory(m * n * size_of::<C>()));
    let mut run = || {
        let (a, b, c) = (&a.as_slice::<T>()[..m * k], &b.as_slice::<T>()[..k * n], &mut c.as_mut_slice::<C>()[..m * n]);
        let (a, b) = match form {
            Form::Nt => (Mat::row_major(a, k), Mat::transposed(b, k)),
            Form::Nn => (Mat::row_major(a, k), Mat::row_major(b, n)),
            Form::Tn => (Mat::transposed(a, m), Mat::row_major(b, n)),
        };
        let accumulate = matches!(form, Form::Tn);
        gemm(cpu, GemmArgs { m, n, k, a, b, c: MatMut::row_major(c, n), bias: None, accumulate });
    };
    let seconds = quartile_seconds(if cpu.pool.threads() == 1 { cpu_seconds } else { wall_seconds }, &mut run);
    let gflops = 2.0 * (m * n * k) as f64 / seconds / 1e9;
    let memory = match m <= 8 {
        true => format!("{:8.1} GB/s", (n * k * size_of::<T>()) as f64 / seconds / 1e9),
        false => String::new(),
    };
    println!("{name:<30} {:>10.1} {gflops:>10.1} {:>6.1}%{memory}", seconds * 1e6, 100.0 * gflops / peak);
}

/// The lower quartile of the samples in [`TIMED_SECONDS`], at least four. Samples are short, so that some escape the
/// neighbours.
fn quartile_seconds(now: fn() -> f64, run: &mut impl FnMut()) -> f64 {
    let mut sample = |calls: usize| {
        let start = now();
        (0..calls).for_each(|_| run());
        (now() - start) / calls as f64
    };
    let calls = (SAMPLE_SECONDS / sample(1).min(sample(1))).ceil() as usize;
    let (start, mut samples) = (Instant::now(), vec![]);
    while samples.len() < 4 || start.elapsed().as_secs_f64() < TIMED_SECONDS {
        samples.push(sample(calls));
    }
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 4]
}

/// Seconds this thread was on a core: on one thread, what the neighbours take does not count.
#[cfg(target_os = "linux")]
fn cpu_seconds() -> f64 {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0; 2];
    // SAFETY: on 64-bit Linux `struct timespec` is two 64-bit numbers, and this one may be written.
    let result = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "clock_gettime");
    time[0] as f64 + time[1] as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn cpu_seconds() -> f64 {
    wall_seconds()
}

fn wall_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}
