//! What the kernels' tests share: numbers to work on, plain f64 mathematics to compare with, and the claim that the
//! same bits come out of every instruction set and any number of threads.

use crate::{Cpu, Element, Isa};

/// Numbers from -2 to 2 that look random and depend on `seed` alone.
pub(crate) fn values(seed: u32, len: usize) -> Vec<f64> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 22) - 2.0
        })
        .collect()
}

/// [`values`] rounded to a storage format.
pub(crate) fn elements<T: Element>(seed: u32, len: usize) -> Vec<T> {
    round(&values(seed, len))
}

pub(crate) fn round<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f32(v as f32)).collect()
}

pub(crate) fn to_f64<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| f64::from(v.to_f32())).collect()
}

/// Half a unit in the last place, relative: what rounding a result to `T` may cost.
pub(crate) fn rounding<T: Element>() -> f64 {
    match T::NAME {
        "BF16" => 1.0 / 256.0,
        "F16" => 1.0 / 2048.0,
        _ => 0.5f64.powi(24),
    }
}

/// `|got - want| <= bound * (1 + |want|) + rounding to T`, element by element.
pub(crate) fn assert_close<T: Element>(what: &str, got: &[T], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(got.to_f32());
        let allowed = bound * (1.0 + want.abs()) + rounding::<T>() * want.abs();
        assert!((got - want).abs() <= allowed, "{what}[{i}]: got {got}, want {want}, allowed {allowed:e}");
    }
}

/// The bits of what `run` returns are those of the portable body on one thread, on every instruction set and on one,
/// two and three threads.
pub(crate) fn assert_same_bits<T: Element>(run: impl Fn(&Cpu) -> Vec<T>) {
    let want = run(&Cpu::new(1, false, Isa::PORTABLE));
    Isa::all().into_iter().for_each(|isa| assert_bits(isa, &want, &run));
}

/// The bits of what `run` returns are on every instruction set those of one thread on it.
pub(crate) fn assert_same_bits_on_each<T: Element>(run: impl Fn(&Cpu) -> Vec<T>) {
    for isa in Isa::all() {
        assert_bits(isa, &run(&Cpu::new(1, false, isa)), &run);
    }
}

fn assert_bits<T: Element>(isa: Isa, want: &[T], run: impl Fn(&Cpu) -> Vec<T>) {
    for threads in 1..=3 {
        let got = run(&Cpu::new(threads, false, isa));
        let equal = bytemuck::cast_slice::<T, u8>(&got) == bytemuck::cast_slice::<T, u8>(want);
        assert!(equal, "{isa}, {threads} threads: other bits");
    }
}

/// Central differences of a scalar function at `x`.
pub(crate) fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + STEP;
            let above = f(&moved);
            moved[i] = x[i] - STEP;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Error function: its Maclaurin series up to 3, the continued fraction of its complement above.
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..120 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 7.0 {
        let tail = (1..=80).rev().fold(0.0, |tail, k| f64::from(k) / 2.0 / (a + tail));
        1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + tail))
    } else {
        1.0
    };
    value.copysign(x)
}

#[test]
fn the_reference_error_function_is_right_to_1e_12() {
    // Abramowitz & Stegun, table 7.1.
    for (x, want) in [(0.5, 0.520_499_877_813), (1.0, 0.842_700_792_950), (2.0, 0.995_322_265_019)] {
        assert!((erf(x) - want).abs() < 1e-12, "erf({x}) = {}", erf(x));
    }
    assert!((erf(2.999_999_999) - erf(3.000_000_001)).abs() < 1e-12, "the two formulas meet");
}
