//! A whole run: from a run file to a trained model in its output folder.
//!
//! # Order of events
//! 1. [`Run::prepare`] reads model, tokenizer and data, resolves the plan, holds weights against the model, looks at the
//!    output folder and loads the newest checkpoint when resuming. What is wrong with the request is found here; nothing
//!    has been written yet.
//! 2. [`Run::execute`] makes the folder, locks it against a second run, and writes `run.json`.
//! 3. Per step: batch, update, a line of metrics; then, where due, evaluation, checkpoint, sample, in this order, so that a
//!    checkpoint stands behind every figure before it and nothing done for show can lose it.
//!    A checkpoint on the way is copied there and written while the next steps run (`saving`).
//!    An evaluation among the best is saved at once ([`crate::best`]); one too many without gain ends the run
//!    ([`crate::early_stop`]).
//!    Callbacks hear of each moment and may ask for an evaluation, a checkpoint or the end ([`crate::callback`]).
//! 4. At the end, after a signal, or where a step could not be made from weights that are whole, a last checkpoint; at the
//!    end also evaluation, `model/` and a sample. However a run ends, it waits for the checkpoint being written.
//!
//! # Invariants
//! - A batch is a function of the samples consumed, dropout of (seed, step): a resumed run goes on bit for bit.
//! - A signal only sets a flag; the step under way is finished first, and nothing else that is due.
//! - Weights that are not finite are never saved.
//! - The last checkpoint is on disk before `model/` is touched.

mod moments;
mod opened;
mod together;

use opened::{Checked, Opened};

use crate::breakdown::{Breakdown, memory_bytes};
use crate::callback::{Callback, Control};
use crate::checkpoint::folder::path_of;
use crate::checkpoint::{Checkpoint, Head};
use crate::config::RunConfig;
use crate::engine::{Engine, LoadOptions};
use crate::error::Result;
use crate::evaluation::{Scored, evaluate_sets};
use crate::event::{Communication, Event, Observer, StepMetrics};
use crate::flops_profiler;
use crate::log_file::Logged;
use crate::loss_scale::skip_notice;
use crate::loss_spike::{SpikeGuard, spike_notice};
use crate::metrics::MetricsFile;
use crate::model_source::ModelOrigin;
use crate::monitor::{self, Recorder};
use crate::norms;
use crate::output::Output;
use crate::plan::report::PlanReport;
use crate::plan::{self, RunPlan};
use crate::precision::adaptive::Adaptive;
use crate::resume::{fingerprint, load_newest};
use crate::saving::Saver;
use crate::system::{peak_resident_bytes, total_memory_bytes};
use crate::training_data::TrainingData;
use data::Tokenizer;
use generate::{Forward, GenerateOptions, Sampling};
use models::Residency;
use ops::Single;
use serde_json::json;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// A signal came; a checkpoint holds everything.
    Interrupted {
        /// Its number.
        signal: usize,
    },
}

/// Asks a run to stop after the step under way. Cloning shares it; 0 means: go on.
#[derive(Clone, Debug, Default)]
pub struct Stop(pub Arc<AtomicUsize>);

impl Stop {
    pub(crate) fn signal(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }
}

/// A run that has been checked and not begun.
pub struct Run {
    engine: Engine,
    data: TrainingData,
    output: Output,
    resumed_at: Option<u64>,
}

impl Run {
    /// Checks everything that can be wrong with a request and loads the model; writes nothing in the output folder.
    ///
    /// # Errors
    /// What is wrong, as one paragraph.
    pub fn prepare(config: RunConfig, resume: bool, observer: &mut dyn Observer) -> Result<Self> {
        Self::open(config, resume, observer)?.prepare(resume, observer, None)
    }

    /// The first half of [`Run::prepare`]: opens and checks everything, and takes no memory for the model.
    pub(crate) fn open(config: RunConfig, resume: bool, observer: &mut dyn Observer) -> Result<Opened> {
        config.for_training()?;
        let output = Output::new(&config.run.output);
        if resume {
            output.check_folder()?
        } else {
            output.check_free()?
        }
        monitor::check(&config, resume)?;
        flops_profiler::check(&config)?;
        Ok(Opened { checked: check(config, observer)?, output })
    }

    /// Every number of the run.
    pub fn plan(&self) -> &RunPlan {
        self.engine.plan()
    }

