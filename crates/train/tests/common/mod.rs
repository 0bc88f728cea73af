//! Small runs for the tests of this crate.

#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use train::event::StepMetrics;
use train::run::Stop;
use train::{Event, Outcome, Run, RunConfig};

/// The Shakespeare text that the example trains on.
pub(crate) fn shakespeare() -> String {
    format!("{}/../../examples/data/tinyshakespeare.txt", env!("CARGO_MANIFEST_DIR"))
}

/// A two-layer GPT on bytes with dropout: what the runs below change.
pub(crate) fn small(output: &Path) -> Value {
    json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": 256, "n_positions": 32, "n_embd": 32, "n_layer": 2,
                               "n_head": 4, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1 } },
        "data": { "train": shakespeare(), "tokenizer": "byte", "sequence_length": 32 },
        "run": { "output": output, "steps": 12, "checkpoint_every": 5, "seed": 3 },
        "train_batch_size": 8,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-2 } },
    })
}

/// Sets `path` (keys with dots) of a run file.
pub(crate) fn set(config: &mut Value, path: &str, value: Value) {
    let mut at = config;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = value;
}

/// Every step's metrics and how the run ended.
pub(crate) struct Trained {
    pub(crate) steps: Vec<StepMetrics>,
    pub(crate) notices: Vec<String>,
    /// The folder of each checkpoint.
    pub(crate) saved: Vec<PathBuf>,
    pub(crate) outcome: Outcome,
}

impl Trained {
    /// The bits of each loss.
    pub(crate) fn losses(&self) -> Vec<u64> {
        self.steps.iter().map(|step| step.loss.to_bits()).collect()
    }
}

/// Runs a run file; `stop_after`: a signal comes during that step.
pub(crate) fn run(config: &Value, resume: bool, stop_after: Option<u64>) -> Trained {
    try_run(config, resume, stop_after).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn try_run(config: &Value, resume: bool, stop_after: Option<u64>) -> Result<Trained, train::TrainError> {
    let (mut steps, mut notices, mut saved, stop) = (Vec::new(), Vec::new(), Vec::new(), Stop::default());
    let flag = stop.clone();
    let stop_at = |step: u64| {
        if Some(step) == stop_after {
            flag.0.store(15, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let mut watch = |event: Event<'_>| match event {
        Event::Started { done_steps, .. } => stop_at(done_steps),
        Event::Step(metrics) => {
            steps.push(metrics.clone());
            stop_at(metrics.step);
        }
        Event::Notice(text) => notices.push(text.to_owned()),
        Event::Saved { path } => saved.push(path.to_owned()),
        _ => {}
    };
    let config = RunConfig::from_value(config.clone(), "test")?;
    let outcome = Run::prepare(config, resume, &mut watch)?.execute(&mut watch, &stop)?;
    Ok(Trained { steps, notices, saved, outcome })
}

/// The bytes of a run's final model.
pub(crate) fn weights(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("model/model.safetensors")).expect("the final model")
}

/// Runs a run file on several ranks; `on_step` is called by the first rank after each of its steps.
pub(crate) fn run_on(
    ranks: u64,
    config: &Value,
    resume: bool,
    on_step: impl Fn(u64) + Send + 'static,
) -> Result<Trained, String> {
    let seen = Arc::new(Mutex::new((Vec::new(), Vec::new(), Vec::new())));
    let told = Arc::clone(&seen);
    let watch = move |event: Event<'_>| {
        if let Event::Step(metrics) = &event {
            on_step(metrics.step);
        }
        let (steps, notices, saved) = &mut *told.lock().expect("one watcher");
        match event {
            Event::Step(metrics) => steps.push(metrics.clone()),
            Event::Notice(text) => notices.push(text.to_owned()),
            Event::Saved { path } => saved.push(path.to_owned()),
            _ => {}
        }
    };
    let mut config = RunConfig::from_value(config.clone(), "test").map_err(|error| error.to_string())?;
    config.ranks = ranks;
    let (_, outcome) = train::ranks::run(config, resume, watch, &Stop::default());
    let outcome = outcome.map_err(|error| error.to_string())?;
    let (steps, notices, saved) = std::mem::take(&mut *seen.lock().expect("one watcher"));
    Ok(Trained { steps, notices, saved, outcome })
}
