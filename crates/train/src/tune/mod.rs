//! Short trials on a real run file that find its settings: model, data and weights are those of the run, and nothing is
//! left behind.
//!
//! | module | what |
//! | --- | --- |
//! | [`lr`] | a rate that rises until training breaks |
//! | [`batch`] | the largest micro-batch that fits, and the fastest |
//!
//! A trial takes out of the run what reads or writes its output folder, and what changes steps over time: checkpoints,
//! samples, early stopping, averaged weights, the curriculum, the batch ramp and the guard against spikes.

pub mod batch;
pub mod lr;

use crate::config::RunConfig;

/// How a trial ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Tuned<T> {
    /// With this.
    Done(T),
    /// A signal came.
    Interrupted {
        /// Its number.
        signal: usize,
    },
}

/// A run without what a trial has no use for.
fn trial(mut config: RunConfig) -> RunConfig {
    let run = &mut config.run;
    (run.checkpoint_every, run.sample_every, run.sample_prompt) = (0, 0, None);
    (run.early_stop, run.keep_best, run.load_best_at_end) = (None, None, false);
    (run.ema_decay, run.batch_ramp, run.loss_spike) = (None, None, None);
    config.curriculum_learning.enabled = false;
    config
}
