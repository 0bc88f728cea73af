//! Tensors, devices and memory: what every op is made of, without a word about gradients.
//!
//! - [`Tensor`]: a handle on device memory with a dtype and a shape; cloning shares the memory.
//! - [`Queue`]: one device as one rank sees it: its stream of work, its memory and the [`Backend`] that runs kernels.
//! - [`Backend`]: one function per kernel; what a device lacks is refused by name.
//! - [`rng`]: numbers as a function of (seed, name, global index).
//!
//! # Invariants
//! - A kernel call enqueues work; the host sees results only through [`Queue::read`].
//! - A buffer goes back to the queue's allocator when its last handle is dropped, in queue order.
#![forbid(unsafe_code)]

#[macro_use]
mod backend;
mod buffer;
pub mod cpu;
pub mod dry;
mod dtype;
mod memory;
pub mod profile;
mod queue;
pub mod rng;
mod shape;
mod tensor;

pub use backend::*;
pub use buffer::{Buffer, Storage};
pub use dtype::{DType, Scalar};
pub use kernels::attention::{AttentionDropout, AttentionSpec, Segment};
pub use kernels::gelu::Gelu;
pub use kernels::quantize::words as block_words;
pub use kernels::reduce::UNIT as SUM_SQUARES_UNIT;
pub use kernels::survey::{DISTANCE, SURVEY};
pub use kernels::update::{BlockRule, ElementRule, MAX_STATES, States};
pub use kernels::{Isa, bf16, f16};
pub use memory::{Ledger, MemoryKind};
pub use queue::Queue;
pub use shape::Shape;
pub use tensor::Tensor;
