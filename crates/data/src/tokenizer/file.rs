//! `tokenizer.json`: reading any, writing those of `char` and `byte`.
//!
//! `char` is written as BPE without merges, which splits text into its characters; `byte` as BPE without merges over
//! the byte-level alphabet. Both need no regular expression, so every version of the library reads them the same way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::words::Words;
use super::{Kind, Tokenizer};
use crate::error::{DataError, Result};

/// Part of every hash: ids may change with the library.
const LIBRARY: &str = "tokenizers 0.22:";

/// Files beside `tokenizer.json` that belong to it and are kept as they are.
const COMPANIONS: &[&str] = &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// A tokenizer read from a file.
#[derive(Debug)]
pub(super) struct FileTokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    pub(super) vocab_size: usize,
    pub(super) end_of_text: Option<u32>,
    /// Whether tokens are bytes in the byte-level alphabet.
    pub(super) is_byte_level: bool,
    pub(super) hash: [u8; 32],
    /// The short way to the ids, for tokenizers that have one.
    words: Option<Words>,
    /// Name and content of the files as they were read.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl FileTokenizer {
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.words {
            Some(words) => words.encode(text, self.inner.get_model()).map_err(library),
            None => Ok(self.inner.encode_fast(text, false).map_err(library)?.get_ids().to_vec()),
        }
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(library)
    }

    /// Appends the bytes of one token, for a byte-level tokenizer. An id out of the vocabulary has none.
    pub(super) fn bytes_of(&self, id: u32, skip_special: bool, bytes: &mut Vec<u8>) {
        let added = self.inner.get_added_vocabulary();
        let Some(token) = self.inner.id_to_token(id) else { return };
        if skip_special && added.is_special_token(&token) {
            return;
        }
        let mapped: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
        bytes.extend(mapped.unwrap_or_else(|| token.into_bytes()));
    }

    pub(super) fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut files = self.files.clone();
        if files.iter().all(|(name, _)| *name != "tokenizer_config.json") {
            let end_of_text = self.end_of_text.and_then(|id| self.inner.id_to_token(id));
            files.push(("tokenizer_config.json", config_file(end_of_text)));
        }
        files
    }
}

fn library(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer(error.to_string())
}

/// Reads `path`, a `tokenizer.json` or a folder with one.
pub(super) fn load(path: &Path) -> Result<Tokenizer> {
    let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    if !path.exists() {
        return Err(DataError::Missing { path });
    }
    let bytes = std::fs::read(&path).map_err(DataError::io(&path, "read"))?;
    let bad = |problem: String| DataError::TokenizerFile { path: path.clone(), problem };
    let mut value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not valid JSON ({e})")))?;
    if !value.get("model").is_some_and(Value::is_object) {
        return Err(bad("it has no \"model\"".to_owned()));
    }
    if let Some(kind) = recognise(&value) {
        return Ok(Tokenizer(kind));
    }
    // Dropout would give other ids every time, truncation and padding other lengths.
    value["model"]["dropout"] = Value::Null;
    value["truncation"] = Value::Null;
    value["padding"] = Value::Null;
    let inner = tokenizers::Tokenizer::from_bytes(value.to_string()).map_err(|e| bad(e.to_string()))?;
    let largest = inner.get_vocab(true).into_values().max();
    let vocab_size = largest.ok_or_else(|| bad("its vocabulary is empty".to_owned()))? as usize + 1;
    let companions = companions(&path)?;
    let mut hasher = Sha256::new().chain_update(LIBRARY);
    for part in ["model", "normalizer", "pre_tokenizer", "added_tokens"] {
        hasher.update(part);
        hasher.update(value[part].to_string());
    }
    let end_of_text = end_of_text(&inner, &companions);
    let is_byte_level = value["decoder"]["type"] == "ByteLevel";
    let words = Words::new(&value);
    let mut files = vec![("tokenizer.json", bytes)];
    files.extend(companions);
    let hash = hasher.finalize().into();
    let file = FileTokenizer { inner, vocab_size, end_of_text, is_byte_level, hash, words, files };
    Ok(Tokenizer(Kind::File(Arc::new(file))))
}

