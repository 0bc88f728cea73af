//! Which probabilities of a block are dropped.
//!
//! Philox4x32-10 with counter `[sample, query position, key position / 4, 1 + head]` yields the words of four keys.

use super::product::UNIT;
use super::{AttentionDropout, Segment};

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
    pub(super) scale: f32,
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
            threshold: (f64::from(dropout.probability) * 4_294_967_296.0).ceil() as u32,
            scale: 1.0 / (1.0 - dropout.probability),
        }
    }

    /// Calls `apply(key, factors)` for the keys `keys` of the block, in order, with the factors of 16 queries from
    /// `query` on: 0 or [`BlockDropout::scale`].
    #[inline(always)]
    pub(super) fn for_keys(
        &self,
        keys: std::ops::Range<usize>,
        query: usize,
        mut apply: impl FnMut(usize, [f32; UNIT]),
    ) {
        let mut key = keys.start;
        while key < keys.end {
            let position = self.first_key + key as u32;
            let words = self.words(query, position / 4);
            for word in position % 4..4 {
                if key == keys.end {
                    return;
                }
                apply(key, words[word as usize].map(|w| if w >= self.threshold { self.scale } else { 0.0 }));
                key += 1;
            }
        }
    }

    /// `[word][query]`
    #[inline(always)]
    fn words(&self, query: usize, quad: u32) -> [[u32; UNIT]; 4] {
        let mut words = [[0; UNIT]; 4];
        for lane in 0..UNIT {
            let counter = [self.sample, self.query + (query + lane) as u32, quad, self.head];
            let drawn = philox4x32(self.key, counter);
            for (words, drawn) in words.iter_mut().zip(drawn) {
                words[lane] = drawn;
            }
        }
        words
    }
}

/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#[inline(always)]
pub(super) fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], mut c) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xd251_1f53;
        let p1 = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    c
}
