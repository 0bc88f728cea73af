//! The best checkpoints of a run (`run.keep_best`): chosen by a figure of the evaluations, kept beside the newest.
//!
//! An evaluation that is among the best `count` so far is saved at once, at whatever step it was made; what it pushes out
//! is removed by the pruning behind that checkpoint, if it is not among the newest either. `checkpoints/best` is a text
//! file with the best one's folder name, as `latest` is with the newest's.
//!
//! # Invariants
//! - The list is in the checkpoint, which is written before `best` names it and before anything is removed: a process killed
//!   at any moment leaves a `best` that exists, and the newest checkpoint knows which are to be kept.
//! - Of equal figures the earlier step is better.
//!
//! Source: Lightning's `ModelCheckpoint` with `save_top_k`.

use crate::early_stop::label;
use crate::evaluation::{Goal, Metric, Mode, Scored};
use serde::{Deserialize, Serialize};

/// The `run.keep_best` section.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct KeepBestConfig {
    /// The figure they are chosen by.
    pub metric: Metric,
    /// Which way is better; none: the metric's own.
    pub mode: Option<Mode>,
    /// How many, at least 1.
    pub count: u64,
}

/// The best so far, as checkpoints hold them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct BestState {
    /// What their figures are figures of.
    pub of: String,
    /// The best one first.
    pub best: Vec<Scored>,
}

/// The best checkpoints in a run.
#[derive(Clone, Debug)]
pub(crate) struct BestCheckpoints {
    config: KeepBestConfig,
    goal: Goal,
    state: BestState,
}

impl BestCheckpoints {
    /// `set`: the validation set that is followed, if the file names it.
    pub(crate) fn new(config: KeepBestConfig, set: Option<&str>) -> Self {
        let goal = Goal::new(config.metric, config.mode);
        let of = label(goal, set);
        Self { config, goal, state: BestState { of, best: Vec::new() } }
    }

    pub(crate) fn goal(&self) -> Goal {
        self.goal
    }

    pub(crate) fn state(&self) -> &BestState {
        &self.state
    }

    pub(crate) fn best(&self) -> &[Scored] {
        &self.state.best
    }

    /// Goes on from a checkpoint, unless it chose by something else; it may have kept more.
    pub(crate) fn restore(&mut self, state: &BestState) {
        if state.of == self.state.of {
            self.state = state.clone();
            self.trim();
        }
    }

    pub(crate) fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.state.best.retain(|scored| is_there(scored.step));
    }

    /// An evaluation; whether its state is among the best.
    pub(crate) fn evaluated(&mut self, scored: Scored) -> bool {
        let is_worse = |best: &Scored| self.goal.gain(scored.value, best.value) > 0.0;
        let place = self.state.best.iter().position(is_worse).unwrap_or(self.state.best.len());
        self.state.best.insert(place, scored);
        self.trim();
        self.state.best.contains(&scored)
    }

    fn trim(&mut self) {
        self.state.best.truncate(self.config.count as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(count: u64, mode: Option<Mode>, values: &[f64]) -> (BestCheckpoints, Vec<bool>) {
        let mut best = BestCheckpoints::new(KeepBestConfig { metric: Metric::EvalLoss, mode, count }, None);
        let scored = values.iter().zip(1..).map(|(&value, step)| Scored { step, value });
        let saved = scored.map(|scored| best.evaluated(scored)).collect();
        (best, saved)
    }

    fn steps(best: &BestCheckpoints) -> Vec<u64> {
        best.best().iter().map(|scored| scored.step).collect()
    }

    #[test]
    fn the_best_two_are_kept_in_order_and_an_equal_later_one_is_not_better() {
        let (best, saved) = best(2, None, &[3.0, 2.0, 2.5, 2.5, 1.0, 2.0]);
        assert_eq!(steps(&best), [5, 2]);
        assert_eq!(saved, [true, true, true, false, true, false]);
    }

    #[test]
    fn with_the_mode_max_the_highest_is_best() {
        assert_eq!(steps(&best(2, Some(Mode::Max), &[1.0, 3.0, 2.0]).0), [2, 3]);
    }

    #[test]
    fn a_checkpoint_that_kept_more_is_cut_and_what_is_gone_is_forgotten() {
        let (many, _) = best(3, None, &[3.0, 1.0, 2.0]);
        let (mut one, _) = best(2, None, &[]);
        one.restore(many.state());
        assert_eq!(steps(&one), [2, 3]);
        one.retain(|step| step != 2);
        assert_eq!(steps(&one), [3]);
    }
}