    /// Adds a callback; of a resumed run it gets its state back.
    pub fn add_callback(&mut self, callback: impl Callback + 'static) {
        self.engine.add_callback(callback);
    }

    /// Trains to the end, or until a signal.
    ///
    /// # Errors
    /// Whatever stops a run; the last checkpoint stays.
    pub fn execute(mut self, observer: &mut dyn Observer, stop: &Stop) -> Result<Outcome> {
        Loop::begin(&mut self.engine, &self.data, self.output, self.resumed_at)?.run(observer, stop)
    }
}

/// Model, data and every number of a run, with everything checked but its output folder; nothing is written but the token
/// cache.
pub(crate) fn open(config: RunConfig, observer: &mut dyn Observer) -> Result<(Engine, TrainingData)> {
    check(config, observer)?.engine(observer, None)
}

/// The same before memory is taken for the model.
fn check(mut config: RunConfig, observer: &mut dyn Observer) -> Result<Checked> {
    let (source, ..) = config.for_training()?;
    let mut origin = ModelOrigin::open(&config, source)?;
    let max_positions = Some(origin.config.max_positions());
    let vocab_size = origin.config.vocab_size;
    // Batch sizes, instruction set and memory are refused before the data are read.
    let plan = RunPlan::resolve(&config, plan::sequence_length(&config, max_positions)?, 0)?;
    if vocab_size.is_some() {
        check_memory(&mut config, &mut origin, None, plan.clone(), observer)?;
    }
    let data = TrainingData::for_model(&config, &origin, observer)?;
    if vocab_size.is_none() {
        check_memory(&mut config, &mut origin, data.tokenizer.as_ref(), plan, observer)?;
    }
    check_sample(&config, &data, origin.config.max_positions())?;
    let model = origin.build(data.tokenizer.as_ref(), positions(&config, &origin, &data))?;
    let weights = origin.weights(&model, config.run.seed)?;
    Ok(Checked { config, model, weights, data })
}

/// Refuses a run that this machine cannot hold, before anything large is allocated. Where only the snapshot of checkpoints
/// is too much and nobody asked for it, they are written between two steps.
fn check_memory(
    config: &mut RunConfig,
    origin: &mut ModelOrigin,
    tokenizer: Option<&Tokenizer>,
    plan: RunPlan,
    observer: &mut dyn Observer,
) -> Result<()> {
    let (model, available) = (origin.build(tokenizer, plan.sequence_length)?, total_memory_bytes());
    // Ranks of this process share its memory.
    let (ranks, available) = (config.num_ranks(), available.map(|bytes| bytes / config.num_ranks()));
    let mut report = PlanReport::of_model(config, model, plan, ranks)?;
    if config.asked_async().is_none() && report.drop_snapshot_beyond(available) {
        config.run.checkpoint_async = Some(false);
        observer.on(Event::Notice(
            "this machine has no memory for a copy of the state: training waits while a checkpoint is written \
             (run.checkpoint_async false)",
        ));
    }
    report.check_memory(config, available)
}

/// Refuses samples that cannot be made, before the run rather than in its middle.
fn check_sample(config: &RunConfig, data: &TrainingData, max_positions: usize) -> Result<()> {
    let Some(prompt) = &config.run.sample_prompt else {
        let every = config.run.sample_every;
        let wrong = || {
            config.error(format!(
                "run.sample_every is {every} and run.sample_prompt is missing; give a text to go on from"
            ))
        };
        return if every > 0 { Err(wrong().into()) } else { Ok(()) };
    };
    let wrong = |why: String| Err(config.error(format!("run.sample_prompt is {prompt:?}; {why}")).into());
    let Some(tokenizer) = &data.tokenizer else {
        return wrong("the data came as tokens and there is no tokenizer to read it with: leave it out".to_owned());
    };
    match tokenizer.encode(prompt) {
        Err(error) => wrong(error.to_string()),
        Ok(tokens) if tokens.is_empty() => wrong("it must hold at least one token".to_owned()),
        Ok(tokens) if tokens.len() >= max_positions => wrong(format!(
            "it is {} tokens long and must be shorter than the model's {max_positions} positions",
            tokens.len()
        )),
        Ok(_) => Ok(()),
    }
}

/// Rows of the rotary tables: samples may run to the model's limit, or as far as a row and a sample do.
fn positions(config: &RunConfig, origin: &ModelOrigin, data: &TrainingData) -> usize {
    let longest = data.sequence_length.max(config.run.sample_tokens + SAMPLE_PROMPT_ROOM);
    longest.min(origin.config.max_positions())
}

