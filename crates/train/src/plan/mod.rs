//! What follows from a run file: every number final, every refusal behind us.

pub mod batch;
pub mod elasticity;
pub mod groups;
pub mod mesh;
pub mod ramp;
pub mod report;
mod sharing;

use crate::config::{ConfigError, OptimizerRule, RunConfig, RunLength};
use crate::curriculum::Curriculum;
use crate::precision::Formats;
use crate::precision::adaptive::AdaptiveConfig;
use crate::random_ltd::RandomLtd;
use crate::system::num_cores;
use batch::{BATCH_KEYS, Batch};
use mesh::Mesh;
use optim::schedule::Schedule;
use ramp::BatchRamp;
use serde_json::{Value, json};
use tensor::{DType, Isa};

/// A run with every number final.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Samples a step, a micro-batch, and how many micro-batches.
    pub batch: Batch,
    /// Samples of every step, at most those of the batch.
    pub ramp: BatchRamp,
    /// Tokens of a full row.
    pub sequence_length: usize,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// The format of activations and compute copies: the run's 16-bit format, or f32 where it has none.
    pub dtype: DType,
    /// The format of each op family.
    pub formats: Formats,
    /// The rate of every step.
    pub schedule: Schedule,
    /// The longest row of every step; none: rows are whole.
    pub curriculum: Option<Curriculum>,
    /// Layers that drop tokens, and how many they keep at every step; none: layers run on all.
    pub random_ltd: Option<RandomLtd>,
    /// Threads of this rank.
    pub threads: usize,
    /// The highest instruction set kernels use.
    pub isa: Isa,
}

/// Tokens of a row when neither the run file nor the model says less.
const DEFAULT_SEQUENCE_LENGTH: usize = 1024;

/// The row length of a run: the file's, else the smaller of 1024 and the model's.
pub fn sequence_length(config: &RunConfig, max_positions: Option<usize>) -> Result<usize, ConfigError> {
    let given = config.data.as_ref().and_then(|data| data.sequence_length);
    match (given, max_positions) {
        (Some(given), Some(max)) if given > max => Err(config.error_of(
            &["data.sequence_length", "model"],
            format!("data.sequence_length is {given}; it must be at most {max}, the positions of the model"),
        )),
        (Some(0), _) => {
            Err(config.error_of(&["data.sequence_length"], "data.sequence_length is 0; it must be at least 1"))
        }
        (Some(given), _) => Ok(given),
        (None, max) => Ok(max.map_or(DEFAULT_SEQUENCE_LENGTH, |max| max.min(DEFAULT_SEQUENCE_LENGTH))),
    }
}

/// Ranks of this process share its threads.
fn threads_of_rank(config: &RunConfig) -> usize {
    let threads = if config.run.threads == 0 { num_cores() } else { config.run.threads };
    (threads / config.num_ranks() as usize).max(1)
}

/// Transformers' rule: a polynomial falls.
fn check_schedule(config: &RunConfig, schedule: &Schedule) -> Result<(), ConfigError> {
    match *schedule {
        Schedule::Polynomial { lr, end_lr, .. } if config.optimizer.is_some() && end_lr >= lr => {
            let message = format!("scheduler.params.lr_end is {end_lr}; it must be below {lr}, the optimizer's rate");
            Err(config.error_of(&["scheduler.params.lr_end", "optimizer.params.lr"], message))
        }
        _ => Ok(()),
    }
}

impl RunPlan {
    /// Resolves a run on as many ranks as the configuration says.
    ///
    /// `epoch_samples`: samples of the training data, for runs measured in epochs; 0 where there are no data yet.
    ///
    /// # Errors
    /// Keys that do not work yet, batch sizes that do not fit or are beyond any machine, or an unknown instruction set.
    pub fn resolve(config: &RunConfig, sequence_length: usize, epoch_samples: u64) -> Result<Self, ConfigError> {
        config.supported()?;
        let mesh = Mesh::of(config, config.num_ranks())?;
        sharing::check(config, mesh.data)?;
        Self::resolve_for(config, Batch::of(config, mesh.data)?, sequence_length, epoch_samples)
    }

