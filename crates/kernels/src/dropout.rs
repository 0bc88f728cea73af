//! Dropout: each element is set to 0 with a given probability, and kept ones are scaled by `1 / (1 - probability)`.
//!
//! Source: Srivastava et al. 2014. Whether an element is kept is a function of the key (made of seed, step and site),
//! the token's sample in the global batch, its position and the element's global feature: any mesh and any number of
//! threads draws the same mask, and the backward pass draws it again instead of keeping it.
//!
//! Feature `f` takes word `f % 4` of Philox with the counter `[sample, position, f / 4, 0]`. Attention takes word
//! `k % 4` of `[sample, q_position, k / 4, 1 + head]` for the key position `k`. Whole words rather than halves, which
//! would cost half of the half nanosecond an element: the probability is then exact to 2^-32.

use std::ops::Range;

use crate::isa::multiversion;
use crate::philox::{WORDS, words};
use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element, Isa};

/// Factors that are drawn at once: they stay in the first-level cache.
const BLOCK: usize = 1024;

/// Dropout of `N` rows.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Chance that an element is dropped, in [0, 1).
    pub probability: f32,
    /// Made of seed, step and site.
    pub key: [u32; 2],
    /// `[N]` sample in the global batch.
    pub samples: &'a [u32],
    /// `[N]` position in the row.
    pub positions: &'a [u32],
    /// Global index of column 0, for ranks that hold a range of the columns.
    pub first_feature: u32,
}

/// An element whose random word is below this is dropped; see [`is_kept`].
///
/// # Panics
/// If `probability` is not in [0, 1).
pub fn keep_threshold(probability: f32) -> u32 {
    assert!((0.0..1.0).contains(&probability), "dropout::keep_threshold: probability {probability} is not in [0, 1)");
    (f64::from(probability) * 2f64.powi(32)) as u32
}

/// Whether the element with this random word is kept.
#[inline(always)]
pub fn is_kept(word: u32, threshold: u32) -> bool {
    word >= threshold
}

/// What kept elements are multiplied by.
pub fn keep_scale(probability: f32) -> f32 {
    (1.0 / (1.0 - f64::from(probability))) as f32
}

/// `y = dropout(x)` on rows of `width` elements. The gradient is the same call on the gradient.
pub fn apply<T: Element>(cpu: &Cpu, x: &[T], width: usize, dropout: &Dropout<'_>, y: &mut [T]) {
    let num_rows = dropout.samples.len();
    assert!(x.len() == num_rows * width && y.len() == x.len(), "dropout::apply: x, y and samples");
    dropout.check(num_rows);
    for_rows(cpu, num_rows, rows_per_task(width), rows(y, width), |range, y| {
        let x = &x[range.start * width..range.end * width];
        dropout.rows(range).for_blocks(cpu.isa, width, |elements, _, factors| {
            apply_block(cpu.isa, &x[elements.clone()], factors, &mut y[elements]);
        });
    });
}

multiversion! {
    /// `y = dropout(x)` for elements whose factors were drawn.
    pub(crate) fn apply_block<T: Element>(x: &[T], factors: &[f32], y: &mut [T]) {
        for ((y, x), &factor) in y.iter_mut().zip(x).zip(factors) {
            *y = T::from_f32(keep(factor, x.to_f32()));
        }
    }
}

/// The factor is 0 for a dropped element, whose value must not matter even if it is infinite.
#[inline(always)]
pub(crate) fn keep(factor: f32, value: f32) -> f32 {
    if factor == 0.0 { 0.0 } else { value * factor }
}

impl<'a> Dropout<'a> {
    pub(crate) fn check(&self, num_rows: usize) {
        assert_eq!(self.samples.len(), num_rows, "Dropout: one sample for each row");
        assert_eq!(self.positions.len(), num_rows, "Dropout: one position for each row");
    }

    /// The masks of some of the rows.
    pub(crate) fn rows(&self, range: Range<usize>) -> Mask<'a> {
        Mask {
            threshold: keep_threshold(self.probability),
            scale: keep_scale(self.probability),
            key: self.key,
            samples: &self.samples[range.clone()],
            positions: &self.positions[range],
            first_feature: self.first_feature,
        }
    }
}

/// [`Dropout`] of a range of rows, ready to draw.
pub(crate) struct Mask<'a> {
    threshold: u32,
    scale: f32,
    key: [u32; 2],
    samples: &'a [u32],
    positions: &'a [u32],
    first_feature: u32,
}

impl Mask<'_> {
    /// Calls `block(elements, columns, factors)` for runs of consecutive elements of the rows, in order: a factor is 0
    /// (dropped) or the scale (kept). The elements count from the first row's begin, the columns from the row's.
    pub(crate) fn for_blocks(&self, isa: Isa, width: usize, mut block: impl FnMut(Range<usize>, Range<usize>, &[f32])) {
        let mut factors = [0.0; BLOCK];
        for row in 0..self.samples.len() {
            for first in (0..width).step_by(BLOCK) {
                let columns = first..(first + BLOCK).min(width);
                let factors = &mut factors[..columns.len()];
                draw(isa, self, row, first, factors);
                block(row * width + columns.start..row * width + columns.end, columns, factors);
            }
        }
    }
}

