//! Differentiable fused operations and the tape that runs them backward.
//!
//! - [`Op`]: forward, backward, shape rule and cost in one type; a type without `backward` is not an op.
//! - [`Cx`]: what a block sees while it runs: tensors in flight, weights by id, the batch, the regions.
//! - [`Segment`]: what one block's forward leaves behind, to be run backward once.
//! - [`Precision`]: the number format of every op, by block and [`Family`]; absent: one format for all.
//! - [`Regions`]: where a tensor crosses into the part of a layer that ranks split. One rank: the identity.
//!
//! One file is one op: its formula, what it saves for backward, its cost.
//!
//! Shape legend, everywhere in this crate: N packed tokens of one micro-batch, D hidden size, F feed-forward width,
//! V vocabulary, H heads, K key-value heads, hd head width.
#![forbid(unsafe_code)]

mod attention;
mod batch;
mod cx;
mod embedding;
mod error;
mod forget;
mod gather_tokens;
mod gelu;
pub mod gradcheck;
mod head;
mod kv_cache;
mod layer_norm;
mod linear;
mod op;
mod param;
mod pool;
mod precision;
mod probe;
mod region;
mod residual;
mod rms_norm;
mod rope;
mod silu_mul;
mod store;
mod tape;

pub use attention::AttentionLayout;
pub use batch::{Batch, Document, KeptTokens};
pub use cx::{Cx, Env, Flow, HeadOutput, HeadRequest};
pub use error::{OpError, ShapeError};
pub use forget::{Kept, RecomputedOp};
pub use kv_cache::KvCache;
pub use linear::{Linear, WeightLayout};
pub use op::{Cost, Op};
pub use param::{GradSlot, ParamId, Params};
pub use precision::{Family, Precision, Saw, Site};
pub use probe::{Probe, RanForward};
pub use region::{Part, Regions, Single};
pub use store::{ParamStore, Role};
pub use tape::{Backward, Segment, Tape, Var};

/// Result of an op.
pub type Result<T> = std::result::Result<T, OpError>;
