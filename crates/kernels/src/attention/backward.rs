//! The backward pass: one task is one key head of one segment, with all query heads that share it.
//!
//! Keys and values of the segment are packed once; for every block of queries the gradient of `q` is summed in the block
//! while those of `k` and `v` are summed over all blocks and heads, in order.

use super::dropout::BlockDropout;
use super::forward::{along_keys, scores_of};
use super::geometry::{Block, visible_keys};
use super::product::{Format, Product, UNIT, product};
use super::scratch::{Scratch, with_scratch};
use super::softmax::{GradientWords, Saved, Scores, gradient_block};
use super::tile::{self, Columns, interleave, pack_natural, padded, store_rows, transpose};
use super::{AttentionSpec, BLOCK, Rows, Segment, check_rows, for_gaps};
use crate::isa::multiversion;
use crate::pool::Parts;
use crate::{Cpu, Element, Isa};

/// Gradient of [`super::forward`] for a fused projection: a row of `qkv` and of `dqkv` is `[q: H hd | k: KV hd | v: KV hd]`.
///
/// - `segments`: as in forward, with queries and keys the same rows.
/// - `out`, `log_sum_exp`: what forward returned for the columns of `qkv`. `dout` `[N, H hd]`: the gradient of `out`.
/// - `dqkv` `[N, (H + 2 KV) hd]`: written; zeros in rows that no segment covers.
///
/// # Panics
/// If lengths do not fit together, or a segment's keys are not its queries: bugs of the caller.
#[allow(clippy::too_many_arguments, reason = "the operands of one kernel")]
pub fn backward_packed<T: Element>(
    cpu: &Cpu,
    spec: &AttentionSpec,
    segments: &[Segment],
    qkv: &[T],
    out: &[T],
    log_sum_exp: &[f32],
    dout: &[T],
    dqkv: &mut [T],
) {
    const KERNEL: &str = "attention backward";
    spec.check(KERNEL);
    let (width, kv_width) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let stride = width + 2 * kv_width;
    let num_rows = qkv.len() / stride;
    assert!(qkv.len() == num_rows * stride && dqkv.len() == qkv.len(), "{KERNEL}: lengths of qkv and dqkv");
    assert!(out.len() == num_rows * width && dout.len() == out.len(), "{KERNEL}: lengths of out and dout");
    assert_eq!(log_sum_exp.len(), spec.num_heads * num_rows, "{KERNEL}: length of log_sum_exp");
    for segment in segments {
        let same = segment.q_start == segment.k_start && segment.q_len == segment.k_len;
        assert!(same && segment.q_position == segment.k_position, "{KERNEL}: keys are not the queries: {segment:?}");
    }
    for_gaps(KERNEL, segments, num_rows, |rows| dqkv[rows.start * stride..rows.end * stride].fill(T::ZERO));
    check_rows(KERNEL, "qkv", &Rows { data: qkv, stride }, num_rows, stride);

    let call = Call { isa: cpu.isa, spec, qkv, out, log_sum_exp, dout, stride, num_rows, dqkv: Parts::new(dqkv) };
    cpu.pool.run(segments.len() * spec.num_kv_heads, |i| {
        call.key_head(&segments[i / spec.num_kv_heads], i % spec.num_kv_heads);
    });
}

struct Call<'a, T> {
    isa: Isa,
    spec: &'a AttentionSpec,
    qkv: &'a [T],
    out: &'a [T],
    log_sum_exp: &'a [f32],
    dout: &'a [T],
    /// Elements in a row of `qkv`.
    stride: usize,
    num_rows: usize,
    dqkv: Parts<'a, T>,
}

/// The keys of a task, `[k_len in whole units][padded head_dim]`, and the sums of their gradients.
struct Keys<'a> {
    k_natural: &'a mut [u32],
    /// For pairs; otherwise empty, and `k_natural` is meant.
    k_interleaved: &'a mut [u32],
    v_natural: &'a mut [u32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// Blocks of one block of queries.
struct Queries<'a> {
    q_natural: &'a mut [u32],
    q_transposed: &'a mut [u32],
    q_interleaved: &'a mut [u32],
    dout_natural: &'a mut [u32],
    dout_transposed: &'a mut [u32],
    dout_interleaved: &'a mut [u32],
    dq: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
    delta: &'a mut [f32],
    scores: &'a mut [f32],
    dp: &'a mut [f32],
    words: GradientWords<'a>,
}

impl<'a> Keys<'a> {
    const NUM_BLOCKS: usize = 5;

    fn take(scratch: &mut Scratch<'a>, len: usize) -> Self {
        Self {
            k_natural: scratch.take(len),
            k_interleaved: scratch.take(len),
            v_natural: scratch.take(len),
            dk: scratch.take(len),
            dv: scratch.take(len),
        }
    }
}

impl<'a> Queries<'a> {
    const NUM_ROWS: usize = 7;
    const NUM_LANES: usize = 2;
    const NUM_SQUARES: usize = 5;