multiversion! {
    /// The factors of a row from column `first` on.
    fn draw(mask: &Mask<'_>, row: usize, first: usize, factors: &mut [f32]) {
        let mut done = 0;
        while done < factors.len() {
            let feature = mask.first_feature.wrapping_add((first + done) as u32);
            let drawn = words(mask.key, mask.samples[row], mask.positions[row], feature / 4, 0);
            // Only the first run can begin inside a counter's four words.
            let skip = (feature % 4) as usize;
            let len = (WORDS - skip).min(factors.len() - done);
            for (factor, &word) in factors[done..done + len].iter_mut().zip(&drawn[skip..]) {
                *factor = if is_kept(word, mask.threshold) { mask.scale } else { 0.0 };
            }
            done += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::philox::philox4x32;
    use crate::testing::*;

    fn tokens(num_rows: usize) -> (Vec<u32>, Vec<u32>) {
        (0..num_rows as u32).map(|n| (100 + n / 7, n % 7)).unzip()
    }

    fn run<T: Element>(cpu: &Cpu, x: &[T], width: usize, probability: f32, first_feature: u32) -> Vec<T> {
        let (samples, positions) = tokens(x.len() / width);
        let dropout = Dropout { probability, key: [11, 12], samples: &samples, positions: &positions, first_feature };
        let mut y = vec![T::ZERO; x.len()];
        apply(cpu, x, width, &dropout, &mut y);
        y
    }

    /// The definition, element by element.
    fn reference(x: &[f64], width: usize, probability: f64, first_feature: u32) -> Vec<f64> {
        let (samples, positions) = tokens(x.len() / width);
        let element = |i: usize| {
            let feature = first_feature + (i % width) as u32;
            let counter = [samples[i / width], positions[i / width], feature / 4, 0];
            let uniform = f64::from(philox4x32([11, 12], counter)[feature as usize % 4]) / 2f64.powi(32);
            if uniform < probability { 0.0 } else { x[i] / (1.0 - probability) }
        };
        (0..x.len()).map(element).collect()
    }

    fn agrees_with_f64<T: Element>(num_rows: usize, width: usize, probability: f32, first_feature: u32) {
        let x = elements::<T>(1, num_rows * width);
        let got = run(&Cpu::single(), &x, width, probability, first_feature);
        let want = reference(&to_f64(&x), width, f64::from(probability), first_feature);
        assert_close("y", &got, &want, 2e-7);
    }

    #[test]
    fn it_agrees_with_its_definition_and_so_does_the_gradient_which_is_the_same_call() {
        for (num_rows, width) in [(3, 1), (9, 63), (2, 64), (3, 197)] {
            for (probability, first_feature) in [(0.0, 0), (0.1, 0), (0.5, 3), (0.9, 1002)] {
                agrees_with_f64::<f32>(num_rows, width, probability, first_feature);
                agrees_with_f64::<bf16>(num_rows, width, probability, first_feature);
            }
        }
        let (x, dy) = (values(1, 3 * 30), values(2, 3 * 30));
        let dx = run(&Cpu::single(), &round::<f32>(&dy), 30, 0.3, 5);
        assert_close("dx", &dx, &gradient(&x, |x| dot(&reference(x, 30, f64::from(0.3f32), 5), &dy)), 3e-7);
    }

    #[test]
    fn ranks_that_share_the_columns_draw_the_mask_of_one_rank() {
        let ones = vec![1.0f32; 21 * 100];
        let whole = run(&Cpu::single(), &ones, 100, 0.4, 0);
        for cut in [1, 2, 37, 64, 99] {
            let left = run(&Cpu::single(), &ones[..21 * cut], cut, 0.4, 0);
            let right = run(&Cpu::single(), &ones[..21 * (100 - cut)], 100 - cut, 0.4, cut as u32);
            for row in 0..21 {
                assert_eq!(left[row * cut..(row + 1) * cut], whole[row * 100..row * 100 + cut], "cut {cut}");
                assert_eq!(right[row * (100 - cut)..(row + 1) * (100 - cut)], whole[row * 100 + cut..(row + 1) * 100]);
            }
        }
    }

    #[test]
    fn the_share_of_dropped_elements_is_the_probability_and_the_mean_is_kept() {
        let ones = vec![1.0f32; 1000 * 200];
        for probability in [0.1, 0.5] {
            let y = run(&Cpu::single(), &ones, 200, probability, 0);
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64 / 2e5;
            // Five standard deviations of 200,000 draws.
            assert!((dropped - f64::from(probability)).abs() < 0.0056, "{probability}: {dropped}");
            let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / 2e5;
            assert!((mean - 1.0).abs() < 0.0115, "{probability}: mean {mean}");
        }
    }

    #[test]
    fn an_infinite_element_can_be_dropped() {
        let y = run(&Cpu::single(), &[f32::INFINITY; 400], 20, 0.5, 0);
        assert!(y.contains(&0.0) && y.contains(&f32::INFINITY) && !y.iter().any(|y| y.is_nan()));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, width, first_feature) in [(3, 5, 1), (11, 131, 2), (700, 67, 0)] {
            let x = elements::<bf16>(1, num_rows * width);
            assert_same_bits(|cpu| run(cpu, &x, width, 0.2, first_feature));
        }
    }
}
