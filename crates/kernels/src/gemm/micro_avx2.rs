//! AVX2 and FMA: tiles of 6 x 16, twelve sums and three operands in the sixteen registers.

use super::is_same;
use super::micro::{MAX_LANES, Simd, entry_points};
use crate::element::{Element, bf16};
use std::arch::x86_64::*;

/// Made only in functions compiled for AVX2, FMA and F16C, which [`crate::Isa`] vouches for: the intrinsics below run
/// where the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

entry_points!(Avx2, "avx2,fma,bmi1,bmi2,f16c");

impl Simd for Avx2 {
    type Reg = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 6;

    #[inline(always)]
    fn zero(self) -> __m256 {
        // SAFETY: an `Avx2` token exists.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(self, words: *const u32) -> __m256 {
        // SAFETY: the caller promises eight words.
        unsafe { _mm256_loadu_ps(words.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, words: *mut u32, reg: __m256) {
        // SAFETY: the caller promises eight words.
        unsafe { _mm256_storeu_ps(words.cast(), reg) }
    }
    #[inline(always)]
    unsafe fn splat(self, word: *const u32) -> __m256 {
        // SAFETY: the caller promises a word.
        unsafe { _mm256_set1_ps(f32::from_bits(*word)) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, acc: __m256) -> __m256 {
        // SAFETY: an `Avx2` token exists.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an `Avx2` token exists.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        let mut lanes = [0.0; 8];
        // SAFETY: the array is eight words long.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), a) };
        let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn read<E: Element>(self, src: *const E, len: usize) -> __m256 {
        if len < 8 {
            let mut part = [E::ZERO; 8];
            // SAFETY: the caller promises `len` elements, and the array is longer.
            return unsafe {
                std::ptr::copy_nonoverlapping(src, part.as_mut_ptr(), len);
                self.read(part.as_ptr(), 8)
            };
        }
        // SAFETY: the caller promises eight elements; the casts are to the type that `E` is.
        unsafe {
            if is_same::<E, f32>() {
                _mm256_loadu_ps(src.cast())
            } else if is_same::<E, bf16>() {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            } else {
                assert_eq!(E::NAME, "F16");
                _mm256_cvtph_ps(_mm_loadu_si128(src.cast()))
            }
        }
    }
    #[inline(always)]
    unsafe fn write<E: Element>(self, dst: *mut E, len: usize, reg: __m256) {
        if len < 8 {
            let mut part = [E::ZERO; 8];
            // SAFETY: the caller promises `len` elements, and the array is longer.
            return unsafe {
                self.write(part.as_mut_ptr(), 8, reg);
                std::ptr::copy_nonoverlapping(part.as_ptr(), dst, len);
            };
        }
        // SAFETY: the caller promises eight elements; the casts are to the type that `E` is.
        unsafe {
            if is_same::<E, f32>() {
                _mm256_storeu_ps(dst.cast(), reg)
            } else if is_same::<E, bf16>() {
                let mut lanes = [0.0; 8];
                _mm256_storeu_ps(lanes.as_mut_ptr(), reg);
                dst.cast::<[bf16; 8]>().write_unaligned(lanes.map(<bf16 as Element>::from_f32))
            } else {
                assert_eq!(E::NAME, "F16");
                _mm_storeu_si128(dst.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(reg))
            }
        }
    }
    #[inline(always)]
    fn transpose(self, block: &mut [__m256; MAX_LANES]) {
        let (mut pairs, mut fours) = (*block, *block);
        // SAFETY: an `Avx2` token exists.
        unsafe {
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(block[2 * i], block[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(block[2 * i], block[2 * i + 1]);
            }
            // fours[4 i + c]: columns c (low half) and c + 4 (high half) of rows 4 i .. 4 i + 4.
            for i in 0..2 {
                fours[4 * i] = _mm256_shuffle_ps::<0x44>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 1] = _mm256_shuffle_ps::<0xee>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 2] = _mm256_shuffle_ps::<0x44>(pairs[4 * i + 1], pairs[4 * i + 3]);
                fours[4 * i + 3] = _mm256_shuffle_ps::<0xee>(pairs[4 * i + 1], pairs[4 * i + 3]);
            }
            for c in 0..4 {
                block[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
                block[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
            }
        }
    }
}
