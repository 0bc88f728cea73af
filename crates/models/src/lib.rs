//! Models: lists of blocks, their parameters with named axes, and the Hugging Face files they live in.
//!
//! A new family is one file in [`families`] and one line in [`registry`]. Nothing here knows of ranks: layers name the
//! regions of [`ops::Regions`], parameters name the axes of [`param`], and who holds what is decided elsewhere.
//!
//! Shape legend, everywhere in this crate: N packed tokens of one micro-batch, D hidden size, F feed-forward width,
//! V vocabulary, H heads, K key-value heads, hd head width.
#![forbid(unsafe_code)]
#![allow(non_snake_case, reason = "tensor names end in their shape, see the legend")]

pub mod block;
pub mod families;
pub mod hf;
pub mod layers;
pub mod param;
pub mod pass;
pub mod recompute;
pub mod registry;
pub mod task;
pub mod weights;

pub use block::{Block, LinearSpec, Model, ModelBuilder, NamedBlock};
pub use families::ModelConfig;
pub use param::{Dim, Init, ParamSpec};
pub use pass::{Pass, PassOutput, Recorded, Residency, Resident};
pub use recompute::Recompute;
pub use task::{Labels, Task};
