//! Published shapes by name: `"model": { "preset": "gpt2-124m" }`.
//!
//! Values are those of the published `config.json` files (openai-community/gpt2 and its larger sisters,
//! JackFram/llama-160m, meta-llama/Llama-3.2-1B, meta-llama/Llama-3.1-8B); what they leave out has Transformers' default.

use serde_json::{Value, json};

use super::config::ModelConfig;
use crate::hf::ConfigError;

/// The names of all presets.
pub const NAMES: [&str; 7] = ["gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1.5b", "llama-160m", "llama-1b", "llama-8b"];

/// The configuration called `name`; an error at `place` (`model`) that lists the names if there is none.
pub fn preset(name: &str, place: &str) -> Result<ModelConfig, ConfigError> {
    let config = match name {
        "gpt2-124m" => gpt2(768, 12, 12),
        "gpt2-355m" => gpt2(1024, 24, 16),
        "gpt2-774m" => gpt2(1280, 36, 20),
        "gpt2-1.5b" => gpt2(1600, 48, 25),
        "llama-160m" => json!({
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        }),
        "llama-1b" => llama3(2048, 8192, 16, 32.0, true),
        "llama-8b" => llama3(4096, 14336, 32, 8.0, false),
        _ => {
            let problem = format!("preset is {name:?}; it must be one of {}", NAMES.join(", "));
            return Err(ConfigError { place: place.to_owned(), problem });
        }
    };
    ModelConfig::from_json(&config, place)
}

fn gpt2(n_embd: usize, n_layer: usize, n_head: usize) -> Value {
    json!({"model_type": "gpt2", "vocab_size": 50257, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head})
}

fn llama3(hidden: usize, intermediate: usize, layers: usize, rope_factor: f64, tied: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": 128001,
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": rope_factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    })
}
