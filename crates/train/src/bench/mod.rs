//! How fast this machine trains a model or generates with it: random weights, random tokens, no dropout.
//!
//! What is measured is held against what the machine can do, measured in the same run: training against the multiplications
//! of its cores ([`tensor::cpu::peak_flops`]), generation against the bandwidth of its memory
//! ([`tensor::cpu::peak_read_bandwidth`]), since every new token reads every weight once.

mod generation;
mod training;

pub use generation::{GenerationMeasured, bench_generation};
pub use training::{Measured, bench};

use crate::config::{RecomputeConfig, RunConfig};
use crate::error::{Result, TrainError};
use crate::model_source::ModelOrigin;
use crate::plan::RunPlan;
use models::Model;
use models::families::presets;
use serde_json::json;
use std::path::Path;
use tensor::Isa;
use tensor::profile::Times;

/// Rows of a step, if neither the caller nor the run file says it.
const ROWS: u64 = 4;
/// Tokens of a row, if neither the caller nor the run file says it.
const ROW_TOKENS: usize = 256;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions<'a> {
    /// A preset, or the path of a run file.
    pub run: &'a str,
    /// Compute in bf16; none: as the run file says.
    pub bf16: Option<bool>,
    /// Rows of a step; none: the run file's, else 4.
    pub batch: Option<u64>,
    /// Tokens of a row; none: the run file's, else 256 or what the model can take.
    pub length: Option<u64>,
    /// Training: steps measured; one before them is not.
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

/// Where the time of the measured steps, or tokens, went.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Longest first.
    pub kernels: Vec<(String, Times)>,
    /// Of all steps measured, kernels and what is between them.
    pub seconds: f64,
    /// How many there were.
    pub steps: u64,
}

/// As JSON, the list of kernels.
impl serde::Serialize for Profile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let kernel = |(name, times): &(String, Times)| json!({"kernel": name, "calls": times.calls, "seconds": times.seconds, "flops": times.flops});
        serializer.collect_seq(self.kernels.iter().map(kernel))
    }
}

impl Profile {
    /// What is not spent in kernels: tape, allocation, scheduling.
    pub fn overhead_seconds(&self) -> f64 {
        self.seconds - self.kernels.iter().map(|(_, times)| times.seconds).sum::<f64>()
    }
}

/// The run file, or one made for the preset, with what the options say.
fn config(options: &BenchOptions<'_>) -> Result<RunConfig> {
    let mut config = if presets::NAMES.contains(&options.run) {
        RunConfig::from_value(json!({"model": {"preset": options.run}, "train_batch_size": ROWS}), "bench")?
    } else if Path::new(options.run).is_file() {
        RunConfig::load(Path::new(options.run), &Default::default())?
    } else {
        let presets = presets::NAMES.join(", ");
        return Err(TrainError::Request(format!("{}: neither a run file nor a preset ({presets})", options.run)));
    };
    if let Some(batch) = options.batch {
        config.train_batch_size = Some(batch);
        (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) = (None, None);
    }
    // Steps of one size that run every layer on every token.
    (config.run.batch_ramp, config.run.loss_spike) = (None, None);
    (config.curriculum_learning.enabled, config.progressive_layer_drop.enabled) = (false, false);
    config.data_efficiency.enabled = false;
    config.bf16.enabled = options.bf16.unwrap_or(config.bf16.enabled);
    config.fp16.enabled &= options.bf16.is_none();
    config.torch_autocast.enabled &= options.bf16.is_none();
    config.run.precision.retain(|_, _| options.bf16.is_none());
    config.run.threads = options.threads;
    if let Some(isa) = options.isa.filter(|isa| Isa::at_most(isa).is_none()) {
        let known = Isa::NAMES.join(", ");
        return Err(TrainError::Request(format!("--isa is {isa:?}; it must be one of {known}")));
    }
    config.run.isa = options.isa.map(str::to_owned).or(config.run.isa);
    if options.recompute {
        config.run.recompute = RecomputeConfig::All(true);
    }
    Ok(config)
}

/// The model that `config` names, which never drops anything out, and the plan of rows as long as the options say.
fn prepared(options: &BenchOptions<'_>, config: &RunConfig) -> Result<(Model, RunPlan)> {
    let source = config.model.as_ref().and_then(|model| model.source());
    let source = source.ok_or_else(|| config.error("model is missing; bench needs one"))?;
    let mut origin = ModelOrigin::open(config, source)?;
    origin.config.disable_dropout();
    let length = length(options, config, &origin)?;
    let tokenizer = origin.tokenizer_of(config)?;
    let model = origin.build(tokenizer.as_ref(), length)?;
    Ok((model, RunPlan::resolve(config, length, 0)?))
}

/// Tokens of a row.
fn length(options: &BenchOptions<'_>, config: &RunConfig, origin: &ModelOrigin) -> Result<usize> {
    let longest = origin.config.max_positions();
    let in_file = config.data.as_ref().and_then(|data| data.sequence_length);
    match options.length {
        Some(length) if length as usize > longest => Err(TrainError::Request(format!(
            "--length is {length}; it must be at most {longest}, the positions of the model"
        ))),
        Some(length) => Ok(length as usize),
        None => Ok(in_file.unwrap_or(ROW_TOKENS).min(longest)),
    }
}

/// The middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
