//! The batch-size ramp (`run.batch_ramp`): early steps take fewer samples, later ones more, up to `train_batch_size`.
//!
//! # Invariants
//! - The size is a function of the step alone, and a multiple of what one accumulation step takes over all ranks.
//! - The micro-batch stays what it is: a smaller step has fewer of them, so memory and speed per token do not change.
//! - The mean is over the step's own targets; the learning rate is not touched.
//!
//! Source of the idea: Megatron-LM's `--rampup-batch-size`; there it grows by samples consumed, here by steps.

use super::batch::Batch;
use crate::config::{ConfigError, RunConfig};
use serde::{Deserialize, Serialize};

/// The `run.batch_ramp` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RampConfig {
    /// Samples of the first step.
    pub start: Option<u64>,
    /// Steps until `train_batch_size`.
    pub steps: Option<u64>,
}

/// Samples of every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRamp {
    start: u64,
    full: u64,
    /// What sizes are multiples of.
    unit: u64,
    steps: u64,
}

impl BatchRamp {
    /// The ramp of a run; without one every step is full.
    ///
    /// # Errors
    /// A setting is missing, or `start` is no size that a step can have.
    pub fn of(config: &RunConfig, batch: &Batch) -> Result<Self, ConfigError> {
        let (full, unit) = (batch.train_batch_size, batch.train_batch_size / batch.accumulation_steps);
        let Some(RampConfig { start, steps }) = config.run.batch_ramp else {
            return Ok(Self { start: full, full, unit, steps: 0 });
        };
        let missing = |key: &str, what: &str| {
            config.error_of(
                &["run.batch_ramp.start", "run.batch_ramp.steps"],
                format!("run.batch_ramp.{key} is missing; it must be {what}"),
            )
        };
        let steps = steps.ok_or_else(|| missing("steps", "the number of steps until train_batch_size"))?;
        let start = start.ok_or_else(|| missing("start", "the number of samples of the first step"))?;
        if start > full || !start.is_multiple_of(unit) {
            return Err(config.error_of(&["run.batch_ramp.start"], format!(
                "run.batch_ramp.start is {start}; it must be a multiple of {unit}, which is one micro-batch on every rank, \
                 and at most {full}, the train_batch_size"
            )));
        }
        Ok(Self { start, full, unit, steps })
    }

    /// Samples of the step with this index, counted from 0.
    pub fn size(&self, step: u64) -> u64 {
        if step >= self.steps {
            return self.full;
        }
        let grown = u128::from(self.full - self.start) * u128::from(step) / u128::from(self.steps);
        // Below `full`, so it fits.
        let size = self.start + grown as u64;
        size - size % self.unit
    }

    /// Steps that take at least this many samples together.
    pub fn steps_for(&self, samples: u64) -> u64 {
        let (mut step, mut left) = (0, samples);
        while step < self.steps && left > 0 {
            left = left.saturating_sub(self.size(step));
            step += 1;
        }
        step + left.div_ceil(self.full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAMP: BatchRamp = BatchRamp { start: 8, full: 32, unit: 8, steps: 6 };

    #[test]
    fn sizes_grow_by_whole_micro_batches_and_stay_full() {
        assert_eq!((0..9).map(|step| RAMP.size(step)).collect::<Vec<_>>(), [8, 8, 16, 16, 24, 24, 32, 32, 32]);
    }

    #[test]
    fn the_steps_of_a_run_are_those_whose_samples_reach_its_length() {
        for (samples, want) in [(0, 0), (1, 1), (8, 1), (9, 2), (96, 6), (97, 7), (128, 7), (129, 8)] {
            assert_eq!(RAMP.steps_for(samples), want, "{samples} samples");
        }
    }

    #[test]
    fn without_a_ramp_every_step_is_full() {
        let none = BatchRamp { start: 32, full: 32, unit: 8, steps: 0 };
        assert_eq!((none.size(0), none.steps_for(33)), (32, 2));
    }

    #[test]
    fn the_largest_sizes_do_not_overflow() {
        let huge = BatchRamp { start: 1, full: u64::MAX, unit: 1, steps: u64::MAX };
        assert_eq!(huge.size(u64::MAX - 1), u64::MAX - 1);
    }
}
