//! Arithmetic in which instruction sets differ: fused multiply-add, and rounding to bf16 in one instruction.
//!
//! A body generic over [`Arithmetic`] and compiled by `multiversion_fused!` takes half of the instructions of one in portable
//! operations (`isa::multiversion!`). Its bits are the same for any number of threads, but differ between instruction sets.

use crate::{Element, bf16};
use std::any::TypeId;

/// Values that are worked on together: a vector of AVX-512.
pub(crate) const UNIT: usize = 16;

/// The arithmetic in which instruction sets differ.
pub(crate) trait Arithmetic {
    /// `a b + c`: fused where the instruction set has it; elsewhere that would be a slow call.
    fn multiply_add(a: f32, b: f32, c: f32) -> f32;

    /// Each rounded to bf16, to nearest, ties to even.
    #[inline(always)]
    fn round_bf16(values: &[f32; UNIT]) -> [bf16; UNIT] {
        values.map(Element::from_f32)
    }

    /// Words of two bf16, `low` and `high`, each rounded to nearest, ties to even. Infinities stay; so do the NaNs that
    /// arithmetic makes, whose low bits are zero.
    #[inline(always)]
    fn pairs(low: &[f32; UNIT], high: &[f32; UNIT]) -> [u32; UNIT] {
        std::array::from_fn(|lane| bf16_pair(low[lane], high[lane]))
    }

    /// The same of neighbours.
    #[inline(always)]
    fn neighbours(values: &[f32; UNIT]) -> [u32; UNIT / 2] {
        let mut pairs = [0; UNIT / 2];
        for (pair, [low, high]) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
            *pair = bf16_pair(*low, *high);
        }
        pairs
    }
}

/// For bodies compiled with FMA.
pub(crate) struct Fused;

/// For bodies compiled with FMA and AVX-512 BF16, which rounds in one instruction and takes subnormal numbers as zero.
#[cfg(target_arch = "x86_64")]
pub(crate) struct FusedBf16;

/// For every machine.
pub(crate) struct Separate;

impl Arithmetic for Fused {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for FusedBf16 {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn round_bf16(values: &[f32; UNIT]) -> [bf16; UNIT] {
        use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
        // SAFETY: only bodies compiled for AVX-512 BF16 name this type; the array is a vector, and bf16 is its bits.
        unsafe {
            let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
            std::mem::transmute::<__m256bh, [bf16; UNIT]>(halves)
        }
    }

    #[inline(always)]
    fn pairs(low: &[f32; UNIT], high: &[f32; UNIT]) -> [u32; UNIT] {
        use std::arch::x86_64::{
            __m256bh, __m256i, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_loadu_ps, _mm512_or_si512,
            _mm512_slli_epi32,
        };
        // SAFETY: only bodies compiled for AVX-512 BF16 name this type; the arrays are vectors.
        unsafe {
            let bits = |values: &[f32; UNIT]| {
                let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
                _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(halves))
            };
            let words = _mm512_or_si512(bits(low), _mm512_slli_epi32::<16>(bits(high)));
            std::mem::transmute::<__m512i, [u32; UNIT]>(words)
        }
    }

    #[inline(always)]
    fn neighbours(values: &[f32; UNIT]) -> [u32; UNIT / 2] {
        use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
        // SAFETY: only bodies compiled for AVX-512 BF16 name this type; the array is a vector.
        unsafe {
            let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
            std::mem::transmute::<__m256bh, [u32; UNIT / 2]>(halves)
        }
    }
}

impl Arithmetic for Separate {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Compiles `$body::<impl Arithmetic>` for every instruction set; the function made takes an [`crate::Isa`] first.
macro_rules! multiversion_fused {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "one argument more than the body's own")]
        $vis fn $name $(<$t: $bound>)? (isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::fused::{Fused, FusedBf16};
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) { $body::<Fused $(, $t)?>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) { $body::<Fused $(, $t)?>($($arg),*) }
                #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx512_bf16 $(<$t: $bound>)? ($($arg: $ty),*) { $body::<FusedBf16 $(, $t)?>($($arg),*) }
                if isa.has_avx512_bf16() {
                    // SAFETY: an `Isa` with AVX-512 BF16 is only made on a machine that has it.
                    return unsafe { avx512_bf16($($arg),*) };
                } else if isa.has_avx512() {
                    // SAFETY: an `Isa` with AVX-512 is only made on a machine that has it.
                    return unsafe { avx512($($arg),*) };
                } else if isa.has_avx2() {
                    // SAFETY: an `Isa` with AVX2 and FMA is only made on a machine that has them.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = isa;
            $body::<$crate::fused::Separate $(, $t)?>($($arg),*)
        }
    };
}
pub(crate) use multiversion_fused;

