//! From products to probabilities, and from probabilities to the gradient of products, in transposed blocks
//! `[key][query]`.
//!
//! A score to base 2 is `factor x`, where `x` is the product `q k` itself or, with a softcap, `tanh(scale / cap q k)`; maxima
//! are kept of `x`, so that scaling is part of the exponent's fused multiply-add.

use super::BLOCK;
use super::dropout::BlockDropout;
use super::geometry::Block;
use super::product::Format;
use crate::fused::{Arithmetic, UNIT, exp2, multiversion_fused};
use crate::isa::multiversion;

/// `x` of a pair that is not visible: finite, so that a difference of two is not NaN, and far below [`LOWEST`].
pub(super) const MASKED: f32 = f32::MIN;

/// What a running maximum starts from: no visible `x` is lower in earnest.
pub(super) const LOWEST: f32 = -1e30;

/// How a product `q k` becomes a score.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    scale: f32,
    softcap: Option<f32>,
    /// What `x` is multiplied by to be a score to base 2.
    pub(super) factor: f32,
}

impl Scores {
    pub(super) fn new(scale: f32, softcap: Option<f32>) -> Self {
        Self { scale, softcap, factor: softcap.unwrap_or(scale) * std::f32::consts::LOG2_E }
    }

    /// Turns products into `x`; the value is the derivative of the natural scores by the products.
    #[inline(always)]
    pub(super) fn apply(&self, products: &mut [f32; UNIT]) -> [f32; UNIT] {
        let mut derivatives = [self.scale; UNIT];
        if let Some(cap) = self.softcap {
            for (x, derivative) in products.iter_mut().zip(&mut derivatives) {
                *x = crate::math::tanh(*x * (self.scale / cap));
                *derivative = (1.0 - *x * *x) * self.scale;
            }
        }
        derivatives
    }
}

/// Sets `x` of key `key` to [`MASKED`] for those of 16 queries from `query` on that do not see it.
#[inline(always)]
fn mask(x: &mut [f32; UNIT], block: &Block, key: usize, query: usize) {
    let visible = block.queries(key);
    let (start, end) = (visible.start - query as i64, visible.end - query as i64);
    if start <= 0 && end >= UNIT as i64 {
        return;
    }
    let (start, end) = (start.clamp(0, UNIT as i64) as i32, end.clamp(0, UNIT as i64) as i32);
    for (lane, x) in x.iter_mut().enumerate() {
        let seen = (lane as i32 >= start) & ((lane as i32) < end);
        *x = if seen { *x } else { MASKED };
    }
}

/// 16 queries of a row of a block.
#[inline(always)]
fn lanes(block: &mut [f32], row: usize, query: usize) -> &mut [f32; UNIT] {
    block[row * BLOCK + query..].first_chunk_mut().expect("blocks have whole units")
}

#[inline(always)]
fn read(values: &[f32], query: usize) -> [f32; UNIT] {
    *values[query..].first_chunk().expect("blocks have whole units")
}

/// Rounds rows of a block to bf16 and puts rows `2 i` and `2 i + 1` in the words of row `i`.
#[inline(always)]
fn pair_rows<F: Arithmetic>(block: &mut [f32], words: &mut [u32], keys: std::ops::Range<usize>, query: usize) {
    for key in keys.step_by(2) {
        let (first, second) = (*lanes(block, key, query), *lanes(block, key + 1, query));
        words[key / 2 * BLOCK + query..][..UNIT].copy_from_slice(&F::pairs(&first, &second));
    }
}

/// Rounds a row of 16 queries to bf16, in pairs.
#[inline(always)]
fn pair_lanes<F: Arithmetic>(values: &[f32; UNIT], words: &mut [u32]) {
    words[..UNIT / 2].copy_from_slice(&F::neighbours(values));
}

/// The running state of a block of queries, `[BLOCK]` each.
pub(super) struct Running<'a> {
    /// Largest `x` so far.
    pub(super) max: &'a mut [f32],
    /// Sum of `2^(factor (x - max))`.
    pub(super) sum: &'a mut [f32],
    /// What the last block made of everything before it: `2^(factor (old max - new max))`.
    pub(super) rescale: &'a mut [f32],
}

multiversion_fused! {
    /// Turns products `[key][query]` into probabilities relative to the running maximum, which it moves. Units in which
    /// nothing is visible are left alone. `words`: the probabilities with neighbouring keys in a word, if pairs are asked.
    pub(super) fn softmax_block = softmax_block_body(
        scores: &mut [f32], words: &mut [u32], block: &Block, how: Scores, dropout: Option<BlockDropout>,
        format: Format, running: &mut Running<'_>,
    )
}

