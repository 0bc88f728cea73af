//! Learning-rate schedules: the rate as a function of how many optimizer steps have been applied.
//!
//! A schedule is a value without state: [`Schedule::lr`] of the same step is the same number in every run, so a resumed
//! run needs nothing but its step. A step whose gradients overflowed is not applied and does not count.
//!
//! # Sources
//! - DeepSpeed `runtime/lr_schedules.py`: [`Schedule::WarmupLR`], [`Schedule::WarmupDecayLR`],
//!   [`Schedule::WarmupCosineLR`], quirks included. Its counter `it` starts at -1 (the constructor writes the first
//!   rate), so the first step runs at `it` = -1 and the step of index `i` at `it = i - 1`.
//! - Transformers `optimization.py`: [`Schedule::ConstantWithWarmup`], [`Schedule::Linear`], [`Schedule::Cosine`].
//!   Their counter is the step's index itself.
//!
//! Not here: what the parameters are called in a run file and what they are by default (`train::config`).

use std::f64::consts::PI;

/// How the rate rises during warm-up under DeepSpeed's schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmupType {
    /// `ln(it + 1) / ln(steps)`: full at `it = steps - 1`.
    Log,
    /// `it / steps`: full at `it = steps`.
    Linear,
}

/// The rising part of DeepSpeed's schedules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// `warmup_num_steps`; fewer than 2 count as 2, as in DeepSpeed (ln 1 would divide by zero).
    pub steps: u64,
    /// The curve.
    pub kind: WarmupType,
}

impl Warmup {
    /// Iterations until the full rate.
    fn num_iterations(self) -> u64 {
        self.steps.max(2)
    }

    /// Share of the rise at iteration `it`, in 0..=1; 1 after the warm-up.
    fn at(self, it: u64) -> f64 {
        let steps = self.num_iterations();
        match self.kind {
            _ if it >= steps => 1.0,
            WarmupType::Log => ((it + 1) as f64).ln() / (steps as f64).ln(),
            WarmupType::Linear => it as f64 / steps as f64,
        }
    }
}

/// The learning rate of every step of a run. Rates are absolute; steps are optimizer steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// The same rate always.
    Constant {
        /// The rate.
        lr: f64,
    },
    /// From `min_lr` up to `max_lr`, then constant.
    WarmupLR {
        /// Where the warm-up starts.
        min_lr: f64,
        /// Where it ends.
        max_lr: f64,
        /// The rise.
        warmup: Warmup,
    },
    /// From `min_lr` up to `max_lr`, then down to `min_lr` along a line that ends at `total_steps`.
    WarmupDecayLR {
        /// Where the warm-up starts and the decay ends.
        min_lr: f64,
        /// Where the warm-up ends.
        max_lr: f64,
        /// The rise.
        warmup: Warmup,
        /// Length of warm-up and decay together.
        total_steps: u64,
    },
    /// Ratios of `lr`: up from `min_ratio` to 1, then down to `cos_min_ratio` along half a cosine. The first step of
    /// all has rate 0, and the decay is already one step in when the warm-up ends, as in DeepSpeed.
    WarmupCosineLR {
        /// The rate that the ratios multiply: the optimizer's own.
        lr: f64,
        /// Where the warm-up starts.
        min_ratio: f64,
        /// The rise.
        warmup: Warmup,
        /// Where the decay ends.
        cos_min_ratio: f64,
        /// Length of warm-up and decay together.
        total_steps: u64,
    },
    /// A line from 0 up to `lr`, then constant.
    ConstantWithWarmup {
        /// The rate after the warm-up.
        lr: f64,
        /// Steps until the full rate.
        warmup_steps: u64,
    },
    /// A line from 0 up to `lr`, then a line down to 0 at `total_steps`.
    Linear {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Length of warm-up and decay together.
        total_steps: u64,
    },
    /// A line from 0 up to `lr`, then a cosine of `num_cycles` periods (0.5 ends at 0 at `total_steps`, and rises again
    /// beyond it).
    Cosine {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Length of warm-up and decay together.
        total_steps: u64,
        /// Periods of the cosine in the decay.
        num_cycles: f64,
    },
}

