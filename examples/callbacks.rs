//! Callbacks: code of your own at every stage of a run.
//!
//!     cargo run --release --example callbacks
//!
//! The two here are of a kind that people write: one writes a figure of its own into `metrics.jsonl`, the other saves a
//! checkpoint whenever the validation loss is the best so far and ends the run when it has not been for a while. Its state is
//! in the checkpoints, so that `Run::prepare` with `resume` goes on where it was.

use bessemer::generate::Evaluation;
use bessemer::train::run::Stop;
use bessemer::train::step::StepReport;
use bessemer::{Callback, Control, Engine, Event, Run, RunConfig, TrainError};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Logs how much of the gradient clipping leaves.
struct ClipShare {
    largest_norm: f64,
}

impl Callback for ClipShare {
    fn on_step_end(&mut self, _: &Engine, report: &StepReport, control: &mut Control) {
        if report.grad_norm > self.largest_norm {
            let share = self.largest_norm / report.grad_norm;
            control.log(Map::from_iter([("clip_share".to_owned(), json!(share))]));
        }
    }
}

/// Saves the best and stops after `patience` evaluations that were not.
struct BestOrStop {
    patience: u64,
    best: f64,
    waited: u64,
}

impl Callback for BestOrStop {
    fn on_evaluate(&mut self, engine: &Engine, evaluation: &Evaluation, control: &mut Control) {
        if evaluation.loss < self.best {
            (self.best, self.waited) = (evaluation.loss, 0);
            control.save();
        } else {
            self.waited += 1;
        }
        if self.waited >= self.patience {
            println!("step {}: no better than {:.3}", engine.global_steps(), self.best);
            control.stop();
        }
    }

    fn name(&self) -> &'static str {
        "best_or_stop"
    }

    fn state(&self) -> Value {
        json!({ "best": self.best, "waited": self.waited })
    }

    fn restore(&mut self, state: &Value) {
        self.best = state["best"].as_f64().unwrap_or(f64::INFINITY);
        self.waited = state["waited"].as_u64().unwrap_or(0);
    }
}

/// Trains a small GPT on a text file; returns the number of steps done.
pub(crate) fn train(text: &Path, output: &Path, steps: u64) -> Result<u64, TrainError> {
    let config = json!({
        "model": { "config": { "model_type": "gpt2", "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
                               "vocab_size": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } },
        "data": { "train": text, "validation": { "split": 0.01 }, "tokenizer": "byte", "sequence_length": 64 },
        "run": { "output": output, "steps": steps, "eval_every": 10, "keep_checkpoints": 2 },
        "train_batch_size": 16,
        // So high a rate soon finds nothing better.
        "optimizer": { "type": "AdamW", "params": { "lr": 0.05 } },
    });
    let mut done = 0;
    let mut watch = |event: Event<'_>| {
        if let Event::Step(metrics) = event {
            done = metrics.step;
        }
    };
    let config = RunConfig::from_value(config, "callbacks")?;
    let largest_norm = config.gradient_clipping;
    let mut run = Run::prepare(config, false, &mut watch)?;
    run.add_callback(ClipShare { largest_norm });
    run.add_callback(BestOrStop { patience: 2, best: f64::INFINITY, waited: 0 });
    run.execute(&mut watch, &Stop::default())?;
    Ok(done)
}

#[allow(dead_code, reason = "the tests run `train`")]
fn main() {
    match train(Path::new("examples/data/tinyshakespeare.txt"), Path::new("runs/callbacks"), 1000) {
        Ok(steps) => println!("{steps} steps; runs/callbacks/metrics.jsonl has the clip shares"),
        Err(error) => eprintln!("error: {error}"),
    }
}
