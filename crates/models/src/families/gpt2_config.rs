//! The keys of a GPT-2 `config.json`. Source: `configuration_gpt2.py` of Transformers 5.23 (names and defaults).

use serde_json::{Map, Value, json};

use super::config::{FamilyConfig, FamilyKeys};
use crate::hf::keys::Keys;
use crate::hf::{ConfigError, NameRules};

/// Sizes and settings of a GPT-2; the fields carry Hugging Face's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the learned position table: the longest sequence.
    pub n_positions: usize,
    /// Width of the residual stream; a multiple of `n_head`.
    pub n_embd: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the feed-forward layer; `None` means four times `n_embd`: see [`inner`](Self::inner).
    pub n_inner: Option<usize>,
    /// The feed-forward activation.
    pub activation_function: Gelu,
    /// Dropout after each projection back into the residual stream.
    pub resid_pdrop: f64,
    /// Dropout after the embeddings.
    pub embd_pdrop: f64,
    /// Dropout on attention probabilities.
    pub attn_pdrop: f64,
    /// Added to the variance in LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Whether scores are divided by the square root of the head size.
    pub scale_attn_weights: bool,
    /// Whether block `i` also divides its scores by `i + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Asks for scores and softmax in f32 under mixed precision. They always are here, so it changes nothing.
    pub reorder_and_upcast_attn: bool,
}

/// The GELU activation by its Hugging Face name. Source: `activations.py` of Transformers 5.23.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `gelu`: `x/2 (1 + erf(x / sqrt 2))`.
    Erf,
    /// `gelu_python`: the same.
    Python,
    /// `gelu_new`: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    New,
    /// `gelu_pytorch_tanh`: the same.
    PytorchTanh,
    /// `gelu_fast`: the same; its ten digits of `sqrt(2/pi)` are the same f32.
    Fast,
    /// `gelu_accurate`: the same.
    Accurate,
}

impl Gelu {
    const ALL: [Self; 6] = [Self::Erf, Self::Python, Self::New, Self::PytorchTanh, Self::Fast, Self::Accurate];

    /// Whether this is the approximation by tanh, rather than the exact function.
    pub fn is_tanh(self) -> bool {
        !matches!(self, Self::Erf | Self::Python)
    }

    /// Hugging Face's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erf => "gelu",
            Self::Python => "gelu_python",
            Self::New => "gelu_new",
            Self::PytorchTanh => "gelu_pytorch_tanh",
            Self::Fast => "gelu_fast",
            Self::Accurate => "gelu_accurate",
        }
    }
}

impl Gpt2Config {
    /// Width of the feed-forward layer.
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Size of one head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What the scores of block `layer` (from 0) are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let by_head = if self.scale_attn_weights { (self.head_dim() as f64).sqrt().recip() } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx { by_head / (layer + 1) as f64 } else { by_head }
    }
}

/// How [`super::config::ModelConfig`] reads and writes this family.
pub(super) static KEYS: FamilyKeys = FamilyKeys {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    classifier: "GPT2ForSequenceClassification",
    tied_by_default: true,
    default_bos_eos: (50256, 50256),
    read,
    write,
    inert: &[
        "n_ctx",
        "output_past",
        "predict_special_tokens",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    names: NameRules {
        prefix: "transformer.",
        ignored_endings: &[".attn.bias", ".attn.masked_bias"],
        tied: Some(("lm_head.weight", "transformer.wte.weight")),
    },
};

fn read(keys: &Keys<'_>) -> Result<FamilyConfig, ConfigError> {
    // Each size has the name of Transformers' `attribute_map` too.
    let config = Gpt2Config {
        n_positions: keys.size_spelt(&["n_positions", "max_position_embeddings"])?.unwrap_or(1024),
        n_embd: keys.size_spelt(&["n_embd", "hidden_size"])?.unwrap_or(768),
        n_layer: keys.size_spelt(&["n_layer", "num_hidden_layers"])?.unwrap_or(12),
        n_head: keys.size_spelt(&["n_head", "num_attention_heads"])?.unwrap_or(12),
        n_inner: keys.size("n_inner")?,
        activation_function: activation(keys)?,
        resid_pdrop: keys.probability("resid_pdrop")?.unwrap_or(0.1),
        embd_pdrop: keys.probability("embd_pdrop")?.unwrap_or(0.1),
        attn_pdrop: keys.probability("attn_pdrop")?.unwrap_or(0.1),
        layer_norm_epsilon: keys.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        scale_attn_weights: keys.flag("scale_attn_weights")?.unwrap_or(true),
        scale_attn_by_inverse_layer_idx: keys.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
        reorder_and_upcast_attn: keys.flag("reorder_and_upcast_attn")?.unwrap_or(false),
    };
    let (n_embd, n_head) = (config.n_embd, config.n_head);
    if !n_embd.is_multiple_of(n_head) {
        return Err(keys.error(format!("n_embd is {n_embd}; it must be a multiple of n_head {n_head}")));
    }
    Ok(FamilyConfig::Gpt2(config))
}

fn activation(keys: &Keys<'_>) -> Result<Gelu, ConfigError> {
    let Some(value) = keys.value("activation_function") else { return Ok(Gelu::New) };
    let known = Gelu::ALL.into_iter().find(|gelu| value.as_str() == Some(gelu.name()));
    known.ok_or_else(|| {
        let names = Gelu::ALL.map(Gelu::name).join(", ");
        keys.wrong("activation_function", value, &format!("one of {names}"))
    })
}

fn write(family: &FamilyConfig, out: &mut Map<String, Value>) {
    let FamilyConfig::Gpt2(config) = family else { panic!("gpt2_config::write: another family's configuration") };
    let Value::Object(keys) = json!({
        "activation_function": config.activation_function.name(),
        "add_cross_attention": false,
        "attn_pdrop": config.attn_pdrop,
        "embd_pdrop": config.embd_pdrop,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "reorder_and_upcast_attn": config.reorder_and_upcast_attn,
        "resid_pdrop": config.resid_pdrop,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "scale_attn_weights": config.scale_attn_weights,
    }) else {
        unreachable!("json! of braces is an object")
    };
    out.extend(keys);
}
