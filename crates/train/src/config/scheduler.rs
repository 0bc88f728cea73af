//! The schedule as a run file names it.
//!
//! Defaults are the table's alone ([`super::keys`]). Keys are those of DeepSpeed's schedules and of the arguments of
//! Transformers' `get_scheduler`.
//!
//! # Groups of weights
//! DeepSpeed's schedules, but for WarmupCosineLR, write rates of their own into every group: one rate for all, or a list
//! with one for each ([`PerGroup`]). WarmupCosineLR and Transformers' multiply the rate that a group has.
//! Groups stand in the order of `optimizer.groups`, what none of them takes is the last one; under Muon each is two, its
//! hidden matrices before the rest.

use super::rules::{GroupConfig, OptimizerConfig, OptimizerRule};
use optim::schedule::{Curve, LrRangeTest, OneCycle, PlateauSettings, Schedule, StableDecay, Warmup, WarmupType};
use serde::{Deserialize, Serialize};

/// The `scheduler` section. A total that is absent is the run's number of steps; a `warmup_max_lr` that is null is the
/// optimizer's rate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", content = "params")]
#[allow(missing_docs, reason = "the keys of scheduler.params, whose meanings stand in the table")]
pub enum SchedulerConfig {
    WarmupLR {
        warmup_min_lr: PerGroup,
        warmup_max_lr: Option<PerGroup>,
        warmup_num_steps: u64,
        warmup_type: WarmupType,
        last_batch_iteration: i64,
    },
    WarmupDecayLR {
        total_num_steps: Option<u64>,
        warmup_min_lr: PerGroup,
        warmup_max_lr: Option<PerGroup>,
        warmup_num_steps: u64,
        warmup_type: WarmupType,
        last_batch_iteration: i64,
    },
    WarmupCosineLR {
        total_num_steps: Option<u64>,
        warmup_min_ratio: f64,
        warmup_num_steps: u64,
        cos_min_ratio: f64,
        warmup_type: WarmupType,
        last_batch_iteration: i64,
    },
    #[serde(rename = "constant")]
    Constant {},
    #[serde(rename = "constant_with_warmup")]
    ConstantWithWarmup { num_warmup_steps: u64 },
    #[serde(rename = "linear")]
    Linear { num_warmup_steps: u64, num_training_steps: Option<u64> },
    #[serde(rename = "cosine")]
    Cosine { num_warmup_steps: u64, num_training_steps: Option<u64>, num_cycles: f64 },
    #[serde(rename = "cosine_with_restarts")]
    CosineWithRestarts { num_warmup_steps: u64, num_training_steps: Option<u64>, num_cycles: u64 },
    #[serde(rename = "cosine_with_min_lr")]
    CosineWithMinLr {
        num_warmup_steps: u64,
        num_training_steps: Option<u64>,
        num_cycles: f64,
        min_lr: Option<f64>,
        min_lr_rate: Option<f64>,
    },
    #[serde(rename = "polynomial")]
    Polynomial { num_warmup_steps: u64, num_training_steps: Option<u64>, lr_end: f64, power: f64 },
    #[serde(rename = "inverse_sqrt")]
    InverseSqrt { num_warmup_steps: u64, timescale: Option<u64> },
    #[serde(rename = "warmup_stable_decay")]
    WarmupStableDecay {
        num_warmup_steps: u64,
        num_training_steps: Option<u64>,
        num_stable_steps: Option<u64>,
        num_decay_steps: u64,
        warmup_type: Curve,
        decay_type: Curve,
        min_lr_ratio: f64,
        num_cycles: f64,
    },
    #[serde(rename = "reduce_lr_on_plateau")]
    ReduceLrOnPlateau(PlateauSettings),
    OneCycle {
        #[serde(flatten)]
        cycle: OneCycle<PerGroup>,
        last_batch_iteration: i64,
    },
    LRRangeTest {
        #[serde(flatten)]
        test: LrRangeTest<PerGroup>,
        last_batch_iteration: i64,
    },
}

/// A number for all groups of weights, or one for each.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PerGroup {
    /// The same for all.
    One(f64),
    /// In the order of the groups.
    Each(Vec<f64>),
}

impl PerGroup {
    /// The number of a group.
    fn of(&self, group: usize) -> f64 {
        match self {
            Self::One(number) => *number,
            Self::Each(numbers) => {
                *numbers.get(group).unwrap_or_else(|| panic!("PerGroup::of: {group} of {}", numbers.len()))
            }
        }
    }
}

/// How many groups of weights there are for each item of `optimizer.groups`, and for the weights that none takes.
pub(crate) fn groups_per_item(rule: &OptimizerRule) -> usize {
    if matches!(rule, OptimizerRule::Muon(_)) { 2 } else { 1 }
}

