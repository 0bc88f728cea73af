//! What the machine can do at most: the rate of the multiply-add instruction itself, on the registers of one core, and the
//! rate at which all threads together read memory.
//!
//! The yardstick of benchmarks and of `bessemer bench`. It is measured, because clocks differ from machine to machine and
//! from hour to hour; measure it in the same run as what is held against it.

use crate::aligned::AlignedMemory;
use crate::isa::multiversion;
use crate::lanes::sum;
use crate::{Cpu, Isa};
use std::hint::black_box;
use std::time::Instant;

/// Rounds of the loop that is timed: about a quarter of a millisecond.
const STEPS: usize = 64 << 10;
/// Independent accumulators, so that no instruction waits for the one before it.
const CHAINS: usize = 12;
/// The loop is timed so often, and the shortest time counts.
const TRIES: usize = 20;

/// Memory that is read for the bandwidth: more than the caches of a desktop hold.
const READ_BYTES: usize = 256 << 20;
/// What one task reads.
const READ_TASK_BYTES: usize = 1 << 20;
/// The memory is read so often, and the shortest time counts.
const READ_TRIES: usize = 8;

/// Bytes per second that the threads of `cpu` together read from memory, in order; `None` if there is no memory to read.
pub fn read_bytes_per_second(cpu: &Cpu) -> Option<f64> {
    let mut memory = AlignedMemory::zeroed(READ_BYTES)?;
    memory.as_mut_slice::<f32>().fill(1.0);
    let numbers = memory.as_slice::<f32>();
    let seconds = |_| {
        let start = Instant::now();
        cpu.pool.run(READ_BYTES / READ_TASK_BYTES, |task| {
            let task_len = READ_TASK_BYTES / size_of::<f32>();
            black_box(read(cpu.isa, &numbers[task * task_len..][..task_len]));
        });
        start.elapsed().as_secs_f64()
    };
    Some(READ_BYTES as f64 / (0..READ_TRIES).map(seconds).fold(f64::INFINITY, f64::min))
}

multiversion! {
    fn read(numbers: &[f32]) -> f32 {
        sum([numbers], |[number]| number)
    }
}

/// f32 multiplications and additions per second of one core.
pub fn f32_flops(isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        // SAFETY: an `Isa` with AVX-512 is only made on a machine that has it.
        return rate(2 * 16, || unsafe { x86::avx512() });
    } else if isa.has_avx2() {
        // SAFETY: an `Isa` with AVX2 and FMA is only made on a machine that has them.
        return rate(2 * 8, || unsafe { x86::avx2() });
    }
    let _ = isa;
    rate(2 * 4, || {
        let (mut acc, a) = ([[0f32; 4]; CHAINS], black_box([0.5f32; 4]));
        for _ in 0..STEPS {
            acc.iter_mut().for_each(|acc| *acc = std::array::from_fn(|i| acc[i] * a[i] + a[i]));
        }
        black_box(acc);
    })
}

/// bf16 multiplications and additions per second of one core; where bf16 has no instruction, those of f32.
pub fn bf16_flops(isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_bf16() {
        // SAFETY: an `Isa` with AVX-512 BF16 is only made on a machine that has it.
        return rate(2 * 32, || unsafe { x86::avx512_bf16() });
    }
    f32_flops(isa)
}

/// FLOP/s of a loop of `STEPS` times `CHAINS` instructions of `flops` each.
fn rate(flops: usize, work: impl Fn()) -> f64 {
    let seconds = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (flops * STEPS * CHAINS) as f64 / (0..TRIES).map(seconds).fold(f64::INFINITY, f64::min)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, STEPS};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() {
        let (mut acc, a) = ([_mm512_setzero_ps(); CHAINS], black_box(_mm512_set1_ps(0.5)));
        for _ in 0..STEPS {
            acc.iter_mut().for_each(|acc| *acc = _mm512_fmadd_ps(a, a, *acc));
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16() {
        let zero = _mm512_setzero_ps();
        let (mut acc, a) = ([zero; CHAINS], black_box(_mm512_cvtne2ps_pbh(zero, zero)));
        for _ in 0..STEPS {
            acc.iter_mut().for_each(|acc| *acc = _mm512_dpbf16_ps(*acc, a, a));
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() {
        let (mut acc, a) = ([_mm256_setzero_ps(); CHAINS], black_box(_mm256_set1_ps(0.5)));
        for _ in 0..STEPS {
            acc.iter_mut().for_each(|acc| *acc = _mm256_fmadd_ps(a, a, *acc));
        }
        black_box(acc);
    }
}
