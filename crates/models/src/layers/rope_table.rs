//! Tables of cosines and sines for rotary position embeddings, with the context-extending variants.
//!
//! Pair `j` of a head (its elements `j` and `j + rotary_dim / 2`: Hugging Face rotates halves) turns by
//! `position * inv_freq[j]`, and `inv_freq[j] = theta^(-2j / rotary_dim)` before scaling.
//! Sources: Su et al. 2021, arXiv:2104.09864 (RoPE); Peng et al. 2023, arXiv:2309.00071 (YaRN);
//! `modeling_rope_utils.py` of Transformers 5.23 (linear, llama3, and the YaRN details the paper leaves open).
//!
//! # Invariants
//! - Each operation is rounded to f32 where Transformers rounds it. At position 100,000 the f32 rounding of the angle
//!   alone is 0.004 rad, so exact arithmetic would be *further* from the reference than this.
//! - The attention factor (YaRN's temperature) is in both tables: the product of a rotated q and k carries its square.

use std::f64::consts::PI;

/// The rotary embedding of one attention layer. Plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Leading elements of each head that are rotated; even, at most the head size.
    pub rotary_dim: usize,
    /// The base of the frequencies, above 1 (10,000 in the paper).
    pub theta: f64,
    /// How the frequencies are stretched for contexts longer than those of pretraining.
    pub scaling: RopeScaling,
}

/// The `rope_type` of a Hugging Face configuration with its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`: the paper's frequencies.
    Default,
    /// `linear`: positions divided by a factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// `llama3`: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept; above `low_freq_factor`.
        high_freq_factor: f64,
        /// The context of pretraining, in tokens.
        original_max_position_embeddings: usize,
    },
    /// `yarn`: a ramp over the dimensions from kept to stretched frequencies, and a temperature.
    Yarn(Yarn),
}

/// The numbers of YaRN; `None` where Transformers derives the value.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// The stretch, at least 1.
    pub factor: f64,
    /// The context of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
    /// Pairs that turn at least this often within the original context are kept (32 in the paper).
    pub beta_fast: f64,
    /// Pairs that turn at most this often are stretched in full (1 in the paper).
    pub beta_slow: f64,
    /// Multiplies cosines and sines; derived from `factor` and the two below when `None`.
    pub attention_factor: Option<f64>,
    /// Weight of the temperature in the numerator; counts only together with `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// Weight of the temperature in the denominator.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp are rounded outward to whole dimensions (true in Transformers).
    pub truncate: bool,
}

impl RopeSpec {
    /// Cosines and sines, each `[num_positions, rotary_dim / 2]` row-major, the attention factor multiplied in.
    ///
    /// Row `p` is the rotation of position `p`.
    pub fn tables(&self, num_positions: usize) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq();
        let scale = self.attention_factor() as f32;
        let mut cos = Vec::with_capacity(num_positions * inv_freq.len());
        let mut sin = Vec::with_capacity(num_positions * inv_freq.len());
        for position in 0..num_positions {
            for &frequency in &inv_freq {
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * scale);
                sin.push(angle.sin() as f32 * scale);
            }
        }
        (cos, sin)
    }

    /// The angle in radians that each pair turns per position, `[rotary_dim / 2]`, after scaling.
    pub fn inv_freq(&self) -> Vec<f32> {
        assert!(self.rotary_dim.is_multiple_of(2), "RopeSpec::inv_freq: rotary_dim {} is odd", self.rotary_dim);
        let base = f64::from(self.theta as f32);
        let wavelength_over_2pi = (0..self.rotary_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / self.rotary_dim as f32;
            base.powf(f64::from(exponent)) as f32
        });
        match &self.scaling {
            RopeScaling::Default => wavelength_over_2pi.map(f32::recip).collect(),
            RopeScaling::Linear { factor } => wavelength_over_2pi.map(|w| w.recip() / *factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f32;
                let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
                wavelength_over_2pi.map(|w| llama3(w.recip(), factor, low, high, original)).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let ramp = yarn.ramp(self.rotary_dim, self.theta);
                wavelength_over_2pi.zip(ramp).map(|(w, stretched)| yarn.blend(w, stretched)).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by: 1 except for YaRN.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor(),
            _ => 1.0,
        }
    }
}

