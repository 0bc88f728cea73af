//! Learning-rate schedules: the rate as a function of how many optimizer steps have been applied.
//!
//! A schedule is a value without state: [`Schedule::lr`] of the same step is the same number in every run, so a resumed
//! run needs nothing but its step; [`Plateau`] alone has one. A step whose gradients overflowed is not applied and does not count.
//!
//! # Sources
//! - DeepSpeed `runtime/lr_schedules.py`: [`Schedule::WarmupLR`], [`Schedule::WarmupDecayLR`],
//!   [`Schedule::WarmupCosineLR`], [`Schedule::OneCycle`], [`Schedule::LRRangeTest`], quirks included. Its counter `it`
//!   starts at -1 (the constructor writes the first rate), so the first step runs at `it` = -1 and the step of index `i`
//!   at `it = i - 1`.
//! - Transformers `optimization.py`: the rest. Their counter is the step's index itself.
//!
//! Not here: what the parameters are called in a run file and what they are by default (`train::config`).

mod deepspeed;
mod plateau;
mod transformers;

pub use deepspeed::{LrRangeTest, OneCycle, Warmup, WarmupType};
pub use plateau::{Plateau, PlateauSettings, PlateauState, ThresholdMode};
pub use transformers::{Curve, StableDecay};

use transformers::{cosine, restarting_cosine};

/// The learning rate of every step of a run. Rates are absolute; steps are optimizer steps.
#[derive(Clone, Debug, PartialEq)]
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
    /// A line from 0 up to `lr`, then a cosine of `num_cycles` periods between `lr` and `min_ratio` of it (0.5 ends at the
    /// minimum at `total_steps`, and rises again beyond it).
    Cosine {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Length of warm-up and decay together.
        total_steps: u64,
        /// Periods of the cosine in the decay.
        num_cycles: f64,
        /// The lowest rate of the decay, as a share of `lr`.
        min_ratio: f64,
    },
    /// A line from 0 up to `lr`, then half a cosine down to 0, `num_cycles` times over; 0 from `total_steps` on.
    CosineWithRestarts {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Length of warm-up and decays together.
        total_steps: u64,
        /// How many decays.
        num_cycles: u64,
    },
    /// A line from 0 up to `lr`, then a power of what is left of the way, down to `end_lr` at `total_steps`.
    Polynomial {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Length of warm-up and decay together.
        total_steps: u64,
        /// The last rate.
        end_lr: f64,
        /// The power: 1 is a line.
        power: f64,
    },
    /// A line from 0 up to `lr`, then `lr / sqrt(1 + (step - warmup_steps) / timescale)`.
    InverseSqrt {
        /// The highest rate.
        lr: f64,
        /// Steps until the highest rate.
        warmup_steps: u64,
        /// Steps after which the rate has fallen by the root of 2; above 0.
        timescale: u64,
    },
    /// Warm-up, plateau, decay.
    WarmupStableDecay {
        /// The rate of the plateau.
        lr: f64,
        /// The three parts.
        parts: StableDecay,
    },
    /// One cycle of rate and momentum.
    OneCycle(OneCycle),
    /// A rate that rises without end.
    LRRangeTest(LrRangeTest),
    /// A schedule of which some steps have been before the run: DeepSpeed's `last_batch_iteration`. Its constructor then
    /// writes nothing, so the first step is taken with what the optimizer says itself.
    From {
        /// The rate of the first step.
        lr: f64,
        /// Steps before the run.
        start: u64,
        /// Where they belong.
        schedule: Box<Schedule>,
    },
}

