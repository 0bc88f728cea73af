//! `config.json`: what a model is, read from Hugging Face's keys and written back to them.
//!
//! A family is a typed struct with every key that affects the computation, under Hugging Face's names and with
//! Transformers' defaults. Keys that do not affect it (bookkeeping, sampling defaults) are kept as they are and written
//! back. Everything else is an error by name: a key that would change the computation in a way we do not do, and a key
//! that nobody knows, because it is most likely misspelt.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::gpt2_config::Gpt2Config;
use super::llama_config::LlamaConfig;
use crate::hf::generation_config::ids_to_json;
use crate::hf::keys::Keys;
use crate::hf::{ConfigError, Dtype, HfError, NameRules};
use crate::task::{self, Labels, Task};

/// The name of the file in a folder.
pub const FILE: &str = "config.json";

/// A model's configuration. Plain data; every value has been checked alone and against the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding; `None` means the tokenizer's size (the key is absent or `"auto"`). Resolve it with
    /// [`resolve_vocab_size`](Self::resolve_vocab_size) before building.
    pub vocab_size: Option<usize>,
    /// The special tokens.
    pub tokens: TokenIds,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// What the model is for: which head it has.
    pub task: Task,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The architecture and its sizes.
    pub family: FamilyConfig,
    /// Keys that do not affect the computation, kept for [`to_hf_json`](Self::to_hf_json).
    pub kept: Map<String, Value>,
}

/// The special tokens of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// The first token of a text.
    pub bos: Option<u32>,
    /// Any of these ends a text.
    pub eos: Vec<u32>,
    /// Fills up short rows.
    pub pad: Option<u32>,
}

/// The architecture, one variant per `model_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum FamilyConfig {
    /// `gpt2`.
    Gpt2(Gpt2Config),
    /// `llama`.
    Llama(LlamaConfig),
}

/// What a family tells [`ModelConfig`] about its keys.
pub(super) struct FamilyKeys {
    /// The value of `model_type`.
    pub(super) model_type: &'static str,
    /// The class in `architectures` with a language-model head.
    pub(super) architecture: &'static str,
    /// The one with a classification head.
    pub(super) classifier: &'static str,
    /// Transformers' default of `tie_word_embeddings`.
    pub(super) tied_by_default: bool,
    /// Transformers' defaults of `bos_token_id` and `eos_token_id`.
    pub(super) default_bos_eos: (u32, u32),
    /// Reads the family's own keys.
    pub(super) read: fn(&Keys<'_>) -> Result<FamilyConfig, ConfigError>,
    /// Adds the family's own keys.
    pub(super) write: fn(&FamilyConfig, &mut Map<String, Value>),
    /// Keys of this family's published files that do not affect the computation.
    pub(super) inert: &'static [&'static str],
    /// How its files name weights; `tied` is what a tied head is stored as, and is dropped for an untied one.
    pub(super) names: NameRules<'static>,
}

/// Every family that can be read.
const FAMILIES: [&FamilyKeys; 2] = [&super::gpt2_config::KEYS, &super::llama_config::KEYS];

