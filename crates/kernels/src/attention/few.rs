//! Attention of a few queries, as a step of generation has them: each key and value is read once, where it lies.
//!
//! The tiles of [`super::forward`] would convert and multiply blocks of which a sixteenth is used; here a score is a dot
//! product along the row of the key, and memory sets the pace.

use std::ops::Range;

use super::forward::{Inputs, Output};
use super::geometry::visible_keys;
use super::product::UNIT;
use super::scratch::with_scratch;
use super::softmax::{LOWEST, MASKED, Scores};
use super::tile::dot;
use super::work::Work;
use super::{BLOCK, Rows};
use crate::Element;
use crate::fused::{Separate, exp2};
use crate::isa::multiversion;
use crate::lanes::tree;

/// With more queries than this a segment is worked on in tiles.
pub(super) const MAX_QUERIES: usize = 3;

/// All queries of a segment that has at most [`MAX_QUERIES`], for one head.
pub(super) fn attend<T: Element>(work: Work<'_>, inputs: Inputs<T>, output: &Output<T>) {
    let Work { isa, spec, segment, .. } = work;
    let width = work.width();
    with_scratch(&[width, width, BLOCK], |mut scratch| {
        let [q, out, scores] = [width, width, BLOCK].map(|len| scratch.take::<f32>(len));
        for query in 0..segment.q_len {
            q.iter_mut().zip(inputs.q.row(query, 0, spec.head_dim)).for_each(|(q, value)| *q = value.to_f32());
            out.fill(0.0);
            let (mut max, mut sum) = (LOWEST, 0.0);
            let seen = visible_keys(spec, segment, query..query + 1);
            for key in seen.clone().step_by(BLOCK) {
                let keys = key..(key + BLOCK).min(seen.end);
                score_keys(isa, &q[..spec.head_dim], inputs.k, keys.clone(), scores);
                let rescale = softmax_row(isa, scores, keys.len(), work.scores(), &mut max, &mut sum);
                let scores = &mut scores[..keys.len()];
                if let Some(dropout) = work.dropout(query, key) {
                    dropout.apply_to_row(scores);
                }
                add_values(isa, &mut out[..spec.head_dim], rescale, scores, inputs.v, keys);
            }
            output.store(work, query, out, &mut [max], &mut [sum]);
        }
    });
}

multiversion! {
    /// `scores[i] = sum_d q[d] k[keys.start + i][d]`
    fn score_keys<T: Element>(q: &[f32], k: Rows<T>, keys: Range<usize>, scores: &mut [f32]) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = dot(q, k.row(key, 0, q.len()));
        }
    }
}

multiversion! {
    /// Turns the first `num_keys` products into probabilities relative to the running maximum, the rest into zeros;
    /// returns what the values so far are to be multiplied by.
    fn softmax_row(
        products: &mut [f32], num_keys: usize, how: Scores, running_max: &mut f32, running_sum: &mut f32
    ) -> f32 {
        let units = products.as_chunks_mut::<UNIT>().0;
        let mut max = [*running_max; UNIT];
        for (unit, x) in units.iter_mut().enumerate() {
            how.apply(x);
            for (lane, (x, max)) in x.iter_mut().zip(&mut max).enumerate() {
                *x = if unit * UNIT + lane < num_keys { *x } else { MASKED };
                *max = if *x > *max { *x } else { *max };
            }
        }
        let max = tree(max, |a, b| if b > a { b } else { a });
        let mut sum = [0.0; UNIT];
        for p in units {
            for (p, sum) in p.iter_mut().zip(&mut sum) {
                *p = exp2::<Separate>((*p - max) * how.factor);
                *sum += *p;
            }
        }
        let rescale = exp2::<Separate>((*running_max - max) * how.factor);
        *running_sum = *running_sum * rescale + tree(sum, |a, b| a + b);
        *running_max = max;
        rescale
    }
}

multiversion! {
    /// `out[d] = rescale out[d] + sum_i p[i] v[keys.start + i][d]`: a unit of `out` stays in registers over all keys.
    fn add_values<T: Element>(out: &mut [f32], rescale: f32, p: &[f32], v: Rows<T>, keys: Range<usize>) {
        let (units, rest) = out.as_chunks_mut::<UNIT>();
        let first_rest = units.len() * UNIT;
        for (unit, out) in units.iter_mut().enumerate() {
            let mut sums = *out;
            sums.iter_mut().for_each(|sum| *sum *= rescale);
            for (p, key) in p.iter().zip(keys.clone()) {
                let v: &[T; UNIT] = v.row(key, unit * UNIT, UNIT).first_chunk().expect("the row has a unit here");
                for lane in 0..UNIT {
                    sums[lane] += p * v[lane].to_f32();
                }
            }
            *out = sums;
        }
        for (i, out) in rest.iter_mut().enumerate() {
            let values = p.iter().zip(keys.clone()).map(|(p, key)| p * v.row(key, first_rest + i, 1)[0].to_f32());
            *out = *out * rescale + values.sum::<f32>();
        }
    }
}
