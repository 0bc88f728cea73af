//! Random layer-wise token dropping (random-LTD): early in training some layers run on a random part of each row's tokens
//! only; the others pass them by.
//!
//! # Invariants
//! - The number of tokens a row keeps is DeepSpeed's, a function of the optimizer step; a row that is no longer keeps all.
//! - Which ones is drawn for each step, layer and row of the global batch, every choice as likely as any other: a resumed
//!   run, any cut into micro-batches and any number of threads draws the same.
//! - Kept tokens stay in order and keep their positions; they see the kept tokens before them in their document.
//! - Evaluation runs every layer on all tokens.
//!
//! Source: Yao et al. 2022, arXiv:2211.11586; DeepSpeed `runtime/data_pipeline/data_routing/{scheduler,basic_layer}.py`. There
//! the mask of a decoder is that of the first tokens, and so are rotary angles, unless the model says otherwise; here both are
//! those of the tokens that are kept.

use crate::config::{ConfigError, RunConfig};
use crate::error::Result;
use crate::layer_drop::Kept;
use data::Sample;
use models::{Model, Residency};
use ops::{Batch, KeptTokens};
use std::ops::Range;
use tensor::Queue;
use tensor::rng::Stream;

/// The layers that drop tokens, and how many tokens of a row they keep at every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomLtd {
    /// Counted from 0.
    layers: Vec<usize>,
    /// Layers that the model should have.
    total_layers: usize,
    min: u64,
    max: u64,
    require_steps: u64,
    seq_per_step: u64,
    seed: u64,
}

impl RandomLtd {
    /// That of a run file; none where it is off.
    pub(crate) fn of(config: &RunConfig) -> Option<Self> {
        let ltd = config.data_efficiency.random_ltd()?;
        let (schedule, growth) = (&ltd.random_ltd_schedule, ltd.random_ltd_schedule.schedule_config);
        Some(Self {
            layers: ltd.random_ltd_layer_id.clone(),
            total_layers: ltd.total_layer_num?,
            min: schedule.min_value?,
            max: schedule.max_value?,
            require_steps: growth.require_steps?,
            seq_per_step: growth.seq_per_step?,
            seed: config.data_efficiency.seed,
        })
    }

    /// Tokens that a row keeps in the layers that drop some, at a step counted from 1:
    /// `min + (max - min) (step - 1) / require_steps`, rounded down to a multiple of `seq_per_step`, at most `max`.
    pub fn kept(&self, step: u64) -> u64 {
        if self.min == self.max {
            return self.max;
        }
        let way = (step - 1) as f64 / self.require_steps as f64;
        let kept = (way * (self.max - self.min) as f64 + self.min as f64).floor() as u64;
        (kept - kept % self.seq_per_step).min(self.max)
    }

    /// The same with the number of a run's last step all the time; 0 `steps`: the run's length is not known.
    pub(crate) fn at_its_end(&self, steps: u64) -> Self {
        let end = if steps == 0 { self.max } else { self.kept(steps) };
        Self { min: end, max: end, ..self.clone() }
    }

    /// Refuses layers that the model does not have.
    pub(crate) fn check(&self, config: &RunConfig, model: &Model) -> Result<(), ConfigError> {
        let num_layers = model.blocks.len().saturating_sub(2);
        let error = |name: &str, message: String| {
            Err(config.error(format!("data_efficiency.data_routing.random_ltd.{name} {message}")))
        };
        if self.total_layers != num_layers {
            return error("total_layer_num", format!("is {}; the model has {num_layers} layers", self.total_layers));
        }
        match self.layers.iter().position(|layer| *layer >= num_layers) {
            Some(at) => error(
                &format!("random_ltd_layer_id[{at}]"),
                format!("is {}; the model's layers are 0 to {}", self.layers[at], num_layers - 1),
            ),
            None => Ok(()),
        }
    }

    /// The kept tokens of every block of a micro-batch whose rows are `samples`; none for blocks that run on all.
    /// `run_seed`, `step`: of the run; `first_sample`: the number of the first row in the global batch.
    pub(crate) fn draw(
        &self,
        queue: &Queue,
        batch: &Batch,
        samples: &[Sample],
        num_blocks: usize,
        (run_seed, step, first_sample): (u64, u64, u32),
    ) -> Result<Vec<Option<KeptTokens>>> {
        let mut tokens: Vec<Option<KeptTokens>> = (0..num_blocks).map(|_| None).collect();
        let kept = self.kept(step) as usize;
        if samples.iter().all(|sample| sample.input_ids.len() <= kept) {
            return Ok(tokens);
        }
        let ids: Vec<u32> = samples.iter().flat_map(|sample| sample.input_ids.iter().copied()).collect();
        for layer in &self.layers {
            let (mut rows, mut start) = (Vec::new(), 0);
            for (number, sample) in (first_sample..).zip(samples) {
                let end = start + sample.input_ids.len() as u32;
                let name = format!("random_ltd.{}.{step}.{layer}.{number}", self.seed);
                choose(&Stream::new(run_seed, &name), start..end, kept, &mut rows);
                start = end;
            }
            // Before the first layer stands the embedding.
            tokens[layer + 1] = Some(KeptTokens::new(queue, batch, &rows, &ids)?);
        }
        Ok(tokens)
    }
}