    fn take(scratch: &mut Scratch<'a>, width: usize) -> Self {
        let [q_natural, q_transposed, q_interleaved] = [(); 3].map(|()| scratch.take(BLOCK * width));
        let [dout_natural, dout_transposed, dout_interleaved] = [(); 3].map(|()| scratch.take(BLOCK * width));
        Self {
            q_natural,
            q_transposed,
            q_interleaved,
            dout_natural,
            dout_transposed,
            dout_interleaved,
            dq: scratch.take(BLOCK * width),
            log_sum_exp: scratch.take(BLOCK),
            delta: scratch.take(BLOCK),
            scores: scratch.take(BLOCK * BLOCK),
            dp: scratch.take(BLOCK * BLOCK),
            words: GradientWords {
                p: scratch.take(BLOCK * BLOCK),
                ds: scratch.take(BLOCK * BLOCK),
                ds_interleaved: scratch.take(BLOCK * BLOCK),
            },
        }
    }
}

impl<T: Element> Call<'_, T> {
    fn format(&self) -> Format {
        Format::of::<T>(self.isa)
    }

    /// Padded width of a head.
    fn width(&self) -> usize {
        padded(self.spec.head_dim)
    }

    /// One task.
    fn key_head(&self, segment: &Segment, kv_head: usize) {
        let (spec, width) = (self.spec, self.width());
        let len = segment.k_len.next_multiple_of(UNIT) * width;
        let mut lens = vec![len; Keys::NUM_BLOCKS];
        lens.extend([BLOCK * width; Queries::NUM_ROWS]);
        lens.extend([BLOCK; Queries::NUM_LANES]);
        lens.extend([BLOCK * BLOCK; Queries::NUM_SQUARES]);
        with_scratch(&lens, |mut scratch| {
            let mut keys = Keys::take(&mut scratch, len);
            let mut queries = Queries::take(&mut scratch, width);
            self.pack_keys(segment, kv_head, &mut keys);
            for head in kv_head * spec.group()..(kv_head + 1) * spec.group() {
                for query in (0..segment.q_len).step_by(BLOCK) {
                    self.pack_queries(segment, head, query, &mut queries);
                    self.block_of_queries(segment, head, query, &mut keys, &mut queries);
                    let num_queries = (segment.q_len - query).min(BLOCK);
                    self.store(segment.q_start + query, num_queries, head, queries.dq);
                }
            }
            self.store(segment.k_start, segment.k_len, spec.num_heads + kv_head, keys.dk);
            self.store(segment.k_start, segment.k_len, spec.num_heads + spec.num_kv_heads + kv_head, keys.dv);
        });
    }

    fn pack_keys(&self, segment: &Segment, kv_head: usize, keys: &mut Keys<'_>) {
        let (spec, format) = (self.spec, self.format());
        let rows = Rows { data: self.qkv, stride: self.stride };
        let k = rows.from(segment.k_start, (spec.num_heads + kv_head) * spec.head_dim);
        let v = rows.from(segment.k_start, (spec.num_heads + spec.num_kv_heads + kv_head) * spec.head_dim);
        pack_natural(self.isa, format, k, segment.k_len, spec.head_dim, keys.k_natural);
        pack_natural(self.isa, format, v, segment.k_len, spec.head_dim, keys.v_natural);
        if format == Format::Bf16Pair {
            interleave(self.isa, keys.k_natural, segment.k_len, self.width() / 2, keys.k_interleaved);
        }
        keys.dk.fill(0.0);
        keys.dv.fill(0.0);
    }

    fn pack_queries(&self, segment: &Segment, head: usize, query: usize, queries: &mut Queries<'_>) {
        let (spec, format, column) = (self.spec, self.format(), head * self.spec.head_dim);
        let (row, num_queries) = (segment.q_start + query, (segment.q_len - query).min(BLOCK));
        let (words_per_row, num_rows) = (self.width() / format.per_word(), num_queries.next_multiple_of(UNIT));
        let q = Rows { data: self.qkv, stride: self.stride }.from(row, column);
        let out_rows = |data| Rows { data, stride: spec.num_heads * spec.head_dim }.from(row, column);
        let (out, dout) = (out_rows(self.out), out_rows(self.dout));
        pack_natural(self.isa, format, q, num_queries, spec.head_dim, queries.q_natural);
        pack_natural(self.isa, format, dout, num_queries, spec.head_dim, queries.dout_natural);
        transpose(queries.q_natural, num_rows, words_per_row, queries.q_transposed);
        transpose(queries.dout_natural, num_rows, words_per_row, queries.dout_transposed);
        if format == Format::Bf16Pair {
            interleave(self.isa, queries.q_natural, num_queries, words_per_row, queries.q_interleaved);
            interleave(self.isa, queries.dout_natural, num_queries, words_per_row, queries.dout_interleaved);
        }
        queries.delta.fill(0.0);
        row_dots(self.isa, out, dout, spec.head_dim, &mut queries.delta[..num_queries]);
        queries.log_sum_exp.fill(0.0);
        let saved = &self.log_sum_exp[head * self.num_rows + row..][..num_queries];
        for (log_sum_exp, saved) in queries.log_sum_exp.iter_mut().zip(saved) {
            // A query that sees nothing: all its scores are masked, and any finite value makes their weights zero.
            let seen = *saved != f32::NEG_INFINITY;
            *log_sum_exp = if seen { saved * std::f32::consts::LOG2_E } else { 0.0 };
        }
        queries.dq.fill(0.0);
    }

    fn block_of_queries(
        &self,
        segment: &Segment,
        head: usize,
        query: usize,
        keys: &mut Keys<'_>,
        queries: &mut Queries<'_>,
    ) {
        let (isa, spec, format, width) = (self.isa, self.spec, self.format(), self.width());
        let words_per_row = width / format.per_word();
        let seen = visible_keys(spec, segment, query..(query + BLOCK).min(segment.q_len));
        for key in (seen.start / BLOCK * BLOCK..seen.end).step_by(BLOCK) {
            let block = Block::new(spec, segment, query, key);
            let Queries { scores, dp, words, .. } = queries;
            let k = &keys.k_natural[key * words_per_row..];
            let v = &keys.v_natural[key * words_per_row..];
            scores_of(isa, format, &block, k, queries.q_transposed, words_per_row, scores);
            scores_of(isa, format, &block, v, queries.dout_transposed, words_per_row, dp);
            let dropout = spec.dropout.map(|dropout| BlockDropout::new(&dropout, segment, head, query, key));
            let saved = Saved { log_sum_exp: queries.log_sum_exp, delta: queries.delta };
            let how = Scores::new(spec.scale, spec.softcap);
            gradient_block(isa, scores, dp, &block, how, dropout, format, &saved, words);
            let (dk, dv) = (&mut keys.dk[key * width..], &mut keys.dv[key * width..]);
            match format {
                Format::Single => {
                    let (p, ds): (&[u32], &[u32]) = (bytemuck::cast_slice(scores), bytemuck::cast_slice(dp));
                    along_queries(isa, format, &block, p, queries.dout_natural, width, dv);
                    along_queries(isa, format, &block, ds, queries.q_natural, width, dk);
                    along_keys(isa, format, &block, ds, k, width, queries.dq);
                }
                Format::Bf16Pair => {
                    let k = &keys.k_interleaved[key / 2 * width..];
                    along_queries(isa, format, &block, words.p, queries.dout_interleaved, width, dv);
                    along_queries(isa, format, &block, words.ds, queries.q_interleaved, width, dk);
                    along_keys(isa, format, &block, words.ds_interleaved, k, width, queries.dq);
                }
            }
        }
    }

    /// Writes sums `[num_rows][width]` to the columns of part `part` of `dqkv`, counted in heads.
    fn store(&self, row: usize, num_rows: usize, part: usize, sums: &[f32]) {
        let (head_dim, width) = (self.spec.head_dim, self.width());
        for done in (0..num_rows).step_by(BLOCK) {
            let first = (row + done) * self.stride + part * head_dim;
            // SAFETY: segments do not overlap, and of a segment's rows the columns of a key head, and of the query heads
            // that share it, are written by the one task of that key head, one `part` after the other.
            let mut out = unsafe { Columns::new(&self.dqkv, first, self.stride, head_dim) };
            let scales = &[1.0; BLOCK][..(num_rows - done).min(BLOCK)];
            store_rows(self.isa, &sums[done * width..], width, scales, &mut out);
        }
    }
}