/// Llama 3.1's rule for one frequency: which third it is in depends on how often it turns in the original context.
fn llama3(inv_freq: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * PI as f32 / inv_freq;
    if wavelength > original / low {
        inv_freq / factor
    } else if wavelength < original / high {
        inv_freq
    } else {
        let kept = (original / wavelength - low) / (high - low);
        (1.0 - kept) * inv_freq / factor + kept * inv_freq
    }
}

impl Yarn {
    /// Transformers: `0.1 ln(factor) + 1`, or the ratio of two such terms where the model weighs them.
    fn attention_factor(&self) -> f64 {
        let temperature = |weight: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                temperature(mscale) / temperature(all_dim)
            }
            _ => temperature(1.0),
        }
    }

    /// How far each pair is stretched, 0 (kept) to 1 (in full), `[rotary_dim / 2]`. Paper: 1 - gamma, eq. 18.
    ///
    /// As in Transformers the ramp runs over pair indices, though its ends are computed as if over `rotary_dim`.
    fn ramp(&self, rotary_dim: usize, theta: f64) -> impl Iterator<Item = f32> {
        let dim = rotary_dim as f64;
        let pair_turning = |turns: f64| {
            dim * (self.original_max_position_embeddings as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair_turning(self.beta_fast), pair_turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // Transformers' guard against a division by zero.
        }
        (0..rotary_dim / 2).map(move |pair| ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0))
    }

    /// One frequency between kept and stretched.
    fn blend(&self, wavelength_over_2pi: f32, stretched: f32) -> f32 {
        let kept = 1.0 - stretched;
        let interpolated = (self.factor as f32 * wavelength_over_2pi).recip();
        interpolated * (1.0 - kept) + wavelength_over_2pi.recip() * kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rotary_dim: usize, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { rotary_dim, theta: 10_000.0, scaling }
    }

    fn yarn(factor: f64, original_max_position_embeddings: usize) -> Yarn {
        Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }
    }

    #[track_caller]
    fn assert_relative(got: &[f32], want: &[f64], bound: f64) {
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(got) - want).abs() <= bound * want.abs(), "[{i}] got {got}, want {want}");
        }
    }

    #[test]
    fn default_frequencies_fall_from_one_by_powers_of_theta() {
        // theta^(-2j/8) with theta = 10^4 is 10^(-j).
        assert_relative(&spec(8, RopeScaling::Default).inv_freq(), &[1.0, 0.1, 0.01, 0.001], 1e-7);
    }

    #[test]
    fn a_table_holds_one_row_per_position_of_half_the_rotated_elements() {
        let (cos, sin) = spec(4, RopeScaling::Default).tables(3);
        let angles = [0.0, 0.0, 1.0, 0.01, 2.0, 0.02f64];
        assert_relative(&cos, &angles.map(f64::cos), 1e-7);
        assert_eq!(&sin[..2], &[0.0, 0.0]);
        assert_relative(&sin[2..], &angles.map(f64::sin)[2..], 1e-6);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let got = spec(4, RopeScaling::Linear { factor: 4.0 }).inv_freq();
        assert_relative(&got, &[0.25, 0.0025], 1e-7);
    }

    #[test]
    fn llama3_keeps_short_waves_stretches_long_ones_and_blends_between() {
        // Frequencies 1, 0.1, 0.01, 0.001: wavelengths 6.28, 62.8, 628, 6283. With an original context of 256 the
        // bounds are 256 / 4 = 64 and 256 / 1 = 256, so the first two are kept and the last two divided by 8.
        let llama3 = |original| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        };
        assert_relative(&spec(8, llama3(256)).inv_freq(), &[1.0, 0.1, 0.00125, 0.000125], 1e-6);
        // With 128 the bounds are 32 and 128; 62.8 lies between: kept = (128 / 62.83 - 1) / 3 = 0.345728.
        let kept = (128.0 * 0.1 / (2.0 * PI) - 1.0) / 3.0;
        let blended = (1.0 - kept) * 0.1 / 8.0 + kept * 0.1;
        assert_relative(&spec(8, llama3(128)).inv_freq(), &[1.0, blended, 0.00125, 0.000125], 1e-6);
    }

    #[test]
    fn yarn_ramps_over_the_pairs_between_its_two_turning_rates() {
        // dim 16, context 1024: pair(turns) = 16 ln(1024 / (2 pi turns)) / (2 ln 10^4), 1.414 at 32 turns and 4.424 at
        // 1, rounded outward to 1 and 5: pairs 2, 3, 4 are a quarter, a half, three quarters on the way.
        let got = spec(16, RopeScaling::Yarn(yarn(4.0, 1024))).inv_freq();
        let want: Vec<f64> = (0..8)
            .map(|pair| {
                let stretched = ((f64::from(pair) - 1.0) / 4.0).clamp(0.0, 1.0);
                let frequency = 10_000f64.powf(-f64::from(pair) / 8.0);
                frequency * (1.0 - stretched) + frequency / 4.0 * stretched
            })
            .collect();
        assert_relative(&got, &want, 1e-6);
    }

    #[test]
    fn yarn_without_truncation_ramps_between_fractional_dimensions() {
        let got = spec(16, RopeScaling::Yarn(Yarn { truncate: false, ..yarn(4.0, 1024) })).inv_freq();
        let end = |turns: f64| 16.0 * (1024.0 / (2.0 * PI * turns)).ln() / (2.0 * 10_000f64.ln());
        let (low, high) = (end(32.0), end(1.0));
        assert!((low - 1.414).abs() < 1e-3 && (high - 4.424).abs() < 1e-3, "{low} {high}");
        let stretched = (2.0 - low) / (high - low);
        let frequency = 10_000f64.powf(-2.0 / 8.0);
        let want = frequency * (1.0 - stretched) + frequency / 4.0 * stretched;
        assert_relative(&got[2..3], &[want], 1e-6);
    }

    #[test]
    fn a_yarn_ramp_of_no_width_is_a_step() {
        // A context so short that both ends clamp to dimension 0.
        let got = spec(4, RopeScaling::Yarn(yarn(2.0, 4))).inv_freq();
        assert_relative(&got, &[1.0, 0.005], 1e-6);
    }

    #[test]
    fn yarn_multiplies_cosines_by_its_temperature() {
        let factor = |yarn: Yarn| spec(4, RopeScaling::Yarn(yarn)).attention_factor();
        assert!((factor(yarn(4.0, 64)) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(factor(yarn(1.0, 64)), 1.0);
        assert_eq!(factor(Yarn { attention_factor: Some(1.5), ..yarn(4.0, 64) }), 1.5);
        let weighted = Yarn { mscale: Some(2.0), mscale_all_dim: Some(0.5), ..yarn(4.0, 64) };
        assert!((factor(weighted) - (0.2 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0)).abs() < 1e-12);
        // One of the two alone, or a zero, is as good as none.
        let alone = Yarn { mscale: Some(2.0), ..yarn(4.0, 64) };
        assert_eq!(factor(alone), factor(yarn(4.0, 64)));

        let (cos, sin) = spec(4, RopeScaling::Yarn(Yarn { attention_factor: Some(1.5), ..yarn(4.0, 64) })).tables(1);
        assert_eq!((cos, sin), (vec![1.5, 1.5], vec![0.0, 0.0]));
    }

    #[test]
    fn far_positions_round_the_angle_to_f32_as_the_reference_does() {
        let (cos, _) = spec(4, RopeScaling::Default).tables(100_001);
        let frequency = 0.01f32;
        let angle = f64::from(100_000f32 * frequency);
        assert_eq!(cos[100_000 * 2 + 1], angle.cos() as f32);
    }
}
