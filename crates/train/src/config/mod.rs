//! What a run file says: DeepSpeed's keys and ours, read, checked and typed. No arithmetic; of the machine only the file.
//!
//! | file | what |
//! | --- | --- |
//! | `read` | text to JSON: comments, trailing commas, keys that stand twice |
//! | [`keys`], `table` | every key: type, range, default, fate, meaning |
//! | `check`, `together` | the walk over a file against the table; rules between keys |
//! | `instead` | what to use in place of keys that do not work yet |
//! | `load` | file and command line to [`RunConfig`] |
//! | `rules`, `scheduler` | optimizer and schedule |
//! | `precision` | f32, bf16 or fp16 |
//! | `recompute`, `random_ltd` | what runs again in backward; token dropping |
//! | `encoded` | a configuration as an argument, in base64 |
//! | `resolve` | every key with its final value and its origin |
//! | [`mod@reference`] | the page of all keys, `docs/config.md` |
//!
//! # Invariants
//! - A default is written once, in the table. [`RunConfig`] is read from the file with absent keys filled in.
//! - What is accepted and has no effect is listed by [`RunConfig::notices`]; what does not work yet can be planned and is
//!   refused by [`RunConfig::supported`], which training asks; everything else is an error that names it.
//!
//! Not here: what follows from the numbers ([`crate::plan`]).

mod check;
mod encoded;
mod error;
mod instead;
pub mod keys;
mod load;
pub(crate) mod precision;
mod random_ltd;
mod read;
mod recompute;
pub mod reference;
mod resolve;
mod rules;
mod scheduler;
mod table;
mod together;

pub use error::ConfigError;
pub use load::Overrides;
pub use random_ltd::{DataEfficiencyConfig, DataRoutingConfig, RandomLtdConfig, RandomLtdGrowth, RandomLtdSchedule};
pub use recompute::{ActivationCheckpointingConfig, PipelineConfig, RecomputeChoice, RecomputeConfig};
pub use resolve::{Fate, Origin, Setting};
pub use rules::{AdamParams, GroupConfig, MuonParams, NoRule, OptimizerConfig, OptimizerRule, Rated, RatedRule};
pub(crate) use scheduler::groups_per_item;
pub use scheduler::{PerGroup, SchedulerConfig};
pub(crate) use together::tensor_ranks;

use crate::best::KeepBestConfig;
use crate::checkpoint::TagValidation;
use crate::curriculum::CurriculumConfig;
use crate::early_stop::EarlyStopConfig;
use crate::flops_profiler::FlopsProfilerConfig;
use crate::layer_drop::LayerDropConfig;
use crate::loss_spike::LossSpikeConfig;
use crate::monitor::MonitorConfig;
use crate::plan::ramp::RampConfig;
use crate::precision::adaptive::AdaptiveConfig;
use crate::task::LabelsConfig;
use check::Unheeded;
use data::DataConfig;
use optim::GradientEdit;
use optim::schedule::{Plateau, Schedule};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::LossTerms;

