//! Early stopping (`run.early_stop`): a run whose evaluations bring no gain any more is finished.
//!
//! A gain is a figure better than the best one by more than `min_gain`. After `patience` evaluations in a row without one
//! the run ends as if it had done all its steps: checkpoint, model, sample. Small gains add up: each is held against the
//! last figure that was a gain.
//!
//! Source: Lightning's `EarlyStopping`. Transformers' callback differs where gains are small: it holds each figure against
//! the best of all.

use crate::evaluation::{Goal, Metric, Mode, Scored};
use serde::{Deserialize, Serialize};

/// The `run.early_stop` section.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct EarlyStopConfig {
    /// The figure that must gain.
    pub metric: Metric,
    /// Which way is better; none: the metric's own.
    pub mode: Option<Mode>,
    /// Evaluations in a row without gain that end the run, at least 1.
    pub patience: u64,
    /// A gain is above this, at least 0.
    pub min_gain: f64,
}

/// What evaluations have led to, as checkpoints hold it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct EarlyStopState {
    /// What the best figure is a figure of.
    pub of: String,
    /// The last figure that was a gain; none before the first.
    pub best: Option<Scored>,
    /// Evaluations since.
    pub waited: u64,
}

/// Early stopping in a run.
#[derive(Clone, Debug)]
pub(crate) struct EarlyStop {
    config: EarlyStopConfig,
    goal: Goal,
    state: EarlyStopState,
}

impl EarlyStop {
    /// `set`: the validation set that is followed, if the file names it.
    pub(crate) fn new(config: EarlyStopConfig, set: Option<&str>) -> Self {
        let goal = Goal::new(config.metric, config.mode);
        let of = label(goal, set);
        Self { config, goal, state: EarlyStopState { of, ..Default::default() } }
    }

    pub(crate) fn goal(&self) -> Goal {
        self.goal
    }

    pub(crate) fn state(&self) -> &EarlyStopState {
        &self.state
    }

    /// Goes on from a checkpoint, unless it followed something else.
    pub(crate) fn restore(&mut self, state: &EarlyStopState) {
        if state.of == self.state.of {
            self.state = state.clone();
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.waited >= self.config.patience
    }

    /// An evaluation after `step`, whose figure may not be finite. Returns what is said if it ends the run.
    pub(crate) fn evaluated(&mut self, step: u64, scored: Option<Scored>) -> Option<String> {
        let best = self.state.best;
        let gains =
            |scored: &Scored| best.is_none_or(|best| self.goal.gain(scored.value, best.value) > self.config.min_gain);
        if let Some(scored) = scored.filter(gains) {
            (self.state.best, self.state.waited) = (Some(scored), 0);
            return None;
        }
        self.state.waited += 1;
        if !self.is_stopped() {
            return None;
        }
        let (waited, metric) = (self.state.waited, self.config.metric.name());
        let evaluations = if waited == 1 { "evaluation" } else { "evaluations" };
        let best = best.map_or(String::new(), |best| format!(" (best: {:.6} at step {})", best.value, best.step));
        Some(format!(
            "step {step}: {waited} {evaluations} in a row without a gain of {metric}{best}; the run ends here \
             (run.early_stop)"
        ))
    }
}

/// What values are values of: those of another metric, set or mode cannot be compared.
pub(crate) fn label(goal: Goal, set: Option<&str>) -> String {
    set.map_or(goal.to_string(), |set| format!("{goal} of {set}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn early_stop(patience: u64, min_gain: f64, mode: Option<Mode>) -> EarlyStop {
        EarlyStop::new(EarlyStopConfig { metric: Metric::EvalLoss, mode, patience, min_gain }, None)
    }

    /// The number of the evaluation that ends the run.
    fn stops_at(mut stop: EarlyStop, values: &[f64]) -> Option<usize> {
        values.iter().position(|&value| {
            let said = stop.evaluated(1, Some(Scored { step: 1, value }).filter(|scored| scored.value.is_finite()));
            assert_eq!(said.is_some(), stop.is_stopped());
            stop.is_stopped()
        })
    }

    #[test]
    fn as_many_evaluations_without_gain_as_the_patience_end_the_run_and_an_equal_one_is_no_gain() {
        assert_eq!(stops_at(early_stop(3, 0.0, None), &[3.0, 2.0, 2.0, 2.5, 1.9, 2.0, 1.9, 2.0]), Some(7));
        assert_eq!(stops_at(early_stop(1, 0.0, None), &[3.0, 2.0, 2.0]), Some(2));
        assert_eq!(stops_at(early_stop(2, 0.0, None), &[3.0, 2.0, 2.1, 1.0, 1.1]), None);
    }

    #[test]
    fn small_gains_add_up_until_they_are_one() {
        assert_eq!(stops_at(early_stop(2, 0.25, None), &[3.0, 2.875, 2.5, 2.375, 2.125]), None);
        assert_eq!(stops_at(early_stop(2, 0.5, None), &[3.0, 2.75, 2.5]), Some(2));
    }

    #[test]
    fn with_the_mode_max_higher_is_better_and_what_is_not_finite_is_no_gain() {
        assert_eq!(stops_at(early_stop(2, 0.0, Some(Mode::Max)), &[1.0, 2.0, 3.0, 2.0, 2.5]), Some(4));
        assert_eq!(stops_at(early_stop(2, 0.0, None), &[f64::INFINITY, f64::INFINITY]), Some(1));
    }

    #[test]
    fn a_state_of_another_metric_begins_anew() {
        let mut stop = early_stop(3, 0.0, None);
        let state = EarlyStopState { best: Some(Scored { step: 2, value: 1.0 }), waited: 2, ..stop.state().clone() };
        stop.restore(&EarlyStopState { of: "eval_perplexity, min".to_owned(), ..state.clone() });
        assert_eq!(stop.state().waited, 0);
        stop.restore(&state);
        assert_eq!(stop.state().waited, 2);
        let said = stop.evaluated(9, Some(Scored { step: 9, value: 1.5 })).expect("the end");
        assert_eq!(
            said,
            "step 9: 3 evaluations in a row without a gain of eval_loss (best: 1.000000 at step 2); the run ends here \
             (run.early_stop)"
        );
    }
}
