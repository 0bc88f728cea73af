//! The backward pass: one task is one key head of one segment, with all query heads that share it.
//!
//! Keys and values of the segment are packed once. A few blocks of queries go along the keys together, since what belongs
//! to the keys of a long segment lies far from the core: the gradient of `q` is summed in its block, those of `k` and `v` over
//! all blocks and heads, in order.

use super::geometry::{Block, visible_keys};
use super::product::{Format, UNIT};
use super::scratch::{Scratch, with_scratch};
use super::softmax::{GradientWords, Saved, gradient_block};
use super::tile::{Columns, dot, interleave, pack_natural, padded, store_rows, transpose};
use super::work::Work;
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

/// Blocks of queries that go along the keys together.
const QUERY_BLOCKS: usize = 4;
/// The pieces of memory that [`Keys::take`], [`Queries::take`] and [`Pairs::take`] take.
const KEY_PIECES: usize = 5;
const QUERY_PIECES: usize = 9;
const PAIR_PIECES: usize = 5;

impl<'a> Keys<'a> {
    fn take(scratch: &mut Scratch<'a>, len: usize) -> Self {
        let [k_natural, k_interleaved, v_natural] = [(); 3].map(|()| scratch.take(len));
        Self { k_natural, k_interleaved, v_natural, dk: scratch.take(len), dv: scratch.take(len) }
    }
}

/// A block of rows in the three forms that products need.
struct Packed<'a> {
    natural: &'a mut [u32],
    transposed: &'a mut [u32],
    /// For pairs; otherwise `natural` is meant.
    interleaved: &'a mut [u32],
}

impl<'a> Packed<'a> {
    fn take(scratch: &mut Scratch<'a>, len: usize) -> Self {
        let [natural, transposed, interleaved] = [(); 3].map(|()| scratch.take(len));
        Self { natural, transposed, interleaved }
    }

    fn pack<T: Element>(&mut self, work: Work<'_>, rows: Rows<T>, num_rows: usize) {
        pack_natural(work.isa, work.format, rows, num_rows, work.spec.head_dim, self.natural);
        transpose(self.natural, num_rows.next_multiple_of(UNIT), work.words_per_row(), self.transposed);
        if work.format == Format::Bf16Pair {
            interleave(work.isa, self.natural, num_rows, work.words_per_row(), self.interleaved);
        }
    }
}

/// One block of queries.
struct Queries<'a> {
    /// Its first query, in the segment.
    query: usize,
    q: Packed<'a>,
    dout: Packed<'a>,
    dq: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
    delta: &'a mut [f32],
}

impl<'a> Queries<'a> {
    /// What [`Queries::take`] takes.
    fn lens(width: usize) -> [usize; QUERY_PIECES] {
        let mut lens = [BLOCK * width; QUERY_PIECES];
        lens[7..].fill(BLOCK);
        lens
    }

    fn take(scratch: &mut Scratch<'a>, width: usize) -> Self {
        Self {
            query: 0,
            q: Packed::take(scratch, BLOCK * width),
            dout: Packed::take(scratch, BLOCK * width),
            dq: scratch.take(BLOCK * width),
            log_sum_exp: scratch.take(BLOCK),
            delta: scratch.take(BLOCK),
        }
    }
}

/// A block of queries against a block of keys, `[key][query]`.
struct Pairs<'a> {
    scores: &'a mut [f32],
    dp: &'a mut [f32],
    words: GradientWords<'a>,
}

impl<'a> Pairs<'a> {
    fn take(scratch: &mut Scratch<'a>) -> Self {
        let words = [(); 3].map(|()| scratch.take(BLOCK * BLOCK));
        let [p, ds, ds_interleaved] = words;
        Self {
            scores: scratch.take(BLOCK * BLOCK),
            dp: scratch.take(BLOCK * BLOCK),
            words: GradientWords { p, ds, ds_interleaved },
        }
    }
}

