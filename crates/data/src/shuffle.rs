//! A new order of the samples every epoch, without a list of them: a permutation computed element by element.
//!
//! A Feistel network over the smallest domain of 2^(2k) numbers that holds them all, its round function keyed by seed and epoch. A number that falls
//! outside the samples is put in again until it falls inside (cycle walking); the domain is less than four times
//! as large, so that takes fewer than four turns on average. Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite
//! Domains", sections 3 and 4.

/// Rounds of the network. Four suffice in theory for large domains; small ones mix better with more.
const ROUNDS: usize = 8;

/// A permutation of `0..len`, a pure function of its arguments.
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of `len` samples (at most 2^62) in epoch `epoch` under `seed`; `stream` keeps several of them apart.
    pub fn new(len: u64, seed: u64, epoch: u64, stream: u64) -> Self {
        assert!(len <= 1 << 62, "Permutation::new: {len} samples");
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = mix(mix(mix(seed) ^ epoch) ^ stream);
        let keys = std::array::from_fn(|_| {
            state = mix(state);
            state
        });
        Self { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// The sample at place `index` of the order.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "Permutation::at: {index} of {}", self.len);
        let mut value = self.encrypt(index);
        while value >= self.len {
            value = self.encrypt(value);
        }
        value
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// SplitMix64's output function after one step: every bit of the result depends on every bit of `x`.
/// Source: Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 16 (mix64variant13).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_comes_exactly_once() {
        for len in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let order = Permutation::new(len, 42, 3, 0);
            let mut seen = vec![false; len as usize];
            (0..len).for_each(|index| seen[order.at(index) as usize] = true);
            assert!(seen.iter().all(|&seen| seen), "{len}");
        }
    }

    #[test]
    fn seed_epoch_and_stream_each_change_the_order() {
        let order = |seed, epoch, stream| -> Vec<u64> {
            let order = Permutation::new(100, seed, epoch, stream);
            (0..100).map(|index| order.at(index)).collect()
        };
        let base = order(1, 1, 1);
        assert_eq!(base, order(1, 1, 1));
        for other in [order(2, 1, 1), order(1, 2, 1), order(1, 1, 2)] {
            let num_same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(num_same < 10, "{num_same} of 100 samples kept their place; 1 is expected by chance");
        }
    }

    /// Chi-squared over the places of one sample; 9 degrees of freedom, so above 27.9 in one of a thousand cases.
    #[test]
    fn every_place_is_equally_likely_even_for_ten_samples() {
        for sample in 0..10 {
            let mut counts = [0f64; 10];
            for seed in 0..10_000 {
                counts[Permutation::new(10, seed, 0, 0).at(sample) as usize] += 1.0;
            }
            let chi_squared: f64 = counts.iter().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi_squared < 27.9, "sample {sample}: {chi_squared}, {counts:?}");
        }
    }

    #[test]
    fn a_trillion_samples_need_no_memory() {
        let len = 1_000_000_000_039;
        let order = Permutation::new(len, 0, 0, 0);
        let places: std::collections::BTreeSet<u64> = (0..1000).map(|index| order.at(index)).collect();
        assert_eq!(places.len(), 1000);
        assert!(*places.last().unwrap() > len * 9 / 10 && *places.first().unwrap() < len / 10);
    }
}
