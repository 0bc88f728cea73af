//! Documents to samples: `concat` joins them into full rows, `none` makes each a sample.
//!
//! # Words
//! A *target* of position t is the token that the model must predict there, the one at t + 1. Transformers writes the same
//! as labels that the model shifts by one: `labels[t + 1]` here is `targets[t]`; `labels[0]` is used by nobody.
//!
//! # Invariants
//! - Every token of a corpus is a target exactly once, but for the first token of a document, which is none (and, in
//!   training, the tokens of the short last row, which is dropped).
//! - Positions restart at each document, and documents do not see each other: [`Sample::document_starts`].
//! - `concat`: the stream is document, end-of-text, document, ..., document: the token stands between documents, belongs
//!   to the one it ends and is its last target. Rows that came as tokens are joined as they are, without it. Row i
//!   reads tokens i*T to i*T + T of the stream: T inputs, and T targets one further.
//! - `none`: T inputs; the last has no target.

use std::ops::Range;
use std::sync::Arc;

use crate::cache::TokenStore;
use crate::config::Packing;
use crate::soft::SoftLabels;

/// The label of a token that is not counted.
pub const IGNORE: i32 = -100;

/// One row of a batch, without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// `[T]` tokens in.
    pub input_ids: Vec<u32>,
    /// `[T]` the token to predict at each, or [`IGNORE`].
    pub targets: Vec<i32>,
    /// `[T]` position of each token in its document, from 0; a document that an earlier row began restarts at 0 in this row.
    pub positions: Vec<u32>,
    /// Where documents begin, in tokens of this row, ascending; the first is 0.
    pub document_starts: Vec<u32>,
    /// In classification the class of the row; `targets` then count nothing.
    pub class: Option<u32>,
    /// Distributions in place of single targets: `[T]` lists, in classification one.
    pub soft: Option<SoftLabels>,
}

impl Sample {
    /// How many targets count: tokens, or the one class.
    pub fn num_targets(&self) -> usize {
        if self.class.is_some() {
            return 1;
        }
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }
}

/// How the tokens of one source are cut into samples.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) store: Arc<TokenStore>,
    pub(crate) packing: Packing,
    pub(crate) sequence_length: usize,
    /// The token between documents, if any.
    pub(crate) separator: Option<u32>,
    /// Whether a last row shorter than the others counts.
    pub(crate) keep_short: bool,
    /// Whether the label of a document's last token is the document's class.
    pub(crate) has_classes: bool,
}

impl Rows {
    /// Tokens of the stream, separators included.
    pub(crate) fn num_stream_tokens(&self) -> u64 {
        let num_separators = self.store.num_documents().saturating_sub(1) as u64;
        self.store.num_tokens() + if self.separator.is_some() { num_separators } else { 0 }
    }

    pub(crate) fn num_samples(&self) -> u64 {
        match self.packing {
            Packing::None => self.store.num_documents() as u64,
            Packing::Concat => {
                let num_targets = self.num_stream_tokens().saturating_sub(1);
                let length = self.sequence_length as u64;
                if self.keep_short { num_targets.div_ceil(length) } else { num_targets / length }
            }
        }
    }

    pub(crate) fn get(&self, index: u64) -> Sample {
        assert!(index < self.num_samples(), "Rows::get: sample {index} of {}", self.num_samples());
        match self.packing {
            Packing::None => self.document(index as usize),
            Packing::Concat => self.stream_row(index),
        }
    }

    fn document(&self, document: usize) -> Sample {
        let tokens = self.store.document(document);
        let mut sample = Sample { document_starts: vec![0], ..Sample::default() };
        self.store.read_ids(tokens.clone(), &mut sample.input_ids);
        sample.positions = (0..sample.input_ids.len() as u32).collect();
        if self.has_classes {
            return self.classed(sample, tokens);
        }
        if self.store.has_soft() && !tokens.is_empty() {
            let soft = sample.soft.insert(SoftLabels::default());
            self.store.read_soft(tokens.start + 1..tokens.end, soft);
            soft.push([]);
        }
        if !tokens.is_empty() {
            self.store.read_labels(tokens.start + 1..tokens.end, &mut sample.targets);
            sample.targets.push(IGNORE);
        }
        sample
    }

