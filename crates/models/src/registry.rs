//! From a configuration to a model: one line a family.

use crate::block::Model;
use crate::families::{FamilyConfig, ModelConfig, gpt2, llama};

/// Builds the model of a configuration whose vocabulary size is settled. Shapes only: nothing is allocated.
///
/// `positions`: the longest row that will be run, at most the model's own; rotary tables are made for so many.
///
/// # Panics
/// If `vocab_size` is still open: see [`ModelConfig::resolve_vocab_size`].
pub fn build(config: &ModelConfig, positions: usize) -> Model {
    let vocab_size = config.vocab_size.expect("registry::build: vocab_size is settled first");
    match &config.family {
        FamilyConfig::Gpt2(family) => gpt2::build(config, family, vocab_size),
        FamilyConfig::Llama(family) => llama::build(config, family, vocab_size, positions),
    }
}
