//! The update rule and the schedule as a run file names them.
//!
//! Defaults are the table's alone ([`super::keys`]): these types are read from a file whose absent keys are filled in.

use optim::schedule::{Schedule, Warmup, WarmupType};
use serde::{Deserialize, Serialize};

/// The `optimizer` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct OptimizerConfig {
    /// `type` and `params`.
    #[serde(flatten)]
    pub rule: OptimizerRule,
    /// Globs over weight names: what matches does not decay.
    pub no_decay: Vec<String>,
}

/// An update rule and its settings.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", content = "params")]
pub enum OptimizerRule {
    /// Adam; decoupled decay unless `adam_w_mode` is false, as in DeepSpeed.
    Adam(AdamParams),
    /// Adam with decoupled decay.
    AdamW(AdamParams),
    /// Stochastic gradient descent with momentum.
    #[serde(rename = "SGD")]
    Sgd(SgdParams),
}

/// Settings of Adam and AdamW.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdamParams {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first and of the second moment, each in 0..1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// Divide the moments by `1 - beta^step`.
    pub bias_correction: bool,
    /// Read through [`OptimizerRule::decoupled_decay`]: the type AdamW ignores it.
    pub adam_w_mode: bool,
}

/// Settings of SGD, as PyTorch's.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SgdParams {
    /// Learning rate.
    pub lr: f64,
    /// Share of the last update that is kept; 0 = none.
    pub momentum: f64,
    /// L2 decay, added to the gradient.
    pub weight_decay: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
}

impl OptimizerRule {
    /// The name of the type, as the table spells it.
    pub fn name(&self) -> &'static str {
        match self {
            OptimizerRule::Adam(_) => "Adam",
            OptimizerRule::AdamW(_) => "AdamW",
            OptimizerRule::Sgd(_) => "SGD",
        }
    }

    /// The optimizer's own learning rate, which schedules start from.
    pub fn lr(&self) -> f64 {
        match self {
            OptimizerRule::Adam(params) | OptimizerRule::AdamW(params) => params.lr,
            OptimizerRule::Sgd(params) => params.lr,
        }
    }

    /// Whether weights decay apart from the gradient.
    pub fn decoupled_decay(&self) -> bool {
        match self {
            OptimizerRule::AdamW(_) => true,
            OptimizerRule::Adam(params) => params.adam_w_mode,
            OptimizerRule::Sgd(_) => false,
        }
    }
}

/// The `scheduler` section. A total that is absent is the run's number of steps; a `warmup_max_lr` that is null is the
/// optimizer's rate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", content = "params")]
#[allow(missing_docs, reason = "the keys of scheduler.params, whose meanings stand in the table")]
pub enum SchedulerConfig {
    WarmupLR {
        warmup_min_lr: f64,
        warmup_max_lr: Option<f64>,
        warmup_num_steps: u64,
        warmup_type: WarmupCurve,
    },
    WarmupDecayLR {
        total_num_steps: Option<u64>,
        warmup_min_lr: f64,
        warmup_max_lr: Option<f64>,
        warmup_num_steps: u64,
        warmup_type: WarmupCurve,
    },
    WarmupCosineLR {
        total_num_steps: Option<u64>,
        warmup_min_ratio: f64,
        warmup_num_steps: u64,
        cos_min_ratio: f64,
        warmup_type: WarmupCurve,
    },
    #[serde(rename = "constant")]
    Constant {},
    #[serde(rename = "constant_with_warmup")]
    ConstantWithWarmup {
        num_warmup_steps: u64,
    },
    #[serde(rename = "linear")]
    Linear {
        num_warmup_steps: u64,
        num_training_steps: Option<u64>,
    },
    #[serde(rename = "cosine")]
    Cosine {
        num_warmup_steps: u64,
        num_training_steps: Option<u64>,
        num_cycles: f64,
    },
}

/// `warmup_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmupCurve {
    /// Logarithmic.
    Log,
    /// Linear.
    Linear,
}

impl SchedulerConfig {
    /// The schedule for an optimizer whose own rate is `lr`, in a run of `run_steps` optimizer steps.
    pub fn schedule(&self, lr: f64, run_steps: u64) -> Schedule {
        let warmup = |steps, curve| Warmup {
            steps,
            kind: match curve {
                WarmupCurve::Log => WarmupType::Log,
                WarmupCurve::Linear => WarmupType::Linear,
            },
        };
        match *self {
            Self::WarmupLR { warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type } => Schedule::WarmupLR {
                min_lr: warmup_min_lr,
                max_lr: warmup_max_lr.unwrap_or(lr),
                warmup: warmup(warmup_num_steps, warmup_type),
            },
            Self::WarmupDecayLR { total_num_steps, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type } => {
                Schedule::WarmupDecayLR {
                    min_lr: warmup_min_lr,
                    max_lr: warmup_max_lr.unwrap_or(lr),
                    warmup: warmup(warmup_num_steps, warmup_type),
                    total_steps: total_num_steps.unwrap_or(run_steps),
                }
            }
            Self::WarmupCosineLR {
                total_num_steps,
                warmup_min_ratio,
                warmup_num_steps,
                cos_min_ratio,
                warmup_type,
            } => Schedule::WarmupCosineLR {
                lr,
                min_ratio: warmup_min_ratio,
                warmup: warmup(warmup_num_steps, warmup_type),
                cos_min_ratio,
                total_steps: total_num_steps.unwrap_or(run_steps),
            },
            Self::Constant {} => Schedule::Constant { lr },
            Self::ConstantWithWarmup { num_warmup_steps } => {
                Schedule::ConstantWithWarmup { lr, warmup_steps: num_warmup_steps }
            }
            Self::Linear { num_warmup_steps, num_training_steps } => Schedule::Linear {
                lr,
                warmup_steps: num_warmup_steps,
                total_steps: num_training_steps.unwrap_or(run_steps),
            },
            Self::Cosine { num_warmup_steps, num_training_steps, num_cycles } => Schedule::Cosine {
                lr,
                warmup_steps: num_warmup_steps,
                total_steps: num_training_steps.unwrap_or(run_steps),
                num_cycles,
            },
        }
    }
}
