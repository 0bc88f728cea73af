//! The guard against loss spikes (`run.loss_spike`): a batch whose loss leaps does not reach the weights.
//!
//! A loss is a spike if it is above `factor` times the mean of the last `window` losses that were none. Before there are
//! so many nothing is a spike. The loss is known before the update, so what caused it can be left out: `skip` goes on
//! without the batch, `stop` ends the run; both name the batch.
//!
//! # Invariants
//! - A spike never enters the mean.
//! - `window` spikes in a row are no spike but the new level: the run stops rather than skip for ever.
//! - The state is in the checkpoint: a resumed run skips what the undisturbed one skips.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The `run.loss_spike` section.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct LossSpikeConfig {
    /// How many times the mean, above 1.
    pub factor: f64,
    /// Losses of the mean, at least 1.
    pub window: u64,
    /// What follows.
    pub action: SpikeAction,
}

/// What a spike leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpikeAction {
    /// Leave the batch out.
    Skip,
    /// End the run.
    Stop,
}

/// What the guard remembers, as checkpoints hold it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct SpikeState {
    /// The last losses that were no spikes, oldest first.
    pub losses: VecDeque<f64>,
    /// Spikes since the last of them.
    pub spikes: u64,
}

/// What is said when the update of a spike was skipped. `first`, `last`: its samples, counted over the run.
pub(crate) fn spike_notice(step: u64, loss: f64, mean: f64, first: u64, last: u64) -> String {
    format!(
        "step {step}: the loss is {loss:.4}, {:.1} times the mean of the steps before it; the update was skipped (samples \
         {first} to {last} of the run, counted from 0)",
        loss / mean
    )
}

/// A guard in a run.
#[derive(Clone, Debug)]
pub(crate) struct SpikeGuard {
    config: LossSpikeConfig,
    state: SpikeState,
}

impl SpikeGuard {
    pub(crate) fn new(config: LossSpikeConfig) -> Self {
        Self { config, state: SpikeState::default() }
    }

    pub(crate) fn state(&self) -> &SpikeState {
        &self.state
    }

    /// Goes on from a checkpoint, whose window may have been another.
    pub(crate) fn restore(&mut self, state: SpikeState) {
        self.state = state;
        self.trim();
    }

    /// How many times the mean is a spike.
    pub(crate) fn factor(&self) -> f64 {
        self.config.factor
    }

    /// The mean that losses are held against; none while the window fills.
    pub(crate) fn mean(&self) -> Option<f64> {
        let count = self.state.losses.len();
        (count as u64 >= self.config.window).then(|| self.state.losses.iter().sum::<f64>() / count as f64)
    }

    /// A loss above it is a spike. A mean that is not above 0 says nothing about the next loss.
    pub(crate) fn limit(&self) -> Option<f64> {
        self.mean().filter(|mean| *mean > 0.0).map(|mean| self.config.factor * mean)
    }

    /// A step whose loss was no spike.
    pub(crate) fn accept(&mut self, loss: f64) {
        self.state.losses.push_back(loss);
        self.state.spikes = 0;
        self.trim();
    }

    /// A step whose loss was one; if the run must stop, how many it makes in a row, and the step does not count.
    pub(crate) fn spike(&mut self) -> Option<u64> {
        let spikes = self.state.spikes + 1;
        if self.config.action == SpikeAction::Stop || spikes >= self.config.window {
            return Some(spikes);
        }
        self.state.spikes = spikes;
        None
    }

    fn trim(&mut self) {
        let surplus = (self.state.losses.len() as u64).saturating_sub(self.config.window);
        self.state.losses.drain(..surplus as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(action: SpikeAction) -> SpikeGuard {
        SpikeGuard::new(LossSpikeConfig { factor: 2.0, window: 3, action })
    }

    #[test]
    fn nothing_is_a_spike_until_the_window_is_full_and_only_its_last_losses_count() {
        let mut guard = guard(SpikeAction::Skip);
        for loss in [9.0, 1.0] {
            guard.accept(loss);
            assert_eq!(guard.limit(), None);
        }
        guard.accept(2.0);
        assert_eq!(guard.limit(), Some(8.0));
        guard.accept(3.0);
        assert_eq!(guard.limit(), Some(4.0));
    }

    #[test]
    fn a_spike_leaves_the_mean_alone_and_as_many_in_a_row_as_the_window_has_losses_stop_the_run() {
        let mut guard = guard(SpikeAction::Skip);
        (0..3).for_each(|_| guard.accept(1.0));
        assert_eq!([guard.spike(), guard.spike()], [None, None]);
        assert_eq!(guard.limit(), Some(2.0));
        guard.accept(1.0);
        assert_eq!([guard.spike(), guard.spike(), guard.spike()], [None, None, Some(3)]);
    }

    #[test]
    fn with_the_action_stop_the_first_spike_stops_the_run() {
        assert_eq!(guard(SpikeAction::Stop).spike(), Some(1));
    }

    #[test]
    fn a_mean_of_zero_or_less_makes_no_spike() {
        let mut guard = guard(SpikeAction::Skip);
        (0..3).for_each(|_| guard.accept(-1.0));
        assert_eq!(guard.limit(), None);
    }

    #[test]
    fn a_shorter_window_takes_the_newest_losses_of_a_checkpoint() {
        let mut guard = guard(SpikeAction::Skip);
        guard.restore(SpikeState { losses: [9.0, 1.0, 1.0, 1.0].into(), spikes: 1 });
        assert_eq!((guard.limit(), guard.state().spikes), (Some(2.0), 1));
    }
}