/// What the run file says, absent keys at their defaults. Keys that are checked and have no effect here are not fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RunConfig {
    /// What is trained; none in a bare DeepSpeed config.
    pub model: Option<ModelConfig>,
    /// What it is trained on; none in a bare DeepSpeed config.
    pub data: Option<DataConfig>,
    /// How long, where to and how often.
    pub run: RunSection,
    /// Samples of one optimizer step over all ranks; see [`crate::plan::batch`].
    pub train_batch_size: Option<u64>,
    /// Samples of one forward on one rank.
    pub train_micro_batch_size_per_gpu: Option<u64>,
    /// Micro-batches of one optimizer step.
    pub gradient_accumulation_steps: Option<u64>,
    /// Whether the engine counts micro-batches to the end of a step in a program's own loop; false: every step updates.
    pub managed_gradient_accumulation: bool,
    /// Largest global L2 norm of the gradient; 0 = off.
    pub gradient_clipping: f64,
    /// Steps between log lines; see [`RunConfig::log_every`].
    pub steps_per_print: Option<u64>,
    /// The update rule.
    pub optimizer: Option<OptimizerConfig>,
    /// The learning rate over time; none: constant.
    pub scheduler: Option<SchedulerConfig>,
    /// Mixed precision in fp16.
    pub fp16: Fp16Config,
    /// Batch sizes that suit many numbers of ranks.
    pub elasticity: ElasticityConfig,
    /// Mixed precision in bf16.
    pub bf16: Bf16Config,
    /// Formats op by op, as PyTorch's autocast has them.
    pub torch_autocast: AutocastConfig,
    /// Formats beside those of the mode.
    pub data_types: DataTypesConfig,
    /// Rows that grow with the steps.
    pub curriculum_learning: CurriculumConfig,
    /// Layers left out at random.
    pub progressive_layer_drop: LayerDropConfig,
    /// Token dropping.
    pub data_efficiency: DataEfficiencyConfig,
    /// DeepSpeed's word for segments that run again.
    pub activation_checkpointing: ActivationCheckpointingConfig,
    /// Layers over ranks, of which one key holds on one rank too.
    pub pipeline: PipelineConfig,
    /// What data-parallel ranks share.
    pub zero_optimization: ZeroConfig,
    /// Figures as TensorBoard event files.
    pub tensorboard: MonitorConfig,
    /// Figures as CSV files.
    pub csv_monitor: MonitorConfig,
    /// One step measured module by module.
    pub flops_profiler: FlopsProfilerConfig,
    /// Where the time of a step goes; see [`RunConfig::times_steps`].
    pub wall_clock_breakdown: bool,
    /// Memory by kind with every log line of a step.
    pub memory_breakdown: bool,
    /// Every key with its final value in the log, once.
    pub dump_state: bool,
    /// DeepSpeed's words for how checkpoints are written.
    pub checkpoint: CheckpointConfig,
    /// Ranks of the run, which no file says; 0 stands for 1. See [`RunConfig::num_ranks`].
    #[serde(skip)]
    pub ranks: u64,
    #[serde(skip)]
    given: Given,
}

/// The `model` section: exactly one of path, preset and config is given.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ModelConfig {
    /// A folder in the Hugging Face layout, a checkpoint or a run's output.
    pub path: Option<PathBuf>,
    /// The name of a known architecture.
    pub preset: Option<String>,
    /// A Hugging Face `config.json`, unchecked.
    pub config: Option<Map<String, Value>>,
    /// The classes of a fresh classification head; none: the head that the model has.
    pub labels: Option<LabelsConfig>,
}

