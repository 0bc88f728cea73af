//! From products to probabilities, and from probabilities to the gradient of products, in transposed blocks
//! `[key][query]`.
//!
//! A score to base 2 is `factor x`, where `x` is the product `q k` itself or, with a softcap, `tanh(scale / cap q k)`; maxima
//! are kept of `x`, so that scaling is part of the exponent's fused multiply-add.

use super::BLOCK;
use super::dropout::BlockDropout;
use super::geometry::Block;
use super::product::{Format, UNIT};
use crate::Isa;
use crate::isa::multiversion;

/// `x` of a pair that is not visible: finite, so that a difference of two is not NaN, and far below [`LOWEST`].
pub(super) const MASKED: f32 = f32::MIN;

/// What a running maximum starts from: no visible `x` is lower in earnest.
pub(super) const LOWEST: f32 = -1e30;

/// The arithmetic in which instruction sets differ.
pub(super) trait Arithmetic {
    /// `a b + c`: fused where the instruction set has it; elsewhere that would be a slow call.
    fn multiply_add(a: f32, b: f32, c: f32) -> f32;

    /// Words of two bf16, `low` and `high`, each rounded to nearest, ties to even. Infinities stay; so do the NaNs that
    /// arithmetic makes, whose low bits are zero.
    #[inline(always)]
    fn pairs(low: &[f32; UNIT], high: &[f32; UNIT]) -> [u32; UNIT] {
        std::array::from_fn(|lane| bf16_pair(low[lane], high[lane]))
    }

    /// The same of neighbours.
    #[inline(always)]
    fn neighbours(values: &[f32; UNIT]) -> [u32; UNIT / 2] {
        let mut pairs = [0; UNIT / 2];
        for (pair, [low, high]) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
            *pair = bf16_pair(*low, *high);
        }
        pairs
    }
}

/// For bodies compiled with FMA.
struct Fused;

/// For bodies compiled with FMA and AVX-512 BF16, which rounds in one instruction and takes subnormal numbers as zero.
#[cfg(target_arch = "x86_64")]
struct FusedBf16;

/// For every machine.
pub(super) struct Separate;

impl Arithmetic for Fused {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for FusedBf16 {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn pairs(low: &[f32; UNIT], high: &[f32; UNIT]) -> [u32; UNIT] {
        use std::arch::x86_64::*;
        // SAFETY: only bodies compiled for AVX-512 BF16 name this type; the arrays are vectors.
        unsafe {
            let bits = |values: &[f32; UNIT]| {
                let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
                _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(halves))
            };
            let words = _mm512_or_si512(bits(low), _mm512_slli_epi32::<16>(bits(high)));
            std::mem::transmute::<__m512i, [u32; UNIT]>(words)
        }
    }

    #[inline(always)]
    fn neighbours(values: &[f32; UNIT]) -> [u32; UNIT / 2] {
        use std::arch::x86_64::*;
        // SAFETY: only bodies compiled for AVX-512 BF16 name this type; the array is a vector.
        unsafe {
            let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
            std::mem::transmute::<__m256bh, [u32; UNIT / 2]>(halves)
        }
    }
}

impl Arithmetic for Separate {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Compiles `$body::<impl Arithmetic>` for every instruction set; the function made takes an [`Isa`] first.
macro_rules! multiversion_fused {
    ($(#[$meta:meta])* fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "one argument more than the body's own")]
        pub(super) fn $name(isa: Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx512($($arg: $ty),*) { $body::<Fused>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx2($($arg: $ty),*) { $body::<Fused>($($arg),*) }
                #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the body's own arguments")]
                fn avx512_bf16($($arg: $ty),*) { $body::<FusedBf16>($($arg),*) }
                if isa.has_avx512_bf16() {
                    // SAFETY: an `Isa` with AVX-512 BF16 is only made on a machine that has it.
                    return unsafe { avx512_bf16($($arg),*) };
                } else if isa.has_avx512() {
                    // SAFETY: an `Isa` with AVX-512 is only made on a machine that has it.
                    return unsafe { avx512($($arg),*) };
                } else if isa.has_avx2() {
                    // SAFETY: an `Isa` with AVX2 and FMA is only made on a machine that has them.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = isa;
            $body::<Separate>($($arg),*)
        }
    };
}

/// `2^x` for x up to 127, relative error 2e-7; exactly 1 at 0, exactly 0 from -127 down, NaN stays NaN.
///
/// Softmax is taken to base 2 because this needs half of the operations of [`crate::math::exp`], and never makes a
/// subnormal number (each costs a hundred cycles on some machines, and every masked score would be one).
/// The polynomial interpolates `(2^r - 1) / r` in the Chebyshev nodes of `[-1/2, 1/2]`.
#[inline(always)]
pub(super) fn exp2<F: Arithmetic>(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which the low mantissa bits then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = F::multiply_add(r, 0.000_154_531_63, 0.001_339_086_3);
    let p = F::multiply_add(r, p, 0.009_618_083);
    let p = F::multiply_add(r, p, 0.055_503_57);
    let p = F::multiply_add(r, p, 0.240_226_5);
    let p = F::multiply_add(r, p, std::f32::consts::LN_2);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    F::multiply_add(r, p, 1.0) * power
}

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

/// [`Arithmetic::pairs`] of one pair.
#[inline(always)]
fn bf16_pair(low: f32, high: f32) -> u32 {
    let rounded = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1));
    rounded(low) >> 16 | rounded(high) & 0xffff_0000
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
    fn softmax_block = softmax_block_body(
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
    fn gradient_block = gradient_block_body(
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