/// Positions set aside for the prompt of samples.
const SAMPLE_PROMPT_ROOM: usize = 1024;

/// A fresh run of an engine: what [`Engine::train`] does.
pub(crate) fn train(
    engine: &mut Engine,
    data: &TrainingData,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Outcome> {
    let output = Output::new(&engine.config.run.output);
    output.check_free()?;
    monitor::check(&engine.config, false)?;
    engine.resolve_steps(data.loader.epoch_samples())?;
    Loop::begin(engine, data, output, None)?.run(observer, stop)
}

/// A resumed run of an engine: what [`Engine::resume`] does.
pub(crate) fn resume(
    engine: &mut Engine,
    data: &TrainingData,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Outcome> {
    let output = Output::new(&engine.config.run.output);
    engine.resolve_steps(data.loader.epoch_samples())?;
    let resumed_at = load_newest(engine, data, &output, observer)?;
    Loop::begin(engine, data, output, resumed_at)?.run(observer, stop)
}

/// What evaluations and samples run.
pub(crate) fn forward<'a>(engine: &'a Engine, residency: &'a dyn Residency) -> Forward<'a> {
    Forward {
        queue: &engine.queue,
        model: &engine.model,
        params: &engine.state.store,
        regions: &Single,
        residency,
        dtype: engine.plan.dtype,
        precision: engine.precision(),
        positions: engine.model.max_positions.unwrap_or(usize::MAX),
    }
}

/// The steps of a run.
struct Loop<'a> {
    engine: &'a mut Engine,
    data: &'a TrainingData,
    output: Output,
    /// Of the first rank.
    metrics: Option<Recorder>,
    saver: Saver,
    /// What callbacks have asked for and is not done yet.
    asked: Control,
    /// Held to the end, that of the saver too: no second run may write here. By the first rank.
    _lock: Option<File>,
}

impl<'a> Loop<'a> {
    /// Makes the output folder, `run.json` and the metrics file. `resumed_at`: the step of the checkpoint that was loaded.
    fn begin(engine: &'a mut Engine, data: &'a TrainingData, output: Output, resumed_at: Option<u64>) -> Result<Self> {
        if engine.zero.comm().index() > 0 {
            // The first rank makes everything; what it cannot make ends the others.
            engine.zero.comm().barrier(&engine.queue)?;
            let saver = Saver::new(output.checkpoints(), engine, resumed_at)?;
            let asked = Control::default();
            return Ok(Self { engine, data, output, metrics: None, saver, asked, _lock: None });
        }
        let lock = output.take()?;
        let path = output.metrics();
        let metrics = match resumed_at {
            Some(step) => MetricsFile::resume(&path, step, engine.evaluated == Some(step))?,
            None => MetricsFile::create(&path)?,
        };
        if resumed_at.is_some_and(|step| step < engine.plan.steps) {
            // The model of a shorter run: older than the checkpoints to come, and it would be taken for the result.
            output.remove_model()?;
        }
        models::hf::write_json(&output.run_json(), &engine.plan.resolved(&engine.config))?;
        // A checkpoint alone does not say how text became tokens.
        if let Some(tokenizer) = &data.tokenizer {
            tokenizer.save(output.folder())?;
        }
        engine.zero.comm().barrier(&engine.queue)?;
        let metrics = Recorder::new(&engine.config, metrics, resumed_at.map(|step| (step, engine.counters.samples)))?;
        let (saver, asked) = (Saver::new(output.checkpoints(), engine, resumed_at)?, Control::default());
        Ok(Self { engine, data, output, metrics: Some(metrics), saver, asked, _lock: Some(lock) })
    }

    fn run(self, observer: &mut dyn Observer, stop: &Stop) -> Result<Outcome> {
        if self.metrics.is_none() {
            return self.run_to_end(observer, stop);
        }
        let mut observer = Logged::new(&self.output.log(), self.engine.counters.step, observer)?;
        let outcome = self.run_to_end(&mut observer, stop);
        observer.ended(&outcome);
        outcome
    }

    fn run_to_end(mut self, observer: &mut dyn Observer, stop: &Stop) -> Result<Outcome> {
        let outcome = self.steps(observer, stop);
        match (outcome, self.saver.finish(self.engine, observer)) {
            (Ok(outcome), Ok(())) => {
                self.engine.tell(|callback, control| callback.on_train_end(self.engine, control));
                self.hear()?;
                Ok(outcome)
            }
            (Ok(_), Err(unsaved)) => Err(unsaved),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(unsaved)) => {
                observer.on(Event::Notice(&unsaved.to_string()));
                Err(error)
            }
        }
    }

    fn steps(&mut self, observer: &mut dyn Observer, stop: &Stop) -> Result<Outcome> {
        let (num_parameters, done_steps) = (self.engine.model.num_parameters(), self.engine.counters.step);
        observer.on(Event::Started { plan: &self.engine.plan, num_parameters, done_steps });
        self.engine.report_state(observer);
        self.begin_callbacks()?;
        let every = self.engine.config.run.clone();
        let was_due = done_steps > 0 && every.eval_every > 0 && done_steps.is_multiple_of(every.eval_every);
        // What was asked for after an evaluation is for the next step.
        let was_asked = self.engine.evaluated != Some(done_steps) && self.asked.take_evaluation();
        if was_due || was_asked {
            // A signal came when this evaluation was due: the checkpoint went before it.
            self.evaluate(observer)?;
        }
        let mut signal = self.agree_on(stop)?;
        while !self.is_at_end() {
            if let Some(signal) = signal {
                self.save(true, observer)?;
                return Ok(Outcome::Interrupted { signal });
            }
            if let Err(error) = self.step(observer) {
                if error.leaves_weights_whole() && self.engine.counters.step > 0 {
                    let saved = self.save(true, observer);
                    saved.unwrap_or_else(|unsaved| observer.on(Event::Notice(&unsaved.to_string())));
                }
                return Err(error);
            }
            self.saver.report(self.engine, observer)?;
            self.hear()?;
            let due = |every: u64| every > 0 && self.engine.counters.step.is_multiple_of(every);
            let (eval_due, sample_due, save_due) =
                (due(every.eval_every), due(every.sample_every), due(every.checkpoint_every));
            signal = self.agree_on(stop)?;
            if signal.is_some() && !self.is_at_end() {
                continue;
            }
            if self.asked.take_evaluation() || eval_due {
                self.evaluate(observer)?;
            }
            if (self.asked.take_save() || save_due) && !self.is_at_end() {
                self.save(false, observer)?;
            }
            if sample_due && !self.is_at_end() {
                self.sample(false, observer)?;
            }
        }
        if self.asked.wants_stop() && self.engine.counters.step < self.engine.plan.steps {
            let step = self.engine.counters.step;
            observer.on(Event::Notice(&format!("step {step}: the run ends here, as a callback has asked")));
        }
        self.evaluate(observer)?;
        self.save(true, observer)?;
        self.load_best(observer)?;
        let path = self.output.model();
        // The others do not wait while the first rank writes: what they are needed for comes before.
        let is_alone = self.engine.zero.comm().size() == 1;
        if !is_alone {
            self.sample(true, observer)?;
        }
        self.export(&path)?;
        observer.on(Event::Exported { path: &path });
        if is_alone {
            self.sample(true, observer)?;
        }
        self.end_epochs();
        Ok(Outcome::Finished)
    }

    /// Whether no step follows.
    fn is_at_end(&self) -> bool {
        self.engine.counters.step >= self.engine.plan.steps
            || self.asked.wants_stop()
            || self.engine.followers.is_stopped()
    }

    fn step(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let start = Instant::now();
        let engine = &mut *self.engine;
        let (first, count) = (engine.counters.samples, engine.plan.ramp.size(engine.counters.step));
        let samples = self.data.loader.batch(first, count as usize);
        let data = start.elapsed().as_secs_f64();
        let (lr, curriculum_seqlen) = (engine.lr(), engine.curriculum_length());
        let before = engine.zero.comm().traffic();
        let random_ltd_tokens = engine.random_ltd_tokens();
        let report = engine.train_batch(&samples)?;
        let after = engine.zero.comm().traffic();
        let step_seconds = start.elapsed().as_secs_f64();
        let metrics = StepMetrics {
            step: engine.counters.step,
            loss: report.loss,
            lr,
            grad_norm: Some(report.grad_norm).filter(|norm| norm.is_finite()),
            tokens: engine.counters.tokens,
            tokens_per_second: report.num_targets as f64 / step_seconds,
            step_seconds,
            peak_memory_bytes: peak_resident_bytes(),
            curriculum_seqlen,
            random_ltd_tokens,
            loss_scale: report.loss_scale,
            precision: engine.adaptive.as_ref().map(Adaptive::metrics),
            skipped: Some(report.skipped || report.spiked).filter(|skipped| *skipped || report.loss_scale.is_some()),
            breakdown_seconds: engine.clock.as_ref().map(|clock| Breakdown { data, ..clock.take() }),
            memory_bytes: engine.config.memory_breakdown.then(|| memory_bytes(&engine.queue)),
            norms: Some(norms::to_json(&report.norms)).filter(|norms| !norms.is_empty()),
            communication: (engine.zero.comm().size() > 1).then(|| Communication::between(&before, &after)),
        };
        if let Some(recorder) = &mut self.metrics {
            recorder.advance(engine.counters.samples);
        }
        self.log(&json!(metrics))?;
        self.tell_epochs(first);
        for notice in self.engine.adaptive.iter_mut().flat_map(Adaptive::take_notices) {
            observer.on(Event::Notice(&notice));
        }
        let engine = &*self.engine;
        if report.skipped {
            observer.on(Event::Notice(&skip_notice(metrics.step, report.loss_scale, engine.loss_scale())));
        }
        if let Some(mean) = engine.guard.as_ref().and_then(SpikeGuard::mean).filter(|_| report.spiked) {
            let notice = spike_notice(metrics.step, report.loss, mean, first, first + count - 1);
            observer.on(Event::Notice(&notice));
        }
        observer.on(Event::Step(&metrics));
        flops_profiler::report(engine, &metrics, &samples, observer);
        Ok(())
    }

    /// Evaluates, unless that was done at this step; a state among the best is saved.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let is_best = evaluate_sets(self.engine, &self.data.validation, self.metrics.as_mut(), observer)?;
        self.hear()?;
        if is_best { self.save(self.is_at_end(), observer) } else { Ok(()) }
    }

    /// Takes the weights of the best checkpoint, if the run exports those.
    fn load_best(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let best = self.engine.followers.best().first().copied();
        let Some(best) = best.filter(|_| self.engine.config.run.load_best_at_end) else { return Ok(()) };
        if best.step != self.engine.counters.step {
            let checkpoint = Checkpoint::open(&path_of(&self.output.checkpoints(), best.step))?;
            self.engine.restore(&checkpoint, LoadOptions { module_only: true, ..LoadOptions::default() })?;
        }
        let Scored { step, value } = best;
        let notice = format!("the model is that of step {step}, the best one ({value:.6}; run.load_best_at_end)");
        observer.on(Event::Notice(&notice));
        Ok(())
    }

    /// Goes on from the prompt, if the run has one and its data a tokenizer.
    fn sample(&self, last: bool, observer: &mut dyn Observer) -> Result<()> {
        let engine = &*self.engine;
        let (Some(prompt), Some(tokenizer)) = (&engine.config.run.sample_prompt, &self.data.tokenizer) else {
            return Ok(());
        };
        let step = engine.counters.step;
        let options = GenerateOptions {
            max_new_tokens: engine.config.run.sample_tokens,
            sampling: Sampling::default(),
            seed: engine.config.run.seed.wrapping_add(step),
            bos: None,
            eos: tokenizer.end_of_text().into_iter().collect(),
        };
        let tokens = tokenizer.encode(prompt)?;
        let _averaged = engine.state.show_average(&engine.queue, &engine.zero)?;
        let pass = engine.zero.pass(&engine.queue, &engine.state.store, false);
        let made = generate::generate(forward(engine, &pass), Some(tokenizer), &tokens, options, |_| {
            ControlFlow::Continue(())
        })?;
        let made = made.text.unwrap_or_default();
        let text = format!("{prompt}{made}");
        observer.on(Event::Sample { step, text: &text, last });
        engine.tell(|callback, control| callback.on_predict(engine, &text, control));
        Ok(())
    }

    /// Saves the state after the last step; see [`Saver::save`].
    fn save(&mut self, is_last: bool, observer: &mut dyn Observer) -> Result<()> {
        let engine = &*self.engine;
        let fingerprint = fingerprint(self.data, &engine.config);
        let head = Head { evaluation_asked: self.asked.wants_evaluation(), ..engine.head(fingerprint) };
        self.saver.save(engine, head, self.metrics.as_ref().map(|recorder| &recorder.metrics), is_last, observer)
    }
}
