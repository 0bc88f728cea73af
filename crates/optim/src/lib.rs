//! Optimizers and learning-rate schedules: pure rules on the shard of a parameter that a rank owns.
//!
//! No communication happens here, and no rule knows what a rank is: a rule says whether it works element by element or needs
//! whole matrices ([`Granularity`]), and the owner of shards cuts accordingly. A new optimizer is one file.
#![forbid(unsafe_code)]

mod adamw;
mod rule;
pub mod schedule;
mod sgd;

pub use adamw::AdamW;
pub use rule::{Granularity, Optimizer, Shard, Step};
pub use sgd::Sgd;
