//! Greedy generation of one sequence, token by token.

use super::{BenchOptions, Profile, config, median, prepared};
use crate::error::{Result, TrainError};
use crate::system::{num_cores, peak_resident_bytes};
use generate::{Forward, GenerateOptions, Generator, Sampling};
use models::Resident;
use models::weights::{self, WeightSource};
use ops::Single;
use std::time::Instant;
use tensor::{cpu, profile};

/// Medians over the tokens.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GenerationMeasured {
    /// New tokens.
    pub tokens_per_second: f64,
    /// All weights: a token reads them once (of an embedding that is not the head's as well, only a row).
    pub weight_bytes: u64,
    /// Bytes per second that the threads in use read from memory.
    pub memory_bytes_per_second: f64,
    /// Tokens per second against `memory_bytes_per_second / weight_bytes`.
    pub share_of_peak: f64,
    /// Resident memory of the process, as the system saw it.
    pub peak_memory_bytes: u64,
    /// `f32`, `bf16` or `fp16`.
    pub precision: &'static str,
    /// With [`BenchOptions::profile`].
    #[serde(rename = "kernels")]
    pub profile: Profile,
}

/// Generates [`BenchOptions::length`] tokens from one and measures; the first is not counted.
///
/// # Errors
/// The run file or preset is unknown or wrong, or the model has fewer positions.
pub fn bench_generation(options: &BenchOptions<'_>) -> Result<GenerationMeasured> {
    let config = config(options)?;
    let (model, plan) = prepared(options, &config)?;
    let length = plan.sequence_length;
    if length < 2 {
        let rule = "generation needs at least 2 tokens, as the first is not counted";
        return Err(TrainError::Request(format!("--length is {length}; {rule}")));
    }
    let queue = cpu::queue(plan.threads, plan.threads <= num_cores(), plan.isa);
    let store = weights::load(&model, &WeightSource::Random { seed: 0 }, &queue, plan.dtype)?;
    let queue = if options.profile { profile::queue(queue) } else { queue };
    let forward = Forward {
        queue: &queue,
        model: &model,
        params: &store,
        regions: &Single,
        residency: &Resident,
        dtype: plan.dtype,
        precision: None,
        positions: length,
    };
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let greedy = GenerateOptions { max_new_tokens: length, sampling, seed: 0, bos: None, eos: Vec::new() };
    let mut generator = Generator::new(forward, &[0], greedy)?;
    let mut next = || -> Result<f64> {
        let start = Instant::now();
        generator.next().transpose()?;
        Ok(start.elapsed().as_secs_f64())
    };
    next()?;
    if options.profile {
        drop(profile::take(&queue));
    }
    let mut seconds = (1..length).map(|_| next()).collect::<Result<Vec<f64>>>()?;
    let kernels = if options.profile { profile::take(&queue) } else { Vec::new() };
    let profile = Profile { kernels, seconds: seconds.iter().sum(), steps: length as u64 - 1 };
    let peak_memory_bytes = peak_resident_bytes();
    let tokens_per_second = 1.0 / median(&mut seconds);
    let weight_bytes = (model.num_parameters() * plan.dtype.size()) as u64;
    let memory = cpu::peak_read_bandwidth(plan.threads, plan.isa);
    let memory_bytes_per_second = memory.ok_or_else(|| TrainError::Request("no memory to measure its speed".into()))?;
    Ok(GenerationMeasured {
        tokens_per_second,
        weight_bytes,
        memory_bytes_per_second,
        share_of_peak: tokens_per_second * weight_bytes as f64 / memory_bytes_per_second,
        peak_memory_bytes,
        precision: plan.precision(),
        profile,
    })
}
