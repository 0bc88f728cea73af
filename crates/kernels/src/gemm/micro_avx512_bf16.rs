//! AVX-512 BF16: tiles of 14 x 32 as in [`super::micro_avx512`], but a word is a pair of bf16 that follow each other
//! along k and `vdpbf16ps` adds both products: two multiply-adds a lane.
//!
//! The instruction takes subnormal inputs as zero and flushes subnormal results; so does the rounding to bf16.

use super::is_same;
use super::micro::{MAX_LANES, Simd, entry_points};
use super::micro_avx512::{Avx512, first_lanes, write_halves};
use crate::element::{Element, bf16};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Made only in functions compiled for AVX-512 F, BW, DQ, VL and BF16, which [`crate::Isa`] vouches for: the intrinsics
/// below run where the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Avx512Bf16;

// Of products of bf16 alone, which `gemm` sees to.
entry_points!(Avx512Bf16, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c");

impl Simd for Avx512Bf16 {
    type Reg = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 14;
    const K_PER_WORD: usize = 2;

    #[inline(always)]
    fn zero(self) -> __m512 {
        Avx512.zero()
    }
    #[inline(always)]
    unsafe fn load(self, words: *const u32) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { Avx512.load(words) }
    }
    #[inline(always)]
    unsafe fn store(self, words: *mut u32, reg: __m512) {
        // SAFETY: as the caller promises.
        unsafe { Avx512.store(words, reg) }
    }
    #[inline(always)]
    unsafe fn splat(self, word: *const u32) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { Avx512.splat(word) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: an `Avx512Bf16` token exists; `__m512bh` is the same 512 bits.
        unsafe { _mm512_dpbf16_ps(acc, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
    }
    #[inline(always)]
    fn mul_add_f32(self, a: __m512, b: __m512, acc: __m512) -> __m512 {
        Avx512.mul_add(a, b, acc)
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        Avx512.add(a, b)
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        Avx512.sum(a)
    }
    #[inline(always)]
    unsafe fn read<E: Element>(self, src: *const E, len: usize) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { Avx512.read(src, len) }
    }
    #[inline(always)]
    unsafe fn write<E: Element>(self, dst: *mut E, len: usize, reg: __m512) {
        // SAFETY: as the caller promises; `__m256bh` is the same bits as sixteen bf16.
        unsafe {
            if is_same::<E, bf16>() {
                write_halves(dst.cast(), len, transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(reg)))
            } else {
                Avx512.write(dst, len, reg)
            }
        }
    }
    #[inline(always)]
    fn transpose(self, block: &mut [__m512; MAX_LANES]) {
        Avx512.transpose(block)
    }
    #[inline(always)]
    unsafe fn along_k<T: Element>(self, src: *const T, k_left: usize) -> __m512 {
        debug_assert!(is_same::<T, bf16>());
        let mask = if k_left >= 32 { u32::MAX } else { (1 << k_left) - 1 };
        // SAFETY: the caller promises the elements under the mask.
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, src.cast())) }
    }
    #[inline(always)]
    unsafe fn across<T: Element>(self, src: *const T, k_stride: usize, k_left: usize, lines: usize) -> __m512 {
        debug_assert!(is_same::<T, bf16>());
        let mask = first_lanes(lines);
        // SAFETY: the caller promises the elements under the mask, of the second row only where `k_left` counts it.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, src.cast()));
            if k_left < 2 {
                return _mm512_castsi512_ps(low);
            }
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, src.add(k_stride).cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }
}
