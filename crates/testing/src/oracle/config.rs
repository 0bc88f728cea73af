//! The numbers of a model, read from a Hugging Face `config.json`.
//!
//! Only what the oracle computes is accepted; any other value panics by name, so that a test never compares two
//! different models. Defaults are those of Transformers' configuration classes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::rope::Rope;

/// Which rules put the blocks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LayerNorm, learned positions, one matrix for q, k and v, matrices stored `[in, out]`.
    Gpt2,
    /// RMSNorm, RoPE, grouped queries, SwiGLU, matrices stored `[out, in]`; Mistral too.
    Llama,
}

/// The nonlinearity of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `gelu`: `x Phi(x)`.
    GeluErf,
    /// `silu`: `x sigmoid(x)`.
    Silu,
}

/// What the oracle needs to know of a model.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields carry the names that config.json gives them")]
pub struct Config {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub tie_word_embeddings: bool,
    /// A token sees itself and the `sliding_window - 1` before it; `None` sees all before it.
    pub sliding_window: Option<usize>,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    /// `None` for learned positions.
    pub rope: Option<Rope>,
}

impl Config {
    /// Reads a `config.json`, v4 or v5 keys.
    ///
    /// # Panics
    /// If the model is not one of the two families or asks for something the oracle does not compute.
    pub fn read(config: &Value) -> Self {
        match config["model_type"].as_str() {
            Some("gpt2") => Self::gpt2(config),
            Some("llama") => Self::llama(config, None),
            Some("mistral") => {
                // Absent is Transformers' default, null is no window.
                let default = if config.get("sliding_window").is_some() { None } else { Some(4096) };
                Self::llama(config, whole(config, "sliding_window").or(default))
            }
            _ => panic!("oracle: model_type {} is not gpt2, llama or mistral", config["model_type"]),
        }
    }

    fn gpt2(config: &Value) -> Self {
        let hidden_size = whole(config, "n_embd").unwrap_or(768);
        let num_heads = whole(config, "n_head").unwrap_or(12);
        for key in ["resid_pdrop", "embd_pdrop", "attn_pdrop"] {
            // The oracle has no dropout; a missing key means 0.1.
            assert_eq!(number(config, key), Some(0.0), "oracle: {key}");
        }
        Self {
            family: Family::Gpt2,
            vocab_size: whole(config, "vocab_size").unwrap_or(50257),
            hidden_size,
            num_layers: whole(config, "n_layer").unwrap_or(12),
            num_heads,
            num_kv_heads: num_heads,
            head_dim: hidden_size / num_heads,
            intermediate_size: whole(config, "n_inner").unwrap_or(4 * hidden_size),
            max_position_embeddings: whole(config, "n_positions").unwrap_or(1024),
            norm_eps: number(config, "layer_norm_epsilon").unwrap_or(1e-5),
            activation: match config["activation_function"].as_str() {
                None | Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
                Some("gelu") => Activation::GeluErf,
                Some(other) => panic!("oracle: activation_function {other}"),
            },
            attention_bias: true,
            mlp_bias: true,
            tie_word_embeddings: flag(config, "tie_word_embeddings", true),
            sliding_window: None,
            scale_attn_weights: flag(config, "scale_attn_weights", true),
            scale_attn_by_inverse_layer_idx: flag(config, "scale_attn_by_inverse_layer_idx", false),
            rope: None,
        }
    }

    fn llama(config: &Value, sliding_window: Option<usize>) -> Self {
        let required = |key: &str| whole(config, key).unwrap_or_else(|| panic!("oracle: config.json has no {key}"));
        let hidden_size = required("hidden_size");
        let num_heads = required("num_attention_heads");
        let head_dim = whole(config, "head_dim").unwrap_or(hidden_size / num_heads);
        let max_position_embeddings = required("max_position_embeddings");
        let activation = config["hidden_act"].as_str().unwrap_or("silu");
        assert_eq!(activation, "silu", "oracle: hidden_act");
        assert_eq!(number(config, "attention_dropout").unwrap_or(0.0), 0.0, "oracle: attention_dropout");
        Self {
            family: Family::Llama,
            vocab_size: required("vocab_size"),
            hidden_size,
            num_layers: required("num_hidden_layers"),
            num_heads,
            num_kv_heads: whole(config, "num_key_value_heads").unwrap_or(num_heads),
            head_dim,
            intermediate_size: required("intermediate_size"),
            max_position_embeddings,
            norm_eps: number(config, "rms_norm_eps").unwrap_or(1e-6),
            activation: Activation::Silu,
            attention_bias: flag(config, "attention_bias", false),
            mlp_bias: flag(config, "mlp_bias", false),
            tie_word_embeddings: flag(config, "tie_word_embeddings", false),
            sliding_window,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            rope: Some(Rope::read(config, head_dim, max_position_embeddings)),
        }
    }