/// The `run` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RunSection {
    /// Folder of the run.
    pub output: PathBuf,
    /// See [`RunConfig::length`].
    pub steps: Option<u64>,
    /// See [`RunConfig::length`].
    pub epochs: Option<f64>,
    /// See [`RunConfig::length`].
    pub tokens: Option<u64>,
    /// Seed of weights, order and dropout.
    pub seed: u64,
    /// `auto` or `cpu`.
    pub device: String,
    /// Threads; 0 = all cores.
    pub threads: usize,
    /// Same bits on any number of data-parallel ranks.
    pub deterministic: bool,
    /// Seconds after which a rank that does not answer is lost, above 0.
    pub comm_timeout: f64,
    /// Steps between evaluations; 0: one at the end.
    pub eval_every: u64,
    /// Steps between checkpoints; 0: one at the end.
    pub checkpoint_every: u64,
    /// Whether checkpoints are written while training goes on; see [`RunConfig::checkpoint_async`].
    pub checkpoint_async: Option<bool>,
    /// Steps between norms of every block; 0: never.
    pub norms_every: u64,
    /// Newest checkpoints kept; 0 = all.
    pub keep_checkpoints: usize,
    /// Steps between printed samples; 0: one at the end.
    pub sample_every: u64,
    /// Text that samples go on from; none: no samples.
    pub sample_prompt: Option<String>,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    /// Steps between log lines; see [`RunConfig::log_every`].
    pub log_every: Option<u64>,
    /// See [`RunConfig::recompute`].
    pub recompute: RecomputeConfig,
    /// Name of the highest instruction set used; none: the machine's.
    pub isa: Option<String>,
    /// Decay of the average of weights that is evaluated and exported; none: the weights themselves are.
    pub ema_decay: Option<f64>,
    /// Largest magnitude of an element of the mean gradient; none: any.
    pub clip_value: Option<f64>,
    /// Times the sign of each weight that may decay, added to the mean gradient.
    pub l1_penalty: f64,
    /// Times each weight that may decay, added to the mean gradient.
    pub l2_penalty: f64,
    /// See [`RunSection::loss_terms`].
    pub label_smoothing: f64,
    /// See [`RunSection::loss_terms`].
    pub z_loss: f64,
    /// Eta of the normal noise on the clipped gradient; 0: none.
    pub gradient_noise: f64,
    /// The guard against loss spikes; none: there is no guard.
    pub loss_spike: Option<LossSpikeConfig>,
    /// Ops that run in f32 for a while; none: formats are fixed.
    pub adaptive_precision: Option<AdaptiveConfig>,
    /// Formats by op family, or by blocks and family (`transformer.h.0/linear`); see [`crate::precision`].
    pub precision: Map<String, Value>,
    /// Early steps take fewer samples; none: every step takes `train_batch_size`.
    pub batch_ramp: Option<RampConfig>,
    /// The validation set that what follows evaluations follows; none: the first.
    pub eval_set: Option<String>,
    /// Ends a run whose evaluations bring no gain; none: nothing does.
    pub early_stop: Option<EarlyStopConfig>,
    /// Which checkpoints are kept for their evaluation; none: the newest alone are.
    pub keep_best: Option<KeepBestConfig>,
    /// A finished run exports the best checkpoint.
    pub load_best_at_end: bool,
}

impl RunSection {
    /// What training adds to cross-entropy; evaluation does not.
    pub fn loss_terms(&self) -> LossTerms {
        LossTerms { label_smoothing: self.label_smoothing as f32, z_loss: self.z_loss as f32 }
    }

    /// What is done to every gradient before its norm is taken; none: nothing.
    pub fn gradient_edit(&self) -> Option<GradientEdit> {
        let [l1, l2] = [self.l1_penalty as f32, self.l2_penalty as f32];
        let edit = GradientEdit { l1, l2, largest: self.clip_value.map_or(f32::INFINITY, |largest| largest as f32) };
        (edit != GradientEdit { l1: 0.0, l2: 0.0, largest: f32::INFINITY }).then_some(edit)
    }
}

/// The `fp16` section; see [`crate::loss_scale`].
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Fp16Config {
    /// Weights and activations in f16, masters and moments in f32, the loss scaled.
    pub enabled: bool,
    /// The scale for good; 0: it follows overflows.
    pub loss_scale: f64,
    /// Power of 2 of the first dynamic scale.
    pub initial_scale_power: u64,
    /// Clean steps between two growths of a dynamic scale, above 0 where there is one.
    pub loss_scale_window: i64,
    /// Overflows until a dynamic scale falls, above 0 where there is one.
    pub hysteresis: i64,
    /// Every clean step fills hysteresis again.
    pub consecutive_hysteresis: bool,
    /// The lowest dynamic scale, above 0 where there is one.
    pub min_loss_scale: f64,
    /// Masters and sums of gradients in fp16.
    pub fp16_master_weights_and_grads: bool,
}

impl Fp16Config {
    /// Whether the scale follows overflows.
    pub fn is_dynamic(&self) -> bool {
        self.loss_scale == 0.0
    }
}

