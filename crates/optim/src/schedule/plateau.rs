//! The rate falls when the validation loss stops falling: `reduce_lr_on_plateau`.
//!
//! Unlike the other schedules this one depends on what the run measures, so it has a state, which checkpoints hold. The
//! state counts reductions rather than holding a rate: a run resumed with another `lr` is reduced as often.
//!
//! Source: PyTorch's `torch.optim.lr_scheduler.ReduceLROnPlateau` in mode `min`, which Transformers calls with the
//! evaluation's loss after each evaluation.

use serde::{Deserialize, Serialize};

/// The settings of a plateau, as `scheduler.params` names them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct PlateauSettings {
    /// What the rate is multiplied by, in 0..1.
    pub factor: f64,
    /// Evaluations without gain that are borne; the next one reduces the rate.
    pub patience: u64,
    /// Smallest gain that counts.
    pub threshold: f64,
    /// Whether it is a share of the best loss or an amount.
    pub threshold_mode: ThresholdMode,
    /// Evaluations after a reduction that do not count.
    pub cooldown: u64,
    /// Lowest rate.
    pub min_lr: f64,
    /// A reduction by no more than this is left out.
    pub eps: f64,
}

/// `threshold_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ThresholdMode {
    /// A share of the best loss.
    Rel,
    /// An amount.
    Abs,
}

/// What evaluations have led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct PlateauState {
    /// The lowest loss that was a gain; none before the first evaluation.
    pub best: Option<f64>,
    /// Evaluations without gain.
    pub bad: u64,
    /// Evaluations that will not count.
    pub cooldown: u64,
    /// How often the rate was reduced.
    pub reductions: u64,
}

/// A plateau schedule in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    settings: PlateauSettings,
    /// For checkpoints.
    pub state: PlateauState,
}

impl Plateau {
    /// Before the first evaluation.
    pub fn new(settings: PlateauSettings) -> Self {
        Self { settings, state: PlateauState::default() }
    }

    /// Hears of an evaluation; whether it reduces the rate.
    pub fn evaluated(&mut self, loss: f64) -> bool {
        let PlateauSettings { patience, threshold, threshold_mode, cooldown, .. } = self.settings;
        let state = &mut self.state;
        let is_below = |best: f64| match threshold_mode {
            ThresholdMode::Rel => loss < best * (1.0 - threshold),
            ThresholdMode::Abs => loss < best - threshold,
        };
        let is_gain = !loss.is_nan() && state.best.is_none_or(is_below);
        if is_gain {
            (state.best, state.bad) = (Some(loss), 0);
        } else {
            state.bad += 1;
        }
        if state.cooldown > 0 {
            (state.cooldown, state.bad) = (state.cooldown - 1, 0);
        }
        let reduces = state.bad > patience;
        if reduces {
            (state.cooldown, state.bad, state.reductions) = (cooldown, 0, state.reductions + 1);
        }
        reduces
    }

    /// The rate of the next step, where the optimizer's own is `lr`.
    pub fn lr(&self, lr: f64) -> f64 {
        let PlateauSettings { factor, min_lr, eps, .. } = self.settings;
        let mut reduced = lr;
        for _ in 0..self.state.reductions {
            let next = (reduced * factor).max(min_lr);
            // From here on no reduction changes anything.
            if reduced - next <= eps {
                break;
            }
            reduced = next;
        }
        reduced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: PlateauSettings = PlateauSettings {
        factor: 0.5,
        patience: 1,
        threshold: 0.1,
        threshold_mode: ThresholdMode::Rel,
        cooldown: 0,
        min_lr: 0.0,
        eps: 1e-8,
    };

    fn rates(settings: PlateauSettings, losses: &[f64]) -> Vec<f64> {
        let mut plateau = Plateau::new(settings);
        let rate = |loss: &f64| {
            plateau.evaluated(*loss);
            plateau.lr(1.0)
        };
        losses.iter().map(rate).collect()
    }

    #[test]
    fn the_rate_falls_with_the_first_evaluation_beyond_the_patience() {
        assert_eq!(rates(SETTINGS, &[2.0, 2.0, 2.0, 2.0, 2.0]), [1.0, 1.0, 0.5, 0.5, 0.25]);
    }

    #[test]
    fn a_gain_below_the_threshold_is_none_and_the_best_stays() {
        assert_eq!(rates(SETTINGS, &[2.0, 1.9, 1.85]), [1.0, 1.0, 0.5]);
        assert_eq!(rates(SETTINGS, &[2.0, 1.9, 1.7]), [1.0, 1.0, 1.0]);
        let abs = PlateauSettings { threshold_mode: ThresholdMode::Abs, ..SETTINGS };
        assert_eq!(rates(abs, &[2.0, 1.95, 1.89, 1.85, 1.8]), [1.0, 1.0, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn evaluations_of_the_cooldown_do_not_count() {
        let settings = PlateauSettings { cooldown: 2, patience: 0, ..SETTINGS };
        assert_eq!(rates(settings, &[2.0; 6]), [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn the_rate_never_falls_below_the_lowest_and_tiny_reductions_are_left_out() {
        let settings = PlateauSettings { patience: 0, min_lr: 0.3, ..SETTINGS };
        assert_eq!(rates(settings, &[2.0; 5]), [1.0, 0.5, 0.3, 0.3, 0.3]);
        let settings = PlateauSettings { patience: 0, eps: 0.2, ..SETTINGS };
        assert_eq!(rates(settings, &[2.0; 5]), [1.0, 0.5, 0.25, 0.25, 0.25]);
    }
}
