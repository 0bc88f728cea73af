//! The evaluations of a run: every validation set over all its samples, and what follows from their figures.
//!
//! # Order of events
//! 1. Each set is evaluated, in the order of the file, with averaged weights where the run has them.
//! 2. Its figures are one line of `metrics.jsonl`: `{"step", "eval_loss", "eval_perplexity", "eval_tokens",
//!    "eval_bits_per_byte"}`, the last where the bytes of the text are known; a set with a name has `"eval_set": NAME` behind
//!    `step`, so that whoever reads `eval_loss` reads it for every set.
//! 3. One set is followed (`run.eval_set`, else the first): its figures go to a plateau's rate, to early stopping and to
//!    the choice of best checkpoints (`Followers`).
//!
//! # Invariants
//! - An evaluation is made once a step: a checkpoint behind it says so, and a resumed run does not repeat it.
//! - What evaluations have led to is in the checkpoint, so that a resumed run ends where the undisturbed one does.
//! - A figure that is not finite is no gain and never among the best.
//!
//! Not here: the sum over a set ([`generate::evaluate`]).

use crate::best::{BestCheckpoints, BestState};
use crate::checkpoint::Head;
use crate::config::RunConfig;
use crate::early_stop::{EarlyStop, EarlyStopState};
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::event::{Event, Observer};
use crate::monitor::Recorder;
use crate::run::forward;
use data::{Dataset, ValidationSet};
use generate::{Evaluation, TOKENS_PER_PASS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;

/// The names of [`Metric`], as a run file says them.
pub(crate) const METRICS: &[&str] = &["eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_accuracy", "eval_f1"];

/// A figure that something may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean over counted targets.
    EvalLoss,
    /// `exp(loss)`.
    EvalPerplexity,
    /// Where the validation data came as text.
    EvalBitsPerByte,
    /// Of a classifier: the share of rows whose class is predicted right.
    EvalAccuracy,
    /// Of a classifier: macro average.
    EvalF1,
}

impl Metric {
    /// Its name in the run file and in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        METRICS[self as usize]
    }

    /// Which way is better, if the run file does not say it.
    fn natural(self) -> Mode {
        match self {
            Self::EvalLoss | Self::EvalPerplexity | Self::EvalBitsPerByte => Mode::Min,
            Self::EvalAccuracy | Self::EvalF1 => Mode::Max,
        }
    }

    /// Its value; none where the data do not have it.
    fn of(self, evaluation: &Evaluation) -> Option<f64> {
        match self {
            Self::EvalLoss => Some(evaluation.loss),
            Self::EvalPerplexity => Some(evaluation.perplexity),
            Self::EvalBitsPerByte => evaluation.bits_per_byte,
            Self::EvalAccuracy => evaluation.accuracy,
            Self::EvalF1 => evaluation.f1,
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Lower.
    Min,
    /// Higher.
    Max,
}

/// What is followed, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    metric: Metric,
    mode: Mode,
}

impl Goal {
    pub(crate) fn new(metric: Metric, mode: Option<Mode>) -> Self {
        Self { metric, mode: mode.unwrap_or(metric.natural()) }
    }

    /// By how much `value` is better than `other`; negative where it is worse.
    pub(crate) fn gain(self, value: f64, other: f64) -> f64 {
        match self.mode {
            Mode::Min => other - value,
            Mode::Max => value - other,
        }
    }
}

/// `eval_loss, min`: what the values in a checkpoint are values of.
impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.mode == Mode::Min { "min" } else { "max" };
        write!(f, "{}, {mode}", self.metric.name())
    }
}

/// A figure and the step it was measured after.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Scored {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Of the metric that is followed; finite.
    pub value: f64,
}

/// What follows the evaluations of a run, beside the rate.
#[derive(Clone, Debug)]
pub(crate) struct Followers {
    early_stop: Option<EarlyStop>,
    best: Option<BestCheckpoints>,
}

impl Followers {
    pub(crate) fn new(config: &RunConfig) -> Self {
        let set = config.run.eval_set.as_deref();
        let early_stop = config.run.early_stop.map(|config| EarlyStop::new(config, set));
        Self { early_stop, best: config.run.keep_best.map(|config| BestCheckpoints::new(config, set)) }
    }