/// Keys of any `config.json` that do not affect what is computed in training: bookkeeping, other tasks' heads, outputs a
/// caller may ask for, and the sampling defaults that version 4 kept here.
const INERT: &[&str] = &[
    // bookkeeping
    "attn_implementation",
    "finetuning_task",
    "gradient_checkpointing",
    "is_decoder",
    "model_max_length",
    "name_or_path",
    "neftune_noise_alpha",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "tf_legacy_loss",
    // other tasks
    "classifier_dropout",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    // outputs
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "tie_last_hidden_states",
    // tokens that a causal language model does not use
    "cls_token_id",
    "decoder_start_token_id",
    "mask_token_id",
    "sep_token_id",
    "unk_token_id",
    // sampling
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

impl ModelConfig {
    /// Reads the `config.json` of `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self, HfError> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(|e| HfError::io(&path, "read", e))?;
        let value = serde_json::from_str(&text).map_err(|e| HfError::damaged(&path, format!("it is not JSON: {e}")))?;
        Ok(Self::from_json(&value, &path.display().to_string())?)
    }

    /// Reads a `config.json`'s content; `place` names it in errors (`model.config`, or the path of a file).
    pub fn from_json(value: &Value, place: &str) -> Result<Self, ConfigError> {
        let Value::Object(object) = value else {
            return Err(ConfigError { place: place.to_owned(), problem: "it must be a JSON object".to_owned() });
        };
        let keys = Keys::new(object, place);
        let family = family_of(&keys)?;
        refuse_what_no_family_does(&keys)?;
        let vocab_size = match keys.value("vocab_size") {
            Some(Value::String(auto)) if auto == "auto" => None,
            _ => keys.size("vocab_size")?,
        };
        // Known but not kept: `to_hf_json` says them anew.
        keys.text("torch_dtype")?;
        keys.text("dtype")?;
        let initializer_range =
            keys.number("initializer_range", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let config = Self {
            vocab_size,
            tokens: token_ids(&keys, vocab_size, family.default_bos_eos)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(family.tied_by_default),
            initializer_range: initializer_range.unwrap_or(0.02),
            task: task::read(&keys, family.classifier)?,
            family: (family.read)(&keys)?,
            kept: Map::new(),
        };
        let inert: Vec<&str> = INERT.iter().chain(family.inert).copied().collect();
        let kept = keys.rest(&inert, &format!("a {} configuration", family.model_type))?;
        Ok(Self { kept, ..config })
    }

    /// The configuration as the `config.json` that Transformers 5 and 4 load, its weights stored as `dtype`.
    ///
    /// Keys are sorted, as Transformers writes them. Without a resolved `vocab_size` the key is absent.
    pub fn to_hf_json(&self, dtype: Dtype) -> Value {
        let family = self.keys();
        let mut out = self.kept.clone();
        let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
        let is_classifier = self.task.labels().is_some();
        set("architectures", json!([if is_classifier { family.classifier } else { family.architecture }]));
        set("model_type", json!(family.model_type));
        set("dtype", json!(torch_name(dtype)));
        set("bos_token_id", json!(self.tokens.bos));
        set("eos_token_id", ids_to_json(&self.tokens.eos));
        set("pad_token_id", json!(self.tokens.pad));
        set("tie_word_embeddings", json!(self.tie_word_embeddings));
        set("initializer_range", json!(self.initializer_range));
        if let Some(vocab_size) = self.vocab_size {
            set("vocab_size", json!(vocab_size));
        }
        (family.write)(&self.family, &mut out);
        if let Some(labels) = self.task.labels() {
            task::write(labels, &mut out);
        }
        out.sort_keys();
        Value::Object(out)
    }

    /// Settles `vocab_size`: the tokenizer's size if the configuration left it open.
    ///
    /// A vocabulary smaller than the tokenizer is an error at `place`; a larger one is common (padded tables).
    pub fn resolve_vocab_size(&mut self, tokenizer_size: usize, place: &str) -> Result<usize, ConfigError> {
        let vocab_size = *self.vocab_size.get_or_insert(tokenizer_size);
        if vocab_size < tokenizer_size {
            let problem = format!("vocab_size is {vocab_size}; it must be at least the tokenizer's {tokenizer_size}");
            return Err(ConfigError { place: place.to_owned(), problem });
        }
        Ok(vocab_size)
    }

    /// Makes it a classifier. Where it has no padding token the one that ends a text becomes it, as is the custom:
    /// Transformers runs a classifier on several rows at once only if it has one.
    pub fn classify(&mut self, labels: Labels) {
        self.task = Task::SequenceClassification(labels);
        self.tokens.pad = self.tokens.pad.or(self.tokens.eos.first().copied());
        // What a language model's file said of its labels meant nothing.
        for key in ["id2label", "label2id", "num_labels", "problem_type"] {
            self.kept.shift_remove(key);
        }
    }

    /// Turns every dropout off, for measurements.
    pub fn disable_dropout(&mut self) {
        match &mut self.family {
            FamilyConfig::Gpt2(gpt2) => (gpt2.resid_pdrop, gpt2.embd_pdrop, gpt2.attn_pdrop) = (0.0, 0.0, 0.0),
            FamilyConfig::Llama(llama) => llama.attention_dropout = 0.0,
        }
    }

    /// The value of `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.keys().model_type
    }

    /// How files of this model may differ from its parameter names.
    pub fn name_rules(&self) -> NameRules<'static> {
        let names = self.keys().names.clone();
        NameRules { tied: names.tied.filter(|_| self.tie_word_embeddings), ..names }
    }

    /// The longest sequence the model has positions for.
    pub fn max_positions(&self) -> usize {
        match &self.family {
            FamilyConfig::Gpt2(gpt2) => gpt2.n_positions,
            FamilyConfig::Llama(llama) => llama.max_position_embeddings,
        }
    }

    fn keys(&self) -> &'static FamilyKeys {
        match &self.family {
            FamilyConfig::Gpt2(_) => &super::gpt2_config::KEYS,
            FamilyConfig::Llama(_) => &super::llama_config::KEYS,
        }
    }
}

fn family_of(keys: &Keys<'_>) -> Result<&'static FamilyKeys, ConfigError> {
    let known = FAMILIES.map(|family| family.model_type).join(", ");
    let Some(model_type) = keys.text("model_type")? else {
        return Err(keys.error(format!("model_type is missing; it must be one of {known}")));
    };
    let family = FAMILIES.into_iter().find(|family| family.model_type == model_type);
    family.ok_or_else(|| keys.error(format!("model_type is {model_type:?}; it must be one of {known}")))
}

/// Keys of Transformers' base class that would change the computation.
fn refuse_what_no_family_does(keys: &Keys<'_>) -> Result<(), ConfigError> {
    for key in ["add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"] {
        keys.only(key, &json!(false))?;
    }
    keys.only("chunk_size_feed_forward", &json!(0))?;
    keys.only("pruned_heads", &json!({}))?;
    for key in ["cross_attention_hidden_size", "per_layer_config", "quantization_config", "auto_map"] {
        keys.absent(key)?;
    }
    Ok(())
}

/// An absent key means Transformers' default if the vocabulary has that token, a null one no token.
fn token_ids(
    keys: &Keys<'_>,
    vocab_size: Option<usize>,
    (default_bos, default_eos): (u32, u32),
) -> Result<TokenIds, ConfigError> {
    let exists = |id: &u32| vocab_size.is_some_and(|size| (*id as usize) < size);
    let default = |key, id: u32| if keys.has(key) { None } else { Some(id).filter(exists) };
    let eos = match keys.token_ids("eos_token_id")? {
        Some(eos) => eos,
        None => default("eos_token_id", default_eos).into_iter().collect(),
    };
    let bos = keys.token_id("bos_token_id")?.or_else(|| default("bos_token_id", default_bos));
    Ok(TokenIds { bos, eos, pad: keys.token_id("pad_token_id")? })
}

/// What PyTorch calls a type.
fn torch_name(dtype: Dtype) -> String {
    match dtype {
        Dtype::F32 => "float32".to_owned(),
        Dtype::BF16 => "bfloat16".to_owned(),
        Dtype::F16 => "float16".to_owned(),
        Dtype::F64 => "float64".to_owned(),
        other => panic!("ModelConfig::to_hf_json: weights are not stored as {other}"),
    }
}