/// `out[key][d] += sum_query weights[key][query] values[query][d]`: what keys gather along the queries that see them.
fn along_queries(
    isa: Isa,
    format: Format,
    block: &Block,
    weights: &[u32],
    values: &[u32],
    width: usize,
    out: &mut [f32],
) {
    let (row, words_per_unit) = (BLOCK / format.per_word(), UNIT / format.per_word());
    for unit in 0..block.key_units() {
        let queries = block.units_seeing(unit);
        let first = queries.start * words_per_unit;
        let operands = Product {
            a: &weights[unit * UNIT * row + first..],
            a_row: row,
            a_depth: 1,
            b: &values[first * width..],
            b_row: width,
            rows: UNIT,
            units: width / UNIT,
            depth: queries.len() * words_per_unit,
        };
        product(isa, format, &mut out[unit * UNIT * width..], width, true, operands);
    }
}

multiversion! {
    /// `dots[i] = sum_d a[i][d] b[i][d]`
    fn row_dots<T: Element>(a: Rows<T>, b: Rows<T>, head_dim: usize, dots: &mut [f32]) {
        for (i, dot) in dots.iter_mut().enumerate() {
            *dot = tile::dot(a.row(i, 0, head_dim), b.row(i, 0, head_dim));
        }
    }
}
