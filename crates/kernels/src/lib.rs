//! CPU kernels on slices: no tensors, no devices, no error types.
//!
//! One file is one kernel: the formula, its source, a plain scalar reference in its tests, and one body that is
//! compiled for every instruction set ([`isa`]). Matrix products have hand-written micro-kernels ([`gemm`]).
//!
//! # Conventions
//! - Every kernel takes a [`Cpu`] first: the threads it may use and the instruction set it may use.
//! - Matrices are row-major; a row is one token. Storage is any [`Element`] (`f32`, `bf16`, `f16`); arithmetic is f32.
//! - Work is cut by shape, never by the number of threads, and sums have a fixed order: the same bits come out of any
//!   pool. Except for matrix products, which use fused multiply-add where the machine has it, every instruction set
//!   gives the same bits as well.
//! - Slices that do not fit together are a broken promise of the caller: an `assert!` that names the kernel.
//!
//! `unsafe` lives in this crate alone. Each block says in one sentence why it is sound.

pub mod adafactor;
pub mod aligned;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod element;
pub mod elementwise;
pub mod embedding;
pub mod gelu;
pub mod gemm;
pub mod isa;
pub mod lamb;
pub mod layer_norm;
pub mod math;
pub mod noise;
pub mod normalize;
pub mod peak;
pub mod philox;
pub mod pool;
pub mod quantize;
pub mod reduce;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod scatter_rows;
pub mod silu_mul;
pub mod survey;
pub mod tree_sum;
pub mod update;

mod fused;
mod lanes;
mod rows;
#[cfg(test)]
mod testing;

pub use element::{Element, bf16, f16};
pub use isa::Isa;
pub use pool::Pool;

/// What a kernel may use of the processor: threads and instruction set.
pub struct Cpu {
    /// The threads of this rank.
    pub pool: Pool,
    /// The instruction set kernels are compiled for.
    pub isa: Isa,
}

impl Cpu {
    /// All that this machine has, on `threads` threads (at least 1, the caller included).
    ///
    /// `spin`: whether idle threads may spin briefly before they sleep; only sensible when all ranks together have no
    /// more threads than the machine has cores.
    pub fn new(threads: usize, spin: bool, isa: Isa) -> Self {
        Self { pool: Pool::new(threads, spin), isa }
    }

    /// One thread and the best instruction set: what most tests want.
    pub fn single() -> Self {
        Self::new(1, false, Isa::detect())
    }
}