    /// What the product of a query and a key is multiplied by in a layer.
    pub(super) fn attention_scale(&self, layer: usize) -> f64 {
        let by_width = if self.scale_attn_weights { 1.0 / (self.head_dim as f64).sqrt() } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx { by_width / (layer + 1) as f64 } else { by_width }
    }

    /// Every weight of the model by its Hugging Face name, with its shape as it is stored.
    pub fn parameter_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = match self.family {
            Family::Gpt2 => self.gpt2_shapes(),
            Family::Llama => self.llama_shapes(),
        };
        if !self.tie_word_embeddings {
            shapes.insert("lm_head.weight".into(), vec![self.vocab_size, self.hidden_size]);
        }
        shapes
    }

    fn gpt2_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let mut shapes = BTreeMap::from([
            ("transformer.wte.weight".into(), vec![self.vocab_size, d]),
            ("transformer.wpe.weight".into(), vec![self.max_position_embeddings, d]),
            ("transformer.ln_f.weight".into(), vec![d]),
            ("transformer.ln_f.bias".into(), vec![d]),
        ]);
        for layer in 0..self.num_layers {
            for norm in ["ln_1", "ln_2"] {
                shapes.insert(format!("transformer.h.{layer}.{norm}.weight"), vec![d]);
                shapes.insert(format!("transformer.h.{layer}.{norm}.bias"), vec![d]);
            }
            let matrices = [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, f), ("mlp.c_proj", f, d)];
            for (name, num_in, num_out) in matrices {
                shapes.insert(format!("transformer.h.{layer}.{name}.weight"), vec![num_in, num_out]);
                shapes.insert(format!("transformer.h.{layer}.{name}.bias"), vec![num_out]);
            }
        }
        shapes
    }

    fn llama_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".into(), vec![self.vocab_size, d]),
            ("model.norm.weight".into(), vec![d]),
        ]);
        for layer in 0..self.num_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.insert(format!("model.layers.{layer}.{norm}.weight"), vec![d]);
            }
            let matrices = [
                ("self_attn.q_proj", d, q, self.attention_bias),
                ("self_attn.k_proj", d, kv, self.attention_bias),
                ("self_attn.v_proj", d, kv, self.attention_bias),
                ("self_attn.o_proj", q, d, self.attention_bias),
                ("mlp.gate_proj", d, f, self.mlp_bias),
                ("mlp.up_proj", d, f, self.mlp_bias),
                ("mlp.down_proj", f, d, self.mlp_bias),
            ];
            for (name, num_in, num_out, bias) in matrices {
                shapes.insert(format!("model.layers.{layer}.{name}.weight"), vec![num_out, num_in]);
                if bias {
                    shapes.insert(format!("model.layers.{layer}.{name}.bias"), vec![num_out]);
                }
            }
        }
        shapes
    }
}

/// A number, or `None` if the key is absent or null.
pub(super) fn number(config: &Value, key: &str) -> Option<f64> {
    let value = config.get(key).filter(|value| !value.is_null())?;
    Some(value.as_f64().unwrap_or_else(|| panic!("oracle: {key} is {value}, not a number")))
}

/// A count, or `None` if the key is absent or null.
fn whole(config: &Value, key: &str) -> Option<usize> {
    let value = config.get(key).filter(|value| !value.is_null())?;
    Some(value.as_u64().unwrap_or_else(|| panic!("oracle: {key} is {value}, not a count")) as usize)
}

fn flag(config: &Value, key: &str, default: bool) -> bool {
    match config.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => value.as_bool().unwrap_or_else(|| panic!("oracle: {key} is {value}, not a flag")),
    }
}