impl SchedulerConfig {
    /// The schedule of a group whose own rate is `lr`, in a run of `run_steps` optimizer steps. Where it multiplies the rate
    /// that a group has, `lr` is that of `optimizer.params`.
    pub fn schedule(&self, group: usize, lr: f64, run_steps: u64) -> Schedule {
        let schedule = self.whole(group, lr, run_steps);
        match u64::try_from(self.last_batch_iteration()) {
            Ok(last) => Schedule::From { lr, start: last + 1, schedule: Box::new(schedule) },
            Err(_) => schedule,
        }
    }

    /// Whether groups have schedules of their own, in place of a share of one.
    pub fn writes_rates(&self) -> bool {
        matches!(
            self,
            Self::WarmupLR { .. } | Self::WarmupDecayLR { .. } | Self::OneCycle { .. } | Self::LRRangeTest { .. }
        )
    }

    /// -1: the schedule begins with the run.
    fn last_batch_iteration(&self) -> i64 {
        match *self {
            Self::WarmupLR { last_batch_iteration, .. }
            | Self::WarmupDecayLR { last_batch_iteration, .. }
            | Self::WarmupCosineLR { last_batch_iteration, .. }
            | Self::OneCycle { last_batch_iteration, .. }
            | Self::LRRangeTest { last_batch_iteration, .. } => last_batch_iteration,
            _ => -1,
        }
    }

    fn whole(&self, group: usize, lr: f64, run_steps: u64) -> Schedule {
        let total = |steps: Option<u64>| steps.unwrap_or(run_steps);
        match self {
            Self::WarmupLR { warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, .. } => Schedule::WarmupLR {
                min_lr: warmup_min_lr.of(group),
                max_lr: warmup_max_lr.as_ref().map_or(lr, |max| max.of(group)),
                warmup: Warmup { steps: *warmup_num_steps, kind: *warmup_type },
            },
            Self::WarmupDecayLR {
                total_num_steps,
                warmup_min_lr,
                warmup_max_lr,
                warmup_num_steps,
                warmup_type,
                ..
            } => Schedule::WarmupDecayLR {
                min_lr: warmup_min_lr.of(group),
                max_lr: warmup_max_lr.as_ref().map_or(lr, |max| max.of(group)),
                warmup: Warmup { steps: *warmup_num_steps, kind: *warmup_type },
                total_steps: total(*total_num_steps),
            },
            Self::WarmupCosineLR {
                total_num_steps,
                warmup_min_ratio,
                warmup_num_steps,
                cos_min_ratio,
                warmup_type,
                ..
            } => Schedule::WarmupCosineLR {
                lr,
                min_ratio: *warmup_min_ratio,
                warmup: Warmup { steps: *warmup_num_steps, kind: *warmup_type },
                cos_min_ratio: *cos_min_ratio,
                total_steps: total(*total_num_steps),
            },
            Self::OneCycle { cycle, .. } => Schedule::OneCycle(cycle.map(|rate| rate.of(group))),
            Self::LRRangeTest { test, .. } => Schedule::LRRangeTest(test.map(|rate| rate.of(group))),
            _ => self.of_transformers(lr, total(self.total_steps())),
        }
    }

    fn of_transformers(&self, lr: f64, total_steps: u64) -> Schedule {
        let warmup_steps = self.warmup_steps().unwrap_or(0);
        match *self {
            Self::ConstantWithWarmup { .. } => Schedule::ConstantWithWarmup { lr, warmup_steps },
            Self::Linear { .. } => Schedule::Linear { lr, warmup_steps, total_steps },
            Self::Cosine { num_cycles, .. } => {
                Schedule::Cosine { lr, warmup_steps, total_steps, num_cycles, min_ratio: 0.0 }
            }
            Self::CosineWithRestarts { num_cycles, .. } => {
                Schedule::CosineWithRestarts { lr, warmup_steps, total_steps, num_cycles }
            }
            Self::CosineWithMinLr { num_cycles, min_lr, min_lr_rate, .. } => {
                let share = |min_lr| if lr == 0.0 { 0.0 } else { min_lr / lr };
                let min_ratio = min_lr_rate.or(min_lr.map(share)).unwrap_or(0.0);
                Schedule::Cosine { lr, warmup_steps, total_steps, num_cycles, min_ratio }
            }
            Self::Polynomial { lr_end, power, .. } => {
                Schedule::Polynomial { lr, warmup_steps, total_steps, end_lr: lr_end, power }
            }
            Self::InverseSqrt { timescale, .. } => {
                const WITHOUT_WARMUP: u64 = 10_000;
                let timescale = timescale.unwrap_or(if warmup_steps == 0 { WITHOUT_WARMUP } else { warmup_steps });
                Schedule::InverseSqrt { lr, warmup_steps, timescale }
            }
            Self::WarmupStableDecay {
                num_stable_steps,
                num_decay_steps,
                warmup_type,
                decay_type,
                min_lr_ratio,
                num_cycles,
                ..
            } => {
                let rest = total_steps.saturating_sub(warmup_steps).saturating_sub(num_decay_steps);
                let parts = StableDecay {
                    warmup_steps,
                    stable_steps: num_stable_steps.unwrap_or(rest),
                    decay_steps: num_decay_steps,
                    warmup: warmup_type,
                    decay: decay_type,
                    min_ratio: min_lr_ratio,
                    num_cycles,
                };
                Schedule::WarmupStableDecay { lr, parts }
            }
            _ => Schedule::Constant { lr },
        }
    }