/// The `bf16` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Bf16Config {
    /// Weights and activations in bf16, masters and moments in f32.
    pub enabled: bool,
    /// Skip the step when a gradient is not finite.
    pub check_grad_overflow: bool,
    /// Masters and sums of gradients in bf16; see [`crate::precision`].
    pub bf16_master_weights_and_grads: bool,
    /// Moments in bf16, as `optimizer.moments` says it.
    pub bf16_optimizer_states: bool,
}

/// The `data_types` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DataTypesConfig {
    /// The format in which gradients add up over micro-batches; none: f32, or that of masters in 16 bits.
    pub grad_accum_dtype: Option<String>,
}

/// The `torch_autocast` section; see [`crate::precision`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AutocastConfig {
    /// Products and attention in the 16-bit format, norms and the residual stream in f32.
    pub enabled: bool,
    /// The 16-bit format; none: bf16.
    pub dtype: Option<String>,
}

/// The `elasticity` section; see [`crate::plan::elasticity`].
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ElasticityConfig {
    /// The batch sizes follow from this section.
    pub enabled: bool,
    /// Largest number of samples of one optimizer step.
    pub max_train_batch_size: u64,
    /// Samples of one forward on one rank that may be chosen; at least one.
    pub micro_batch_sizes: Vec<u64>,
    /// Fewest ranks.
    pub min_gpus: u64,
    /// Most ranks.
    pub max_gpus: u64,
    /// Ranks of one host: a multiple of `model_parallel_size`.
    pub num_gpus_per_node: u64,
    /// Ranks of one replica.
    pub model_parallel_size: u64,
    /// Between batch sizes that suit as many numbers of ranks.
    pub prefer_larger_batch: bool,
    /// The batch keys may stand beside this section, which overrules them.
    pub ignore_non_elastic_batch_info: bool,
    /// 0.1 or 0.2.
    pub version: f64,
}

/// The `zero_optimization` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ZeroConfig {
    /// Ranks share 0: nothing, 1: optimizer state, 2: gradients too, 3: weights too. No effect on one rank.
    pub stage: u8,
}

/// The `checkpoint` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CheckpointConfig {
    /// What happens when ranks save one checkpoint under different tags.
    pub tag_validation: TagValidation,
    /// A program that loads without a tag where there is no checkpoint is told so by an error.
    pub load_universal: bool,
    /// None: not given.
    pub writer: Option<WriterConfig>,
}

/// The `checkpoint.writer` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WriterConfig {
    /// Stands for `run.checkpoint_async` where that is not given.
    pub decoupled: Option<bool>,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RunLength {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the training data.
    Epochs(f64),
    /// Training tokens.
    Tokens(u64),
}