impl<T: Element> Call<'_, T> {
    /// One task.
    fn key_head(&self, segment: &Segment, kv_head: usize) {
        let spec = self.spec;
        let work = |head| Work::new::<T>(self.isa, spec, segment, head);
        let heads = kv_head * spec.group()..(kv_head + 1) * spec.group();
        let width = padded(spec.head_dim);
        let keys_len = segment.k_len.next_multiple_of(UNIT) * width;
        let mut lens = [BLOCK * BLOCK; KEY_PIECES + QUERY_BLOCKS * QUERY_PIECES + PAIR_PIECES];
        lens[..KEY_PIECES].fill(keys_len);
        for lens in lens[KEY_PIECES..].chunks_exact_mut(QUERY_PIECES).take(QUERY_BLOCKS) {
            lens.copy_from_slice(&Queries::lens(width));
        }
        with_scratch(&lens, |mut scratch| {
            let mut keys = Keys::take(&mut scratch, keys_len);
            let mut blocks = [(); QUERY_BLOCKS].map(|()| Queries::take(&mut scratch, width));
            let mut pairs = Pairs::take(&mut scratch);
            self.pack_keys(work(heads.start), kv_head, &mut keys);
            for work in heads.map(work) {
                for first in (0..segment.q_len).step_by(QUERY_BLOCKS * BLOCK) {
                    let starts = (first..segment.q_len).step_by(BLOCK);
                    let count = starts.len().min(QUERY_BLOCKS);
                    for (query, block) in starts.zip(&mut blocks) {
                        self.pack_queries(work, query, block);
                    }
                    add_gradients_of(work, &mut blocks[..count], &mut keys, &mut pairs);
                    for Queries { query, dq, .. } in &blocks[..count] {
                        self.store(segment.q_start + query, work.num_queries(*query), work.head, dq);
                    }
                }
            }
            self.store(segment.k_start, segment.k_len, spec.num_heads + kv_head, keys.dk);
            self.store(segment.k_start, segment.k_len, spec.num_heads + spec.num_kv_heads + kv_head, keys.dv);
        });
    }

    fn pack_keys(&self, work: Work<'_>, kv_head: usize, keys: &mut Keys<'_>) {
        let Work { isa, format, spec, segment, .. } = work;
        let rows = Rows { data: self.qkv, stride: self.stride };
        let k = rows.starting_at(segment.k_start, (spec.num_heads + kv_head) * spec.head_dim);
        let v = rows.starting_at(segment.k_start, (spec.num_heads + spec.num_kv_heads + kv_head) * spec.head_dim);
        pack_natural(isa, format, k, segment.k_len, spec.head_dim, keys.k_natural);
        pack_natural(isa, format, v, segment.k_len, spec.head_dim, keys.v_natural);
        if format == Format::Bf16Pair {
            interleave(isa, keys.k_natural, segment.k_len, work.words_per_row(), keys.k_interleaved);
        }
        keys.dk.fill(0.0);
        keys.dv.fill(0.0);
    }

    fn pack_queries(&self, work: Work<'_>, query: usize, queries: &mut Queries<'_>) {
        let Work { isa, spec, head, .. } = work;
        let (row, column, num_queries) = (work.segment.q_start + query, head * spec.head_dim, work.num_queries(query));
        let q = Rows { data: self.qkv, stride: self.stride }.starting_at(row, column);
        let [out, dout] = [self.out, self.dout]
            .map(|data| Rows { data, stride: spec.num_heads * spec.head_dim }.starting_at(row, column));
        queries.query = query;
        queries.q.pack(work, q, num_queries);
        queries.dout.pack(work, dout, num_queries);
        queries.dq.fill(0.0);
        queries.delta.fill(0.0);
        row_dots(isa, out, dout, spec.head_dim, &mut queries.delta[..num_queries]);
        queries.log_sum_exp.fill(0.0);
        let saved = &self.log_sum_exp[head * self.num_rows + row..][..num_queries];
        for (log_sum_exp, saved) in queries.log_sum_exp.iter_mut().zip(saved) {
            // A query that sees nothing: all its scores are masked, and any finite value makes their weights zero.
            let seen = *saved != f32::NEG_INFINITY;
            *log_sum_exp = if seen { saved * std::f32::consts::LOG2_E } else { 0.0 };
        }
    }

    /// Writes sums `[num_rows][width]` to the columns of part `part` of `dqkv`, counted in heads.
    fn store(&self, row: usize, num_rows: usize, part: usize, sums: &[f32]) {
        let (head_dim, width) = (self.spec.head_dim, padded(self.spec.head_dim));
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

/// The gradients that neighbouring blocks of queries and the keys they see give each other.
fn add_gradients_of(work: Work<'_>, blocks: &mut [Queries<'_>], keys: &mut Keys<'_>, pairs: &mut Pairs<'_>) {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return };
    let seen = visible_keys(work.spec, work.segment, first.query..last.query + work.num_queries(last.query));
    for key in (seen.start / BLOCK * BLOCK..seen.end).step_by(BLOCK) {
        for queries in blocks.iter_mut() {
            add_gradients(work, key, keys, queries, pairs);
        }
    }
}

/// The gradients that a block of queries and the block of keys from `key` on give each other.
fn add_gradients(work: Work<'_>, key: usize, keys: &mut Keys<'_>, queries: &mut Queries<'_>, pairs: &mut Pairs<'_>) {
    let Work { isa, format, spec, segment, .. } = work;
    let (width, words_per_row) = (work.width(), work.words_per_row());
    let Queries { query, q, dout, dq, log_sum_exp, delta } = queries;
    let Pairs { scores, dp, words } = pairs;
    let saved = Saved { log_sum_exp, delta };
    let query = *query;
    let block = Block::new(spec, segment, query, key);
    if block.is_empty() {
        return;
    }
    let (k, v) = (&keys.k_natural[key * words_per_row..], &keys.v_natural[key * words_per_row..]);
    work.scores_of(&block, k, q.transposed, scores);
    work.scores_of(&block, v, dout.transposed, dp);
    gradient_block(isa, scores, dp, &block, work.scores(), work.dropout(query, key), format, &saved, words);
    let (dk, dv) = (&mut keys.dk[key * width..], &mut keys.dv[key * width..]);
    match format {
        Format::Single => {
            let (p, ds): (&[u32], &[u32]) = (bytemuck::cast_slice(scores), bytemuck::cast_slice(dp));
            work.along_queries(&block, p, dout.natural, dv);
            work.along_queries(&block, ds, q.natural, dk);
            work.along_keys(&block, ds, k, dq);
        }
        Format::Bf16Pair => {
            work.along_queries(&block, words.p, dout.interleaved, dv);
            work.along_queries(&block, words.ds, q.interleaved, dk);
            work.along_keys(&block, words.ds_interleaved, &keys.k_interleaved[key / 2 * width..], dq);
        }
    }
}

multiversion! {
    /// `dots[i] = sum_d a[i][d] b[i][d]`
    fn row_dots<T: Element>(a: Rows<T>, b: Rows<T>, head_dim: usize, dots: &mut [f32]) {
        for (i, sum) in dots.iter_mut().enumerate() {
            *sum = dot(a.row(i, 0, head_dim), b.row(i, 0, head_dim));
        }
    }
}
