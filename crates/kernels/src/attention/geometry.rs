//! What is visible in a block of queries and keys, exactly and in units.

use std::ops::Range;

use super::product::UNIT;
use super::{AttentionSpec, BLOCK, Segment};

/// Some queries of a segment (at most [`BLOCK`], the lanes) against some of its keys (at most [`BLOCK`], the rows).
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) num_queries: usize,
    pub(super) num_keys: usize,
    /// Position of the first key less that of the first query: query `i` is at the position of key `i - offset`.
    offset: i64,
    causal: bool,
    /// Keys seen, `i64::MAX / 4` if there is no window.
    window: i64,
}

impl Block {
    /// The block that begins at query `query` and key `key` of the segment.
    pub(super) fn new(spec: &AttentionSpec, segment: &Segment, query: usize, key: usize) -> Self {
        Self {
            num_queries: (segment.q_len - query).min(BLOCK),
            num_keys: (segment.k_len - key).min(BLOCK),
            offset: (segment.k_position + key) as i64 - (segment.q_position + query) as i64,
            causal: spec.causal,
            window: spec.window.map_or(i64::MAX / 4, |window| window as i64),
        }
    }

    /// The queries that see key `key`; may be empty, and its end may lie before its start or beyond the block.
    #[inline(always)]
    pub(super) fn queries(&self, key: usize) -> Range<i64> {
        if key >= self.num_keys {
            return 0..0;
        }
        let own = key as i64 + self.offset;
        (if self.causal { own.max(0) } else { 0 })..own.saturating_add(self.window)
    }

    /// Whether every query, and every lane after the last, sees every key up to the end of the last unit: no masks then.
    #[inline(always)]
    pub(super) fn is_whole(&self) -> bool {
        let (first, last) = (self.queries(0), self.queries(self.num_keys - 1));
        self.num_keys.is_multiple_of(UNIT) && last.start <= 0 && first.end >= BLOCK as i64
    }

    /// Units that are worked on at once: all of `units` where they see the same.
    #[inline(always)]
    pub(super) fn band(&self, units: usize) -> usize {
        if self.is_whole() { units } else { 1 }
    }

    /// Whether no query sees any key.
    pub(super) fn is_empty(&self) -> bool {
        (0..self.key_units()).all(|unit| self.units_seeing(unit).is_empty())
    }

    /// Units of queries, the last perhaps partly used.
    #[inline(always)]
    pub(super) fn query_units(&self) -> usize {
        self.num_queries.div_ceil(UNIT)
    }

    /// Units of keys, the last perhaps partly used.
    #[inline(always)]
    pub(super) fn key_units(&self) -> usize {
        self.num_keys.div_ceil(UNIT)
    }

    /// The units of queries in which something sees something of key unit `unit`.
    #[inline(always)]
    pub(super) fn units_seeing(&self, unit: usize) -> Range<usize> {
        let last = ((unit + 1) * UNIT).min(self.num_keys) - 1;
        let (start, end) = (self.queries(unit * UNIT).start, self.queries(last).end.min(self.num_queries as i64));
        if start >= end { 0..0 } else { start as usize / UNIT..(end as usize).div_ceil(UNIT) }
    }

    /// The key units in which something is seen by query unit `unit`: they are neighbours, because both bounds of
    /// [`Block::units_seeing`] grow with the key.
    #[inline(always)]
    pub(super) fn units_seen(&self, unit: usize) -> Range<usize> {
        let mut seen = (0..self.key_units()).filter(|&keys| self.units_seeing(keys).contains(&unit));
        match seen.next() {
            Some(first) => first..seen.next_back().unwrap_or(first) + 1,
            None => 0..0,
        }
    }
}

/// The keys that any of the given queries of the segment sees.
pub(super) fn visible_keys(spec: &AttentionSpec, segment: &Segment, queries: Range<usize>) -> Range<usize> {
    let first = segment.q_position + queries.start;
    let last = segment.q_position + queries.end - 1;
    let end =
        if spec.causal { (last + 1).saturating_sub(segment.k_position).min(segment.k_len) } else { segment.k_len };
    let start = spec.window.map_or(0, |window| (first + 1).saturating_sub(window).saturating_sub(segment.k_position));
    start.min(end)..end
}
