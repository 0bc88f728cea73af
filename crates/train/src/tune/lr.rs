//! The learning rate range test: one short run whose rate rises step by step until training breaks.
//!
//! # Order of events
//! 1. Fresh weights (or those of the model's folder), the run's own data and batch. The rate rises from `min` to `max` by
//!    the same factor each step; a run file whose schedule is DeepSpeed's `LRRangeTest` brings its own rates.
//! 2. The sweep ends after `steps`, or once the loss is not finite or well above where it began.
//! 3. Losses are smoothed by a triangle of neighbours on both sides, which does not shift them to higher rates as a running
//!    average does.
//!
//! # The suggested rate
//! The rate at which the smoothed loss falls most steeply over the logarithm of the rate, and no more than a tenth of the
//! rate at which it diverges: where, behind its lowest point, it has lost half of what it had fallen. There is none where the
//! loss has not fallen by a hundredth.
//!
//! Source: Smith 2017, arXiv:1506.01186, section 3.3; the steepest descent is fastai's and Lightning's choice.

use super::{Tuned, trial};
use crate::config::{RunConfig, SchedulerConfig};
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::event::{Event, Observer};
use crate::plot::{Axis, Line, Mark, Plot, shown_rate};
use crate::run::{self, Stop};
use crate::training_data::TrainingData;
use optim::schedule::Schedule;
use serde::Serialize;

/// How a sweep goes.
#[derive(Clone, Copy, Debug)]
pub struct LrOptions {
    /// The first rate, above 0.
    pub min: f64,
    /// The last one, above the first.
    pub max: f64,
    /// Optimizer steps, at least 10.
    pub steps: u64,
}

/// One step of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LrPoint {
    /// Used in this step.
    pub lr: f64,
    /// Before the step's update.
    pub loss: f64,
    /// With its neighbours.
    pub smoothed: f64,
}

/// What came of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LrSweep {
    /// The suggested rate; none where the loss did not fall.
    pub suggested_lr: Option<f64>,
    /// Where the smoothed loss falls most steeply.
    pub steepest_lr: Option<f64>,
    /// Where it is lowest.
    pub lowest_lr: Option<f64>,
    /// Where it diverges; none if it did not.
    pub diverges_lr: Option<f64>,
    /// How the rate is chosen.
    pub rule: &'static str,
    /// In the order of the steps.
    pub points: Vec<LrPoint>,
}

const RULE: &str = "steepest descent of the smoothed loss over the logarithm of the rate, at most a tenth of the rate at \
                    which it diverges";
/// A loss above this many times the first ones ends the sweep.
const BROKEN: f64 = 1.5;
/// A loss that has not fallen by this share has not fallen.
const FELL: f64 = 0.01;
/// Behind the lowest point, a loss that has lost this share of its fall diverges.
const LOST: f64 = 0.5;
/// Neighbours on one side, as a share of the points.
const NEIGHBOURS: f64 = 0.04;

