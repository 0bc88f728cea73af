//! The Hugging Face folder: what we read a pretrained model from and write a trained one to.
//!
//! A folder holds `config.json` (architecture: [`crate::families::config`]), `generation_config.json` (sampling
//! defaults: [`generation_config`]) and its weights in `model.safetensors`, or in shards listed by
//! `model.safetensors.index.json` ([`weights`] reads, [`writer`] writes, [`names`] fits tensor names to parameters).
//! A parameter keeps its Hugging Face name, shape and orientation everywhere in Bessemer.
//!
//! # Order of events when a model is loaded
//! 1. [`crate::families::config::ModelConfig::from_folder`] reads and checks the configuration.
//! 2. [`weights::WeightFiles::open`] reads the headers alone and holds file lengths against them.
//! 3. [`names::match_weights`] holds names, shapes and types against the parameters: nothing is allocated before
//!    everything fits.
//! 4. [`weights::WeightFiles::read_f32`] reads what the caller owns, one tensor or part of one at a time.
//!
//! Plain Rust on purpose: no tensor type of ours appears here.

pub mod atomic;
pub mod error;
pub mod generation_config;
pub mod keys;
pub mod names;
pub mod weights;
pub mod writer;

pub use error::{ConfigError, HfError};
pub use generation_config::GenerationConfig;
pub use names::{NameRules, WantedWeight, match_weights};
pub use safetensors::Dtype;
pub use weights::{WeightEntry, WeightFiles};
pub use writer::{WeightSpec, WeightWriter, file_header, write_json};
