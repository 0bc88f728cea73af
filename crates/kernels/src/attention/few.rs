//! Attention of a few queries, as a step of generation has them: each key and value is read once, where it lies.
//!
//! The tiles of [`super::forward`] would convert and multiply blocks of which a sixteenth is used; here a score is a dot
//! product along the row of the key, and memory sets the pace.

use std::ops::Range;

use super::dropout::BlockDropout;
use super::forward::{Inputs, Output};
use super::geometry::visible_keys;
use super::product::UNIT;
use super::scratch::with_scratch;
use super::softmax::{LOWEST, Scores, exp2};
use super::tile::{dot, padded};
use super::{AttentionSpec, BLOCK, Rows, Segment};
use crate::isa::multiversion;
use crate::{Element, Isa};

/// With more queries than this a segment is worked on in tiles.
pub(super) const MAX_QUERIES: usize = 3;

/// All queries of a segment that has at most [`MAX_QUERIES`], for one head.
pub(super) fn attend<T: Element>(
    isa: Isa,
    spec: &AttentionSpec,
    segment: &Segment,
    head: usize,
    inputs: Inputs<T>,
    output: &Output<T>,
) {
    let width = padded(spec.head_dim);
    with_scratch(&[width, width, BLOCK], |mut scratch| {
        let [q, out, scores] = [width, width, BLOCK].map(|len| scratch.take::<f32>(len));
        for query in 0..segment.q_len {
            q.fill(0.0);
            q.iter_mut().zip(inputs.q.row(query, 0, spec.head_dim)).for_each(|(q, value)| *q = value.to_f32());
            out.fill(0.0);
            let how = Scores::new(spec.scale, spec.softcap);
            let (mut max, mut sum) = (LOWEST, 0.0);
            let seen = visible_keys(spec, segment, query..query + 1);
            for key in seen.clone().step_by(BLOCK) {
                let keys = key..(key + BLOCK).min(seen.end);
                score_keys(isa, q, inputs.k, keys.clone(), spec.head_dim, scores);
                let rescale = softmax_row(isa, &mut scores[..keys.len()], how, &mut max, &mut sum);
                if let Some(dropout) = &spec.dropout {
                    let dropout = BlockDropout::new(dropout, segment, head, query, key);
                    dropout.for_keys(0..keys.len(), 0, |key, factors| scores[key] *= factors[0]);
                }
                add_values(isa, out, rescale, &scores[..keys.len()], inputs.v, keys, spec.head_dim);
            }
            output.store(isa, segment.q_start + query, head, spec.head_dim, out, &mut [max], &mut [sum]);
        }
    });
}

multiversion! {
    /// `scores[i] = sum_d q[d] k[keys.start + i][d]`
    fn score_keys<T: Element>(q: &[f32], k: Rows<T>, keys: Range<usize>, head_dim: usize, scores: &mut [f32]) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = dot(&q[..head_dim], k.row(key, 0, head_dim));
        }
    }
}

multiversion! {
    /// Turns products into probabilities relative to the running maximum; returns what the values so far are to be
    /// multiplied by.
    fn softmax_row(scores: &mut [f32], how: Scores, running_max: &mut f32, running_sum: &mut f32) -> f32 {
        let mut max = *running_max;
        for chunk in scores.chunks_mut(UNIT) {
            let mut products = [0.0; UNIT];
            products[..chunk.len()].copy_from_slice(chunk);
            how.apply(&mut products);
            chunk.copy_from_slice(&products[..chunk.len()]);
            for &score in &*chunk {
                max = if score > max { score } else { max };
            }
        }
        let mut sum = 0.0;
        for score in scores {
            *score = exp2(*score - max);
            sum += *score;
        }
        let rescale = exp2(*running_max - max);
        *running_sum = *running_sum * rescale + sum;
        *running_max = max;
        rescale
    }
}

multiversion! {
    /// `out[d] = rescale out[d] + sum_i p[i] v[keys.start + i][d]`
    fn add_values<T: Element>(out: &mut [f32], rescale: f32, p: &[f32], v: Rows<T>, keys: Range<usize>, head_dim: usize) {
        out.iter_mut().for_each(|out| *out *= rescale);
        for (p, key) in p.iter().zip(keys) {
            for (out, value) in out.iter_mut().zip(v.row(key, 0, head_dim)) {
                *out += p * value.to_f32();
            }
        }
    }
}