    /// What evaluations have led to, for the head of a checkpoint.
    pub(crate) fn early_stop(&self) -> Option<EarlyStopState> {
        self.early_stop.as_ref().map(|stop| stop.state().clone())
    }

    /// As [`Followers::early_stop`].
    pub(crate) fn best_state(&self) -> Option<BestState> {
        self.best.as_ref().map(|best| best.state().clone())
    }

    /// Goes on from a checkpoint. What it remembers of another metric or set is of no use and begins anew.
    pub(crate) fn restore(&mut self, head: &Head) {
        if let (Some(stop), Some(state)) = (&mut self.early_stop, &head.early_stop) {
            stop.restore(state);
        }
        if let (Some(best), Some(state)) = (&mut self.best, &head.best) {
            best.restore(state);
        }
    }

    /// Forgets best checkpoints of steps that `is_there` denies: an older checkpoint than the newest was gone on from.
    pub(crate) fn retain_best(&mut self, is_there: impl Fn(u64) -> bool) {
        if let Some(best) = &mut self.best {
            best.retain(is_there);
        }
    }

    /// Whether early stopping ends the run.
    pub(crate) fn is_stopped(&self) -> bool {
        self.early_stop.as_ref().is_some_and(EarlyStop::is_stopped)
    }

    /// The best checkpoints, the best one first.
    pub(crate) fn best(&self) -> &[Scored] {
        self.best.as_ref().map_or(&[], BestCheckpoints::best)
    }

    /// Tells them of an evaluation; whether the state behind it is among the best and must be saved.
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation, observer: &mut dyn Observer) -> bool {
        let scored = |goal: Goal| {
            let value = goal.metric.of(evaluation).filter(|value| value.is_finite());
            value.map(|value| Scored { step, value })
        };
        if let Some(stop) = &mut self.early_stop
            && let Some(notice) = stop.evaluated(step, scored(stop.goal()))
        {
            observer.on(Event::Notice(&notice));
        }
        let Some(best) = &mut self.best else { return false };
        scored(best.goal()).is_some_and(|scored| best.evaluated(scored))
    }
}

/// The steps of the best checkpoints that a head knows of, the best one first.
pub(crate) fn best_steps(head: &Head) -> Vec<u64> {
    let best = head.best.iter().flat_map(|BestState { best, .. }| best);
    best.map(|scored| scored.step).collect()
}

/// Refuses a run that follows what its evaluations do not measure.
pub(crate) fn check(config: &RunConfig, sets: &[ValidationSet], is_classifier: bool) -> Result<()> {
    config.check_followers(!sets.is_empty())?;
    let Some(set) = sets.get(followed(config, sets)) else { return Ok(()) };
    let run = &config.run;
    let followed = [
        ("run.early_stop.metric", run.early_stop.map(|stop| stop.metric)),
        ("run.keep_best.metric", run.keep_best.map(|best| best.metric)),
    ];
    for (key, metric) in followed {
        let Some(metric) = metric else { continue };
        let problem = match metric {
            Metric::EvalBitsPerByte if set.dataset.text_bytes().is_none() => {
                format!("{} came as tokens, whose bytes are not known", set.key())
            }
            Metric::EvalAccuracy | Metric::EvalF1 if !is_classifier => {
                "the model predicts tokens; only a classifier has it".to_owned()
            }
            _ => continue,
        };
        let name = metric.name();
        return Err(config.error_of(&[key], format!("{key} is \"{name}\" and {problem}; follow eval_loss")).into());
    }
    Ok(())
}

/// The place of the set that is followed.
fn followed(config: &RunConfig, sets: &[ValidationSet]) -> usize {
    let chosen = config.run.eval_set.as_ref();
    sets.iter().position(|set| chosen.is_some() && set.name.as_ref() == chosen).unwrap_or(0)
}

