//! Byte-level BPE without the library's detours: the tokenizers of GPT-2, Llama 3, Qwen and most others.
//!
//! The library builds strings with alignments and a token object for every id; on a corpus that is most of the time and all of
//! the memory. Here the text is split by the same regular expression with the same engine, each word is looked up in
//! a memo, and a word not seen before goes to the library's own BPE model. So the ids are the library's, by construction and by
//! test.
//!
//! Taken only where nothing else happens to the text: no normalizer, no space put before the first word, added tokens that are
//! matched as they stand.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::Value;
use tokenizers::Model;
use tokenizers::utils::SysRegex;

use super::file::byte_level_char;

/// What splits words if the file leaves it to the byte-level step.
/// Source: Radford et al. 2019, github.com/openai/gpt-2, `src/encoder.py`.
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Words a memo holds; the most frequent ones come first in any text, and 2^16 cover nearly all of it.
const WORDS_REMEMBERED: usize = 1 << 16;

/// Longer words are seldom seen twice.
const LONGEST_REMEMBERED: usize = 64;

/// Ids of words.
#[derive(Debug, Default)]
struct Memo {
    /// Word to the first of its ids in `ids` and their number.
    words: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

/// How the text of one tokenizer is split.
#[derive(Debug)]
pub(super) struct Words {
    regex: SysRegex,
    /// Added tokens, longest first.
    added: Vec<(String, u32)>,
    /// Whether an added token begins with this byte.
    may_begin: Box<[bool; 256]>,
    /// Memos that no thread uses at the moment: each thread takes one and gives it back.
    memos: Mutex<Vec<Memo>>,
}

impl Words {
    /// `None` if the tokenizer does anything else to the text.
    pub(super) fn new(tokenizer: &Value) -> Option<Self> {
        if !tokenizer["normalizer"].is_null() || tokenizer["model"]["type"] != "BPE" {
            return None;
        }
        let regex = SysRegex::new(word_pattern(&tokenizer["pre_tokenizer"])?).ok()?;
        let no_tokens = Vec::new();
        let tokens = tokenizer["added_tokens"].as_array().unwrap_or(&no_tokens);
        let is_plain = |token: &Value| ["single_word", "lstrip", "rstrip"].iter().all(|flag| token[flag] == false);
        let is_alike = |token: &Value| token["normalized"] == tokens[0]["normalized"];
        if !tokens.iter().all(|token| is_plain(token) && is_alike(token)) {
            return None;
        }
        let added =
            tokens.iter().map(|token| Some((token["content"].as_str()?.to_owned(), token["id"].as_u64()? as u32)));
        let mut added = added.collect::<Option<Vec<_>>>()?;
        added.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        let mut may_begin = Box::new([false; 256]);
        for (content, _) in &added {
            may_begin[usize::from(*content.as_bytes().first()?)] = true;
        }
        Some(Self { regex, added, may_begin, memos: Mutex::new(Vec::new()) })
    }

    /// The ids of `text`; `model` encodes one word.
    pub(super) fn encode(&self, text: &str, model: &impl Model) -> tokenizers::Result<Vec<u32>> {
        let mut memo = self.memos.lock().expect("no thread panics while it holds the memos").pop().unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut from = 0;
        while let Some((at, content, id)) = self.next_added(text, from) {
            self.segment(&text[from..at], model, &mut memo, &mut ids)?;
            ids.push(id);
            from = at + content.len();
        }
        self.segment(&text[from..], model, &mut memo, &mut ids)?;
        self.memos.lock().expect("no thread panics while it holds the memos").push(memo);
        Ok(ids)
    }

    /// The first added token at or after `from`, the longest of those that begin there.
    fn next_added(&self, text: &str, mut from: usize) -> Option<(usize, &str, u32)> {
        loop {
            let at = from + text.as_bytes()[from..].iter().position(|&byte| self.may_begin[usize::from(byte)])?;
            let rest = &text.as_bytes()[at..];
            if let Some((content, id)) = self.added.iter().find(|(content, _)| rest.starts_with(content.as_bytes())) {
                return Some((at, content, *id));
            }
            from = at + 1;
        }
    }

    /// Text between added tokens: the matches of the expression and what lies between them are words.
    fn segment(&self, text: &str, model: &impl Model, memo: &mut Memo, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let done = Cell::new(0);
        let bounds = self.regex.find_iter(text).chain([(text.len(), text.len())]);
        let words = bounds.flat_map(|(start, end)| {
            let before = done.replace(end)..start;
            [before, start..end]
        });
        for word in words.filter(|word| !word.is_empty()) {
            memo.word(&text[word], model, ids)?;
        }
        Ok(())
    }
}

impl Memo {
    fn word(&mut self, word: &str, model: &impl Model, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        if let Some(&(first, len)) = self.words.get(word) {
            ids.extend_from_slice(&self.ids[first as usize..][..len as usize]);
            return Ok(());
        }
        let mapped: String = word.bytes().map(byte_level_char).collect();
        let before = ids.len();
        ids.extend(model.tokenize(&mapped)?.into_iter().map(|token| token.id));
        if word.len() <= LONGEST_REMEMBERED && self.words.len() < WORDS_REMEMBERED {
            self.words.insert(word.into(), (self.ids.len() as u32, (ids.len() - before) as u32));
            self.ids.extend_from_slice(&ids[before..]);
        }
        Ok(())
    }
}

/// The expression that splits words, if splitting and the byte-level alphabet are all that happens before BPE.
fn word_pattern(pre_tokenizer: &Value) -> Option<&str> {
    let is_byte_level = |step: &Value, splits: bool| {
        let use_regex = step["use_regex"].as_bool().unwrap_or(true);
        step["type"] == "ByteLevel" && step["add_prefix_space"] == false && use_regex == splits
    };
    if is_byte_level(pre_tokenizer, true) {
        return Some(GPT2_WORDS);
    }
    let [split, byte_level] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
    let is_split = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
    let pattern = split["pattern"]["Regex"].as_str()?;
    (is_split && is_byte_level(byte_level, false)).then_some(pattern)
}
