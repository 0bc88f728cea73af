//! Ids to text one at a time: what is generated is shown as it comes, whole characters only, spaces kept.
//!
//! Invariant: the pieces of [`DecodeStream::push`] and [`DecodeStream::finish`] joined are [`Tokenizer::decode`] of all ids.
//!
//! Where a token is a string of bytes (`byte`, byte-level BPE) the stream works on bytes and holds back an unfinished
//! character of at most three. Other decoders look at neighbours (a leading space is stripped from the first word only), so there
//! the ids since the last piece are decoded again behind the piece before it, and what is new is the difference.

use super::{Kind, Tokenizer, byte_of, char_of};

/// Tokens after which an unfinished character cannot become one: UTF-8 has at most four bytes.
const LONGEST_CHARACTER: usize = 4;

/// State of a text that is being decoded.
#[derive(Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Ids decoded together: those of the last piece, `num_shown` of them, and those not shown yet.
    ids: Vec<u32>,
    num_shown: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, bytes: Vec::new(), ids: Vec::new(), num_shown: 0 }
    }

    /// Takes the next id; returns the text that is now certain, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        match &self.tokenizer.0 {
            Kind::Char(chars) => return Some(char_of(chars, id).to_string()),
            Kind::Byte => self.bytes.extend_from_slice(byte_of(id)),
            Kind::File(file) if file.is_byte_level => file.bytes_of(id, self.skip_special, &mut self.bytes),
            Kind::File(_) => return self.push_text(id),
        }
        let complete = self.bytes.len() - unfinished(&self.bytes);
        let text = String::from_utf8_lossy(&self.bytes[..complete]).into_owned();
        self.bytes.drain(..complete);
        Some(text).filter(|text| !text.is_empty())
    }

    /// The text held back at the end: an unfinished character, as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned() + &self.unseen();
        self.ids.clear();
        self.num_shown = 0;
        Some(text).filter(|text| !text.is_empty())
    }

    fn push_text(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.unseen();
        let may_grow = text.ends_with('\u{fffd}') && self.ids.len() - self.num_shown < LONGEST_CHARACTER;
        if text.is_empty() || may_grow {
            return None;
        }
        self.ids.drain(..self.num_shown);
        self.num_shown = self.ids.len();
        Some(text)
    }

    /// What the ids not shown add to the text of those before them.
    fn unseen(&self) -> String {
        // Ids that the decoder refuses have no text; a stream goes on after them.
        let decode = |ids| self.tokenizer.decode(ids, self.skip_special).unwrap_or_default();
        let before = decode(&self.ids[..self.num_shown]);
        let all = decode(&self.ids);
        all.strip_prefix(before.as_str()).unwrap_or(&all).to_owned()
    }
}

/// How many bytes at the end are the start of a character that more bytes could complete (0 to 3).
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(LONGEST_CHARACTER - 1)..];
    for start in 0..tail.len() {
        if let Err(error) = std::str::from_utf8(&tail[start..])
            && error.valid_up_to() == 0
            && error.error_len().is_none()
        {
            return tail.len() - start;
        }
    }
    0
}
