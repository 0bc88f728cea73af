//! Progressive layer drop: whole layers are left out of a micro-batch at random, more of them as training goes on and the
//! later ones more often.
//!
//! `theta(t) = (1 - theta_end) e^(-gamma t) + theta_end`; layer `l` of `L`, from 1, runs with the probability
//! `1 - (l / L) (1 - theta)`. A layer that is left out hands its input on. Which ones is a function of seed, step and
//! micro-batch: a resumed run draws the same. Evaluation runs every layer.
//!
//! `t` lags a step behind: DeepSpeed settles theta in `step()`, before it counts the step, so that steps 1 and 2 both run at
//! `theta(0)` and step `n` at `theta(n - 2)`.
//!
//! Source: Zhang & He 2020, arXiv:2010.13369; DeepSpeed `runtime/progressive_layer_drop.py` for theta, which there is handed
//! to the model. Where we differ from the paper: what a layer adds is not divided by its probability.

use models::{Model, Residency};
use serde::{Deserialize, Serialize};
use tensor::rng::Stream;

/// The `progressive_layer_drop` section.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct LayerDropConfig {
    /// Whether layers are left out.
    pub enabled: bool,
    /// Where theta ends, in 0..=1.
    pub theta: f64,
    /// How fast theta gets there.
    pub gamma: f64,
}

impl LayerDropConfig {
    /// Theta once `steps` optimizer steps are done, which the next one runs at: the probability of the last layer. None where
    /// the section is off.
    pub fn theta(&self, steps: u64) -> Option<f64> {
        let t = steps.saturating_sub(1) as f64;
        let theta = (1.0 - self.theta) * (-self.gamma * t).exp() + self.theta;
        self.enabled.then_some(theta)
    }
}

/// The layers that one micro-batch runs.
pub(crate) struct Kept(Vec<bool>);

impl Kept {
    /// Draws for a model of `num_blocks` blocks, of which the first and the last are no layers and always run.
    /// `first_sample`: the number of the micro-batch's first sample in the global batch.
    pub(crate) fn draw(num_blocks: usize, theta: f64, seed: u64, step: u64, first_sample: u32) -> Self {
        let stream = Stream::new(seed, &format!("progressive_layer_drop.{step}.{first_sample}"));
        let num_layers = num_blocks.saturating_sub(2);
        let runs = |block: usize| {
            let is_layer = (1..=num_layers).contains(&block);
            !is_layer || stream.uniform(block as u64) < 1.0 - block as f64 / num_layers as f64 * (1.0 - theta)
        };
        Self((0..num_blocks).map(runs).collect())
    }
}

impl Residency for Kept {
    fn leaves_out(&self, _model: &Model, block: usize) -> bool {
        !self.0[block]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_falls_from_one_to_its_end_and_lags_a_step_behind_as_in_deepspeed() {
        let config = LayerDropConfig { enabled: true, theta: 0.5, gamma: 0.001 };
        let thetas = [0, 1, 1001, 1_000_000].map(|steps| config.theta(steps).expect("a theta"));
        assert_eq!(thetas, [1.0, 1.0, 0.5 * (-1f64).exp() + 0.5, 0.5]);
        for theta_end in [0.0, 0.1, 0.9, 1.0] {
            let config = LayerDropConfig { theta: theta_end, ..config };
            for t in 0..10u64 {
                let want = (1.0 - theta_end) * (-0.001 * t as f64).exp() + theta_end;
                assert_eq!(config.theta(t + 1), Some(want), "after step {}", t + 1);
            }
        }
        assert_eq!(LayerDropConfig { enabled: false, ..config }.theta(10), None);
    }

    #[test]
    fn layers_run_as_often_as_their_depth_says_and_the_ends_always() {
        let mut counts = [0u32; 6];
        for step in 0..4000 {
            let Kept(runs) = Kept::draw(6, 0.6, 7, step, 0);
            runs.iter().zip(&mut counts).for_each(|(runs, count)| *count += u32::from(*runs));
        }
        assert_eq!((counts[0], counts[5]), (4000, 4000));
        for (layer, want) in [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)] {
            let share = f64::from(counts[layer]) / 4000.0;
            // Four standard deviations of 4,000 draws.
            assert!((share - want).abs() < 0.031, "layer {layer}: {share}, want {want}");
        }
        assert_eq!(Kept::draw(6, 0.6, 7, 3, 8).0, Kept::draw(6, 0.6, 7, 3, 8).0);
        assert!(Kept::draw(6, 1.0, 7, 3, 8).0.iter().all(|runs| *runs));
    }
}
