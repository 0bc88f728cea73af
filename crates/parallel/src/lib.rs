//! Models on several ranks: the only crate that knows both.
//!
//! | module | what |
//! | --- | --- |
//! | [`partition`] | which elements of each weight a rank owns |
//! | [`zero`] | gradients summed over ranks, and weights that are gathered while a block runs |
//! | [`sums`] | gradients summed over micro-batches |
//! | [`mod@grad_norm`] | the norm of a gradient that is spread over ranks |
//!
//! # Words
//! A *share* is the range of a weight's elements that one rank owns: its masters and optimizer state are there alone. A block
//! is *home* to the weights it lists first; the gradient of a tied weight is complete when its home has run backward.
#![forbid(unsafe_code)]

mod error;
pub mod grad_norm;
pub mod partition;
pub mod sums;
pub mod zero;

pub use error::{ParallelError, Result};
pub use grad_norm::grad_norm;
pub use partition::{Partition, Stage};
pub use sums::{Order, Sums};
pub use zero::{Owned, Zero, ZeroPass};
