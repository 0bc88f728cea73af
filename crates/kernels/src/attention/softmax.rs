//! From scores to probabilities, and from probabilities to the gradient of scores, in transposed blocks `[key][query]`.

use super::BLOCK;
use super::dropout::BlockDropout;
use super::geometry::Block;
use super::product::{Format, UNIT};
use super::tile::bf16_bits;
use crate::isa::multiversion;

/// Score of a pair that is not visible: finite, so that a difference of two is not NaN, and far below [`LOWEST`].
const MASKED: f32 = f32::MIN;

/// What a running maximum starts from: no visible score is lower in earnest.
pub(super) const LOWEST: f32 = -1e30;

/// `2^x` for x up to 127, relative error 2e-7; exactly 1 at 0, exactly 0 from -127 down, NaN stays NaN.
///
/// Softmax is taken to base 2 because this needs two thirds of the operations of [`crate::math::exp`], and never
/// makes a subnormal number (each costs a hundred cycles on some machines, and every masked score is one).
/// The polynomial is the interpolation of `(2^r - 1) / r` in the Chebyshev nodes of `[-1/2, 1/2]`.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -127.0 { -127.0 } else { x };
    let x = if x > 127.0 { 127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = 0.001_339_086_3 + r * 0.000_154_531_63;
    let p = 0.009_618_083 + r * p;
    let p = 0.055_503_57 + r * p;
    let p = 0.240_226_5 + r * p;
    let p = std::f32::consts::LN_2 + r * p;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (1.0 + r * p) * power
}

/// How a product `q k` becomes a score to base 2.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    scale: f32,
    softcap: Option<f32>,
}

impl Scores {
    pub(super) fn new(scale: f32, softcap: Option<f32>) -> Self {
        Self { scale, softcap }
    }

    /// Turns products into scores to base 2; the value is the derivative of the natural scores by the products.
    #[inline(always)]
    pub(super) fn apply(&self, products: &mut [f32; UNIT]) -> [f32; UNIT] {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        let mut derivatives = [self.scale; UNIT];
        match self.softcap {
            None => products.iter_mut().for_each(|s| *s *= self.scale * LOG2_E),
            Some(cap) => {
                for (s, derivative) in products.iter_mut().zip(&mut derivatives) {
                    let tanh = crate::math::tanh(*s * (self.scale / cap));
                    *s = tanh * (cap * LOG2_E);
                    *derivative = (1.0 - tanh * tanh) * self.scale;
                }
            }
        }
        derivatives
    }
}

