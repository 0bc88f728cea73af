//! The curves of Transformers' schedules: multiples of the optimizer's rate by the step's index.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape of a rise or fall of [`StableDecay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Curve {
    /// A line.
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// One less the root of what is left or gone.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Warm-up, a long plateau at the full rate, decay to a share of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StableDecay {
    /// Steps until the full rate.
    pub warmup_steps: u64,
    /// Steps at the full rate.
    pub stable_steps: u64,
    /// Steps of the decay.
    pub decay_steps: u64,
    /// Shape of the warm-up.
    pub warmup: Curve,
    /// Shape of the decay.
    pub decay: Curve,
    /// Where the warm-up starts and the decay ends.
    pub min_ratio: f64,
    /// Periods of a cosine in the decay; 0.5 ends at the minimum.
    pub num_cycles: f64,
}

impl StableDecay {
    pub(super) fn at(&self, step: u64) -> f64 {
        let lifted = |factor: f64| (factor * (1.0 - self.min_ratio) + self.min_ratio).max(0.0);
        if step < self.warmup_steps {
            let progress = step as f64 / self.warmup_steps as f64;
            return lifted(match self.warmup {
                Curve::Linear => progress,
                Curve::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            });
        }
        match (step - self.warmup_steps).checked_sub(self.stable_steps) {
            None => 1.0,
            Some(into) if into < self.decay_steps => {
                let progress = into as f64 / self.decay_steps as f64;
                lifted(match self.decay {
                    Curve::Linear => 1.0 - progress,
                    Curve::Cosine => cosine(progress, self.num_cycles),
                    Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
                })
            }
            Some(_) => self.min_ratio,
        }
    }
}

/// A cosine of `num_cycles` periods from 1, in 0..=1.
pub(super) fn cosine(progress: f64, num_cycles: f64) -> f64 {
    (0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())).max(0.0)
}

/// Half a cosine down to 0, `num_cycles` times over; 0 from the end on.
pub(super) fn restarting_cosine(progress: f64, num_cycles: u64) -> f64 {
    if progress >= 1.0 { 0.0 } else { cosine((num_cycles as f64 * progress).fract(), 0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_of_a_warmup_and_a_decay_is_held_to_its_formula() {
        let plan = StableDecay {
            warmup_steps: 4,
            stable_steps: 2,
            decay_steps: 4,
            warmup: Curve::Linear,
            decay: Curve::Linear,
            min_ratio: 0.5,
            num_cycles: 0.5,
        };
        let rates = |plan: StableDecay| (0..12).map(|step| plan.at(step)).collect::<Vec<_>>();
        assert_eq!(rates(plan), [0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]);
        let cosine = rates(StableDecay { warmup: Curve::Cosine, decay: Curve::Cosine, ..plan });
        assert!((cosine[1] - (0.5 + 0.25 * (1.0 - 0.5f64.sqrt()))).abs() < 1e-12 && (cosine[8] - 0.75).abs() < 1e-12);
        let root = rates(StableDecay { warmup: Curve::OneMinusSqrt, decay: Curve::OneMinusSqrt, ..plan });
        assert_eq!((root[3], root[7]), (0.75, 0.75));
    }
}
