//! The forward pass: one task is a few blocks of queries of one head, which walk over the keys they see together.

use std::ops::Range;

use super::geometry::{Block, visible_keys};
use super::product::{Format, UNIT};
use super::scratch::with_scratch;
use super::softmax::{LOWEST, Running, finish, softmax_block};
use super::tile::{Columns, interleave, pack_natural, store_rows, transpose};
use super::work::Work;
use super::{AttentionSpec, BLOCK, Rows, Segment, check_rows, few, for_gaps};
use crate::pool::Parts;
use crate::{Cpu, Element};

/// Blocks of queries that one task works on.
const BLOCKS_PER_TASK: usize = 4;

/// Attention of every segment: `out = softmax(score(q k^T)) v`, and the log-sum-exp of the scores.
///
/// - `segments`: in the order of their query rows, which must not overlap; keys may be shared.
/// - `q` `[Nq, H hd]`, `k` and `v` `[Nk, KV hd]`: columns of wider rows.
/// - `out` `[Nq, H hd]`, contiguous; zeros in rows that no segment covers.
/// - `log_sum_exp` `[H, Nq]`: natural logarithm; minus infinity where nothing is seen.
///
/// # Panics
/// If the slices do not hold the rows that the segments name, or segments overlap: bugs of the caller.
#[allow(clippy::too_many_arguments, reason = "the operands of one kernel")]
pub fn forward<T: Element>(
    cpu: &Cpu,
    spec: &AttentionSpec,
    segments: &[Segment],
    q: Rows<T>,
    k: Rows<T>,
    v: Rows<T>,
    out: &mut [T],
    log_sum_exp: &mut [f32],
) {
    spec.check("attention forward");
    let (width, kv_width) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let num_queries = out.len() / width;
    assert!(out.len().is_multiple_of(width), "attention forward: out has {} elements, rows have {width}", out.len());
    assert_eq!(log_sum_exp.len(), spec.num_heads * num_queries, "attention forward: length of log_sum_exp");
    for_gaps("attention forward", segments, num_queries, |rows| {
        out[rows.start * width..rows.end * width].fill(T::ZERO);
        log_sum_exp.chunks_exact_mut(num_queries.max(1)).for_each(|head| head[rows.clone()].fill(f32::NEG_INFINITY));
    });
    let q_end = segments.last().map_or(0, |segment| segment.q_start + segment.q_len);
    let k_end = segments.iter().map(|segment| segment.k_start + segment.k_len).max().unwrap_or(0);
    check_rows("attention forward", "q", &q, q_end, width);
    check_rows("attention forward", "k", &k, k_end, kv_width);
    check_rows("attention forward", "v", &v, k_end, kv_width);

    let tasks = tasks(spec, segments);
    let output = Output { out: Parts::new(out), log_sum_exp: Parts::new(log_sum_exp), width, num_queries };
    cpu.pool.run(tasks.len(), |i| {
        let Task { segment, head, ref queries } = tasks[i];
        let segment = &segments[segment];
        let work = Work::new::<T>(cpu.isa, spec, segment, head);
        let (column, kv_column) = (head * spec.head_dim, head / spec.group() * spec.head_dim);
        let inputs = Inputs {
            q: q.starting_at(segment.q_start + queries.start, column),
            k: k.starting_at(segment.k_start, kv_column),
            v: v.starting_at(segment.k_start, kv_column),
        };
        if segment.q_len <= few::MAX_QUERIES {
            few::attend(work, inputs, &output);
        } else {
            attend(work, queries.clone(), inputs, &output);
        }
    });
}

struct Task {
    segment: usize,
    head: usize,
    /// In the segment.
    queries: Range<usize>,
}

/// Tasks of one head follow each other, because they read the same keys; late queries, which see more, come first.
fn tasks(spec: &AttentionSpec, segments: &[Segment]) -> Vec<Task> {
    const QUERIES: usize = BLOCKS_PER_TASK * BLOCK;
    let mut tasks = Vec::new();
    for (segment, &Segment { q_len, .. }) in segments.iter().enumerate() {
        for head in 0..spec.num_heads {
            let starts = (0..q_len).step_by(QUERIES).rev();
            tasks.extend(starts.map(|start| Task { segment, head, queries: start..(start + QUERIES).min(q_len) }));
        }
    }
    tasks
}

/// What one task reads: from its first query, and from its segment's first key, in the columns of its head.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, T> {
    pub(super) q: Rows<'a, T>,
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
}

/// The outputs of a call. A (row, head) belongs to the one task that holds the query in its block.
pub(super) struct Output<'a, T> {
    out: Parts<'a, T>,
    log_sum_exp: Parts<'a, f32>,
    width: usize,
    num_queries: usize,
}

impl<T: Element> Output<'_, T> {
    /// Writes the results of queries from `query` on: sums of values `[query][padded head_dim]`, not yet divided by the
    /// sums of weights, which are relative to `max`. Overwrites `max` and `sum`.
    pub(super) fn store(&self, work: Work<'_>, query: usize, values: &[f32], max: &mut [f32], sum: &mut [f32]) {
        let Work { isa, head, spec: &AttentionSpec { head_dim, .. }, .. } = work;
        let row = work.segment.q_start + query;
        // SAFETY: segments do not overlap and tasks of a segment do not, so no other task has these rows of this head.
        let (mut out, log_sum_exp) = unsafe {
            let first = head * self.num_queries + row;
            let out = Columns::new(&self.out, row * self.width + head * head_dim, self.width, head_dim);
            (out, self.log_sum_exp.get(first..first + max.len()))
        };
        finish(isa, work.scores(), max, sum);
        log_sum_exp.copy_from_slice(max);
        store_rows(isa, values, work.width(), sum, &mut out);
    }
}

