//! The number formats a kernel reads and writes. Arithmetic is f32 throughout.

use bytemuck::Pod;
pub use half::{bf16, f16};

/// A storage format: converted to f32 when read, rounded to nearest (ties to even) when written.
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// The name in safetensors headers and in messages: `F32`, `BF16`, `F16`.
    const NAME: &'static str;
    /// Zero.
    const ZERO: Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even; overflow gives infinity.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const NAME: &'static str = "F32";
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const NAME: &'static str = "BF16";
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without branches, so that loops over it vectorise; `half`'s own conversion branches on NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A NaN whose payload is in the low half would round to infinity: keep the sign and set the quiet bit.
        let nan = (bits >> 16) | 0x0040;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }
}

impl Element for f16 {
    const NAME: &'static str = "F16";
    const ZERO: Self = f16::ZERO;
    /// Without branches, so that loops over it vectorise; `half`'s own conversion asks for the machine's each time.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent's bias differs by 112; the product is exact for subnormal numbers as well.
        let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
        let magnitude = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { finite };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let (sign, magnitude) = (value.to_bits() & 0x8000_0000, value.to_bits() & 0x7fff_ffff);
        // Bias 112 lower, 13 bits of fraction less; a carry runs into the exponent, up to infinity.
        let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
        // One unit in the last place of 0.5 is the smallest f16: the sum rounds, and its low bits are the result.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let large = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let bits = if magnitude >= 143 << 23 { large } else { finite };
        f16::from_bits((bits | sign >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does_for_every_exponent_and_both_ties() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (got, want) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
                assert!(got == want || got.is_nan() && want.is_nan(), "{value:e}: got {got}, want {want}");
            }
        }
    }

    #[test]
    fn f16_converts_as_the_half_crate_does_for_every_f16_and_every_exponent_and_tie() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (got, want) = (Element::to_f32(half), half.to_f32());
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{bits:#x}: got {got}, want {want}"
            );
        }
        for high in 0..=u32::MAX >> 12 {
            for low in [0u32, 1, 0x7ff, 0x800, 0x801, 0xfff] {
                let value = f32::from_bits(high << 12 | low);
                let (got, want) = (<f16 as Element>::from_f32(value), f16::from_f32(value));
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{value:e}: got {got}");
            }
        }
    }
}
