//! The curves of DeepSpeed's schedules. `it` is its counter: -1 at the first step, so `it = step - 1`.

use super::falling_line;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the rate rises during warm-up under DeepSpeed's schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
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
    pub(super) fn at(self, it: u64) -> f64 {
        let steps = self.num_iterations();
        match self.kind {
            _ if it >= steps => 1.0,
            WarmupType::Log => ((it + 1) as f64).ln() / (steps as f64).ln(),
            WarmupType::Linear => it as f64 / steps as f64,
        }
    }

    /// The rise, then a line down to 0 at `total_steps`.
    pub(super) fn then_line(self, it: u64, total_steps: u64) -> f64 {
        let decay_start = self.num_iterations();
        if it < decay_start { self.at(it) } else { falling_line(it, decay_start, total_steps) }
    }

    /// The rise from `min` to 1, then half a cosine down to `end`, one step in when the warm-up ends.
    pub(super) fn then_cosine(self, it: u64, total_steps: u64, min: f64, end: f64) -> f64 {
        let decay_start = self.num_iterations();
        if it < decay_start {
            return min + (1.0 - min) * self.at(it);
        }
        let length = total_steps.saturating_sub(decay_start).max(1);
        let progress = ((it - decay_start + 1) as f64 / length as f64).min(1.0);
        (end + (1.0 - end) * (1.0 + (PI * progress).cos()) / 2.0).max(0.0)
    }
}

/// A rate that rises without end, to see where training breaks: `min (1 + rate f)`, `f = step / size`.
/// Keys and defaults are DeepSpeed's `LRRangeTest`. `R`: what the rate is given as, in a run file one or one for each group.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct LrRangeTest<R = f64> {
    /// The first rate.
    pub lr_range_test_min_lr: R,
    /// Steps of one interval, above 0.
    pub lr_range_test_step_size: u64,
    /// What an interval adds, as a multiple of the first rate.
    pub lr_range_test_step_rate: f64,
    /// The rate rises between intervals alone.
    pub lr_range_test_staircase: bool,
}

impl<R> LrRangeTest<R> {
    /// The same with other rates.
    pub fn map<S>(&self, rate: impl Fn(&R) -> S) -> LrRangeTest<S> {
        LrRangeTest {
            lr_range_test_min_lr: rate(&self.lr_range_test_min_lr),
            lr_range_test_step_size: self.lr_range_test_step_size,
            lr_range_test_step_rate: self.lr_range_test_step_rate,
            lr_range_test_staircase: self.lr_range_test_staircase,
        }
    }
}

impl LrRangeTest {
    pub(super) fn lr(&self, step: u64) -> f64 {
        let intervals = step as f64 / self.lr_range_test_step_size as f64;
        let intervals = if self.lr_range_test_staircase { intervals.floor() } else { intervals };
        self.lr_range_test_min_lr * (1.0 + self.lr_range_test_step_rate * intervals)
    }
}

/// One cycle of the rate up and down, the momentum the other way round; then a slow decay.
/// Keys are DeepSpeed's `OneCycle`. Source: Smith 2018, arXiv:1803.09820, section 4.
///
/// `R`: what rates and momenta are given as, in a run file one or one for each group.
///
/// Where we differ: DeepSpeed lets the momentum grow past 1 as it decays; here it stays below, see `betas`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct OneCycle<R = f64> {
    /// The rate at both ends of the cycle.
    pub cycle_min_lr: R,
    /// The rate at its top.
    pub cycle_max_lr: R,
    /// After the cycle the rate is divided by `1 + this x intervals`; 0: it stays.
    pub decay_lr_rate: f64,
    /// Steps up, above 0.
    pub cycle_first_step_size: u64,
    /// Steps down; none: as many as up.
    pub cycle_second_step_size: Option<u64>,
    /// Stairs on the way up; 0: a line.
    pub cycle_first_stair_count: u64,
    /// Stairs on the way down; none: as many as up.
    pub cycle_second_stair_count: Option<u64>,
    /// Steps of an interval of the decay; 0: no decay.
    pub decay_step_size: u64,
    /// The optimizer's first beta follows, and its second is 0.99.
    pub cycle_momentum: bool,
    /// The first beta at the top of the cycle.
    pub cycle_min_mom: R,
    /// The first beta at both ends.
    pub cycle_max_mom: R,
    /// After the cycle the first beta is multiplied by `1 + this x intervals`; 0: it stays.
    pub decay_mom_rate: f64,
}

/// How far the momentum may grow by its decay, unless the cycle itself goes further.
const HIGHEST_MOMENTUM: f64 = 0.999;

impl<R> OneCycle<R> {
    /// The same with other rates and momenta.
    pub fn map<S>(&self, rate: impl Fn(&R) -> S) -> OneCycle<S> {
        OneCycle {
            cycle_min_lr: rate(&self.cycle_min_lr),
            cycle_max_lr: rate(&self.cycle_max_lr),
            decay_lr_rate: self.decay_lr_rate,
            cycle_first_step_size: self.cycle_first_step_size,
            cycle_second_step_size: self.cycle_second_step_size,
            cycle_first_stair_count: self.cycle_first_stair_count,
            cycle_second_stair_count: self.cycle_second_stair_count,
            decay_step_size: self.decay_step_size,
            cycle_momentum: self.cycle_momentum,
            cycle_min_mom: rate(&self.cycle_min_mom),
            cycle_max_mom: rate(&self.cycle_max_mom),
            decay_mom_rate: self.decay_mom_rate,
        }
    }
}

