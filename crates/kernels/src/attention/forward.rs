//! The forward pass: one task is one block of queries of one head, which walks over the keys it sees.

use super::dropout::BlockDropout;
use super::geometry::{Block, visible_keys};
use super::product::{Format, Product, UNIT, product};
use super::scratch::with_scratch;
use super::softmax::{LOWEST, Running, Scores, finish, softmax_block};
use super::tile::{Columns, interleave, pack_natural, padded, store_rows, transpose};
use super::{AttentionSpec, BLOCK, Rows, Segment, check_rows, few, for_gaps};
use crate::pool::Parts;
use crate::{Cpu, Element, Isa};

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
        let Task { segment, head, query } = tasks[i];
        let segment = &segments[segment];
        let (column, kv_column) = (head * spec.head_dim, head / spec.group() * spec.head_dim);
        let inputs = Inputs {
            q: q.from(segment.q_start + query, column),
            k: k.from(segment.k_start, kv_column),
            v: v.from(segment.k_start, kv_column),
        };
        if segment.q_len <= few::MAX_QUERIES {
            few::attend(cpu.isa, spec, segment, head, inputs, &output);
        } else {
            attend(cpu.isa, spec, segment, head, query, inputs, &output);
        }
    });
}

#[derive(Clone, Copy)]
struct Task {
    segment: usize,
    head: usize,
    /// The first query of the block, in the segment.
    query: usize,
}

/// Blocks of one head follow each other, because they read the same keys; late ones, which see more, come first.
fn tasks(spec: &AttentionSpec, segments: &[Segment]) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (segment, Segment { q_len, .. }) in segments.iter().enumerate() {
        for head in 0..spec.num_heads {
            tasks.extend((0..*q_len).step_by(BLOCK).rev().map(|query| Task { segment, head, query }));
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
    /// Writes the results of queries from row `row` on: sums of values `[query][padded head_dim]`, not yet divided by the
    /// sums of weights, which are relative to `max`. Overwrites `max` and `sum`.
    #[allow(clippy::too_many_arguments, reason = "the state of a block of queries")]
    pub(super) fn store(
        &self,
        isa: Isa,
        row: usize,
        head: usize,
        head_dim: usize,
        values: &[f32],
        max: &mut [f32],
        sum: &mut [f32],
    ) {
        // SAFETY: segments do not overlap and blocks of a segment do not, so no other task has these rows of this head.
        let (mut out, log_sum_exp) = unsafe {
            let first = head * self.num_queries + row;
            let out = Columns::new(&self.out, row * self.width + head * head_dim, self.width, head_dim);
            (out, self.log_sum_exp.get(first..first + max.len()))
        };
        finish(isa, max, sum);
        log_sum_exp.copy_from_slice(max);
        store_rows(isa, values, padded(head_dim), sum, &mut out);
    }
}

/// One block of queries of one head.
fn attend<T: Element>(
    isa: Isa,
    spec: &AttentionSpec,
    segment: &Segment,
    head: usize,
    query: usize,
    inputs: Inputs<T>,
    output: &Output<T>,
) {
    let (format, head_dim) = (Format::of::<T>(isa), spec.head_dim);
    let (width, num_queries) = (padded(head_dim), (segment.q_len - query).min(BLOCK));
    let block_len = BLOCK * width;
    let lens = [block_len, block_len, block_len, block_len, block_len, BLOCK * BLOCK, BLOCK * BLOCK, 3 * BLOCK];
    with_scratch(&lens, |mut scratch| {
        let (natural, q_transposed) = (scratch.take(block_len), scratch.take(block_len));
        let (k_natural, v_interleaved) = (scratch.take(block_len), scratch.take(block_len));
        let out: &mut [f32] = scratch.take(block_len);
        let (scores, words) = (scratch.take(BLOCK * BLOCK), scratch.take(BLOCK * BLOCK));
        let [max, sum, rescale] = [(); 3].map(|()| scratch.take::<f32>(BLOCK));
        let mut running = Running { max, sum, rescale };
        running.max.fill(LOWEST);
        running.sum.fill(0.0);
        out.fill(0.0);
        let words_per_row = width / format.per_word();
        pack_natural(isa, format, inputs.q, num_queries, head_dim, natural);
        transpose(natural, num_queries.next_multiple_of(UNIT), words_per_row, q_transposed);

        let seen = visible_keys(spec, segment, query..query + num_queries);
        for key in (seen.start / BLOCK * BLOCK..seen.end).step_by(BLOCK) {
            let block = Block::new(spec, segment, query, key);
            pack_natural(isa, format, inputs.k.from(key, 0), block.num_keys, head_dim, k_natural);
            match format {
                Format::Single => {
                    pack_natural(isa, format, inputs.v.from(key, 0), block.num_keys, head_dim, v_interleaved)
                }
                Format::Bf16Pair => {
                    pack_natural(isa, format, inputs.v.from(key, 0), block.num_keys, head_dim, natural);
                    interleave(isa, natural, block.num_keys, words_per_row, v_interleaved);
                }
            }
            scores_of(isa, format, &block, k_natural, q_transposed, words_per_row, scores);
            let how = Scores::new(spec.scale, spec.softcap);
            let dropout = spec.dropout.map(|dropout| BlockDropout::new(&dropout, segment, head, query, key));
            softmax_block(isa, scores, words, &block, how, dropout, format, &mut running);
            for (out, rescale) in out.chunks_exact_mut(width).zip(running.rescale.iter()) {
                if *rescale != 1.0 {
                    out.iter_mut().for_each(|out| *out *= rescale);
                }
            }
            let p = if format == Format::Single { bytemuck::cast_slice(scores) } else { &*words };
            along_keys(isa, format, &block, p, v_interleaved, width, out);
        }
        let (max, sum) = (&mut running.max[..num_queries], &mut running.sum[..num_queries]);
        output.store(isa, segment.q_start + query, head, head_dim, out, max, sum);
    });
}

/// `scores[key][query] = sum_d k[key][d] q[query][d]` where something is visible.
pub(super) fn scores_of(
    isa: Isa,
    format: Format,
    block: &Block,
    k_natural: &[u32],
    q_transposed: &[u32],
    words_per_row: usize,
    scores: &mut [f32],
) {
    for unit in 0..block.key_units() {
        let queries = block.units_seeing(unit);
        let operands = Product {
            a: &k_natural[unit * UNIT * words_per_row..],
            a_row: words_per_row,
            a_depth: 1,
            b: &q_transposed[queries.start * UNIT..],
            b_row: BLOCK,
            rows: UNIT,
            units: queries.len(),
            depth: words_per_row,
        };
        product(isa, format, &mut scores[unit * UNIT * BLOCK + queries.start * UNIT..], BLOCK, false, operands);
    }
}

/// `out[query][d] += sum_key weights[key][query] values[key][d]`: what queries gather along the keys they see.
pub(super) fn along_keys(
    isa: Isa,
    format: Format,
    block: &Block,
    weights: &[u32],
    values: &[u32],
    width: usize,
    out: &mut [f32],
) {
    let words_per_unit = UNIT / format.per_word();
    for unit in 0..block.query_units() {
        let seen = block.units_seen(unit);
        let first = seen.start * words_per_unit;
        let operands = Product {
            a: &weights[first * BLOCK + unit * UNIT..],
            a_row: 1,
            a_depth: BLOCK,
            b: &values[first * width..],
            b_row: width,
            rows: UNIT,
            units: width / UNIT,
            depth: seen.len() * words_per_unit,
        };
        product(isa, format, &mut out[unit * UNIT * width..], width, true, operands);
    }
}
