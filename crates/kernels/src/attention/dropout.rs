//! Which probabilities of a block are dropped.
//!
//! Philox4x32-10 with counter `[sample, query position, key position / 4, 1 + head]` yields the words of four keys.

use std::ops::Range;

use super::product::UNIT;
use super::{AttentionDropout, BLOCK, Segment};
use crate::dropout::{is_kept, keep_scale, keep_threshold};
use crate::philox::{lanes, philox4x32};

/// Dropout of one head in one block.
#[derive(Clone, Copy)]
pub(super) struct BlockDropout {
    key: [u32; 2],
    sample: u32,
    head: u32,
    /// Position in the sample of the block's first query and first key.
    query: u32,
    first_key: u32,
    /// Words from this on are kept.
    threshold: u32,
    /// What kept probabilities are multiplied by.
    scale: f32,
}

impl BlockDropout {
    /// `head`: of this call; `query`, `key`: where the block begins in the segment.
    pub(super) fn new(dropout: &AttentionDropout, segment: &Segment, head: usize, query: usize, key: usize) -> Self {
        Self {
            key: dropout.key,
            sample: segment.sample,
            head: 1 + dropout.first_head + head as u32,
            query: segment.row_position + (segment.q_position + query) as u32,
            first_key: segment.row_position + (segment.k_position + key) as u32,
            threshold: keep_threshold(dropout.probability),
            scale: keep_scale(dropout.probability),
        }
    }

    /// Multiplies the rows `keys` of a block `[key][BLOCK queries]` by 0 or [`BlockDropout::scale`], for 16 queries from
    /// `query` on.
    #[inline(always)]
    pub(super) fn apply(&self, block: &mut [f32], keys: Range<usize>, query: usize) {
        let mut key = keys.start;
        while key < keys.end {
            let position = self.first_key + key as u32;
            let words = self.words(query, position / 4);
            for words in &words[position as usize % 4..] {
                if key == keys.end {
                    return;
                }
                let row = &mut block[key * BLOCK + query..][..UNIT];
                for (value, &word) in row.iter_mut().zip(words) {
                    *value *= if is_kept(word, self.threshold) { self.scale } else { 0.0 };
                }
                key += 1;
            }
        }
    }

    /// Multiplies the weights of the first keys of the block by 0 or [`BlockDropout::scale`], for its first query.
    pub(super) fn apply_to_row(&self, weights: &mut [f32]) {
        for (position, weight) in (self.first_key..).zip(weights) {
            let words = philox4x32(self.key, [self.sample, self.query, position / 4, self.head]);
            let kept = is_kept(words[position as usize % 4], self.threshold);
            *weight *= if kept { self.scale } else { 0.0 };
        }
    }

    /// `[word][query]`
    #[inline(always)]
    fn words(&self, query: usize, quad: u32) -> [[u32; UNIT]; 4] {
        let mut queries = [self.query + query as u32; UNIT];
        queries.iter_mut().zip(0..).for_each(|(query, lane)| *query += lane);
        lanes(self.key, [[self.sample; UNIT], queries, [quad; UNIT], [self.head; UNIT]])
    }
}
