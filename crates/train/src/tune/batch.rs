//! The batch-size finder: the largest micro-batch that fits, the speed of each size, and the best for the batch of the run.
//!
//! # Order of events
//! 1. The memory of a run with a micro-batch of `m` is what `plan` predicts for it ([`PlanReport`]), the snapshot of its
//!    checkpoints included. The largest that fits into the limit is found by bisection, which allocates nothing. One larger
//!    than `train_batch_size` is of no use.
//! 2. Powers of two, the largest that fits and the largest that divides the batch are tried from small to large, each with an
//!    engine of its own on the run's own data: one step that does not count, then a few whose times are measured. The highest
//!    resident memory up to then is that of the size itself, as larger ones come later: it verifies the prediction. A size
//!    that takes more than the limit after all ends the trial, and is not suggested.
//! 3. Of the sizes that divide `train_batch_size`, the fastest is suggested; the smallest of those that are as fast within
//!    3 %, as times are noisy and memory is not.
//!
//! The speed of a size is that of the run's whole step: `k` micro-batches and one update, `k = train_batch_size / m`.

use super::{Tuned, trial};
use crate::config::RunConfig;
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::plan::batch::{Batch, MAX_MICRO_BATCH_TOKENS};
use crate::plan::report::{BYTES, PlanReport, SNAPSHOT, scaled};
use crate::run::{self, Stop};
use crate::system::{peak_resident_bytes, total_memory_bytes};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Instant;

/// How sizes are tried.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Bytes that the run may take; none: the machine's.
    pub memory: Option<u64>,
    /// Steps measured of each size, at least 1.
    pub steps: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchSizes {
    /// Samples of an optimizer step: of the run file, and kept.
    pub train_batch_size: u64,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Bytes that the run may take; none where the system does not tell.
    pub memory_limit: Option<u64>,
    /// The largest micro-batch that is predicted to fit, at most `train_batch_size`.
    pub largest_micro_batch: u64,
    /// Whether memory is what limits it, rather than `train_batch_size`.
    pub is_limited_by_memory: bool,
    /// From small to large.
    pub sizes: Vec<MeasuredSize>,
    /// What to write into the run file.
    pub suggested: Suggestion,
}

/// A micro-batch that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeasuredSize {
    /// Samples of one forward.
    pub micro_batch: u64,
    /// Bytes of a run with it, by `plan`.
    pub predicted_bytes: u64,
    /// Highest resident memory up to then, and the snapshot of checkpoints if the run has one.
    pub measured_bytes: u64,
    /// Forward and backward of one micro-batch, median.
    pub micro_batch_seconds: f64,
    /// Norm, clipping and update, median.
    pub update_seconds: f64,
    /// Of whole steps of `train_batch_size` samples.
    pub tokens_per_second: f64,
    /// Whether what was measured is within the limit.
    pub fits: bool,
}

/// Keys of the run file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// As it was.
    pub train_batch_size: u64,
    /// The size.
    pub train_micro_batch_size_per_gpu: u64,
    /// How many of them make a step.
    pub gradient_accumulation_steps: u64,
    /// Expected.
    pub tokens_per_second: f64,
}

/// Sizes as fast as the fastest within this share are equally fast.
const NOISE: f64 = 0.03;

