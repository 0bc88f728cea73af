//! Optimizers and learning-rate schedules: pure rules on the shard of a parameter that a rank owns.
//!
//! No communication happens here, and no rule knows what a rank is: a rule says whether it works element by element or needs
//! whole parameters ([`Granularity`]), and the owner of shards cuts accordingly.
//!
//! A new optimizer is one file with its settings, its formula and its [`Optimizer`]; an element-wise one writes its formula
//! for one element ([`ElementRule`]) and leaves the pass over memory, vector code and the formats of its states to
//! [`Shard::update`]. A run file knows it by a line in `crates/train/src/config/rules.rs` and its keys in the table.
//!
//! # Conventions
//! - Settings are f64, as the run file has them: `1 - beta` is what counts, and in f32 it is off by 5e-5 for 0.999.
//!   Arithmetic on elements is f32.
//! - Names of settings and states, and the order of operations, are PyTorch's; DeepSpeed's where PyTorch has no such rule.
//! - States are zero before the first step.
#![forbid(unsafe_code)]

mod adadelta;
mod adafactor;
mod adagrad;
mod adamax;
mod adamw;
mod average;
mod gradient;
mod lamb;
mod lion;
mod muon;
mod nadam;
mod radam;
mod rmsprop;
mod rule;
pub mod schedule;
mod schedule_free;
mod sgd;

pub use adadelta::Adadelta;
pub use adafactor::Adafactor;
pub use adagrad::Adagrad;
pub use adamax::Adamax;
pub use adamw::AdamW;
pub use average::average;
pub use gradient::GradientEdit;
pub use lamb::Lamb;
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use nadam::NAdam;
pub use radam::RAdam;
pub use rmsprop::RmsProp;
pub use rule::{AVERAGE, Granularity, Moments, Optimizer, Shard, State, Step};
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;
pub use tensor::{ElementRule, States};