/// Adds `count` of the numbers in `from` to `chosen`, or all if there are no more, in order: each is taken with the share
/// that is still to be taken of those still to come (Knuth, TAOCP 3.4.2, algorithm S).
fn choose(stream: &Stream, from: Range<u32>, count: usize, chosen: &mut Vec<u32>) {
    let mut wanted = count.min(from.len());
    for number in from.clone() {
        let left = f64::from(from.end - number);
        if stream.uniform(u64::from(number - from.start)) * left < wanted as f64 {
            chosen.push(number);
            wanted -= 1;
        }
    }
}

/// What each block of a micro-batch runs on.
#[derive(Default)]
pub(crate) struct Routes {
    /// Under progressive layer drop.
    pub(crate) layers: Option<Kept>,
    /// Under random-LTD; else empty.
    pub(crate) tokens: Vec<Option<KeptTokens>>,
}

impl Residency for Routes {
    fn leaves_out(&self, model: &Model, block: usize) -> bool {
        self.layers.as_ref().is_some_and(|kept| kept.leaves_out(model, block))
    }
    fn tokens(&self, _: &Model, block: usize) -> Option<&KeptTokens> {
        self.tokens.get(block)?.as_ref()
    }
}

/// A residency whose blocks run on what the routes say.
pub(crate) struct Routed<'a> {
    pub(crate) inner: &'a dyn Residency,
    pub(crate) routes: &'a Routes,
}

impl Residency for Routed<'_> {
    fn gather(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.gather(model, block)
    }

    fn before_gradients(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.before_gradients(model, block)
    }

    fn reduce(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.reduce(model, block)
    }

    fn leaves_out(&self, model: &Model, block: usize) -> bool {
        self.routes.leaves_out(model, block)
    }

    fn tokens(&self, model: &Model, block: usize) -> Option<&KeptTokens> {
        self.routes.tokens(model, block)
    }

    fn release(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.release(model, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ltd(min: u64, max: u64, require_steps: u64, seq_per_step: u64) -> RandomLtd {
        RandomLtd { layers: vec![1], total_layers: 3, min, max, require_steps, seq_per_step, seed: 1234 }
    }

    #[test]
    fn the_number_of_kept_tokens_is_deepspeeds_at_every_step() {
        // What its RandomLTDScheduler gives for global steps 0, 1, ...
        let kept = |ltd: &RandomLtd, steps: u64| (1..=steps).map(|step| ltd.kept(step)).collect::<Vec<_>>();
        assert_eq!(kept(&ltd(8, 64, 6, 8), 8), [8, 16, 24, 32, 40, 48, 64, 64]);
        assert_eq!(kept(&ltd(128, 2048, 200_000, 16), 3), [128; 3]);
        assert_eq!(ltd(128, 2048, 200_000, 16).kept(1668), 144);
        assert_eq!(ltd(128, 2048, 200_000, 16).kept(1667), 128);
        // An end that is no multiple is reached once the line has gone past it.
        assert_eq!(kept(&ltd(8, 30, 4, 8), 7), [8, 8, 16, 24, 24, 30, 30]);
        assert_eq!(kept(&ltd(30, 30, 4, 8), 3), [30; 3]);
        assert_eq!(kept(&ltd(8, 64, 6, 8).at_its_end(3), 3), [24; 3]);
        assert_eq!(kept(&ltd(8, 64, 6, 8).at_its_end(0), 2), [64; 2]);
    }

    #[test]
    fn chosen_numbers_ascend_and_each_is_chosen_as_often_as_any_other() {
        let mut counts = [0u32; 10];
        for draw in 0..5000 {
            let mut chosen = Vec::new();
            choose(&Stream::new(7, &format!("{draw}")), 5..15, 4, &mut chosen);
            assert!(chosen.len() == 4 && chosen.is_sorted_by(|a, b| a < b), "{chosen:?}");
            chosen.iter().for_each(|number| counts[*number as usize - 5] += 1);
        }
        for count in counts {
            // Four standard deviations of 5,000 draws at 0.4.
            assert!(count.abs_diff(2000) < 139, "{counts:?}");
        }
        let mut all = Vec::new();
        choose(&Stream::new(7, "all"), 2..5, 9, &mut all);
        assert_eq!(all, [2, 3, 4]);
    }
}