/// Where a model comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ModelSource<'a> {
    /// A folder.
    Path(&'a Path),
    /// A known architecture, with random weights.
    Preset(&'a str),
    /// A Hugging Face config, with random weights.
    Config(&'a Map<String, Value>),
}

/// The file behind a configuration, for messages and for [`RunConfig::settings`].
#[derive(Clone, Debug, Default)]
struct Given {
    name: String,
    root: Map<String, Value>,
    filled: Value,
    origins: BTreeMap<String, Origin>,
    unheeded: Unheeded,
    notices: Vec<String>,
}

impl RunConfig {
    /// Reads a run file, or a DeepSpeed config, with what the command line says. In place of a file's name, `path` may be
    /// the configuration itself in URL-safe base64, as DeepSpeed takes it; messages then call it `base64`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong; nothing was written or changed.
    pub fn load(path: &Path, overrides: &Overrides<'_>) -> Result<Self, ConfigError> {
        let (text, name) = load::read_file(path)?;
        load::parse(&text, &name, overrides)
    }

    /// Reads the text of a run file; `name` is how messages call it, and its stem the run's folder below `runs/`.
    ///
    /// # Errors
    /// Something in the text is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        load::parse(text, name, &Overrides::default())
    }

    /// As [`RunConfig::parse`], from JSON that is already read: `RunConfig::from_value(json!({...}), "my run")`.
    ///
    /// # Errors
    /// Something in the value is wrong.
    pub fn from_value(value: Value, name: &str) -> Result<Self, ConfigError> {
        load::from_value(value, name, &Overrides::default())
    }

    /// How messages call the file this was read from.
    pub fn name(&self) -> &str {
        &self.given.name
    }

    /// An error about this file: the message begins with its name.
    pub fn error(&self, message: impl std::fmt::Display) -> ConfigError {
        ConfigError::about(&self.given.name, message)
    }

    /// An error about what stands at `path`: the message begins with the file, or with the words of the command line that
    /// said it, and names the path.
    pub fn error_at(&self, path: &str, message: impl std::fmt::Display) -> ConfigError {
        match load::source(&self.given.name, &self.given.origins, path) {
            argument @ ("--model" | "--data") => ConfigError::about(argument, message),
            source => ConfigError::about(source, format!("{path}: {message}")),
        }
    }

    /// An error about what several keys say together, which the message names itself: it begins with the words of the
    /// command line that said one of them, else with the file.
    pub(crate) fn error_of(&self, paths: &[&str], message: impl std::fmt::Display) -> ConfigError {
        let name = self.given.name.as_str();
        let mut sources = paths.iter().map(|path| load::source(name, &self.given.origins, path));
        ConfigError::about(sources.find(|source| *source != name).unwrap_or(name), message)
    }

    /// The format of activations and compute copies.
    pub fn dtype(&self) -> tensor::DType {
        precision::dtype(|section| if section == "fp16" { self.fp16.enabled } else { self.bf16.enabled })
    }

    /// Refuses keys that are known and do not work yet. A plan may hold them, a run may not.
    ///
    /// # Errors
    /// The first of them, its value, and what would do.
    pub fn supported(&self) -> Result<(), ConfigError> {
        match self.given.unheeded.not_yet.first() {
            Some(fault) => {
                let source = load::source(&self.given.name, &self.given.origins, &fault.path);
                Err(ConfigError::about(source, &fault.message))
            }
            None => Ok(()),
        }
    }

    /// Model, data and optimizer, which training needs and a bare DeepSpeed config may lack.
    ///
    /// # Errors
    /// The first of them that is missing, with an example of it; or as [`RunConfig::supported`].
    pub fn for_training(&self) -> Result<(ModelSource<'_>, &DataConfig, &OptimizerConfig), ConfigError> {
        self.supported()?;
        let missing =
            |what: &str, example: &str| self.error(format!("{what} is missing; training needs one, such as {example}"));
        let model = self.model.as_ref().and_then(ModelConfig::source);
        let model =
            model.ok_or_else(|| missing("model", "\"model\": { \"preset\": \"gpt2-124m\" }, or --model FOLDER"))?;
        let data = self.data.as_ref();
        let data = data.ok_or_else(|| missing("data", "\"data\": { \"train\": \"corpus.txt\" }, or --data PATH"))?;
        let optimizer = self.optimizer.as_ref();
        let example = "\"optimizer\": { \"type\": \"AdamW\", \"params\": { \"lr\": 1e-3 } }";
        Ok((model, data, optimizer.ok_or_else(|| missing("optimizer", example))?))
    }

    /// How long the run is; one epoch when the file does not say it.
    pub fn length(&self) -> RunLength {
        match (self.run.steps, self.run.tokens) {
            (Some(steps), _) => RunLength::Steps(steps),
            (None, Some(tokens)) => RunLength::Tokens(tokens),
            (None, None) => RunLength::Epochs(self.run.epochs.unwrap_or(1.0)),
        }
    }

    /// Ranks of the run, at least 1.
    pub fn num_ranks(&self) -> u64 {
        self.ranks.max(1)
    }

    /// Steps between log lines.
    pub fn log_every(&self) -> u64 {
        self.run.log_every.or(self.steps_per_print).unwrap_or(10)
    }

    /// Whether the parts of every step are timed: asked for, or because the profiler needs it.
    pub fn times_steps(&self) -> bool {
        self.wall_clock_breakdown || self.flops_profiler.enabled
    }

    /// Whether checkpoints are written while training goes on, which takes memory for a copy of the state: on unless
    /// somebody said otherwise, and of no use where the only checkpoint is that of the end.
    pub fn checkpoint_async(&self) -> bool {
        self.checkpoint_interval().is_some() && self.asked_async().unwrap_or(true)
    }

    /// What the file says about it: `run.checkpoint_async`, else DeepSpeed's `checkpoint.writer.decoupled`.
    pub(crate) fn asked_async(&self) -> Option<bool> {
        let writer = self.checkpoint.writer.as_ref();
        self.run.checkpoint_async.or(writer.and_then(|writer| writer.decoupled))
    }

    /// The learning rate of every step, for an optimizer whose own rate is `lr` and a run of `run_steps` steps: that of the
    /// weights outside `optimizer.groups`.
    pub fn schedule(&self, lr: f64, run_steps: u64) -> Schedule {
        let Some(scheduler) = &self.scheduler else { return Schedule::Constant { lr } };
        let rest =
            self.optimizer.as_ref().map_or(0, |optimizer| optimizer.groups.len() * groups_per_item(&optimizer.rule));
        scheduler.schedule(rest, lr, run_steps)
    }

    /// Refuses what follows evaluations in a run that makes none on the way.
    pub(crate) fn check_followers(&self, has_validation: bool) -> Result<(), ConfigError> {
        if has_validation && self.run.eval_every > 0 {
            return Ok(());
        }
        let (early_stop, keep_best) = (self.run.early_stop.is_some(), self.run.keep_best.is_some());
        let follows = match () {
            () if self.plateau().is_some() => {
                "scheduler.type is \"reduce_lr_on_plateau\", which follows the validation loss,"
            }
            () if early_stop => "run.early_stop follows the validation figures",
            () if keep_best => "run.keep_best follows the validation figures",
            () => return Ok(()),
        };
        let it = if self.plateau().is_some() { "it" } else { "them" };
        Err(self.error(format!(
            "{follows} and the run does not measure {it} on the way; give data.validation and a run.eval_every above 0"
        )))
    }

    /// Steps between the checkpoints that may be due before the last step, at least; none: the last is the only one.
    pub(crate) fn checkpoint_interval(&self) -> Option<u64> {
        let best = self.run.keep_best.map(|_| self.run.eval_every);
        [Some(self.run.checkpoint_every), best].into_iter().flatten().filter(|every| *every > 0).min()
    }

    /// The part of the schedule that depends on evaluations.
    pub fn plateau(&self) -> Option<Plateau> {
        self.scheduler.as_ref().and_then(SchedulerConfig::plateau).map(Plateau::new)
    }

    /// What to say once in the log: older names that were understood, and keys that have no effect here.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = self.given.notices.clone();
        if let Some(size) = self.value("vocabulary_size").and_then(Value::as_u64).filter(|size| size % 8 != 0) {
            notices.push(format!("vocabulary_size is {size}; products are faster with a multiple of 8"));
        }
        let no_effect = &self.given.unheeded.no_effect;
        if !no_effect.is_empty() {
            notices.push(format!("these keys have no effect here: {}", no_effect.join(", ")));
        }
        notices
    }
}

impl ModelConfig {
    /// Which of the three is given; none only if all were taken out by hand.
    pub fn source(&self) -> Option<ModelSource<'_>> {
        let path = self.path.as_deref().map(ModelSource::Path);
        let preset = || self.preset.as_deref().map(ModelSource::Preset);
        path.or_else(preset).or_else(|| self.config.as_ref().map(ModelSource::Config))
    }
}
