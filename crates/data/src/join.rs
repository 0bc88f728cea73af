//! The ids of a long document from overlapping chunks: what cutting must not change.
//!
//! A cut changes what the tokenizer sees: a word, a run of spaces, a special token or a merge may cross it, and many
//! tokenizers treat the start of a text in another way. So each chunk is encoded with [`OVERLAP_BYTES`] of its neighbours on both
//! sides, and the *window*, the text that two neighbouring chunks both see, is encoded once more by itself:
//!
//! ```text
//!   left chunk   ...----------------|====cut====|
//!   window                          |====cut====|
//!   right chunk                     |====cut====|----------------...
//! ```
//!
//! Left chunk and window end at the same character, so their ids agree from the end backwards until the window's
//! missing left context shows. Right chunk and window begin at the same character, so their ids agree until the
//! missing right context shows. Where both agreements overlap by [`AGREED_TOKENS`] or more, three encodings with
//! different context gave the same tokens; the chunks are joined in the middle of that run.
//!
//! For BPE within a word this is a proof: a sequence of tokens is the encoding of its text exactly if every two
//! neighbours are what BPE makes of the two together, and each two neighbours of the joined sequence are neighbours in one of the
//! chunks (the token at the join is in both). For splitting into words it rests on what every splitter in use does: it runs from
//! left to right, looks a bounded distance around, and has forgotten what lies behind the last word border.
//!
//! Where there is no such run (a tokenizer that looks further, a word longer than the overlap), the cut is
//! taken out: the left chunk is encoded again at twice its length, as often as it takes, at worst to the end of the document. No
//! cut is ever made where the chunks disagree.

use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

/// How far a chunk sees beyond its cuts.
pub(crate) const OVERLAP_BYTES: u64 = 1024;

/// The least run of tokens on which both chunks and the window must agree.
const AGREED_TOKENS: usize = 32;

/// A text that can be read in pieces. A range `from..to` covers the characters that begin in it, counted in bytes.
pub(crate) trait Document: Sync {
    /// Length in bytes.
    fn num_bytes(&self) -> u64;
    /// The text of a range.
    fn read(&self, from: u64, to: u64) -> Result<String>;
    /// The file it came from, for errors.
    fn path(&self) -> &std::path::Path;
}

/// The ids of one chunk and of the window around the cut at its left end.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The cuts, in bytes from the start of the document.
    from: u64,
    to: u64,
    /// Ids of the text from an overlap before `from` to an overlap behind `to`.
    ids: Vec<u32>,
    /// Ids of the text an overlap around `from`; empty at the start of the document.
    window: Vec<u32>,
}

/// The cuts of a document: multiples of `chunk_bytes`; the last chunk takes the rest, so that none is short.
pub(crate) fn cuts(num_bytes: u64, chunk_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let num_chunks = (num_bytes / chunk_bytes).max(1);
    (0..num_chunks).map(move |chunk| (chunk * chunk_bytes, end_of(chunk, num_chunks, chunk_bytes, num_bytes)))
}

fn end_of(chunk: u64, num_chunks: u64, chunk_bytes: u64, num_bytes: u64) -> u64 {
    if chunk + 1 == num_chunks { num_bytes } else { (chunk + 1) * chunk_bytes }
}

/// Encodes the chunk between two cuts.
pub(crate) fn encode_chunk(document: &dyn Document, tokenizer: &Tokenizer, from: u64, to: u64) -> Result<Chunk> {
    let overlap = if tokenizer.is_context_free() { 0 } else { OVERLAP_BYTES };
    let around = |from: u64, to: u64| -> Result<Vec<u32>> {
        let end = (to + overlap).min(document.num_bytes());
        tokenizer.encode(&document.read(from.saturating_sub(overlap), end)?)
    };
    let window = if from == 0 || overlap == 0 { Vec::new() } else { around(from, from)? };
    Ok(Chunk { from, to, ids: around(from, to)?, window })
}

/// Joins the chunks of one document as they come, in order.
pub(crate) struct Joiner<'a> {
    document: &'a dyn Document,
    tokenizer: &'a Tokenizer,
    /// The chunk whose right end is not joined yet.
    left: Option<Chunk>,
    /// How many ids of `left` were given out by the chunk before it.
    num_joined: usize,
    /// The start of `left.ids` on which the join before it rests.
    proof: Vec<u32>,
}

