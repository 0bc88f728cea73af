//! Random numbers as a function of (seed, name, global index): any rank can make any part of any tensor.
//!
//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed and a hash of the name
//! as key and the index as counter. Normal numbers are Box-Muller in f64, one pair per counter.

use kernels::philox::philox4x32;

/// A stream of numbers addressed by index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    /// The stream of a name, such as a weight's.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = fnv1a(name.as_bytes());
        Self { key: words(seed), high: words(hash) }
    }

    /// Four independent 32-bit words at `index`.
    pub fn words(&self, index: u64) -> [u32; 4] {
        let [low, high] = words(index);
        philox4x32(self.key, [low, high, self.high[0], self.high[1]])
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&self, index: u64) -> f64 {
        let [a, b, ..] = self.words(index);
        unit(a, b)
    }

    /// Standard normal.
    pub fn normal(&self, index: u64) -> f64 {
        let [a, b, c, d] = self.words(index / 2);
        // 1 - u is in (0, 1]: its logarithm is finite.
        let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(c, d);
        if index.is_multiple_of(2) { radius * angle.cos() } else { radius * angle.sin() }
    }
}

/// A key for the kernels' counter-based draws at one site of one step.
pub fn site_key(seed: u64, step: u64, site: u64) -> [u32; 2] {
    let ([step_low, step_high], [site_low, site_high]) = (words(step), words(site));
    let [a, b, ..] = philox4x32(words(seed), [step_low, step_high, site_low, site_high]);
    [a, b]
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn unit(a: u32, b: u32) -> f64 {
    ((u64::from(a) << 32 | u64::from(b)) >> 11) as f64 / (1u64 << 53) as f64
}

/// FNV-1a, 64 bits: names are few and distinct, and the hash must never change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let stream = Stream::new(42, "transformer.wte.weight");
        let n = 100_000;
        let numbers: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
        let mean = numbers.iter().sum::<f64>() / n as f64;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        // Four standard errors: 4 / sqrt(n) and 4 sqrt(2 / n).
        assert!(mean.abs() < 0.0127, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.0179, "variance {variance}");
    }

    #[test]
    fn another_name_or_seed_is_another_stream() {
        let first = Stream::new(1, "a").words(0);
        assert_ne!(first, Stream::new(2, "a").words(0));
        assert_ne!(first, Stream::new(1, "b").words(0));
        assert_eq!(first, Stream::new(1, "a").words(0));
    }
}