/// `2^x` for x up to 128, relative error 2e-7; exactly 1 at 0, infinite at 128, exactly 0 from -127 down, NaN stays NaN.
///
/// Softmax is taken to base 2 because this needs half of the operations of [`crate::math::exp`], and never makes a
/// subnormal number (each costs a hundred cycles on some machines, and every masked score would be one).
/// The polynomial interpolates `(2^r - 1) / r` in the Chebyshev nodes of `[-1/2, 1/2]`.
#[inline(always)]
pub(crate) fn exp2<F: Arithmetic>(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which the low mantissa bits then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = F::multiply_add(r, 0.000_154_531_63, 0.001_339_086_3);
    let p = F::multiply_add(r, p, 0.009_618_083);
    let p = F::multiply_add(r, p, 0.055_503_57);
    let p = F::multiply_add(r, p, 0.240_226_5);
    let p = F::multiply_add(r, p, std::f32::consts::LN_2);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    F::multiply_add(r, p, 1.0) * power
}

/// [`Arithmetic::pairs`] of one pair.
#[inline(always)]
fn bf16_pair(low: f32, high: f32) -> u32 {
    let rounded = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1));
    rounded(low) >> 16 | rounded(high) & 0xffff_0000
}

/// Writes `values` in the format of `out`.
#[inline(always)]
pub(crate) fn write<F: Arithmetic, T: Element>(values: &[f32; UNIT], out: &mut [T; UNIT]) {
    if TypeId::of::<T>() == TypeId::of::<bf16>() {
        *bytemuck::cast_mut::<_, [bf16; UNIT]>(out) = F::round_bf16(values);
    } else {
        *out = values.map(T::from_f32);
    }
}

/// `1 / (1 + 2^t)`: relative error below 4e-7 while the result is normal, exactly 0 from 128 on. NaN stays NaN.
#[inline(always)]
pub(crate) fn sigmoid_of_minus<F: Arithmetic>(t: f32) -> f32 {
    sigmoid_and_rest::<F>(t).0
}

/// [`sigmoid_of_minus`], and what it lacks to 1: where that is small a difference would lose it.
#[inline(always)]
pub(crate) fn sigmoid_and_rest<F: Arithmetic>(t: f32) -> (f32, f32) {
    const LARGE: f32 = 1e38; // infinity times a sigmoid of 0 would be NaN
    let e = exp2::<F>(if t > 128.0 { 128.0 } else { t });
    let s = 1.0 / (1.0 + e);
    (s, s * if e > LARGE { LARGE } else { e })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_right_to_2e_7_and_exact_where_softmax_and_sigmoid_need_it() {
        for i in -126_000..127_000 {
            let x = i as f32 * 1e-3;
            let error = (f64::from(exp2::<Separate>(x)) / f64::from(x).exp2() - 1.0).abs();
            assert!(error <= 2e-7, "{x}: {error}");
        }
        let exact = [0.0, 128.0, -127.0, f32::MIN, f32::NEG_INFINITY].map(exp2::<Separate>);
        assert_eq!(exact, [1.0, f32::INFINITY, 0.0, 0.0, 0.0]);
        assert!(exp2::<Separate>(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_and_its_complement_keep_their_relative_error_where_they_are_small() {
        for i in -1260..=1260 {
            let t = i as f32 * 0.1;
            let want = 1.0 / (1.0 + f64::from(t).exp2());
            let (s, rest) = sigmoid_and_rest::<Separate>(t);
            let error = |got: f32, want: f64| (f64::from(got) / want - 1.0).abs();
            assert!(
                error(s, want) <= 4e-7 && error(rest, 1.0 / (1.0 + f64::from(-t).exp2())) <= 4e-7,
                "{t}: {s}, {rest}"
            );
        }
        let ends = [f32::NEG_INFINITY, -1e30, 128.0, 1e30, f32::INFINITY].map(sigmoid_of_minus::<Separate>);
        assert_eq!(ends, [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(sigmoid_of_minus::<Separate>(f32::NAN).is_nan());
    }
}