#[inline(always)]
fn softmax_block_body<F: Arithmetic>(
    scores: &mut [f32],
    words: &mut [u32],
    block: &Block,
    how: Scores,
    dropout: Option<BlockDropout>,
    format: Format,
    running: &mut Running<'_>,
) {
    let masks = !block.is_whole();
    for unit in 0..block.query_units() {
        let query = unit * UNIT;
        let seen = block.units_seen(unit);
        let keys = seen.start * UNIT..seen.end * UNIT;
        let old_max = read(running.max, query);
        let mut max = old_max;
        for key in keys.clone() {
            let row = lanes(scores, key, query);
            how.apply(row);
            if masks {
                mask(row, block, key, query);
            }
            for (max, &x) in max.iter_mut().zip(&*row) {
                *max = if x > *max { x } else { *max };
            }
        }
        let shift = max.map(|max| -max * how.factor);
        let mut sum = [0.0; UNIT];
        for key in keys.clone() {
            let row = lanes(scores, key, query);
            for lane in 0..UNIT {
                row[lane] = exp2::<F>(F::multiply_add(row[lane], how.factor, shift[lane]));
                sum[lane] += row[lane];
            }
        }
        for lane in 0..UNIT {
            let rescale = exp2::<F>((old_max[lane] - max[lane]) * how.factor);
            running.sum[query + lane] = running.sum[query + lane] * rescale + sum[lane];
            running.rescale[query + lane] = rescale;
            running.max[query + lane] = max[lane];
        }
        if let Some(dropout) = dropout {
            dropout.apply(scores, keys.clone(), query);
        }
        if format == Format::Bf16Pair {
            pair_rows::<F>(scores, words, keys, query);
        }
    }
}

multiversion! {
    /// Turns running maxima into log-sum-exps and running sums into what the values are to be multiplied by.
    pub(super) fn finish(how: Scores, max: &mut [f32], sum: &mut [f32]) {
        for (max, sum) in max.iter_mut().zip(sum) {
            let seen = *sum != 0.0;
            let log_sum_exp = *max * (how.factor * std::f32::consts::LN_2) + crate::math::ln(*sum);
            *max = if seen { log_sum_exp } else { f32::NEG_INFINITY };
            *sum = if seen { 1.0 / *sum } else { 0.0 };
        }
    }
}

/// What backward knows of a block of queries, `[BLOCK]` each; zeros beyond the last query.
pub(super) struct Saved<'a> {
    /// Log-sum-exp of the scores, to base 2; 0 for a query that sees nothing.
    pub(super) log_sum_exp: &'a [f32],
    /// `sum_d out[d] dout[d]`.
    pub(super) delta: &'a [f32],
}

/// What backward multiplies: as pairs for bf16, unused otherwise.
pub(super) struct GradientWords<'a> {
    /// `[key][BLOCK / 2]`: probabilities, neighbouring queries in a word.
    pub(super) p: &'a mut [u32],
    /// `[key][BLOCK / 2]`: score gradients, neighbouring queries in a word.
    pub(super) ds: &'a mut [u32],
    /// `[key / 2][BLOCK]`: score gradients, neighbouring keys in a word.
    pub(super) ds_interleaved: &'a mut [u32],
}

multiversion_fused! {
    /// Turns products `[key][query]` into probabilities (after dropout), and the gradient of probabilities
    /// `dp` `[key][query]` into that of the products: `ds = p (dp - delta)` times the derivative of the score.
    pub(super) fn gradient_block = gradient_block_body(
        scores: &mut [f32], dp: &mut [f32], block: &Block, how: Scores, dropout: Option<BlockDropout>,
        format: Format, saved: &Saved<'_>, words: &mut GradientWords<'_>,
    )
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of one kernel")]
fn gradient_block_body<F: Arithmetic>(
    scores: &mut [f32],
    dp: &mut [f32],
    block: &Block,
    how: Scores,
    dropout: Option<BlockDropout>,
    format: Format,
    saved: &Saved<'_>,
    words: &mut GradientWords<'_>,
) {
    let masks = !block.is_whole();
    for unit in 0..block.query_units() {
        let query = unit * UNIT;
        let seen = block.units_seen(unit);
        let keys = seen.start * UNIT..seen.end * UNIT;
        let (log_sum_exp, delta) = (read(saved.log_sum_exp, query), read(saved.delta, query));
        if let Some(dropout) = dropout {
            dropout.apply(dp, keys.clone(), query);
        }
        for key in keys.clone() {
            let (p, ds) = (lanes(scores, key, query), lanes(dp, key, query));
            let derivatives = how.apply(p);
            if masks {
                mask(p, block, key, query);
            }
            for lane in 0..UNIT {
                p[lane] = exp2::<F>(F::multiply_add(p[lane], how.factor, -log_sum_exp[lane]));
                ds[lane] = p[lane] * (ds[lane] - delta[lane]) * derivatives[lane];
            }
        }
        if let Some(dropout) = dropout {
            dropout.apply(scores, keys.clone(), query);
        }
        if format == Format::Bf16Pair {
            for key in keys.clone() {
                pair_lanes::<F>(lanes(scores, key, query), &mut words.p[(key * BLOCK + query) / 2..]);
                pair_lanes::<F>(lanes(dp, key, query), &mut words.ds[(key * BLOCK + query) / 2..]);
            }
            pair_rows::<F>(dp, words.ds_interleaved, keys, query);
        }
    }
}
