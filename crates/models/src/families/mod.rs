//! Model families: the configuration of each, and how it becomes a list of blocks.

pub mod config;
pub mod gpt2_config;
mod head;
pub mod llama_config;
pub mod presets;
mod rope_keys;

pub mod gpt2;
pub mod llama;

pub use config::{FamilyConfig, ModelConfig, TokenIds};
pub use gpt2_config::{Gelu, Gpt2Config};
pub use llama_config::LlamaConfig;