/// Evaluates every set, unless that was done at this very step; whether the state is among the best now and must be saved.
/// Of several ranks the first one has `metrics`.
pub(crate) fn evaluate_sets(
    engine: &mut Engine,
    sets: &[ValidationSet],
    mut metrics: Option<&mut Recorder>,
    observer: &mut dyn Observer,
) -> Result<bool> {
    let step = engine.counters.step;
    if sets.is_empty() || engine.evaluated == Some(step) {
        return Ok(false);
    }
    let mut evaluations = Vec::with_capacity(sets.len());
    for set in sets {
        let evaluation = evaluate(engine, &set.dataset, observer)?;
        let Evaluation { loss, perplexity, bits_per_byte, accuracy, f1, .. } = evaluation;
        let name = set.name.as_deref();
        if !loss.is_finite() {
            let of = name.map_or(String::new(), |name| format!(" of {name}"));
            return Err(TrainError::Diverged { step, what: format!("the validation loss{of}") });
        }
        let line = line(step, name, &evaluation);
        if let Some(metrics) = &mut metrics {
            metrics.append(&line)?;
        }
        engine.tell(|callback, control| callback.on_log(engine, &line, control));
        engine.tell(|callback, control| callback.on_evaluate(engine, &evaluation, control));
        observer.on(Event::Evaluated { step, set: name, loss, perplexity, bits_per_byte, accuracy, f1 });
        evaluations.push(evaluation);
    }
    let evaluation = evaluations[followed(&engine.config, sets)];
    if engine.evaluated(evaluation.loss) {
        let lr = engine.lr();
        let notice = format!("step {step}: the validation loss has stopped falling; the rate is now {lr}");
        observer.on(Event::Notice(&notice));
    }
    Ok(engine.followers.evaluated(step, &evaluation, observer))
}

/// A line of `metrics.jsonl`.
fn line(step: u64, set: Option<&str>, evaluation: &Evaluation) -> Value {
    let Evaluation { loss, perplexity, bits_per_byte, tokens, accuracy, f1 } = *evaluation;
    let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
    if let Some(set) = set {
        line.insert("eval_set".to_owned(), json!(set));
    }
    line.insert("eval_loss".to_owned(), json!(loss));
    line.insert("eval_perplexity".to_owned(), json!(perplexity));
    line.insert("eval_tokens".to_owned(), json!(tokens));
    let there = [("eval_bits_per_byte", bits_per_byte), ("eval_accuracy", accuracy), ("eval_f1", f1)];
    line.extend(there.into_iter().filter_map(|(name, figure)| Some((name.to_owned(), json!(figure?)))));
    line.into()
}

/// The mean loss over a whole dataset, with its progress told.
pub(crate) fn evaluate(engine: &Engine, dataset: &Dataset, observer: &mut dyn Observer) -> Result<Evaluation> {
    let total = dataset.num_samples();
    let _averaged = engine.state.show_average(&engine.queue, &engine.zero)?;
    let pass = engine.zero.pass(&engine.queue, &engine.state.store, false);
    let samples = (0..total).map(|index| {
        observer.on(Event::Evaluating { done: index, total });
        engine.tell(|callback, control| callback.on_prediction_step(engine, index, total, control));
        dataset.get(index)
    });
    let sum = generate::evaluate(&forward(engine, &pass), samples, TOKENS_PER_PASS)?;
    sum.evaluation(dataset.text_bytes())
        .ok_or_else(|| TrainError::Request("the validation data have no target that counts".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_name_that_its_key_takes() {
        for name in METRICS {
            let metric: Metric = serde_json::from_value(json!(name)).unwrap();
            assert_eq!(metric.name(), *name);
        }
    }

    #[test]
    fn a_line_names_its_set_and_its_bits_where_there_are_any() {
        let evaluation =
            Evaluation { loss: 1.0, perplexity: 2.5, bits_per_byte: Some(1.5), tokens: 7, accuracy: None, f1: None };
        assert_eq!(
            line(3, Some("wiki"), &evaluation).to_string(),
            r#"{"step":3,"eval_set":"wiki","eval_loss":1.0,"eval_perplexity":2.5,"eval_tokens":7,"eval_bits_per_byte":1.5}"#
        );
        let of_tokens = Evaluation { bits_per_byte: None, ..evaluation };
        assert_eq!(
            line(3, None, &of_tokens).to_string(),
            r#"{"step":3,"eval_loss":1.0,"eval_perplexity":2.5,"eval_tokens":7}"#
        );
    }
}
