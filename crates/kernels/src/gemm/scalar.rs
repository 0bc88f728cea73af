//! The portable kernel: short arrays that the compiler turns into the vectors every machine has. Not fused.

use super::micro::{MAX_LANES, Simd, entry_points};
use crate::element::Element;

#[derive(Clone, Copy)]
pub(super) struct Scalar;

entry_points!(Scalar);

impl Simd for Scalar {
    type Reg = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    fn zero(self) -> Self::Reg {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn load(self, words: *const u32) -> Self::Reg {
        // SAFETY: the caller promises four words.
        unsafe { words.cast::<Self::Reg>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, words: *mut u32, reg: Self::Reg) {
        // SAFETY: the caller promises four words.
        unsafe { words.cast::<Self::Reg>().write_unaligned(reg) }
    }
    #[inline(always)]
    unsafe fn splat(self, word: *const u32) -> Self::Reg {
        // SAFETY: the caller promises a word.
        [f32::from_bits(unsafe { *word }); 4]
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Reg, b: Self::Reg, acc: Self::Reg) -> Self::Reg {
        std::array::from_fn(|i| acc[i] + a[i] * b[i])
    }
    #[inline(always)]
    fn add(self, a: Self::Reg, b: Self::Reg) -> Self::Reg {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sum(self, a: Self::Reg) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn read<E: Element>(self, src: *const E, len: usize) -> Self::Reg {
        // SAFETY: the caller promises `min(len, 4)` elements.
        std::array::from_fn(|i| if i < len { unsafe { *src.add(i) }.to_f32() } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn write<E: Element>(self, dst: *mut E, len: usize, reg: Self::Reg) {
        for (i, value) in reg.into_iter().enumerate().take(len) {
            // SAFETY: the caller promises `min(len, 4)` elements.
            unsafe { *dst.add(i) = E::from_f32(value) };
        }
    }
    #[inline(always)]
    fn transpose(self, block: &mut [Self::Reg; MAX_LANES]) {
        let rows = *block;
        for (i, row) in block.iter_mut().enumerate().take(4) {
            *row = std::array::from_fn(|j| rows[j][i]);
        }
    }
}
