//! AVX-512: tiles of 14 x 32, 28 sums and three operands in the 32 registers. Multiplies f32; bf16 and f16 become f32
//! while they are packed.

use super::is_same;
use super::micro::{MAX_LANES, Simd, entry_points};
use crate::element::{Element, bf16};
use std::arch::x86_64::*;

/// Made only in functions compiled for AVX-512 F, BW, DQ and VL, which [`crate::Isa`] vouches for: the intrinsics below
/// run where the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

entry_points!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c");

/// The lowest `len` lanes.
#[inline(always)]
pub(super) fn first_lanes(len: usize) -> __mmask16 {
    if len >= 16 { 0xffff } else { (1 << len) - 1 }
}

impl Simd for Avx512 {
    type Reg = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 14;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: an `Avx512` token exists.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(self, words: *const u32) -> __m512 {
        // SAFETY: the caller promises sixteen words.
        unsafe { _mm512_loadu_ps(words.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, words: *mut u32, reg: __m512) {
        // SAFETY: the caller promises sixteen words.
        unsafe { _mm512_storeu_ps(words.cast(), reg) }
    }
    #[inline(always)]
    unsafe fn splat(self, word: *const u32) -> __m512 {
        // SAFETY: the caller promises a word.
        unsafe { _mm512_set1_ps(f32::from_bits(*word)) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: an `Avx512` token exists.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an `Avx512` token exists.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array is sixteen words long.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), a) };
        let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn read<E: Element>(self, src: *const E, len: usize) -> __m512 {
        let mask = first_lanes(len);
        // SAFETY: the caller promises the elements under the mask; the casts are to the type that `E` is.
        unsafe {
            if is_same::<E, f32>() {
                return _mm512_maskz_loadu_ps(mask, src.cast());
            }
            let bits = _mm256_maskz_loadu_epi16(mask, src.cast());
            if is_same::<E, bf16>() {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            } else {
                assert_eq!(E::NAME, "F16");
                _mm512_cvtph_ps(bits)
            }
        }
    }
    #[inline(always)]
    unsafe fn write<E: Element>(self, dst: *mut E, len: usize, reg: __m512) {
        // SAFETY: the caller promises the elements under the mask; the casts are to the type that `E` is.
        unsafe {
            if is_same::<E, f32>() {
                write_words(dst.cast(), len, reg)
            } else if is_same::<E, bf16>() {
                write_halves(dst.cast(), len, round_to_bf16(reg))
            } else {
                assert_eq!(E::NAME, "F16");
                write_halves(dst.cast(), len, _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(reg))
            }
        }
    }
    #[inline(always)]
    fn transpose(self, block: &mut [__m512; MAX_LANES]) {
        // SAFETY: an `Avx512` token exists.
        unsafe { transpose(block) }
    }
}

/// # Safety
/// AVX-512; `min(len, 16)` words may be written.
#[inline(always)]
pub(super) unsafe fn write_words(dst: *mut f32, len: usize, reg: __m512) {
    // SAFETY: as the caller promises. Masked stores are slow on some machines: whole ones go without.
    unsafe { if len >= 16 { _mm512_storeu_ps(dst, reg) } else { _mm512_mask_storeu_ps(dst, first_lanes(len), reg) } }
}

/// # Safety
/// AVX-512; `min(len, 16)` halves may be written.
#[inline(always)]
pub(super) unsafe fn write_halves(dst: *mut i16, len: usize, bits: __m256i) {
    // SAFETY: as the caller promises.
    unsafe {
        if len >= 16 {
            _mm256_storeu_si256(dst.cast(), bits)
        } else {
            _mm256_mask_storeu_epi16(dst, first_lanes(len), bits)
        }
    }
}

/// The bits of `bf16::from_f32` for each lane.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn round_to_bf16(reg: __m512) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = _mm512_castps_si512(reg);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(reg, reg);
        let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x0040));
        _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(rounded), is_nan, quiet))
    }
}

/// Transposes 16 x 16 words: pairs, fours, then quarters of registers.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn transpose(block: &mut [__m512; MAX_LANES]) {
    let (mut pairs, mut fours) = (*block, *block);
    // SAFETY: as the caller promises.
    unsafe {
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(block[2 * i], block[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(block[2 * i], block[2 * i + 1]);
        }
        // fours[4 i + c]: columns c, c + 4, c + 8, c + 12 (one a quarter) of rows 4 i .. 4 i + 4.
        for i in 0..4 {
            fours[4 * i] = _mm512_shuffle_ps::<0x44>(pairs[4 * i], pairs[4 * i + 2]);
            fours[4 * i + 1] = _mm512_shuffle_ps::<0xee>(pairs[4 * i], pairs[4 * i + 2]);
            fours[4 * i + 2] = _mm512_shuffle_ps::<0x44>(pairs[4 * i + 1], pairs[4 * i + 3]);
            fours[4 * i + 3] = _mm512_shuffle_ps::<0xee>(pairs[4 * i + 1], pairs[4 * i + 3]);
        }
        // 0x88 takes quarters 0 and 2 of both operands, 0xdd quarters 1 and 3.
        for c in 0..4 {
            let even_low = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
            let even_high = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
            let odd_low = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
            let odd_high = _mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
            block[c] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
            block[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
            block[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
            block[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
        }
    }
}