/// One block of keys and of values, as operands.
struct KeyBlock<'a> {
    k_natural: &'a mut [u32],
    v_natural: &'a mut [u32],
    /// For pairs; otherwise `v_natural` is meant.
    v_interleaved: &'a mut [u32],
}

/// One block of queries and its results so far.
struct QueryBlock<'a> {
    /// Its first query, in the segment.
    query: usize,
    q_transposed: &'a mut [u32],
    /// `[query][padded head_dim]`
    out: &'a mut [f32],
    running: Running<'a>,
}

/// Some blocks of queries of one head: keys are packed once for all of them.
fn attend<T: Element>(work: Work<'_>, queries: Range<usize>, inputs: Inputs<T>, output: &Output<T>) {
    let (len, square, first) = (BLOCK * work.width(), BLOCK * BLOCK, queries.start);
    let mut lens = [0; 5 + 5 * BLOCKS_PER_TASK];
    lens[..5].copy_from_slice(&[len, len, len, square, square]);
    lens[5..].chunks_exact_mut(5).for_each(|block| block.copy_from_slice(&[len, len, BLOCK, BLOCK, BLOCK]));
    with_scratch(&lens, |mut scratch| {
        let [k_natural, v_natural, v_interleaved] = [(); 3].map(|()| scratch.take(len));
        let (scores, words) = (scratch.take(square), scratch.take(square));
        let mut keys = KeyBlock { k_natural, v_natural, v_interleaved };
        let mut starts = queries.clone().step_by(BLOCK);
        let mut blocks = [(); BLOCKS_PER_TASK].map(|()| {
            let (q_transposed, out) = (scratch.take(len), scratch.take(len));
            let [max, sum, rescale] = [(); 3].map(|()| scratch.take(BLOCK));
            let running = Running { max, sum, rescale };
            starts.next().map(|query| QueryBlock { query, q_transposed, out, running })
        });
        for block in blocks.iter_mut().flatten() {
            block.start(work, inputs.q.starting_at(block.query - first, 0), keys.k_natural);
        }
        let seen = visible_keys(work.spec, work.segment, queries.clone());
        for key in (seen.start / BLOCK * BLOCK..seen.end).step_by(BLOCK) {
            keys.pack(work, [inputs.k, inputs.v].map(|rows| rows.starting_at(key, 0)), key);
            for block in blocks.iter_mut().flatten() {
                block.add_keys(work, key, &keys, scores, words);
            }
        }
        for QueryBlock { query, out, running, .. } in blocks.iter_mut().flatten() {
            let num_queries = work.num_queries(*query);
            output.store(work, *query, out, &mut running.max[..num_queries], &mut running.sum[..num_queries]);
        }
    });
}

impl KeyBlock<'_> {
    /// Packs the keys and values from key `key` on.
    fn pack<T: Element>(&mut self, work: Work<'_>, [k, v]: [Rows<T>; 2], key: usize) {
        let Work { isa, format, spec, segment, .. } = work;
        let num_keys = (segment.k_len - key).min(BLOCK);
        pack_natural(isa, format, k, num_keys, spec.head_dim, self.k_natural);
        pack_natural(isa, format, v, num_keys, spec.head_dim, self.v_natural);
        if format == Format::Bf16Pair {
            interleave(isa, self.v_natural, num_keys, work.words_per_row(), self.v_interleaved);
        }
    }
}

impl QueryBlock<'_> {
    /// Packs the queries `q` by way of `natural`, and begins with nothing seen.
    fn start<T: Element>(&mut self, work: Work<'_>, q: Rows<T>, natural: &mut [u32]) {
        let num_queries = work.num_queries(self.query);
        pack_natural(work.isa, work.format, q, num_queries, work.spec.head_dim, natural);
        transpose(natural, num_queries.next_multiple_of(UNIT), work.words_per_row(), self.q_transposed);
        self.running.max.fill(LOWEST);
        self.running.sum.fill(0.0);
        self.out.fill(0.0);
    }

    /// Adds what the queries gather from the block of keys that begins at `key`.
    fn add_keys(&mut self, work: Work<'_>, key: usize, keys: &KeyBlock<'_>, scores: &mut [f32], words: &mut [u32]) {
        let Work { isa, format, .. } = work;
        let block = Block::new(work.spec, work.segment, self.query, key);
        if block.is_empty() {
            return;
        }
        work.scores_of(&block, keys.k_natural, self.q_transposed, scores);
        let dropout = work.dropout(self.query, key);
        softmax_block(isa, scores, words, &block, work.scores(), dropout, format, &mut self.running);
        for (out, rescale) in self.out.chunks_exact_mut(work.width()).zip(self.running.rescale.iter()) {
            if *rescale != 1.0 {
                out.iter_mut().for_each(|out| *out *= rescale);
            }
        }
        match format {
            Format::Single => work.along_keys(&block, bytemuck::cast_slice(scores), keys.v_natural, self.out),
            Format::Bf16Pair => work.along_keys(&block, words, keys.v_interleaved, self.out),
        }
    }
}
