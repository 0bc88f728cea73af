//! How fast this machine trains a model: whole optimizer steps on random tokens, without dropout.
//!
//! The work of a step is counted as the model's own: three times the forward pass, whether or not it is run again under
//! recompute. The peak it is held against is measured in the same run ([`tensor::cpu::peak_flops`]).

use crate::config::RunConfig;
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::model_source::ModelOrigin;
use crate::plan::RunPlan;
use crate::system::{num_cores, peak_resident_bytes};
use data::Sample;
use models::families::presets;
use models::weights::WeightSource;
use serde_json::json;
use std::path::Path;
use std::time::Instant;
use tensor::profile::{self, Times};
use tensor::rng::Stream;
use tensor::{Isa, cpu};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions<'a> {
    /// A preset, or the path of a run file.
    pub run: &'a str,
    /// Compute in bf16; none: as the run file says.
    pub bf16: Option<bool>,
    /// Rows of a step.
    pub batch: u64,
    /// Tokens of a row.
    pub length: u64,
    /// Steps measured; one before them is not.
    pub steps: u64,
    /// 0 = all cores.
    pub threads: usize,
    /// The highest instruction set.
    pub isa: Option<&'a str>,
    /// Recompute blocks.
    pub recompute: bool,
    /// Time every kernel.
    pub profile: bool,
}

/// Medians over the steps.
#[derive(Clone, Debug)]
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
    /// `f32` or `bf16`.
    pub precision: &'static str,
    /// What the cores in use can do at most, FLOP/s.
    pub peak_flops_per_second: f64,
    /// With [`BenchOptions::profile`]: kernels of the measured steps, longest first.
    pub kernels: Vec<(String, Times)>,
}

fn config(options: &BenchOptions<'_>) -> Result<RunConfig> {
    let mut config = if presets::NAMES.contains(&options.run) {
        RunConfig::from_value(json!({"model": {"preset": options.run}, "train_batch_size": 1}), "bench")?
    } else if Path::new(options.run).is_file() {
        RunConfig::load(Path::new(options.run), &Default::default())?
    } else {
        let presets = presets::NAMES.join(", ");
        return Err(TrainError::Request(format!("{}: neither a run file nor a preset ({presets})", options.run)));
    };
    if config.optimizer.is_none() {
        let adamw = json!({"train_batch_size": 1, "optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}});
        config.optimizer = RunConfig::from_value(adamw, "bench")?.optimizer;
    }
    config.train_batch_size = Some(options.batch);
    (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) = (None, None);
    config.bf16.enabled = options.bf16.unwrap_or(config.bf16.enabled);
    config.run.threads = options.threads;
    if let Some(isa) = options.isa.filter(|isa| Isa::at_most(isa).is_none()) {
        let known = Isa::NAMES.join(", ");
        return Err(TrainError::Request(format!("--isa is {isa:?}; it must be one of {known}")));
    }
    config.run.isa = options.isa.map(str::to_owned).or(config.run.isa);
    config.run.recompute |= options.recompute;
    Ok(config)
}

/// Trains and measures; `on_step` hears of every step as it ends (0 is the one that does not count).
///
/// # Errors
/// The run file or preset is unknown or wrong, or rows are longer than the model's positions.
pub fn bench(options: &BenchOptions<'_>, on_step: &mut dyn FnMut(u64, f64)) -> Result<Measured> {
    let config = config(options)?;
    let source = config.model.as_ref().and_then(|model| model.source());
    let source = source.ok_or_else(|| config.error("model is missing; bench needs one"))?;
    let mut origin = ModelOrigin::open(&config, source)?;
    origin.config.disable_dropout();
    let length = options.length as usize;
    let longest = origin.config.max_positions();
    if length > longest {
        return Err(TrainError::Request(format!(
            "--length is {length}; it must be at most {longest}, the positions of the model"
        )));
    }
    let tokenizer = origin.tokenizer_of(&config)?;
    let model = origin.build(tokenizer.as_ref(), length)?;
    let plan = RunPlan::resolve(&config, length, 0)?;
    let (threads, isa, dtype, vocab) = (plan.threads, plan.isa, plan.dtype, model.vocab_size);
    let precision = plan.precision();
    let queue = cpu::queue(threads, threads <= num_cores(), isa);
    let queue = if options.profile { profile::queue(queue) } else { queue };
    let mut engine = Engine::on_queue(model, config, &WeightSource::Random { seed: 0 }, plan, queue)?;
    let tokens = Stream::new(0, "bench");
    let (mut seconds, mut flops) = (Vec::new(), 0);
    for step in 0..=options.steps {
        let samples: Vec<Sample> =
            (0..options.batch).map(|row| random_row(&tokens, step * options.batch + row, length, vocab)).collect();
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
    seconds.sort_by(f64::total_cmp);
    let step_seconds = seconds[seconds.len() / 2];
    let flops_per_second = flops as f64 / step_seconds;
    let peak_flops_per_second = cpu::peak_flops(isa, dtype) * threads as f64;
    Ok(Measured {
        tokens_per_second: (options.batch * options.length) as f64 / step_seconds,
        step_seconds,
        flops_per_second,
        share_of_peak: flops_per_second / peak_flops_per_second,
        peak_memory_bytes: peak_resident_bytes(),
        precision,
        peak_flops_per_second,
        kernels: if options.profile { profile::take(&engine.queue) } else { Vec::new() },
    })
}

fn random_row(tokens: &Stream, row: u64, length: usize, vocab: usize) -> Sample {
    let id = |position: usize| (tokens.uniform(row * (length as u64 + 1) + position as u64) * vocab as f64) as u32;
    Sample {
        input_ids: (0..length).map(id).collect(),
        targets: (1..=length).map(|position| id(position) as i32).collect(),
        positions: (0..length as u32).collect(),
        document_starts: vec![0],
    }
}
