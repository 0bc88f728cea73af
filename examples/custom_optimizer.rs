//! An optimizer of your own: its formula for one element, trained with by the engine.
//!
//!     cargo run --release --example custom_optimizer
//!
//! The rule here is Signum (Bernstein et al. 2018, arXiv:1802.04434, Algorithm 2): a step of one size along the sign of the
//! momentum. The engine gives it what every rule gets: vector code, moments in fewer bits, groups, a schedule, checkpoints.

use bessemer::models::weights::WeightSource;
use bessemer::optim::{ElementRule, Optimizer, Shard, State, States, Step};
use bessemer::tensor::{KernelError, Queue, Shape};
use bessemer::train::model_source::ModelOrigin;
use bessemer::{Engine, RunConfig, Silent, TrainError, TrainingData};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// The constants of the rule.
struct Signum {
    /// Share of the momentum that is kept.
    momentum: f64,
}

/// The numbers of one step.
struct SignumStep {
    lr: f32,
    entering: f32,
    /// What the decay leaves of a weight.
    keep: f32,
}

impl ElementRule for SignumStep {
    #[inline(always)]
    fn update(&self, weight: f32, grad: f32, [momentum, ..]: States) -> (f32, States) {
        let momentum = momentum + (grad - momentum) * self.entering;
        let step = if momentum == 0.0 { 0.0 } else { self.lr.copysign(momentum) };
        (weight * self.keep - step, [momentum, 0.0, 0.0])
    }
}

impl Optimizer for Signum {
    fn name(&self) -> &'static str {
        "Signum"
    }

    fn states(&self, shape: Shape) -> Vec<State> {
        State::moments(&["momentum"], shape)
    }

    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError> {
        let entering = (1.0 - self.momentum) as f32;
        let keep = (1.0 - at.lr * at.weight_decay) as f32;
        shard.update(queue, at.grad_scale, SignumStep { lr: at.lr as f32, entering, keep })
    }
}

/// Trains a small GPT on a text file; returns the number of steps done and the loss over the validation data.
pub(crate) fn train(text: &Path, output: &Path, steps: u64) -> Result<(u64, f64), TrainError> {
    let config = json!({
        "model": { "config": { "model_type": "gpt2", "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
                               "vocab_size": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } },
        "data": { "train": text, "validation": { "split": 0.1 }, "tokenizer": "byte", "sequence_length": 64 },
        "run": { "output": output, "steps": steps },
        "train_batch_size": 16,
        "optimizer": { "type": "custom", "params": { "lr": 2e-3, "weight_decay": 0.1 }, "no_decay": ["*ln_*", "*bias"] },
    });
    let config = RunConfig::from_value(config, "custom_optimizer")?;
    let source = config.model.as_ref().and_then(|model| model.source()).expect("the model of the configuration");
    let data = TrainingData::open(&config, None, Some(64), Some(256), &mut Silent)?;
    let model = ModelOrigin::open(&config, source)?.build(data.tokenizer.as_ref(), 64)?;
    let weights = WeightSource::Random { seed: config.run.seed };
    let mut engine = Engine::with_optimizer(model, config, &weights, Arc::new(Signum { momentum: 0.9 }))?;
    engine.train(&data)?;
    let validation = &data.validation.first().expect("the split of the configuration").dataset;
    Ok((engine.counters().step, engine.evaluate(validation, &mut Silent)?.loss))
}

#[allow(dead_code, reason = "the tests run `train`")]
fn main() {
    let (text, output) = (Path::new("examples/data/tinyshakespeare.txt"), Path::new("runs/custom_optimizer"));
    match train(text, output, 300) {
        Ok((steps, loss)) => println!("{steps} steps, validation loss {loss:.3}"),
        Err(error) => eprintln!("error: {error}"),
    }
}
