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
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
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
}
