//! Whole optimizer steps.
//!
//! The work of a step is counted as the model's own: three times the forward pass, whether or not it is run again under
//! recompute.

use super::{BenchOptions, Profile, config, median, prepared};
use crate::config::RunConfig;
use crate::engine::Engine;
use crate::error::Result;
use crate::system::{num_cores, peak_resident_bytes};
use crate::task::full_row;
use data::Sample;
use models::Model;
use models::weights::WeightSource;
use serde_json::json;
use std::time::Instant;
use tensor::rng::Stream;
use tensor::{cpu, profile};

/// Medians over the steps.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Of training.
    pub tokens_per_second: f64,
    /// Of one optimizer step.
    pub step_seconds: f64,
    /// The model's own work.
    pub flops_per_second: f64,
    /// Of what the cores in use can do at most.
    pub share_of_peak: f64,
    /// Resident memory of the process, as the system saw it.
    pub peak_memory_bytes: u64,
    /// `f32`, `bf16` or `fp16`.
    pub precision: &'static str,
    /// What the cores in use can do at most, FLOP/s.
    pub peak_flops_per_second: f64,
    /// With [`BenchOptions::profile`].
    #[serde(rename = "kernels")]
    pub profile: Profile,
}

/// Trains and measures; `on_step` hears of every step as it ends (0 is the one that does not count).
///
/// # Errors
/// The run file or preset is unknown or wrong, or rows are longer than the model's positions.
pub fn bench(options: &BenchOptions<'_>, on_step: &mut dyn FnMut(u64, f64)) -> Result<Measured> {
    let mut config = config(options)?;
    if config.optimizer.is_none() {
        let adamw = json!({"train_batch_size": 1, "optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}});
        config.optimizer = RunConfig::from_value(adamw, "bench")?.optimizer;
    }
    let (model, plan) = prepared(options, &config)?;
    let length = plan.sequence_length;
    let (threads, isa, dtype) = (plan.threads, plan.isa, plan.dtype);
    let (precision, batch) = (plan.precision(), plan.batch.train_batch_size);
    let queue = cpu::queue(threads, threads <= num_cores(), isa);
    let queue = if options.profile { profile::queue(queue) } else { queue };
    let mut engine = Engine::on_queue(model, config, &WeightSource::Random { seed: 0 }, plan, queue, None)?;
    let tokens = Stream::new(0, "bench");
    let (mut seconds, mut flops) = (Vec::new(), 0);
    for step in 0..=options.steps {
        let row = |row| random_row(&engine.model, &tokens, step * batch + row, length);
        let samples: Vec<Sample> = (0..batch).map(row).collect();
        let start = Instant::now();
        let report = engine.train_batch(&samples)?;
        let elapsed = start.elapsed().as_secs_f64();
        on_step(step, elapsed);
        flops = 3 * report.cost.flops;
        match (step, options.profile) {
            (0, true) => drop(profile::take(&engine.queue)),
            (0, false) => {}
            _ => seconds.push(elapsed),
        }
    }
    let kernels = if options.profile { profile::take(&engine.queue) } else { Vec::new() };
    let profile = Profile { kernels, seconds: seconds.iter().sum(), steps: options.steps };
    let step_seconds = median(&mut seconds);
    let flops_per_second = flops as f64 / step_seconds;
    let peak_flops_per_second = cpu::peak_flops(isa, dtype) * threads as f64;
    Ok(Measured {
        tokens_per_second: (batch as usize * length) as f64 / step_seconds,
        step_seconds,
        flops_per_second,
        share_of_peak: flops_per_second / peak_flops_per_second,
        peak_memory_bytes: peak_resident_bytes(),
        precision,
        peak_flops_per_second,
        profile,
    })
}

fn random_row(model: &Model, tokens: &Stream, row: u64, length: usize) -> Sample {
    let vocab = model.vocab_size;
    let id = |position: usize| (tokens.uniform(row * (length as u64 + 1) + position as u64) * vocab as f64) as u32;
    let targets = (1..=length).map(|position| id(position) as i32).collect();
    full_row(model, (0..length).map(id).collect(), targets)
}
