//! Several weighted sources: which of them sample number g comes from, and which of its samples that is.
//!
//! A pure function of the weights and g, so that a run can go on from any number. The sources are split off one after the
//! other: of the first n samples exactly floor(n x share) are the first source's (a Beatty sequence), and the rest is a
//! sequence of the other sources, split in the same way. Each source is therefore never more than one sample
//! per split away from its share. Shares are integers / 2^32, so that nothing depends on rounding.

/// The interleaving of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Of what the sources before it leave, the share of each, times 2^32; the last takes everything.
    shares: Vec<u64>,
}

impl Mix {
    /// Interleaves sources in proportion to `weights`, all above 0 and finite.
    pub fn new(weights: &[f64]) -> Self {
        let is_weight = |weight: &f64| weight.is_finite() && *weight > 0.0;
        assert!(!weights.is_empty() && weights.iter().all(is_weight), "Mix::new: weights {weights:?}");
        let share = |index: usize| {
            let rest: f64 = weights[index..].iter().sum();
            (weights[index] / rest * (1u64 << 32) as f64).round() as u64
        };
        Self { shares: (0..weights.len()).map(share).collect() }
    }

    /// The source of sample `index`, and how many of the samples before it are that source's.
    pub fn at(&self, mut index: u64) -> (usize, u64) {
        let last = self.shares.len() - 1;
        for (source, &share) in self.shares[..last].iter().enumerate() {
            let before = |num_samples: u64| ((u128::from(num_samples) * u128::from(share)) >> 32) as u64;
            let position = before(index);
            if before(index + 1) > position {
                return (source, position);
            }
            index -= position;
        }
        (last, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_keeps_its_share_at_every_length() {
        let weights = [0.5, 0.3, 0.15, 0.05];
        let mix = Mix::new(&weights);
        let mut counts = [0u64; 4];
        for index in 0..20_000 {
            let (source, position) = mix.at(index);
            assert_eq!(position, counts[source], "sample {index}: position is the count so far");
            counts[source] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let due = (index + 1) as f64 * weight;
                assert!((*count as f64 - due).abs() <= 3.0, "after {index}: {counts:?}");
            }
        }
        assert_eq!(counts, [10_000, 6_000, 3_000, 1_000]);
    }

    #[test]
    fn only_the_proportion_of_weights_matters() {
        assert_eq!(Mix::new(&[1.0, 3.0]), Mix::new(&[25.0, 75.0]));
        let sources: Vec<usize> = (0..8).map(|index| Mix::new(&[1.0, 3.0]).at(index).0).collect();
        assert_eq!(sources, [1, 1, 1, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn one_source_gives_every_sample_in_order() {
        assert_eq!(
            (0..5).map(|index| Mix::new(&[7.0]).at(index)).collect::<Vec<_>>(),
            [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
        );
    }
}