/// Sets the scores of key `key` to [`MASKED`] for those of 16 queries from `query` on that do not see it.
#[inline(always)]
fn mask(scores: &mut [f32; UNIT], block: &Block, key: usize, query: usize) {
    let visible = block.queries(key);
    let (start, end) = (visible.start - query as i64, visible.end - query as i64);
    if start <= 0 && end >= UNIT as i64 {
        return;
    }
    let (start, end) = (start.clamp(0, UNIT as i64) as i32, end.clamp(0, UNIT as i64) as i32);
    for (lane, score) in scores.iter_mut().enumerate() {
        let seen = (lane as i32 >= start) & ((lane as i32) < end);
        *score = if seen { *score } else { MASKED };
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

/// The running state of a block of queries, `[BLOCK]` each.
pub(super) struct Running<'a> {
    /// Largest score to base 2 so far.
    pub(super) max: &'a mut [f32],
    /// Sum of `2^(score - max)`.
    pub(super) sum: &'a mut [f32],
    /// What the last block made of everything before it: `2^(old max - new max)`.
    pub(super) rescale: &'a mut [f32],
}

multiversion! {
    /// Turns products `[key][query]` into probabilities relative to the running maximum, which it moves. Rows and lanes
    /// of units in which nothing is visible are left alone. `words`: the probabilities as operands, see [`pair_rows`].
    pub(super) fn softmax_block(
        scores: &mut [f32], words: &mut [u32], block: &Block, how: Scores, dropout: Option<BlockDropout>,
        format: Format, running: &mut Running<'_>,
    ) {
        for unit in 0..block.query_units() {
            let query = unit * UNIT;
            let seen = block.units_seen(unit);
            let keys = seen.start * UNIT..seen.end * UNIT;
            let old_max = read(running.max, query);
            let mut max = old_max;
            for key in keys.clone() {
                let row = lanes(scores, key, query);
                how.apply(row);
                mask(row, block, key, query);
                for (max, &score) in max.iter_mut().zip(&*row) {
                    *max = if score > *max { score } else { *max };
                }
            }
            let mut sum = [0.0; UNIT];
            for key in keys.clone() {
                for ((p, max), sum) in lanes(scores, key, query).iter_mut().zip(&max).zip(&mut sum) {
                    *p = exp2(*p - max);
                    *sum += *p;
                }
            }
            for lane in 0..UNIT {
                let rescale = exp2(old_max[lane] - max[lane]);
                running.sum[query + lane] = running.sum[query + lane] * rescale + sum[lane];
                running.rescale[query + lane] = rescale;
                running.max[query + lane] = max[lane];
            }
            if let Some(dropout) = dropout {
                dropout.for_keys(keys.clone(), query, |key, factors| {
                    lanes(scores, key, query).iter_mut().zip(factors).for_each(|(p, factor)| *p *= factor);
                });
            }
            if format == Format::Bf16Pair {
                pair_rows(scores, words, keys, query);
            }
        }
    }
}

/// Rounds rows of a block to bf16 and puts rows `2 i` and `2 i + 1` in the words of row `i`.
#[inline(always)]
fn pair_rows(block: &mut [f32], words: &mut [u32], keys: std::ops::Range<usize>, query: usize) {
    for key in keys.step_by(2) {
        let (first, second) = (*lanes(block, key, query), *lanes(block, key + 1, query));
        let words = &mut words[key / 2 * BLOCK + query..][..UNIT];
        for (word, (a, b)) in words.iter_mut().zip(first.into_iter().zip(second)) {
            *word = bf16_bits(a) | bf16_bits(b) << 16;
        }
    }
}

/// Rounds 16 neighbours of a row to bf16, in pairs.
#[inline(always)]
fn pair_lanes(values: &[f32; UNIT], words: &mut [u32]) {
    for (word, [a, b]) in words.iter_mut().zip(values.as_chunks::<2>().0) {
        *word = bf16_bits(*a) | bf16_bits(*b) << 16;
    }
}

multiversion! {
    /// Turns running maxima into log-sum-exps and running sums into what the values are to be multiplied by.
    pub(super) fn finish(max: &mut [f32], sum: &mut [f32]) {
        for (max, sum) in max.iter_mut().zip(sum) {
            let seen = *sum != 0.0;
            let log_sum_exp = *max * std::f32::consts::LN_2 + crate::math::ln(*sum);
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

multiversion! {
    /// Turns products `[key][query]` into probabilities (after dropout), and the gradient of probabilities
    /// `dp` `[key][query]` into that of the products: `ds = p (dp - delta)` times the derivative of the score.
    pub(super) fn gradient_block(
        scores: &mut [f32], dp: &mut [f32], block: &Block, how: Scores, dropout: Option<BlockDropout>,
        format: Format, saved: &Saved<'_>, words: &mut GradientWords<'_>,
    ) {
        for unit in 0..block.query_units() {
            let query = unit * UNIT;
            let seen = block.units_seen(unit);
            let keys = seen.start * UNIT..seen.end * UNIT;
            let (log_sum_exp, delta) = (read(saved.log_sum_exp, query), read(saved.delta, query));
            if let Some(dropout) = dropout {
                dropout.for_keys(keys.clone(), query, |key, factors| {
                    lanes(dp, key, query).iter_mut().zip(factors).for_each(|(dp, factor)| *dp *= factor);
                });
            }
            for key in keys.clone() {
                let (p, ds) = (lanes(scores, key, query), lanes(dp, key, query));
                let derivatives = how.apply(p);
                mask(p, block, key, query);
                for lane in 0..UNIT {
                    p[lane] = exp2(p[lane] - log_sum_exp[lane]);
                    ds[lane] = p[lane] * (ds[lane] - delta[lane]) * derivatives[lane];
                }
            }
            if let Some(dropout) = dropout {
                dropout.for_keys(keys.clone(), query, |key, factors| {
                    lanes(scores, key, query).iter_mut().zip(factors).for_each(|(p, factor)| *p *= factor);
                });
            }
            if format == Format::Bf16Pair {
                for key in keys.clone() {
                    pair_lanes(lanes(scores, key, query), &mut words.p[(key * BLOCK + query) / 2..]);
                    pair_lanes(lanes(dp, key, query), &mut words.ds[(key * BLOCK + query) / 2..]);
                }
                pair_rows(dp, words.ds_interleaved, keys, query);
            }
        }
    }
}
