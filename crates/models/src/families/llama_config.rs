//! The keys of a Llama `config.json`. Source: `configuration_llama.py` of Transformers 5.23 (names and defaults).

use serde_json::{Map, Value, json};

use super::config::{FamilyConfig, FamilyKeys};
use super::rope_keys;
use crate::hf::keys::Keys;
use crate::hf::{ConfigError, NameRules};
use crate::layers::rope_table::{RopeScaling, RopeSpec};

/// Sizes and settings of a Llama; the fields carry Hugging Face's names. The activation is always SiLU.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads; a multiple of `num_key_value_heads`.
    pub num_attention_heads: usize,
    /// Key and value heads, each shared by a group of query heads.
    pub num_key_value_heads: usize,
    /// Size of one head, even; need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
}

impl LlamaConfig {
    /// The rotary embedding of every layer.
    pub fn rope(&self) -> RopeSpec {
        RopeSpec { rotary_dim: self.head_dim, theta: self.rope_theta, scaling: self.rope_scaling.clone() }
    }
}

/// How [`super::config::ModelConfig`] reads and writes this family.
pub(super) static KEYS: FamilyKeys = FamilyKeys {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    classifier: "LlamaForSequenceClassification",
    tied_by_default: false,
    default_bos_eos: (1, 2),
    read,
    write,
    inert: &["is_llama_config", "max_sequence_length"],
    names: NameRules {
        prefix: "model.",
        ignored_endings: &["rotary_emb.inv_freq"],
        tied: Some(("lm_head.weight", "model.embed_tokens.weight")),
    },
};

fn read(keys: &Keys<'_>) -> Result<FamilyConfig, ConfigError> {
    keys.only("pretraining_tp", &json!(1))?;
    keys.only("rope_interleaved", &json!(false))?;
    if let Some(act) = keys.value("hidden_act").filter(|act| !["silu", "swish"].contains(&act.as_str().unwrap_or(""))) {
        return Err(keys.wrong("hidden_act", act, "\"silu\""));
    }
    let hidden_size = keys.size("hidden_size")?.unwrap_or(4096);
    let num_attention_heads = keys.size("num_attention_heads")?.unwrap_or(32);
    if !hidden_size.is_multiple_of(num_attention_heads) {
        let rule = format!("it must be a multiple of num_attention_heads {num_attention_heads}");
        return Err(keys.error(format!("hidden_size is {hidden_size}; {rule}")));
    }
    let num_key_value_heads = keys.size("num_key_value_heads")?.unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        let rule = format!("it must be a multiple of num_key_value_heads {num_key_value_heads}");
        return Err(keys.error(format!("num_attention_heads is {num_attention_heads}; {rule}")));
    }
    let max_position_embeddings = keys.size("max_position_embeddings")?.unwrap_or(2048);
    let (rope_theta, rope_scaling) = rope_keys::read(keys, max_position_embeddings)?;
    Ok(FamilyConfig::Llama(LlamaConfig {
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?.unwrap_or(11008),
        num_hidden_layers: keys.size("num_hidden_layers")?.unwrap_or(32),
        num_attention_heads,
        num_key_value_heads,
        head_dim: head_dim(keys, hidden_size / num_attention_heads)?,
        max_position_embeddings,
        rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        attention_bias: keys.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
        attention_dropout: keys.probability("attention_dropout")?.unwrap_or(0.0),
        rope_theta,
        rope_scaling,
    }))
}

/// Rotation works on pairs, so a head has an even size.
fn head_dim(keys: &Keys<'_>, derived: usize) -> Result<usize, ConfigError> {
    match keys.size("head_dim")? {
        Some(odd) if odd % 2 == 1 => Err(keys.error(format!("head_dim is {odd}; it must be even"))),
        Some(head_dim) => Ok(head_dim),
        None if derived % 2 == 1 => {
            Err(keys
                .error(format!("hidden_size / num_attention_heads is {derived}; it must be even, or head_dim given")))
        }
        None => Ok(derived),
    }
}

fn write(family: &FamilyConfig, out: &mut Map<String, Value>) {
    let FamilyConfig::Llama(config) = family else { panic!("llama_config::write: another family's configuration") };
    let Value::Object(keys) = json!({
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": config.mlp_bias,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
    }) else {
        unreachable!("json! of braces is an object")
    };
    out.extend(keys);
    rope_keys::write(config.rope_theta, &config.rope_scaling, out);
}