    /// A row of a classifier's data: the label of its last token is its class.
    fn classed(&self, mut sample: Sample, tokens: Range<u64>) -> Sample {
        let (mut labels, last) = (Vec::new(), tokens.end - 1..tokens.end);
        self.store.read_labels(last.clone(), &mut labels);
        sample.targets = vec![IGNORE; sample.input_ids.len()];
        sample.class = Some(labels[0] as u32);
        if self.store.has_soft() {
            let mut soft = SoftLabels::default();
            self.store.read_soft(last, &mut soft);
            sample.soft = Some(soft).filter(|soft| !soft.ids.is_empty());
        }
        sample
    }

    fn stream_row(&self, row: u64) -> Sample {
        let length = self.sequence_length as u64;
        let first = row * length;
        let end = (first + length + 1).min(self.num_stream_tokens());
        let (mut sample, mut labels) = (Sample::default(), Vec::with_capacity(self.sequence_length + 1));
        let mut soft = self.store.has_soft().then(SoftLabels::default);
        let mut document = self.document_at(first);
        let mut at = first;
        while at < end {
            let stream = self.stream_range(document);
            let piece = at..stream.end.min(end);
            document += 1;
            if piece.is_empty() {
                continue; // a document without tokens and without a separator behind it
            }
            sample.document_starts.push((at - first) as u32);
            self.read(document - 1, &stream, piece.clone(), &mut sample.input_ids, &mut labels);
            if let Some(soft) = &mut soft {
                self.read_soft(document - 1, &stream, piece.clone(), soft);
            }
            if at == stream.start {
                labels[(at - first) as usize] = IGNORE;
            }
            sample.positions.extend(0..(piece.end - piece.start) as u32);
            at = piece.end;
        }
        sample.targets = labels.split_off(1);
        sample.soft = soft.map(|soft| soft.range(1..soft.len()));
        sample.input_ids.pop();
        sample.positions.pop();
        let num_inputs = sample.input_ids.len() as u32;
        sample.document_starts.retain(|&start| start < num_inputs);
        sample
    }

    /// Appends ids and labels of `piece` of the stream, which lies within `document`.
    fn read(&self, document: usize, stream: &Range<u64>, piece: Range<u64>, ids: &mut Vec<u32>, labels: &mut Vec<i32>) {
        let tokens = self.store.document(document);
        let token_of = |at: u64| (tokens.start + (at - stream.start)).min(tokens.end);
        let stored = token_of(piece.start)..token_of(piece.end);
        let num_stored = stored.end - stored.start;
        self.store.read_ids(stored.clone(), ids);
        self.store.read_labels(stored, labels);
        if num_stored < piece.end - piece.start {
            let separator = self.separator.expect("only a separator is in the stream and not in the store");
            ids.push(separator);
            labels.push(separator as i32);
        }
    }

    /// Appends a list for each token of `piece` of the stream, which lies within `document`; a separator's is empty.
    fn read_soft(&self, document: usize, stream: &Range<u64>, piece: Range<u64>, soft: &mut SoftLabels) {
        let tokens = self.store.document(document);
        let token_of = |at: u64| (tokens.start + (at - stream.start)).min(tokens.end);
        let stored = token_of(piece.start)..token_of(piece.end);
        let num_stored = stored.end - stored.start;
        self.store.read_soft(stored, soft);
        (num_stored..piece.end - piece.start).for_each(|_| soft.push([]));
    }

    /// Where the tokens of `document` lie in the stream, its separator included.
    fn stream_range(&self, document: usize) -> Range<u64> {
        let tokens = self.store.document(document);
        let is_last = document + 1 == self.store.num_documents();
        match self.separator {
            Some(_) => tokens.start + document as u64..tokens.end + document as u64 + u64::from(!is_last),
            None => tokens,
        }
    }

    /// The first document with a token of the stream at or after `at`.
    fn document_at(&self, at: u64) -> usize {
        let starts = self.store.starts();
        let before = match self.separator {
            Some(_) => partition(starts.len(), |document| starts[document] + document as u64 <= at),
            None => partition(starts.len(), |document| starts[document] <= at),
        };
        before.saturating_sub(1)
    }
}

/// How many of `0..len` satisfy `is_before`, which holds for the first so many of them.
fn partition(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
