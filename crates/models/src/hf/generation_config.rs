//! `generation_config.json`: the sampling defaults that a model comes with.
//!
//! Values here silently change how a model is sampled (temperature 0.6 and top-p 0.9 for Llama 3 Instruct), so they are
//! read; keys we do not know are kept and otherwise left alone, because the file mixes bookkeeping with settings.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::HfError;
use super::keys::Keys;

/// The name of the file in a folder.
pub const FILE: &str = "generation_config.json";

/// What `generation_config.json` says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample at all; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Logits are divided by this.
    pub temperature: Option<f64>,
    /// Only this many likeliest tokens are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens of this total probability are kept.
    pub top_p: Option<f64>,
    /// Only tokens of at least this share of the likeliest one's probability are kept.
    pub min_p: Option<f64>,
    /// Divides positive logits and multiplies negative ones of tokens seen before.
    pub repetition_penalty: Option<f64>,
    /// How many tokens to make at most.
    pub max_new_tokens: Option<usize>,
    /// How long prompt and new tokens may be together.
    pub max_length: Option<usize>,
    /// The first token of a text.
    pub bos_token_id: Option<u32>,
    /// Any of these ends the text. `Some` of an empty list where the file says that none does.
    pub eos_token_ids: Option<Vec<u32>>,
    /// The token that fills up short rows.
    pub pad_token_id: Option<u32>,
    /// All keys of the file, so that it can be written again.
    pub keys: Map<String, Value>,
}

impl GenerationConfig {
    /// Reads the file of `folder`; the default if there is none.
    pub fn from_folder(folder: &Path) -> Result<Self, HfError> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(HfError::io(&path, "read", e)),
        };
        let value: Value =
            serde_json::from_str(&text).map_err(|e| HfError::damaged(&path, format!("it is not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(HfError::damaged(&path, "it must be a JSON object"));
        };
        Self::from_object(object, &path.display().to_string())
    }

    fn from_object(object: Map<String, Value>, place: &str) -> Result<Self, HfError> {
        let keys = Keys::new(&object, place);
        let count = |key| keys.number(key, "a whole number of at least 0", |n| n >= 0.0 && n.fract() == 0.0);
        let config = Self {
            do_sample: keys.flag("do_sample")?,
            temperature: keys.number("temperature", "a number of at least 0", |t| t >= 0.0)?,
            top_k: count("top_k")?.map(|k| k as usize),
            top_p: keys.number("top_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?,
            min_p: keys.number("min_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?,
            repetition_penalty: keys.positive("repetition_penalty")?,
            max_new_tokens: count("max_new_tokens")?.map(|n| n as usize),
            max_length: count("max_length")?.map(|n| n as usize),
            bos_token_id: keys.token_id("bos_token_id")?,
            eos_token_ids: keys.token_ids("eos_token_id")?,
            pad_token_id: keys.token_id("pad_token_id")?,
            keys: Map::new(),
        };
        Ok(Self { keys: object, ..config })
    }

    /// The file as Transformers writes it for a model that came without one: the special tokens alone.
    pub fn for_tokens(bos: Option<u32>, eos: &[u32], pad: Option<u32>) -> Self {
        let mut keys = Map::new();
        keys.insert("_from_model_config".to_owned(), json!(true));
        keys.insert("bos_token_id".to_owned(), json!(bos));
        keys.insert("eos_token_id".to_owned(), ids_to_json(eos));
        keys.insert("pad_token_id".to_owned(), json!(pad));
        keys.retain(|_, value| !value.is_null());
        Self {
            bos_token_id: bos,
            eos_token_ids: (!eos.is_empty()).then(|| eos.to_vec()),
            pad_token_id: pad,
            keys,
            ..Self::default()
        }
    }

    /// The file's content.
    pub fn to_hf_json(&self) -> Value {
        Value::Object(self.keys.clone())
    }
}

/// Token ids as Transformers spells them: null, one number or a list.
pub(crate) fn ids_to_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        many => json!(many),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<GenerationConfig, HfError> {
        let Value::Object(object) = value else { panic!("an object") };
        GenerationConfig::from_object(object, "generation_config.json")
    }

    #[test]
    fn the_file_of_an_instruct_model_is_read_and_written_again() {
        let file = json!({
            "bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128008, 128009], "temperature": 0.6,
            "top_p": 0.9, "transformers_version": "4.45.0.dev0", "cache_implementation": "static"
        });
        let config = parse(file.clone()).unwrap();
        assert_eq!(config.temperature, Some(0.6));
        assert_eq!(config.top_p, Some(0.9));
        assert_eq!(config.top_k, None);
        assert_eq!(config.eos_token_ids, Some(vec![128001, 128008, 128009]));
        assert_eq!(config.to_hf_json(), file);
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = parse(json!({"top_k": "fifty"})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "generation_config.json: top_k is \"fifty\"; it must be a whole number of at least 0"
        );
    }

    #[test]
    fn a_folder_without_the_file_sets_nothing() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert_eq!(GenerationConfig::from_folder(&folder).unwrap(), GenerationConfig::default());
    }
}
