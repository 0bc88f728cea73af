//! Gaussian noise added to an array: `x += std z`, `z` standard normal.
//!
//! Sources: Box & Muller 1958 on the words of Philox. Four elements share a counter: words 0 and 1 make the first two,
//! words 2 and 3 the others. The number of an element is a function of the key and of its global index alone, so any cut
//! into shards and any number of threads draws the same.

use crate::Cpu;
use crate::isa::multiversion;
use crate::math::ln;
use crate::philox::{WORDS, words};
use crate::rows::{for_elements, rows};

/// Adds noise of standard deviation `std` to `x`.
///
/// - `key`: made of seed, step and parameter.
/// - `first`: global index of the first element, a multiple of 64.
///
/// # Panics
/// If `first` is no such multiple: a bug of the caller.
pub fn add(cpu: &Cpu, x: &mut [f32], std: f32, key: [u32; 2], first: u64) {
    assert!(first.is_multiple_of(WORDS as u64), "noise::add: shards begin at multiples of {WORDS}, not at {first}");
    for_elements(cpu, x.len(), rows(x, 1), |range, x| add_part(cpu.isa, x, std, key, first + range.start as u64));
}

multiversion! {
    fn add_part(x: &mut [f32], std: f32, key: [u32; 2], first: u64) {
        for (block, x) in x.chunks_mut(WORDS).enumerate() {
            let counter = first / 4 + (block * WORDS / 4) as u64;
            let drawn = words(key, 0, (counter >> 32) as u32, counter as u32, 0);
            let mut normals = [0.0; WORDS];
            for (pair, words) in normals.as_chunks_mut::<2>().0.iter_mut().zip(drawn.as_chunks::<2>().0) {
                *pair = two_normals(words[0], words[1]);
            }
            for (x, normal) in x.iter_mut().zip(normals) {
                *x += std * normal;
            }
        }
    }
}

/// Two independent standard normal numbers. The largest magnitude is 5.8: the radius has 24 bits.
#[inline(always)]
fn two_normals(a: u32, b: u32) -> [f32; 2] {
    // In (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * ln(((a >> 8) + 1) as f32 * (1.0 / 16_777_216.0))).sqrt();
    // 22 bits of an angle within an eighth of a turn of 0, and two that turn it by quarters.
    let angle = ((b & 0x3f_ffff) as f32 * (1.0 / 4_194_304.0) - 0.5) * std::f32::consts::FRAC_PI_2;
    let square = angle * angle;
    // Taylor to the terms that f32 still sees at pi / 4.
    let sin =
        angle * (1.0 + square * (-1.0 / 6.0 + square * (1.0 / 120.0 + square * (-1.0 / 5040.0 + square / 362_880.0))));
    let cos = 1.0 + square * (-0.5 + square * (1.0 / 24.0 + square * (-1.0 / 720.0 + square * (1.0 / 40_320.0))));
    let turned = if b >> 30 & 1 == 0 { [cos, sin] } else { [-sin, cos] };
    let sign = if b >> 31 == 0 { radius } else { -radius };
    [sign * turned[0], sign * turned[1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_same_bits;

    fn normals(len: usize, key: [u32; 2], first: u64) -> Vec<f32> {
        let mut x = vec![0.0; len];
        add(&Cpu::single(), &mut x, 1.0, key, first);
        x
    }

    #[test]
    fn the_first_four_moments_are_those_of_the_normal_distribution_and_neighbours_do_not_correlate() {
        const N: usize = 1 << 20;
        let z: Vec<f64> = normals(N, [1, 2], 0).into_iter().map(f64::from).collect();
        let moment = |power: i32| z.iter().map(|z| z.powi(power)).sum::<f64>() / N as f64;
        // Four standard errors: those of the moments are sqrt(1, 2, 15, 96 / N).
        for (power, want, variance) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let bound = 4.0 * (variance / N as f64).sqrt();
            assert!((moment(power) - want).abs() < bound, "moment {power}: {}", moment(power));
        }
        for apart in [1, 2, 3, 4] {
            let product = z.iter().zip(&z[apart..]).map(|(a, b)| a * b).sum::<f64>() / N as f64;
            assert!(product.abs() < 4.0 / (N as f64).sqrt(), "{apart} apart: {product}");
        }
    }

    #[test]
    fn two_words_give_the_point_of_box_and_muller() {
        for (a, b) in [(0, 0), (u32::MAX, 7), (1 << 31, 1 << 30), (123_456_789, 3_000_000_000), (77 << 8, u32::MAX)] {
            let radius = (-2.0 * ((f64::from(a >> 8) + 1.0) / 16_777_216.0).ln()).sqrt();
            let quarters = f64::from(b >> 30 & 1) + 2.0 * f64::from(b >> 31);
            let angle = (quarters + f64::from(b & 0x3f_ffff) / 4_194_304.0 - 0.5) * std::f64::consts::FRAC_PI_2;
            let got = two_normals(a, b).map(f64::from);
            for (got, want) in got.into_iter().zip([radius * angle.cos(), radius * angle.sin()]) {
                assert!((got - want).abs() < 1e-6 * (1.0 + radius), "{a} {b}: {got}, want {want}");
            }
        }
    }

    #[test]
    fn a_shard_draws_its_part_of_the_whole_and_another_key_draws_something_else() {
        let whole = normals(20_000, [3, 4], 0);
        assert_eq!(normals(20_000 - 4096, [3, 4], 4096), whole[4096..]);
        assert_ne!(normals(100, [4, 4], 0), whole[..100]);
        let far = normals(128, [3, 4], (1 << 34) - 64);
        assert_ne!(far[..64], far[64..]);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in [0, 1, 63, 64, 65, 40_000] {
            assert_same_bits(|cpu| {
                let mut x = vec![1.0f32; len];
                add(cpu, &mut x, 0.3, [5, 6], 128);
                x
            });
        }
    }
}
