//! Models that the tests of this crate run.

#![allow(dead_code, reason = "each test file uses some of it")]

use data::Tokenizer;
use generate::{LoadOptions, LoadedModel};
use models::ModelConfig;
use models::hf::GenerationConfig;
use models::weights::WeightSource;
use serde_json::json;
use tensor::MemoryKind;
use testing::fixtures::Fixture;

/// A model fixture on so many threads.
pub(crate) fn fixture_model(name: &str, threads: usize) -> LoadedModel {
    let options = LoadOptions { threads, ..LoadOptions::default() };
    LoadedModel::open(&Fixture::folder(name), options).expect("a fixture loads")
}

/// A model of bytes, with the byte tokenizer and random weights.
pub(crate) fn byte_model() -> LoadedModel {
    let config = json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 256, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": null, "eos_token_id": null
    });
    let config = ModelConfig::from_json(&config, "test").expect("a good configuration");
    let weights = |_: &_| Ok(WeightSource::Random { seed: 1 });
    let generation = GenerationConfig::default();
    LoadedModel::from_parts(config, Some(Tokenizer::byte()), generation, weights, LoadOptions::default())
        .expect("loads")
}

/// Replaces a weight by `value(row, column)`.
pub(crate) fn set_weight(loaded: &LoadedModel, name: &str, value: impl Fn(usize, usize) -> f32) {
    let id = loaded.model.find(name).expect("a weight of that name");
    let shape = loaded.model.params[id.0 as usize].shape();
    let values: Vec<f32> = (0..shape.elements()).map(|i| value(i / shape.width(), i % shape.width())).collect();
    let weight = loaded.queue.upload(MemoryKind::Weights, shape, &values).expect("memory");
    loaded.store.set_weight(id, Some(weight));
}

/// A model of bytes that, after a byte of `text`, is nearly certain of the one that follows there. No byte comes twice.
pub(crate) fn parrot(text: &str) -> LoadedModel {
    let loaded = byte_model();
    let bytes = text.as_bytes();
    set_weight(&loaded, "model.embed_tokens.weight", |byte, column| f32::from(u8::from(byte == column)));
    set_weight(&loaded, "model.layers.0.self_attn.o_proj.weight", |_, _| 0.0);
    set_weight(&loaded, "model.layers.0.mlp.down_proj.weight", |_, _| 0.0);
    set_weight(&loaded, "lm_head.weight", |next, byte| {
        let follows = bytes.windows(2).any(|pair| usize::from(pair[0]) == byte && usize::from(pair[1]) == next);
        f32::from(u8::from(follows))
    });
    loaded
}
