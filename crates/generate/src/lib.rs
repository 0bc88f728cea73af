//! A trained model at work: text generation, log-probabilities of given tokens, loss over a set.
//!
//! - [`LoadedModel`]: a model's files, found and put on a device.
//! - [`Forward`]: everything that running a model forward needs; made by [`LoadedModel::forward`], or by a training engine
//!   from what it holds already. All else here runs on it.
//! - [`Generator`], [`generate`]: tokens one after another with a key-value cache; [`Sampling`] says how one is chosen.
//! - [`score`]: the log-probability of every token. [`evaluate`]: the mean loss, in bounded memory.
//! - [`to_batch`]: rows of the data crate as one packed micro-batch.
//!
//! # Invariants
//! - The same model, prompt, options and seed give the same tokens, whatever the number of threads.
//! - Memory is bounded by the weights, one pass of [`TOKENS_PER_PASS`] tokens (or the longest row) and the cache.
//! - What a user can ask for wrongly is an error before anything runs.
#![forbid(unsafe_code)]

mod batch;
mod confusion;
mod eval;
mod forward;
mod generator;
mod loaded;
mod options;
pub mod sampling;
mod score;

pub use batch::{TOKENS_PER_PASS, check_task, to_batch};
pub use confusion::Confusion;
pub use eval::{Evaluation, LossSum, evaluate};
pub use forward::Forward;
pub use generator::{GenerateError, Generated, Generator, StopReason, generate};
pub use loaded::{LoadError, LoadOptions, LoadedModel, ModelLocation, locate};
pub use options::GenerateOptions;
pub use sampling::Sampling;
pub use score::{ScoreError, Scores, TokenizedRow, score};