/// Finds the sizes.
///
/// # Errors
/// What is wrong with the request, nothing fits, or the device failed.
pub fn find(
    config: RunConfig,
    options: &BatchOptions,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Tuned<BatchSizes>> {
    config.for_training()?;
    if config.elasticity.enabled {
        let message = "elasticity.enabled is true, and elasticity chooses the batch sizes; turn it off to find others";
        return Err(config.error(message).into());
    }
    let train_batch_size = Batch::of(&config, 1)?.train_batch_size;
    let finder = Finder { config, limit: options.memory.or_else(total_memory_bytes), train_batch_size };
    let (largest, sequence_length) = finder.largest()?;
    let mut sizes: Vec<MeasuredSize> = Vec::new();
    let trials = finder.trials(largest);
    for (index, &micro_batch) in trials.iter().enumerate() {
        let note = format!("micro-batch {micro_batch}");
        observer.on(Event::Tuning { done: index as u64, total: trials.len() as u64, note: &note });
        match finder.measure(micro_batch, options.steps, index == 0, observer, stop)? {
            Tuned::Interrupted { signal } => return Ok(Tuned::Interrupted { signal }),
            Tuned::Done(size) => sizes.push(size),
        }
        if !sizes[index].fits {
            break;
        }
    }
    let suggested = suggest(&sizes, train_batch_size).ok_or_else(|| {
        let [limit, measured] = [finder.limit.unwrap_or(0), sizes[0].measured_bytes].map(bytes);
        finder
            .config
            .error(format!("a micro-batch of 1 took {measured} of memory and the limit is {limit}; raise --memory"))
    })?;
    Ok(Tuned::Done(BatchSizes {
        train_batch_size,
        sequence_length,
        memory_limit: finder.limit,
        largest_micro_batch: largest,
        is_limited_by_memory: largest < train_batch_size,
        sizes,
        suggested,
    }))
}

struct Finder {
    config: RunConfig,
    limit: Option<u64>,
    train_batch_size: u64,
}

impl Finder {
    /// The run with steps of one micro-batch of `size` samples.
    fn run_with(&self, size: u64) -> RunConfig {
        let mut config = self.config.clone();
        config.train_batch_size = Some(size);
        (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) = (Some(size), Some(1));
        config.run.batch_ramp = None;
        config
    }

    fn plan(&self, size: u64) -> Result<PlanReport> {
        PlanReport::of(&self.run_with(size), 1)
    }

    /// The largest size that is predicted to fit, and the tokens of a row.
    fn largest(&self) -> Result<(u64, usize)> {
        let first = self.plan(1)?;
        let sequence_length = first.config["data"]["sequence_length"].as_u64().unwrap_or(1).max(1);
        let most = self.train_batch_size.min((MAX_MICRO_BATCH_TOKENS / sequence_length).max(1));
        let Some(limit) = self.limit else { return Ok((most, sequence_length as usize)) };
        let needed = first.total_memory();
        if needed > limit {
            let [needed, limit] = [needed, limit].map(bytes);
            let message = format!(
                "a micro-batch of 1 needs {needed} of memory and the limit is {limit}; take a smaller model, shorter \
                 rows, or run.recompute"
            );
            return Err(self.config.error(message).into());
        }
        // `fits` fits, `beyond` does not or is beyond what is of use.
        let (mut fits, mut beyond) = (1, most + 1);
        while beyond - fits > 1 {
            let size = if fits < most / 2 && beyond == most + 1 { 2 * fits } else { fits + (beyond - fits) / 2 };
            if self.plan(size)?.total_memory() <= limit { fits = size } else { beyond = size }
        }
        Ok((fits, sequence_length as usize))
    }

    /// The sizes to try, from small to large.
    fn trials(&self, largest: u64) -> Vec<u64> {
        let powers = (0..u64::BITS).map(|power| 1 << power).take_while(|&size| size <= largest);
        let divisor = (1..=largest).rev().find(|size| self.train_batch_size.is_multiple_of(*size));
        powers.chain(divisor).chain([largest]).collect::<BTreeSet<u64>>().into_iter().collect()
    }

    fn measure(
        &self,
        micro_batch: u64,
        steps: u64,
        is_first: bool,
        observer: &mut dyn Observer,
        stop: &Stop,
    ) -> Result<Tuned<MeasuredSize>> {
        let report = self.plan(micro_batch)?;
        let mut once = |event: Event<'_>| match event {
            Event::Notice(_) if !is_first => {}
            event => observer.on(event),
        };
        let (mut engine, data) = run::open(trial(self.run_with(micro_batch)), &mut once)?;
        engine.set_gradient_accumulation_boundary(true);
        let (mut forward_backward, mut update) = (Vec::new(), Vec::new());
        for step in 0..=steps {
            if let Some(signal) = stop.signal() {
                return Ok(Tuned::Interrupted { signal });
            }
            let samples = data.loader.batch(engine.counters.samples, micro_batch as usize);
            let start = Instant::now();
            let loss = engine.forward(&samples)?;
            engine.backward(&loss)?;
            let middle = Instant::now();
            engine.step()?;
            if step > 0 {
                forward_backward.push((middle - start).as_secs_f64());
                update.push(middle.elapsed().as_secs_f64());
            }
        }
        let (micro_batch_seconds, update_seconds) = (median(&mut forward_backward), median(&mut update));
        let count = self.train_batch_size as f64 / micro_batch as f64;
        let tokens = self.train_batch_size as f64 * data.sequence_length as f64;
        let measured_bytes = peak_resident_bytes() + report.memory_per_rank.get(SNAPSHOT).copied().unwrap_or(0);
        Ok(Tuned::Done(MeasuredSize {
            micro_batch,
            predicted_bytes: report.total_memory(),
            measured_bytes,
            micro_batch_seconds,
            update_seconds,
            tokens_per_second: tokens / (count * micro_batch_seconds + update_seconds),
            fits: self.limit.is_none_or(|limit| measured_bytes <= limit),
        }))
    }
}

/// The best of those that fit and divide the batch.
fn suggest(sizes: &[MeasuredSize], train_batch_size: u64) -> Option<Suggestion> {
    let fitting = || sizes.iter().filter(|size| size.fits && train_batch_size.is_multiple_of(size.micro_batch));
    let fastest = fitting().map(|size| size.tokens_per_second).fold(0.0, f64::max);
    let chosen = fitting().find(|size| size.tokens_per_second >= (1.0 - NOISE) * fastest)?;
    Some(Suggestion {
        train_batch_size,
        train_micro_batch_size_per_gpu: chosen.micro_batch,
        gradient_accumulation_steps: train_batch_size / chosen.micro_batch,
        tokens_per_second: chosen.tokens_per_second,
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(micro_batch: u64, tokens_per_second: f64, fits: bool) -> MeasuredSize {
        let (predicted_bytes, measured_bytes) = (1, 1);
        let (micro_batch_seconds, update_seconds) = (1.0, 1.0);
        MeasuredSize {
            micro_batch,
            predicted_bytes,
            measured_bytes,
            micro_batch_seconds,
            update_seconds,
            tokens_per_second,
            fits,
        }
    }

    #[test]
    fn the_suggestion_keeps_the_batch_and_is_the_smallest_of_the_fastest() {
        let sizes = [size(1, 50.0, true), size(2, 98.0, true), size(4, 100.0, true), size(8, 200.0, false)];
        let suggested = suggest(&sizes, 8).unwrap();
        assert_eq!((suggested.train_micro_batch_size_per_gpu, suggested.gradient_accumulation_steps), (2, 4));
        // 4 does not divide 6.
        let suggested = suggest(&[size(1, 50.0, true), size(3, 80.0, true), size(4, 100.0, true)], 6).unwrap();
        assert_eq!((suggested.train_micro_batch_size_per_gpu, suggested.gradient_accumulation_steps), (3, 2));
        assert_eq!(suggest(&[size(1, 1.0, false)], 6), None);
    }
}