    /// The same with batch sizes that are settled, on however many ranks.
    pub(crate) fn resolve_for(
        config: &RunConfig,
        batch: Batch,
        sequence_length: usize,
        epoch_samples: u64,
    ) -> Result<Self, ConfigError> {
        let sizes = ["data.sequence_length", BATCH_KEYS[0], BATCH_KEYS[1], BATCH_KEYS[2]];
        batch.check_size(sequence_length).map_err(|message| config.error_of(&sizes, message))?;
        let ramp = BatchRamp::of(config, &batch)?;
        let steps = match config.length() {
            RunLength::Steps(steps) => steps,
            RunLength::Tokens(_) if config.curriculum_learning.enabled => {
                return Err(config.error_of(
                    &["run.tokens", "curriculum_learning.enabled"],
                    "run.tokens does not go with curriculum_learning, whose steps have fewer tokens at first; give run.steps \
                     or run.epochs",
                ));
            }
            RunLength::Tokens(tokens) => ramp.steps_for(tokens.div_ceil(sequence_length as u64)),
            RunLength::Epochs(epochs) => ramp.steps_for((epochs * epoch_samples as f64).ceil() as u64),
        };
        let rule = config.optimizer.as_ref().map(|optimizer| &optimizer.rule);
        let isa = match &config.run.isa {
            None => Isa::detect(),
            Some(name) => Isa::at_most(name).ok_or_else(|| {
                let rule = Isa::NAMES.join(", ");
                config.error_of(&["run.isa"], format!("run.isa is {name:?}; it must be one of {rule}"))
            })?,
        };
        let schedule = config.schedule(rule.map_or(0.0, OptimizerRule::lr), steps);
        check_schedule(config, &schedule)?;
        let formats = Formats::of(config)?;
        AdaptiveConfig::check(config, &formats)?;
        Ok(Self {
            batch,
            ramp,
            sequence_length,
            steps,
            dtype: formats.low,
            formats,
            schedule,
            curriculum: Curriculum::of(&config.curriculum_learning),
            random_ltd: RandomLtd::of(config),
            threads: threads_of_rank(config),
            isa,
        })
    }

    /// What to say once in the log about numbers that fit together and are odd.
    pub fn notices(&self, config: &RunConfig) -> Vec<String> {
        let scheduler = config.scheduler.as_ref();
        let of_schedule = scheduler.map(|scheduler| scheduler.notices(config.optimizer.as_ref(), self.steps));
        of_schedule.into_iter().flatten().chain(self.curriculum.as_ref().and_then(Curriculum::notice)).collect()
    }

    /// The compute format as a user writes it: `f32`, `bf16` or `fp16`, or one of these by op family.
    pub fn precision(&self) -> &'static str {
        match (self.dtype, self.formats.is_uniform()) {
            (DType::F16, true) => "fp16",
            (DType::F16, false) => "fp16 by op",
            (DType::BF16, true) => "bf16",
            (DType::BF16, false) => "bf16 by op",
            _ => "f32",
        }
    }

    /// Targets of a step whose rows are all full.
    pub fn nominal_targets(&self) -> u64 {
        self.batch.train_batch_size * self.sequence_length as u64
    }

    /// The whole configuration with what the plan derived, nested as in the file.
    pub fn resolved(&self, config: &RunConfig) -> Value {
        config.resolved(&self.derived(config))
    }

    /// What the plan derived: keys and their final values.
    pub(crate) fn derived(&self, config: &RunConfig) -> Vec<(&'static str, Value)> {
        let mut derived = self.batch.derived().to_vec();
        if config.elasticity.enabled {
            // It finds the same sizes again, so that run.json is a run file again.
            derived.push(("elasticity.ignore_non_elastic_batch_info", json!(true)));
        }
        derived.push(("run.threads", json!(self.threads)));
        derived.push(("run.isa", json!(self.isa.to_string())));
        if config.data.is_some() {
            derived.push(("data.sequence_length", json!(self.sequence_length)));
        }
        if self.steps > 0 {
            // One length only, so that run.json is a run file again.
            derived.extend([
                ("run.steps", json!(self.steps)),
                ("run.epochs", Value::Null),
                ("run.tokens", Value::Null),
            ]);
        }
        derived
    }
}