impl Schedule {
    /// The rate of the `step_index + 1`-th applied optimizer step: 0 is the first step of the run.
    pub fn lr(&self, step_index: u64) -> f64 {
        // DeepSpeed's `it`, none for its -1.
        let it = step_index.checked_sub(1);
        let rising = |warmup_steps| rising_line(step_index, warmup_steps);
        // Share of the way from the end of the warm-up to `total_steps`; none during the warm-up.
        let decay = |warmup_steps: u64, total_steps: u64| {
            let into = step_index.checked_sub(warmup_steps)?;
            Some(into as f64 / total_steps.saturating_sub(warmup_steps).max(1) as f64)
        };
        match *self {
            Schedule::Constant { lr } => lr,
            Schedule::WarmupLR { min_lr, max_lr, warmup } => {
                it.map_or(min_lr, |it| min_lr + (max_lr - min_lr) * warmup.at(it))
            }
            Schedule::WarmupDecayLR { min_lr, max_lr, warmup, total_steps } => {
                it.map_or(min_lr, |it| min_lr + (max_lr - min_lr) * warmup.then_line(it, total_steps))
            }
            Schedule::WarmupCosineLR { lr, min_ratio, warmup, cos_min_ratio, total_steps } => {
                it.map_or(0.0, |it| lr * warmup.then_cosine(it, total_steps, min_ratio, cos_min_ratio))
            }
            Schedule::ConstantWithWarmup { lr, warmup_steps } => lr * rising(warmup_steps),
            Schedule::Linear { lr, warmup_steps, total_steps } => {
                let is_rising = step_index < warmup_steps;
                lr * if is_rising { rising(warmup_steps) } else { falling_line(step_index, warmup_steps, total_steps) }
            }
            Schedule::Cosine { lr, warmup_steps, total_steps, num_cycles, min_ratio } => {
                let falling = |progress| cosine(progress, num_cycles) * (1.0 - min_ratio) + min_ratio;
                lr * decay(warmup_steps, total_steps).map_or_else(|| rising(warmup_steps), falling)
            }
            Schedule::CosineWithRestarts { lr, warmup_steps, total_steps, num_cycles } => {
                let falling = |progress| restarting_cosine(progress, num_cycles);
                lr * decay(warmup_steps, total_steps).map_or_else(|| rising(warmup_steps), falling)
            }
            Schedule::Polynomial { lr, warmup_steps, total_steps, end_lr, power } => {
                let falling = |progress: f64| end_lr + (lr - end_lr) * (1.0 - progress).max(0.0).powf(power);
                decay(warmup_steps, total_steps).map_or_else(|| lr * rising(warmup_steps), falling)
            }
            Schedule::InverseSqrt { lr, warmup_steps, timescale } => match step_index.checked_sub(warmup_steps) {
                None => lr * rising(warmup_steps),
                Some(into) => lr / (1.0 + into as f64 / timescale as f64).sqrt(),
            },
            Schedule::WarmupStableDecay { lr, parts } => lr * parts.at(step_index),
            Schedule::OneCycle(cycle) => cycle.lr(step_index),
            Schedule::LRRangeTest(test) => test.lr(step_index),
            Schedule::From { lr, .. } if step_index == 0 => lr,
            Schedule::From { start, ref schedule, .. } => schedule.lr(step_index.saturating_add(start)),
        }
    }

    /// The betas of that step, where the schedule moves them in place of the optimizer's own.
    pub fn betas(&self, step_index: u64) -> Option<[f64; 2]> {
        match self {
            Schedule::OneCycle(cycle) => cycle.betas(step_index),
            Schedule::From { start, schedule, .. } if step_index > 0 => {
                schedule.betas(step_index.saturating_add(*start))
            }
            _ => None,
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
    fn a_schedule_with_steps_behind_it_begins_with_the_optimizers_rate_and_goes_on_where_they_end() {
        let warmup = Warmup { steps: 10, kind: WarmupType::Linear };
        let whole = Schedule::WarmupLR { min_lr: 0.0, max_lr: 1.0, warmup };
        let rest = Schedule::From { lr: 0.75, start: 4, schedule: Box::new(whole.clone()) };
        assert_eq!(rest.lr(0), 0.75);
        for step in 1..20 {
            assert_eq!(rest.lr(step), whole.lr(step + 4), "step {step}");
        }
        assert_eq!(rest.lr(u64::MAX), 1.0);
    }

    #[test]
    fn no_warmup_starts_a_line_and_a_cosine_at_the_full_rate() {
        assert_eq!(Schedule::Linear { lr: 0.1, warmup_steps: 0, total_steps: 10 }.lr(0), 0.1);
        assert_eq!(
            Schedule::Cosine { lr: 0.1, warmup_steps: 0, total_steps: 10, num_cycles: 0.5, min_ratio: 0.0 }.lr(0),
            0.1
        );
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
                Schedule::Cosine { lr: 1.0, warmup_steps: 1, total_steps: u64::MAX, num_cycles: 0.5, min_ratio: 0.0 },
                Schedule::CosineWithRestarts { lr: 1.0, warmup_steps: 0, total_steps: 0, num_cycles: u64::MAX },
                Schedule::Polynomial { lr: 1.0, warmup_steps: 2, total_steps: 1, end_lr: 0.0, power: 0.5 },
                Schedule::InverseSqrt { lr: 1.0, warmup_steps: 0, timescale: 1 },
            ] {
                let lr = schedule.lr(step);
                assert!((0.0..=1.0).contains(&lr), "{schedule:?} at step {step}: {lr}");
            }
        }
    }
}
