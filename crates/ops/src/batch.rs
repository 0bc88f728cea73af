//! The tokens of one micro-batch, packed one row after another.

use crate::{Env, Result};
use std::sync::Arc;
use tensor::{MemoryKind, Queue, Segment, SoftTargets, Tensor};

/// A run of tokens that see each other: a document, or the part of one that lies in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document {
    /// Tokens.
    pub len: usize,
    /// Sample in the global batch.
    pub sample: u32,
    /// Position of the first token in its row (dropout draws by it).
    pub row_position: u32,
    /// Position of the first token in the document as the model counts it: 0, or what a cache already holds.
    pub position: u32,
}

/// The tokens of one micro-batch. N tokens in all; the documents cover them in order.
pub struct Batch {
    /// Number of tokens, N.
    pub num_tokens: usize,
    /// u32 `[N]`.
    pub ids: Tensor,
    /// u32 `[N]`: position in the document.
    pub positions: Tensor,
    /// u32 `[N]`: position in the row.
    pub row_positions: Tensor,
    /// u32 `[N]`: sample in the global batch.
    pub samples: Tensor,
    /// i32 `[N]`: the token to predict after each; negative: not counted. `None` when only logits are wanted. Under
    /// classification `[documents]`: the class of each.
    pub targets: Option<Tensor>,
    /// Distributions to predict instead of single tokens, one list a target.
    pub soft_targets: Option<SoftTargets<Tensor>>,
    /// Which queries see which keys.
    pub segments: Arc<[Segment]>,
    /// Targets that count.
    pub num_targets: usize,
}

impl Batch {
    /// # Panics
    /// If the documents do not cover the tokens, or `targets` has another length.
    pub fn new(queue: &Queue, ids: &[u32], targets: Option<&[i32]>, documents: &[Document]) -> Result<Self> {
        let num_tokens = ids.len();
        let covered: usize = documents.iter().map(|d| d.len).sum();
        assert!(covered == num_tokens, "Batch::new: documents cover {covered} of {num_tokens} tokens");
        assert!(targets.is_none_or(|t| t.len() == num_tokens), "Batch::new: as many targets as tokens");
        let per_token = |f: fn(&Document, u32) -> u32| -> Vec<u32> {
            documents.iter().flat_map(|d| (0..d.len as u32).map(move |i| f(d, i))).collect()
        };
        let upload = |data: &[u32]| queue.upload(MemoryKind::Activations, [num_tokens], data);
        let mut start = 0;
        let segments = documents.iter().map(|d| {
            let q_start = start;
            start += d.len;
            let position = d.position as usize;
            Segment {
                q_start,
                q_len: d.len,
                k_start: q_start,
                k_len: d.len,
                q_position: position,
                k_position: position,
                sample: d.sample,
                row_position: d.row_position,
            }
        });
        let segments = segments.collect();
        Ok(Self {
            num_tokens,
            ids: upload(ids)?,
            positions: upload(&per_token(|d, i| d.position + i))?,
            row_positions: upload(&per_token(|d, i| d.row_position + i))?,
            samples: upload(&per_token(|d, _| d.sample))?,
            targets: targets.map(|t| queue.upload(MemoryKind::Activations, [num_tokens], t)).transpose()?,
            soft_targets: None,
            segments,
            num_targets: targets.map_or(0, |t| t.iter().filter(|&&t| t >= 0).count()),
        })
    }

    /// The same tokens with a class to predict for each document in place of a token after each token.
    ///
    /// # Panics
    /// If there is not one class a document.
    pub fn with_classes(self, queue: &Queue, classes: &[i32]) -> Result<Self> {
        let documents = self.segments.len();
        assert_eq!(classes.len(), documents, "Batch::with_classes: one class for each document");
        let targets = Some(queue.upload(MemoryKind::Activations, [documents], classes)?);
        Ok(Self { targets, num_targets: classes.iter().filter(|class| **class >= 0).count(), ..self })
    }
}

/// Some of a micro-batch's tokens, on which a block runs by themselves: R of N.
///
/// Each keeps its position (rotary angles, dropout) and sees the kept tokens of its document up to itself. A window counts
/// kept tokens, and dropout of probabilities draws by their order.
pub struct KeptTokens {
    /// u32 `[R]`: their numbers in the whole batch, ascending.
    pub rows: Tensor,
    /// Them alone, without targets.
    pub batch: Batch,
}

impl KeptTokens {
    /// `rows`: the numbers of the kept tokens of `batch`, ascending. `ids`: those of all its tokens, `[N]`.
    ///
    /// # Panics
    /// If `batch` has another number of tokens, or a row is beyond them.
    pub fn new(queue: &Queue, batch: &Batch, rows: &[u32], ids: &[u32]) -> Result<Self> {
        assert_eq!(ids.len(), batch.num_tokens, "KeptTokens::new: ids of the batch");
        let (mut segments, mut positions, mut row_positions, mut samples) = (Vec::new(), vec![], vec![], vec![]);
        let (mut rest, upload) = (rows, |x: &[u32]| queue.upload(MemoryKind::Activations, [x.len()], x));
        for whole in batch.segments.iter() {
            let end = (whole.q_start + whole.q_len) as u32;
            let (kept, after) = rest.split_at(rest.partition_point(|row| *row < end));
            let Some(first) = kept.first() else { continue };
            let moved = |row: u32, by: u32| row - whole.q_start as u32 + by;
            let (start, len) = (rows.len() - rest.len(), kept.len());
            segments.push(Segment {
                q_start: start,
                q_len: len,
                k_start: start,
                k_len: len,
                q_position: 0,
                k_position: 0,
                sample: whole.sample,
                row_position: moved(*first, whole.row_position),
            });
            positions.extend(kept.iter().map(|row| moved(*row, whole.q_position as u32)));
            row_positions.extend(kept.iter().map(|row| moved(*row, whole.row_position)));
            samples.extend(kept.iter().map(|_| whole.sample));
            rest = after;
        }
        assert!(rest.is_empty(), "KeptTokens::new: rows of the batch");
        let ids: Vec<u32> = rows.iter().map(|row| ids[*row as usize]).collect();
        let batch = Batch {
            num_tokens: rows.len(),
            ids: upload(&ids)?,
            positions: upload(&positions)?,
            row_positions: upload(&row_positions)?,
            samples: upload(&samples)?,
            targets: None,
            soft_targets: None,
            segments: segments.into(),
            num_targets: 0,
        };
        Ok(Self { rows: upload(rows)?, batch })
    }

    /// What ops on these tokens see.
    pub fn env<'a>(&'a self, env: &Env<'a>) -> Env<'a> {
        Env { batch: &self.batch, ..*env }
    }
}
