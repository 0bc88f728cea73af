//! What a task of either pass works on, and the products that both passes are made of.

use super::dropout::BlockDropout;
use super::geometry::Block;
use super::product::{Format, Product, UNIT, product};
use super::softmax::Scores;
use super::tile::padded;
use super::{AttentionSpec, BLOCK, Segment};
use crate::{Element, Isa};

/// One head of one segment. Positions of queries and keys count from the segment's first.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) isa: Isa,
    pub(super) format: Format,
    pub(super) spec: &'a AttentionSpec,
    pub(super) segment: &'a Segment,
    /// Query head.
    pub(super) head: usize,
}

impl<'a> Work<'a> {
    pub(super) fn new<T: Element>(isa: Isa, spec: &'a AttentionSpec, segment: &'a Segment, head: usize) -> Self {
        Self { isa, format: Format::of::<T>(isa), spec, segment, head }
    }

    /// Width of a head in whole units.
    pub(super) fn width(&self) -> usize {
        padded(self.spec.head_dim)
    }

    /// Words of a natural row.
    pub(super) fn words_per_row(&self) -> usize {
        self.width() / self.format.per_word()
    }

    /// Queries of the block that begins at `query`.
    pub(super) fn num_queries(&self, query: usize) -> usize {
        (self.segment.q_len - query).min(BLOCK)
    }

    pub(super) fn scores(&self) -> Scores {
        Scores::new(self.spec.scale, self.spec.softcap)
    }

    pub(super) fn dropout(&self, query: usize, key: usize) -> Option<BlockDropout> {
        self.spec.dropout.map(|dropout| BlockDropout::new(&dropout, self.segment, self.head, query, key))
    }

    /// `scores[key][query] = sum_d keys[key][d] queries[query][d]` where something is visible.
    pub(super) fn scores_of(
        &self,
        block: &Block,
        keys_natural: &[u32],
        queries_transposed: &[u32],
        scores: &mut [f32],
    ) {
        let words_per_row = self.words_per_row();
        for unit in (0..block.key_units()).step_by(block.band(block.key_units())) {
            let queries = block.units_seeing(unit);
            let operands = Product {
                a: &keys_natural[unit * UNIT * words_per_row..],
                a_row: words_per_row,
                a_depth: 1,
                b: &queries_transposed[queries.start * UNIT..],
                b_row: BLOCK,
                rows: UNIT * block.band(block.key_units()),
                units: queries.len(),
                depth: words_per_row,
            };
            let scores = &mut scores[unit * UNIT * BLOCK + queries.start * UNIT..];
            product(self.isa, self.format, scores, BLOCK, false, operands);
        }
    }

    /// `out[query][d] += sum_key weights[key][query] values[key][d]`: what queries gather along the keys they see.
    /// `weights` and `values` have neighbouring keys in a word.
    pub(super) fn along_keys(&self, block: &Block, weights: &[u32], values: &[u32], out: &mut [f32]) {
        let (width, words_per_unit) = (self.width(), UNIT / self.format.per_word());
        for unit in (0..block.query_units()).step_by(block.band(block.query_units())) {
            let seen = block.units_seen(unit);
            let first = seen.start * words_per_unit;
            let operands = Product {
                a: &weights[first * BLOCK + unit * UNIT..],
                a_row: 1,
                a_depth: BLOCK,
                b: &values[first * width..],
                b_row: width,
                rows: UNIT * block.band(block.query_units()),
                units: width / UNIT,
                depth: seen.len() * words_per_unit,
            };
            product(self.isa, self.format, &mut out[unit * UNIT * width..], width, true, operands);
        }
    }

    /// `out[key][d] += sum_query weights[key][query] values[query][d]`: what keys gather along the queries that see
    /// them. `weights` and `values` have neighbouring queries in a word.
    pub(super) fn along_queries(&self, block: &Block, weights: &[u32], values: &[u32], out: &mut [f32]) {
        let width = self.width();
        let (row, words_per_unit) = (BLOCK / self.format.per_word(), UNIT / self.format.per_word());
        for unit in (0..block.key_units()).step_by(block.band(block.key_units())) {
            let queries = block.units_seeing(unit);
            let first = queries.start * words_per_unit;
            let operands = Product {
                a: &weights[unit * UNIT * row + first..],
                a_row: row,
                a_depth: 1,
                b: &values[first * width..],
                b_row: width,
                rows: UNIT * block.band(block.key_units()),
                units: width / UNIT,
                depth: queries.len() * words_per_unit,
            };
            product(self.isa, self.format, &mut out[unit * UNIT * width..], width, true, operands);
        }
    }
}