impl<'a> Joiner<'a> {
    pub(crate) fn new(document: &'a dyn Document, tokenizer: &'a Tokenizer) -> Self {
        Self { document, tokenizer, left: None, num_joined: 0, proof: Vec::new() }
    }

    /// Takes the next chunk and hands finished ids to `emit`.
    pub(crate) fn push(&mut self, right: Chunk, emit: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        let Some(left) = &self.left else {
            self.left = Some(right);
            return Ok(());
        };
        if right.from < left.to {
            return Ok(()); // an earlier cut was taken out and `left` covers this chunk
        }
        if self.tokenizer.is_context_free() {
            emit(&left.ids)?;
            self.left = Some(right);
            return Ok(());
        }
        match agreement(&left.ids[self.num_joined..], &right.window, &right.ids) {
            Some(join) => {
                emit(&left.ids[self.num_joined..left.ids.len() - (right.window.len() - join)])?;
                self.num_joined = join;
                self.proof = right.window[..join + AGREED_TOKENS / 2].to_vec();
                self.left = Some(right);
                Ok(())
            }
            None => self.take_out_cut(),
        }
    }

    /// Gives out what is left at the end of the document.
    pub(crate) fn finish(self, emit: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        let left = self.left.expect("Joiner::finish: a document has at least one chunk");
        assert!(left.to == self.document.num_bytes(), "Joiner::finish: chunks are missing");
        emit(&left.ids[self.num_joined..])
    }

    fn take_out_cut(&mut self) -> Result<()> {
        let Chunk { from, to, window, .. } = self.left.take().expect("Joiner::take_out_cut: there is a left chunk");
        let num_bytes = self.document.num_bytes();
        let length = to - from;
        // A chunk to come must begin at the new end, so it stays a multiple of the chunk size, unless it is the end.
        let twice = to + length;
        let to = if twice + length > num_bytes { num_bytes } else { twice };
        let longer = encode_chunk(self.document, self.tokenizer, from, to)?;
        if !longer.ids.starts_with(&self.proof) {
            return Err(DataError::NotLocal { path: self.document.path().to_owned(), offset: from });
        }
        self.left = Some(Chunk { window, ..longer });
        Ok(())
    }
}

/// Where in `window` to change from the left chunk to the right one: ids before it come from the left.
fn agreement(left: &[u32], window: &[u32], right: &[u32]) -> Option<usize> {
    let from_end = left.iter().rev().zip(window.iter().rev()).take_while(|(a, b)| a == b).count();
    let from_start = right.iter().zip(window).take_while(|(a, b)| a == b).count();
    let agreed = window.len() - from_end..from_start;
    (agreed.len() >= AGREED_TOKENS).then(|| agreed.start + agreed.len() / 2)
}

/// Encodes a whole document, in chunks if it is long.
pub(crate) fn encode_document(document: &dyn Document, tokenizer: &Tokenizer, chunk_bytes: u64) -> Result<Vec<u32>> {
    let (mut ids, mut joiner) = (Vec::new(), Joiner::new(document, tokenizer));
    let mut emit = |piece: &[u32]| {
        ids.extend_from_slice(piece);
        Ok(())
    };
    for (from, to) in cuts(document.num_bytes(), chunk_bytes) {
        joiner.push(encode_chunk(document, tokenizer, from, to)?, &mut emit)?;
    }
    joiner.finish(&mut emit)?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_in_the_middle_of_a_run_long_enough_and_nowhere_else() {
        let window: Vec<u32> = (0..100).collect();
        let (mut left, mut right) = (window.clone(), window.clone());
        left[39] = 1000; // agrees with the window from 40 on
        right[80] = 1000; // up to 80
        assert_eq!(agreement(&left, &window, &right), Some(60));
        right[71] = 1000; // 31 tokens agreed
        assert_eq!(agreement(&left, &window, &right), None);
        right[20] = 1000;
        assert_eq!(agreement(&left, &window, &right), None);
    }

    #[test]
    fn cuts_cover_the_document_and_no_chunk_is_short() {
        for num_bytes in [0, 1, 9, 10, 19, 20, 25, 100] {
            let all: Vec<(u64, u64)> = cuts(num_bytes, 10).collect();
            assert_eq!((all[0].0, all[all.len() - 1].1), (0, num_bytes));
            assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(all.len() == 1 || all.iter().all(|(from, to)| (10..20).contains(&(to - from))));
        }
    }
}
