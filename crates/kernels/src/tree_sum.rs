//! The sum of several arrays, element by element, along a binary tree over their numbers.
//!
//! Terms are added as a binary counter carries: `((x0 + x1) + (x2 + x3)) + ...`. The sum of terms 0 to 7 is then the sum of
//! the sums of 0 to 3 and of 4 to 7, and so on down: whoever holds an aligned run of `2^k` terms may add them first, and
//! the bits of the whole are the same. That is how eight ranks and one rank give the same gradient.
//!
//! Floats are added in f32 and rounded once at the end; whole numbers wrap.

use crate::isa::multiversion;
use crate::rows::{for_elements, rows};
use crate::{Cpu, bf16, f16};
use bytemuck::{Pod, Zeroable};

/// A number that can be summed.
pub trait Summand: Pod + Send + Sync {
    /// What sums are kept in.
    type Sum: Pod;
    /// Exact.
    fn widen(self) -> Self::Sum;
    /// One addition.
    fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// Rounded to nearest where the format is narrower.
    fn narrow(sum: Self::Sum) -> Self;
}

macro_rules! float_summand {
    ($($T:ty),*) => { $(
        impl Summand for $T {
            type Sum = f32;
            #[inline(always)]
            fn widen(self) -> f32 {
                crate::Element::to_f32(self)
            }
            #[inline(always)]
            fn add(a: f32, b: f32) -> f32 {
                a + b
            }
            #[inline(always)]
            fn narrow(sum: f32) -> Self {
                crate::Element::from_f32(sum)
            }
        }
    )* };
}
float_summand!(f32, bf16, f16);

macro_rules! integer_summand {
    ($($T:ty),*) => { $(
        impl Summand for $T {
            type Sum = $T;
            #[inline(always)]
            fn widen(self) -> $T {
                self
            }
            #[inline(always)]
            fn add(a: $T, b: $T) -> $T {
                a.wrapping_add(b)
            }
            #[inline(always)]
            fn narrow(sum: $T) -> $T {
                sum
            }
        }
    )* };
}
integer_summand!(u32, i32);

/// Elements summed at once: the sums under way stay in the nearest cache.
const BLOCK: usize = 512;

/// Sums under way at most: enough for 65,536 terms.
const LEVELS: usize = 16;

/// `out = x0 + x1 + ...` along the tree; one term is copied, bit for bit.
///
/// # Panics
/// If there is no term, there are more than 65,535, or their lengths differ: broken promises of the caller.
pub fn tree_sum<T: Summand>(cpu: &Cpu, terms: &[&[T]], out: &mut [T]) {
    assert!((1..1 << LEVELS).contains(&terms.len()), "tree_sum: {} terms", terms.len());
    assert!(terms.iter().all(|term| term.len() == out.len()), "tree_sum: lengths");
    for_elements(cpu, out.len(), rows(out, 1), |range, out| match terms {
        [x] => out.copy_from_slice(&x[range]),
        [a, b] => add_two(cpu.isa, &a[range.clone()], &b[range], out),
        _ => sum_many(cpu.isa, terms, range.start, out),
    });
}

multiversion! {
    fn add_two<T: Summand>(a: &[T], b: &[T], out: &mut [T]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = T::narrow(T::add(a.widen(), b.widen()));
        }
    }
}

multiversion! {
    /// `out =` the sum of the terms from element `first` on.
    fn sum_many<T: Summand>(terms: &[&[T]], first: usize, out: &mut [T]) {
        // `sums[level]`: that of `2^level` terms, where the counter has that bit.
        let mut sums = [[T::Sum::zeroed(); BLOCK]; LEVELS];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let range = first + block * BLOCK..first + block * BLOCK + out.len();
            let mut counter = 0usize;
            for pair in terms.chunks(2) {
                // A last term without a partner is alone on level 0: nothing is carried into it.
                let mut level = pair.len() - 1;
                let mut carry = [T::Sum::zeroed(); BLOCK];
                for (carry, a) in carry.iter_mut().zip(&pair[0][range.clone()]) {
                    *carry = a.widen();
                }
                if let Some(b) = pair.get(1) {
                    for (carry, b) in carry.iter_mut().zip(&b[range.clone()]) {
                        *carry = T::add(*carry, b.widen());
                    }
                }
                while level > 0 && counter & (1 << level) != 0 {
                    for (carry, sum) in carry.iter_mut().zip(&sums[level]) {
                        *carry = T::add(*sum, *carry);
                    }
                    counter &= !(1 << level);
                    level += 1;
                }
                counter |= 1 << level;
                sums[level] = carry;
            }
            // What is left, the smallest first.
            let lowest = counter.trailing_zeros() as usize;
            let mut total = sums[lowest];
            for level in (lowest + 1..LEVELS).filter(|level| counter & (1 << level) != 0) {
                for (total, sum) in total.iter_mut().zip(&sums[level]) {
                    *total = T::add(*sum, *total);
                }
            }
            for (out, total) in out.iter_mut().zip(&total) {
                *out = T::narrow(*total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Element;
    use crate::testing::{assert_same_bits, elements};

    /// The tree as its definition has it.
    fn tree(terms: &[f32]) -> f32 {
        match terms {
            [x] => *x,
            _ => {
                let half = (terms.len().next_power_of_two() / 2).max(1);
                tree(&terms[..half]) + tree(&terms[half..])
            }
        }
    }

    fn sum<T: Summand + Element>(cpu: &Cpu, terms: &[Vec<T>]) -> Vec<T> {
        let terms: Vec<&[T]> = terms.iter().map(Vec::as_slice).collect();
        let mut out = vec![T::ZERO; terms[0].len()];
        tree_sum(cpu, &terms, &mut out);
        out
    }

    fn follows_the_tree<T: Summand + Element>() {
        for len in [1, 5, BLOCK + 3] {
            for count in 1..=17 {
                let terms: Vec<Vec<T>> = (0..count).map(|seed| elements(seed, len)).collect();
                let got = sum(&Cpu::single(), &terms);
                for (i, got) in got.iter().enumerate() {
                    let column: Vec<f32> = terms.iter().map(|term| term[i].to_f32()).collect();
                    assert_eq!(*got, T::from_f32(tree(&column)), "{count} terms of {len}, element {i}");
                }
            }
        }
    }

    #[test]
    fn sums_follow_the_tree_in_f32_and_are_rounded_once() {
        follows_the_tree::<f32>();
        follows_the_tree::<bf16>();
        follows_the_tree::<f16>();
    }

    #[test]
    fn an_aligned_run_of_terms_may_be_summed_first() {
        let (cpu, terms) = (Cpu::single(), (0..8).map(|seed| elements::<f32>(seed, 700)).collect::<Vec<_>>());
        let whole = sum(&cpu, &terms);
        for run in [2, 4] {
            let parts: Vec<Vec<f32>> = terms.chunks(run).map(|terms| sum(&cpu, terms)).collect();
            assert_eq!(sum(&cpu, &parts), whole, "runs of {run}");
        }
    }

    #[test]
    fn whole_numbers_wrap() {
        let (a, b, c) = ([u32::MAX, 3], [1, 4], [7, 5]);
        let mut out = [0; 2];
        tree_sum(&Cpu::single(), &[&a, &b, &c], &mut out);
        assert_eq!(out, [7, 12]);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for count in [1, 2, 3, 6] {
            let terms: Vec<Vec<bf16>> = (0..count).map(|seed| elements(seed, 40_001)).collect();
            assert_same_bits(|cpu| sum(cpu, &terms));
        }
    }
}