impl OneCycle {
    /// Steps of the cycle; the step of this index is still inside.
    fn len(&self) -> u64 {
        self.cycle_first_step_size.saturating_add(self.cycle_second_step_size.unwrap_or(self.cycle_first_step_size))
    }

    /// How far up the cycle the step is, in 0..=1; `None` after it.
    fn height(&self, step: u64) -> Option<f64> {
        let (up, len) = (self.cycle_first_step_size, self.len());
        let down = len - up;
        let second_stairs = self.cycle_second_stair_count.unwrap_or(self.cycle_first_stair_count);
        match step {
            _ if step > len => None,
            // The cycle wraps before its end is looked at: without a way down the top itself is at the bottom.
            _ if step == len => Some(0.0),
            _ if step <= up => Some(stairs(step, up, self.cycle_first_stair_count)),
            _ => Some(stairs(len - step, down, second_stairs)),
        }
    }

    /// Intervals of the decay until a step after the cycle.
    fn decayed(&self, step: u64) -> f64 {
        if self.decay_step_size == 0 { 0.0 } else { (step - self.len()) as f64 / self.decay_step_size as f64 }
    }

    pub(super) fn lr(&self, step: u64) -> f64 {
        match self.height(step) {
            Some(height) => self.cycle_min_lr + (self.cycle_max_lr - self.cycle_min_lr) * height,
            None => self.cycle_min_lr / (1.0 + self.decay_lr_rate * self.decayed(step)),
        }
    }

    /// The betas of a step. The very first is taken with the lowest momentum, which DeepSpeed's constructor writes; from the
    /// second on the cycle counts.
    pub(super) fn betas(&self, step: u64) -> Option<[f64; 2]> {
        let momentum = match self.height(step) {
            _ if step == 0 => self.cycle_min_mom,
            Some(height) => self.cycle_max_mom - (self.cycle_max_mom - self.cycle_min_mom) * height,
            None => {
                let grown = self.cycle_max_mom * (1.0 + self.decay_mom_rate * self.decayed(step));
                grown.min(HIGHEST_MOMENTUM.max(self.cycle_max_mom))
            }
        };
        self.cycle_momentum.then_some([momentum, 0.99])
    }
}

/// `done / of`, by whole stairs if there are any.
fn stairs(done: u64, of: u64, count: u64) -> f64 {
    if count == 0 {
        return done as f64 / of as f64;
    }
    (u128::from(done) * u128::from(count) / u128::from(of)) as f64 / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLE: OneCycle = OneCycle {
        cycle_min_lr: 0.25,
        cycle_max_lr: 1.0,
        decay_lr_rate: 0.0,
        cycle_first_step_size: 4,
        cycle_second_step_size: Some(2),
        cycle_first_stair_count: 0,
        cycle_second_stair_count: None,
        decay_step_size: 0,
        cycle_momentum: true,
        cycle_min_mom: 0.5,
        cycle_max_mom: 0.75,
        decay_mom_rate: 0.0,
    };

    #[test]
    fn the_momentum_falls_while_the_rate_rises_and_starts_at_its_lowest_as_deepspeed_writes_it() {
        let momenta: Vec<f64> = (0..9).map(|step| CYCLE.betas(step).expect("betas")[0]).collect();
        assert_eq!(momenta, [0.5, 0.6875, 0.625, 0.5625, 0.5, 0.625, 0.75, 0.75, 0.75]);
        assert_eq!(CYCLE.betas(3).expect("betas")[1], 0.99);
        assert_eq!(OneCycle { cycle_momentum: false, ..CYCLE }.betas(3), None);
    }

    #[test]
    fn after_the_cycle_the_rate_falls_and_the_momentum_grows_by_intervals_and_never_reaches_one() {
        let decaying = OneCycle { decay_lr_rate: 1.0, decay_mom_rate: 0.125, decay_step_size: 2, ..CYCLE };
        assert_eq!([6, 7, 8, 10].map(|step| decaying.lr(step)), [0.25, 0.25 / 1.5, 0.125, 0.25 / 3.0]);
        assert_eq!([6, 8, 10].map(|step| decaying.betas(step).expect("betas")[0]), [0.75, 0.84375, 0.9375]);
        assert_eq!(decaying.betas(1_000_000).expect("betas")[0], 0.999);
        assert_eq!([7, 1_000].map(|step| CYCLE.lr(step)), [0.25, 0.25], "no decay without a step size");
    }

    #[test]
    fn a_cycle_without_a_way_down_is_at_the_bottom_after_its_last_step_up() {
        let up = OneCycle { cycle_second_step_size: Some(0), ..CYCLE };
        assert_eq!([0, 3, 4, 5].map(|step| up.lr(step)), [0.25, 0.8125, 0.25, 0.25]);
    }
}