fn companions(tokenizer: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let beside = |name: &&'static str| -> (PathBuf, &'static str) { (tokenizer.with_file_name(name), name) };
    let present = COMPANIONS.iter().map(beside).filter(|(path, _)| path.is_file());
    present.map(|(path, name)| Ok((name, std::fs::read(&path).map_err(DataError::io(&path, "read"))?))).collect()
}

fn end_of_text(inner: &tokenizers::Tokenizer, companions: &[(&str, Vec<u8>)]) -> Option<u32> {
    let named = companions.iter().filter(|(name, _)| name.ends_with(".json")).find_map(|(_, bytes)| {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let token = &value["eos_token"];
        let name = token.as_str().or_else(|| token["content"].as_str())?;
        inner.token_to_id(name)
    });
    let added = inner.get_added_vocabulary().get_vocab();
    named.or_else(|| Tokenizer::END_OF_TEXT_NAMES.iter().find_map(|name| added.get(*name).copied()))
}

/// The `char` or `byte` tokenizer that `value` is an export of, if it is one.
fn recognise(value: &Value) -> Option<Kind> {
    let model = &value["model"];
    let empty = |part: &Value| part.is_null() || part.as_array().is_some_and(Vec::is_empty);
    if model["type"] != "BPE"
        || ![&model["merges"], &value["normalizer"], &value["added_tokens"]].into_iter().all(empty)
    {
        return None;
    }
    let mut chars = BTreeMap::new();
    for (token, id) in model["vocab"].as_object()? {
        let mut letters = token.chars();
        let (Some(c), None) = (letters.next(), letters.next()) else { return None };
        chars.insert(id.as_u64()?, c);
    }
    let is_dense = chars.keys().copied().eq(0..chars.len() as u64);
    let chars: Arc<[char]> = chars.into_values().collect();
    if !is_dense || chars.is_empty() {
        return None;
    }
    let before = &value["pre_tokenizer"];
    let is_bytes = before["type"] == "ByteLevel" && before["add_prefix_space"] == false && before["use_regex"] == false;
    if is_bytes && chars.iter().eq(ALPHABET.iter()) {
        return Some(Kind::Byte);
    }
    (before.is_null() && value["decoder"]["type"] == "Fuse" && chars.is_sorted()).then_some(Kind::Char(chars))
}

/// The byte-level alphabet of GPT-2: byte to character. Printable Latin-1 characters stand for themselves, the others for
/// U+0100 and on, in order.
static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..) => char::from(byte),
        _ => others.next().expect("68 characters follow U+0100"),
    })
});

pub(super) fn byte_level_char(byte: u8) -> char {
    ALPHABET[usize::from(byte)]
}

fn byte_of_char(c: char) -> Option<u8> {
    static BYTES: LazyLock<BTreeMap<char, u8>> =
        LazyLock::new(|| ALPHABET.iter().enumerate().map(|(byte, &c)| (c, byte as u8)).collect());
    BYTES.get(&c).copied()
}

pub(super) fn export_char(chars: &[char]) -> Vec<(&'static str, Vec<u8>)> {
    export(chars, Value::Null, json!({"type": "Fuse"}))
}

pub(super) fn export_byte() -> Vec<(&'static str, Vec<u8>)> {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    export(&*ALPHABET, byte_level.clone(), byte_level)
}

fn export(chars: &[char], pre_tokenizer: Value, decoder: Value) -> Vec<(&'static str, Vec<u8>)> {
    let vocab: serde_json::Map<_, _> = chars.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    });
    let tokenizer = serde_json::to_vec_pretty(&tokenizer).expect("JSON of strings and numbers");
    vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config_file(None))]
}

/// A `tokenizer_config.json` that makes Transformers take the `tokenizer.json` as it is.
fn config_file(end_of_text: Option<String>) -> Vec<u8> {
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    if let Some(token) = end_of_text {
        config["eos_token"] = Value::String(token);
    }
    serde_json::to_vec_pretty(&config).expect("JSON of strings")
}