    /// What the file says of the length of warm-up and decay together.
    fn total_steps(&self) -> Option<u64> {
        match *self {
            Self::WarmupDecayLR { total_num_steps: total, .. }
            | Self::WarmupCosineLR { total_num_steps: total, .. }
            | Self::Linear { num_training_steps: total, .. }
            | Self::Cosine { num_training_steps: total, .. }
            | Self::CosineWithRestarts { num_training_steps: total, .. }
            | Self::CosineWithMinLr { num_training_steps: total, .. }
            | Self::Polynomial { num_training_steps: total, .. }
            | Self::WarmupStableDecay { num_training_steps: total, .. } => total,
            _ => None,
        }
    }

    fn warmup_steps(&self) -> Option<u64> {
        match *self {
            Self::WarmupLR { warmup_num_steps: steps, .. }
            | Self::WarmupDecayLR { warmup_num_steps: steps, .. }
            | Self::WarmupCosineLR { warmup_num_steps: steps, .. }
            | Self::ConstantWithWarmup { num_warmup_steps: steps }
            | Self::Linear { num_warmup_steps: steps, .. }
            | Self::Cosine { num_warmup_steps: steps, .. }
            | Self::CosineWithRestarts { num_warmup_steps: steps, .. }
            | Self::CosineWithMinLr { num_warmup_steps: steps, .. }
            | Self::Polynomial { num_warmup_steps: steps, .. }
            | Self::InverseSqrt { num_warmup_steps: steps, .. }
            | Self::WarmupStableDecay { num_warmup_steps: steps, .. } => Some(steps),
            _ => None,
        }
    }

    /// The part of the schedule that depends on evaluations; [`SchedulerConfig::schedule`] is then constant.
    pub fn plateau(&self) -> Option<PlateauSettings> {
        match *self {
            Self::ReduceLrOnPlateau(settings) => Some(settings),
            _ => None,
        }
    }

    /// What is odd about the schedule in a run of `run_steps` steps and is said once in the log.
    pub fn notices(&self, optimizer: Option<&OptimizerConfig>, run_steps: u64) -> Vec<String> {
        let mut notices = Vec::new();
        let stays = matches!(
            self,
            Self::WarmupLR { .. } | Self::ConstantWithWarmup { .. } | Self::InverseSqrt { .. } | Self::OneCycle { .. }
        );
        if let Some(warmup) = self.warmup_steps().filter(|_| !stays) {
            let (name, total) = match self.total_steps() {
                Some(total) => ("scheduler's total", total),
                None => ("run's length", run_steps),
            };
            if total < warmup {
                notices.push(format!(
                    "the {name} of {total} steps is less than its warm-up of {warmup}: the decay is over before it begins"
                ));
            }
        }
        let Some(optimizer) = optimizer else { return notices };
        let moves_betas = matches!(self, Self::OneCycle { cycle: OneCycle { cycle_momentum: true, .. }, .. });
        if moves_betas && !optimizer.rule.has_betas() {
            notices.push(
                "scheduler.params.cycle_momentum has no effect: the optimizer has no betas for the cycle to move"
                    .to_owned(),
            );
        }
        notices.extend(self.overruled(optimizer));
        notices
    }

    /// What is said where one rate of the schedule takes the place of rates that groups have.
    fn overruled(&self, optimizer: &OptimizerConfig) -> Option<String> {
        let key = match self {
            Self::WarmupLR { warmup_max_lr: Some(PerGroup::One(_)), .. }
            | Self::WarmupDecayLR { warmup_max_lr: Some(PerGroup::One(_)), .. } => "warmup_max_lr",
            Self::OneCycle { cycle: OneCycle { cycle_max_lr: PerGroup::One(_), .. }, .. } => "cycle_max_lr",
            Self::LRRangeTest { test: LrRangeTest { lr_range_test_min_lr: PerGroup::One(_), .. }, .. } => {
                "lr_range_test_min_lr"
            }
            _ => return None,
        };
        let rates = ["lr", "muon_lr", "adam_lr"];
        let has_own = |group: &GroupConfig| rates.iter().any(|rate| group.overrides.contains_key(*rate));
        let muons = match &optimizer.rule {
            OptimizerRule::Muon(params) => params.muon_lr.is_some() || params.adam_lr.is_some(),
            _ => false,
        };
        let groups = (optimizer.groups.len() + 1) * groups_per_item(&optimizer.rule);
        (muons || optimizer.groups.iter().any(has_own)).then(|| {
            format!(
                "scheduler.params.{key} is one rate, which DeepSpeed's schedules write into every group of weights: rates \
                 that groups have themselves count for nothing; a list of {groups} gives each group its own"
            )
        })
    }
}