impl Schedule {
    /// The rate of the `step_index + 1`-th applied optimizer step: 0 is the first step of the run.
    pub fn lr(&self, step_index: u64) -> f64 {
        // DeepSpeed's `it`, none for its -1.
        let it = step_index.checked_sub(1);
        match *self {
            Schedule::Constant { lr } => lr,
            Schedule::WarmupLR { min_lr, max_lr, warmup } => {
                it.map_or(min_lr, |it| min_lr + (max_lr - min_lr) * warmup.at(it))
            }
            Schedule::WarmupDecayLR { min_lr, max_lr, warmup, total_steps } => it.map_or(min_lr, |it| {
                let decay_start = warmup.num_iterations();
                let share = if it < decay_start { warmup.at(it) } else { falling_line(it, decay_start, total_steps) };
                min_lr + (max_lr - min_lr) * share
            }),
            Schedule::WarmupCosineLR { lr, min_ratio, warmup, cos_min_ratio, total_steps } => it.map_or(0.0, |it| {
                let decay_start = warmup.num_iterations();
                if it < decay_start {
                    return lr * (min_ratio + (1.0 - min_ratio) * warmup.at(it));
                }
                let length = total_steps.saturating_sub(decay_start).max(1);
                let progress = ((it - decay_start + 1) as f64 / length as f64).min(1.0);
                lr * (cos_min_ratio + (1.0 - cos_min_ratio) * (1.0 + (PI * progress).cos()) / 2.0).max(0.0)
            }),
            Schedule::ConstantWithWarmup { lr, warmup_steps } => lr * rising_line(step_index, warmup_steps),
            Schedule::Linear { lr, warmup_steps, total_steps } => {
                let rising = step_index < warmup_steps;
                lr * if rising {
                    rising_line(step_index, warmup_steps)
                } else {
                    falling_line(step_index, warmup_steps, total_steps)
                }
            }
            Schedule::Cosine { lr, warmup_steps, total_steps, num_cycles } => {
                if step_index < warmup_steps {
                    return lr * rising_line(step_index, warmup_steps);
                }
                let length = total_steps.saturating_sub(warmup_steps).max(1);
                let progress = (step_index - warmup_steps) as f64 / length as f64;
                lr * (0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())).max(0.0)
            }
        }
    }
}

/// 0 at step 0, 1 from `warmup_steps` on.
fn rising_line(step: u64, warmup_steps: u64) -> f64 {
    if step < warmup_steps { step as f64 / warmup_steps as f64 } else { 1.0 }
}

/// 1 at `start`, 0 from `end` on.
fn falling_line(step: u64, start: u64, end: u64) -> f64 {
    end.saturating_sub(step) as f64 / end.saturating_sub(start).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Warmup = Warmup { steps: 0, kind: WarmupType::Log };

    #[test]
    fn a_warmup_of_no_steps_is_one_of_two_as_in_deepspeed() {
        let schedule = Schedule::WarmupLR { min_lr: 0.0, max_lr: 0.1, warmup: LOG };
        assert_eq!((0..4).map(|step| schedule.lr(step)).collect::<Vec<_>>(), [0.0, 0.0, 0.1, 0.1]);
    }

    #[test]
    fn a_decay_shorter_than_its_warmup_falls_to_the_minimum_at_once() {
        let schedule = Schedule::WarmupDecayLR {
            min_lr: 0.25,
            max_lr: 1.0,
            warmup: Warmup { steps: 4, kind: WarmupType::Linear },
            total_steps: 2,
        };
        assert_eq!((3..8).map(|step| schedule.lr(step)).collect::<Vec<_>>(), [0.625, 0.8125, 0.25, 0.25, 0.25]);
    }

    #[test]
    fn no_warmup_starts_a_line_and_a_cosine_at_the_full_rate() {
        assert_eq!(Schedule::Linear { lr: 0.1, warmup_steps: 0, total_steps: 10 }.lr(0), 0.1);
        assert_eq!(Schedule::Cosine { lr: 0.1, warmup_steps: 0, total_steps: 10, num_cycles: 0.5 }.lr(0), 0.1);
        assert_eq!(Schedule::ConstantWithWarmup { lr: 0.1, warmup_steps: 0 }.lr(0), 0.1);
    }

    #[test]
    fn rates_stay_finite_and_inside_their_bounds_at_the_ends_of_the_range() {
        let warmup = Warmup { steps: u64::MAX, kind: WarmupType::Linear };
        for step in [0, 1, u64::MAX - 1, u64::MAX] {
            for schedule in [
                Schedule::WarmupLR { min_lr: 0.0, max_lr: 1.0, warmup },
                Schedule::WarmupDecayLR { min_lr: 0.0, max_lr: 1.0, warmup: LOG, total_steps: 0 },
                Schedule::WarmupCosineLR { lr: 1.0, min_ratio: 0.0, warmup: LOG, cos_min_ratio: 0.0, total_steps: 0 },
                Schedule::Linear { lr: 1.0, warmup_steps: u64::MAX, total_steps: 0 },
                Schedule::Cosine { lr: 1.0, warmup_steps: 1, total_steps: u64::MAX, num_cycles: 0.5 },
            ] {
                let lr = schedule.lr(step);
                assert!((0.0..=1.0).contains(&lr), "{schedule:?} at step {step}: {lr}");
            }
        }
    }
}