/// Runs a sweep.
///
/// # Errors
/// What is wrong with the request, or the device failed. Training that breaks is no error: it ends the sweep.
pub fn sweep(
    config: RunConfig,
    options: &LrOptions,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Tuned<LrSweep>> {
    let mut config = trial(config);
    let own = has_own_rates(&config).then(|| config.schedule(0.0, options.steps));
    config.scheduler = None;
    (config.run.steps, config.run.epochs, config.run.tokens) = (Some(options.steps), None, None);
    let factor = (options.max / options.min).ln() / (options.steps - 1) as f64;
    let rate = |step: u64| own.as_ref().map_or(options.min * (factor * step as f64).exp(), |own| own.lr(step));
    let (mut engine, data) = run::open(config, observer)?;
    let (mut rates, mut losses) = (Vec::new(), Vec::new());
    let mut broke_at = None;
    for step in 0..options.steps {
        if let Some(signal) = stop.signal() {
            return Ok(Tuned::Interrupted { signal });
        }
        let lr = rate(step);
        let Some(loss) = one_step(&mut engine, &data, lr)? else {
            broke_at = Some(lr);
            break;
        };
        rates.push(lr);
        losses.push(loss);
        let note = format!("lr {lr:.2e}  loss {loss:.4}");
        observer.on(Event::Tuning { done: step + 1, total: options.steps, note: &note });
        if is_broken(&losses) {
            break;
        }
    }
    Ok(Tuned::Done(LrSweep::of(&rates, &losses, broke_at)))
}

/// Whether the run file is a range test itself, with rates of its own.
pub fn has_own_rates(config: &RunConfig) -> bool {
    matches!(config.scheduler, Some(SchedulerConfig::LRRangeTest { .. }))
}

/// The loss of a step at the rate `lr`; none if training broke.
fn one_step(engine: &mut Engine, data: &TrainingData, lr: f64) -> Result<Option<f64>> {
    engine.plan.schedule = Schedule::Constant { lr };
    let samples = data.loader.batch(engine.counters.samples, engine.plan.batch.train_batch_size as usize);
    match engine.train_batch(&samples) {
        Ok(report) => Ok(Some(report.loss)),
        Err(TrainError::NonFinite { .. } | TrainError::LossScale { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the last losses are far above the first ones.
fn is_broken(losses: &[f64]) -> bool {
    const FEW: usize = 3;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    losses.len() > 2 * FEW && mean(&losses[losses.len() - FEW..]) > BROKEN * mean(&losses[..FEW])
}

impl LrSweep {
    /// From the rates and losses of the steps; `broke_at`: the rate of a step that had no loss.
    fn of(rates: &[f64], losses: &[f64], broke_at: Option<f64>) -> Self {
        let smoothed = smooth(losses, (NEIGHBOURS * losses.len() as f64).ceil() as usize);
        let points = rates.iter().zip(losses).zip(&smoothed);
        let points: Vec<_> = points.map(|((&lr, &loss), &smoothed)| LrPoint { lr, loss, smoothed }).collect();
        let lowest = (0..points.len()).min_by(|&a, &b| smoothed[a].total_cmp(&smoothed[b]));
        let fell = |&low: &usize| smoothed[0] - smoothed[low] > FELL * smoothed[0].abs();
        let Some(low) = lowest.filter(fell) else {
            let (suggested_lr, steepest_lr, lowest_lr, diverges_lr) = (None, None, None, broke_at);
            return Self { suggested_lr, steepest_lr, lowest_lr, diverges_lr, rule: RULE, points };
        };
        let slope = |i: usize| (smoothed[i + 1] - smoothed[i - 1]) / (rates[i + 1] / rates[i - 1]).ln();
        let inner = 1..low.min(points.len() - 2) + 1;
        let steepest = inner.min_by(|&a, &b| slope(a).total_cmp(&slope(b))).map_or(rates[low], |i| rates[i]);
        let limit = smoothed[low] + LOST * (smoothed[0] - smoothed[low]);
        let behind = points[low..].iter().find(|point| point.smoothed > limit).map(|point| point.lr);
        let diverges_lr = behind.or(broke_at);
        let suggested = diverges_lr.map_or(steepest, |diverges| steepest.min(diverges / 10.0));
        Self {
            suggested_lr: Some(suggested),
            steepest_lr: Some(steepest),
            lowest_lr: Some(rates[low]),
            diverges_lr,
            rule: RULE,
            points,
        }
    }

    /// Loss over rate, with the suggested rate and where it diverges.
    pub fn plot(&self, name: &str) -> Plot {
        let line = |label: &str, is_faint: bool, of: fn(&LrPoint) -> f64| Line {
            label: label.to_owned(),
            points: self.points.iter().map(|point| (point.lr, of(point))).collect(),
            is_faint,
        };
        let marks = [("suggested", self.suggested_lr), ("diverges", self.diverges_lr)];
        let mark = |(what, x): (&str, Option<f64>)| x.map(|x| Mark { label: format!("{what} {}", shown_rate(x)), x });
        Plot {
            title: format!("Learning rate range test: {name}"),
            x: Axis { label: "learning rate".to_owned(), is_log: true, range: None },
            y: Axis { label: "training loss".to_owned(), is_log: false, range: self.shown_losses() },
            lines: vec![
                line("smoothed", false, |point| point.smoothed),
                line("loss of the step", true, |point| point.loss),
            ],
            marks: marks.into_iter().filter_map(mark).collect(),
        }
    }

    /// From the lowest loss to somewhat above the first, so that the blow-up does not flatten the rest.
    fn shown_losses(&self) -> Option<(f64, f64)> {
        let first = self.points.first()?.smoothed;
        let low = self.points.iter().map(|point| point.loss).fold(first, f64::min);
        let high = self.points.iter().map(|point| point.loss).fold(first, f64::max);
        let fall = (first - low).max(FELL * first.abs());
        Some((low - 0.08 * fall, high.min(first + 0.6 * fall) + 0.08 * fall))
    }
}

/// Means with `neighbours` on each side, weighted by a triangle; towards the ends with fewer, as many on both.
fn smooth(values: &[f64], neighbours: usize) -> Vec<f64> {
    let mean = |at: usize| {
        let reach = neighbours.min(at).min(values.len() - 1 - at);
        let weight = |i: usize| (reach + 1 - i.abs_diff(at)) as f64;
        let window = at - reach..=at + reach;
        let sum: f64 = window.clone().map(|i| weight(i) * values[i]).sum();
        sum / window.map(weight).sum::<f64>()
    };
    (0..values.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sweep of `steps` rates over `min..=max` with the losses of `loss`.
    fn sweep_of(steps: i32, min: f64, max: f64, loss: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
        let rates = (0..steps).map(|i| min * (max / min).powf(f64::from(i) / f64::from(steps - 1)));
        rates.map(|rate| (rate, loss(rate))).unzip()
    }

    /// Flat at 5, a fall around 1e-3 by 2, a blow-up around `breaks`.
    fn typical(rate: f64, breaks: f64) -> f64 {
        5.0 - 2.0 / (1.0 + (1e-3 / rate).powi(2)) + (rate / breaks).powi(4)
    }

    #[test]
    fn the_steepest_descent_of_a_fall_around_a_rate_is_that_rate() {
        let (rates, losses) = sweep_of(201, 1e-7, 1e1, |rate| typical(rate, 1.0));
        let sweep = LrSweep::of(&rates, &losses, None);
        let steepest = sweep.steepest_lr.unwrap();
        assert!((0.9e-3..1.1e-3).contains(&steepest), "{steepest}");
        assert_eq!(sweep.suggested_lr, Some(steepest));
        // Half of the fall of 2 is lost where the smoothed loss comes back to 4: the raw one does at 1, and means of
        // neighbours come before it where a curve bends upwards.
        let at = sweep.points.iter().position(|point| Some(point.lr) == sweep.diverges_lr).unwrap();
        assert!((sweep.points.iter().map(|point| point.smoothed).fold(9.0, f64::min) - 3.0).abs() < 0.01);
        assert!(sweep.points[at].smoothed > 4.0 && sweep.points[at - 1].smoothed < 4.0);
        assert!((0.5..1.0).contains(&rates[at]), "{}", rates[at]);
        assert!(sweep.lowest_lr.unwrap() > steepest);
    }

    #[test]
    fn a_divergence_near_the_descent_holds_the_suggestion_to_a_tenth_of_it() {
        let (rates, losses) = sweep_of(201, 1e-7, 1e1, |rate| typical(rate, 4e-3));
        let sweep = LrSweep::of(&rates, &losses, None);
        let diverges = sweep.diverges_lr.unwrap();
        assert_eq!(sweep.suggested_lr, Some(diverges / 10.0));
        assert!(sweep.steepest_lr.unwrap() > diverges / 10.0);
    }

    #[test]
    fn a_step_without_a_loss_is_where_it_diverges() {
        let (rates, losses) = sweep_of(101, 1e-7, 1e-1, |rate| typical(rate, 1e9));
        assert_eq!(LrSweep::of(&rates, &losses, Some(0.12)).diverges_lr, Some(0.12));
        assert_eq!(LrSweep::of(&rates, &losses, None).diverges_lr, None);
    }

    #[test]
    fn a_loss_that_does_not_fall_gives_no_suggestion_and_neither_do_few_steps_crash() {
        let (rates, losses) = sweep_of(50, 1e-7, 1.0, |rate| 5.0 + rate);
        assert_eq!(LrSweep::of(&rates, &losses, None).suggested_lr, None);
        for len in 0..5 {
            let sweep = LrSweep::of(&rates[..len], &[5.0, 4.0, 3.0, 2.0, 1.0][..len], None);
            assert_eq!(sweep.suggested_lr.is_some(), len >= 2, "{len}");
            sweep.plot("few");
        }
    }

    #[test]
    fn smoothing_leaves_a_line_where_it_is_and_halves_noise() {
        let line: Vec<f64> = (0..20).map(f64::from).collect();
        for (smoothed, value) in smooth(&line, 4).iter().zip(&line) {
            assert!((smoothed - value).abs() < 1e-12);
        }
        let noise: Vec<f64> = (0..20).map(|i| f64::from(i % 2)).collect();
        assert!(smooth(&noise, 4)[4..16].iter().all(|value| (value - 0.5).abs() < 0.05));
    }

    #[test]
    fn the_sweep_ends_when_the_loss_is_well_above_where_it_began() {
        assert!(!is_broken(&[4.0, 4.0, 4.0, 3.0, 3.0, 9.0]));
        assert!(!is_broken(&[4.0, 4.0, 4.0, 3.0, 3.0, 9.0, 5.0]));
        assert!(is_broken(&[4.0, 4.0, 4.0, 3.0, 6.5, 7.0, 9.0]));
    }
}
