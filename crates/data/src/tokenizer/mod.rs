//! Text to ids and back: by character, by byte, or as any `tokenizer.json` says.
//!
//! - `char`: the sorted characters of the training and validation text, id = rank. No end-of-text token.
//! - `byte`: id = byte value, 256 ids. No end-of-text token.
//! - file: the `tokenizers` library. Special tokens that stand in the text are encoded as such, none is added
//!   (`add_special_tokens = false`); truncation and padding settings of the file are ignored, a corpus is neither.
//!
//! All three are written as a `tokenizer.json` that `tokenizers` and Transformers load ([`Tokenizer::save`]), and an
//! exported `char` or `byte` tokenizer is recognised when it is loaded again, whoever wrote it.
//!
//! Not here: cutting long text into chunks ([`crate::tokenize`]).

mod file;
mod stream;
mod words;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};
use file::FileTokenizer;

pub use stream::DecodeStream;

/// A tokenizer. Cloning shares the tables.
#[derive(Clone, Debug)]
pub struct Tokenizer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Sorted, without duplicates; id = index.
    Char(Arc<[char]>),
    Byte,
    File(Arc<FileTokenizer>),
}

impl Tokenizer {
    /// The character tokenizer of the characters in `texts`.
    pub fn char<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let chars: BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        Self(Kind::Char(chars.into_iter().collect()))
    }

    /// The byte tokenizer.
    pub fn byte() -> Self {
        Self(Kind::Byte)
    }

    /// Reads a `tokenizer.json`, or the one in a folder; files beside it (`tokenizer_config.json`,
    /// `special_tokens_map.json`) say which token ends a text.
    pub fn load(path: &Path) -> Result<Self> {
        file::load(path)
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// A character that a `char` tokenizer does not know; whatever the `tokenizers` library refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.0 {
            Kind::Char(chars) => encode_chars(chars, text),
            Kind::Byte => Ok(text.bytes().map(u32::from).collect()),
            Kind::File(file) => file.encode(text),
        }
    }

    /// The text of `ids`. Bytes that are not UTF-8 and ids out of the vocabulary become U+FFFD (the latter vanish
    /// where the `tokenizers` library decodes). With `skip_special`, special tokens are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &self.0 {
            Kind::Char(chars) => Ok(ids.iter().map(|&id| char_of(chars, id)).collect()),
            Kind::Byte => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| byte_of(id)).copied().collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::File(file) => file.decode(ids, skip_special),
        }
    }

    /// Turns ids into text one by one, as they are generated.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// The largest id + 1: what an embedding table must hold.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Kind::Char(chars) => chars.len(),
            Kind::Byte => 256,
            Kind::File(file) => file.vocab_size,
        }
    }

    /// The token that ends a text, if there is one. For a file: `eos_token` of `tokenizer_config.json` or
    /// `special_tokens_map.json`, else the first of the names in [`Tokenizer::END_OF_TEXT_NAMES`] among its added tokens.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.0 {
            Kind::File(file) => file.end_of_text,
            _ => None,
        }
    }

    /// Names under which the well-known families end a text.
    pub const END_OF_TEXT_NAMES: &[&str] = &[
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
        "<|im_end|>",
        "<|eos|>",
        "[EOS]",
    ];

    /// The id of the token with this exact name.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.0 {
            Kind::File(file) => file.inner.token_to_id(token),
            _ => self.encode(token).ok().filter(|ids| ids.len() == 1).map(|ids| ids[0]),
        }
    }

    /// SHA-256 of what determines the ids: equal hashes, equal ids.
    pub fn hash(&self) -> [u8; 32] {
        match &self.0 {
            Kind::Char(chars) => {
                let chars: String = chars.iter().collect();
                Sha256::new().chain_update("char:").chain_update(chars).finalize().into()
            }
            Kind::Byte => Sha256::digest("byte:").into(),
            Kind::File(file) => file.hash,
        }
    }

    /// Whether any two texts encode to what their concatenation does, so that a cut needs no overlap.
    pub(crate) fn is_context_free(&self) -> bool {
        !matches!(self.0, Kind::File(_))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into `folder` (which must exist): what was loaded, as it was, or the export of
    /// `char` and `byte`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let files = match &self.0 {
            Kind::Char(chars) => file::export_char(chars),
            Kind::Byte => file::export_byte(),
            Kind::File(file) => file.files(),
        };
        for (name, bytes) in files {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(DataError::io(&path, "write"))?;
        }
        Ok(())
    }
}

fn encode_chars(chars: &[char], text: &str) -> Result<Vec<u32>> {
    // ASCII is nearly everything: a table saves the binary search.
    let mut ascii = [u32::MAX; 128];
    for (id, &c) in chars.iter().enumerate().take_while(|(_, c)| c.is_ascii()) {
        ascii[c as usize] = id as u32;
    }
    let id_of = |c: char| match ascii.get(c as usize) {
        Some(&id) => Some(id).filter(|&id| id != u32::MAX),
        None => chars.binary_search(&c).ok().map(|id| id as u32),
    };
    let unknown = |character| DataError::UnknownCharacter { character, known: chars.len() };
    text.chars().map(|c| id_of(c).ok_or_else(|| unknown(c))).collect()
}

fn char_of(chars: &[char], id: u32) -> char {
    chars.get(id as usize).copied().unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte of an id, or the three bytes of U+FFFD for an id that is none.
fn byte_of(id: u32) -> &'static [u8] {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut i = 0;
        while i < 256 {
            bytes[i] = i as u8;
            i += 1;
        }
        bytes
    };
    BYTES.get(id as usize).map_or("\u{fffd}".as_bytes(), std::slice::from_ref)
}
