//! Number formats of tensors.

use bytemuck::Pod;
use kernels::{bf16, f16};
use std::fmt;

/// The format of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    BF16,
    /// IEEE half precision: 5 bits of exponent, 10 of fraction; on CPUs arithmetic is f32.
    F16,
    /// Token ids, positions.
    U32,
    /// Targets: -100 is not counted.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }

    /// The name in safetensors headers.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::U32 => "U32",
            DType::I32 => "I32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As users write it: f32, bf16.
        f.write_str(&self.name().to_lowercase())
    }
}

/// A Rust type that is the element of a tensor.
pub trait Scalar: Pod {
    /// Its format.
    const DTYPE: DType;
}

macro_rules! scalar {
    ($($rust:ty => $dtype:ident),*) => { $(impl Scalar for $rust { const DTYPE: DType = DType::$dtype; })* };
}
scalar!(f32 => F32, bf16 => BF16, f16 => F16, u32 => U32, i32 => I32);
