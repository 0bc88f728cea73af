//! The engine in a loop of your own, in the shape that DeepSpeed's users know.
//!
//!     cargo run --release --example engine
//!
//! The loop goes through forward, backward and step of each micro-batch, looks at a validation batch now and then, keeps the
//! best state under a tag with what it needs to know itself, and ends from that state with a 16-bit model.

use bessemer::data::Sample;
use bessemer::train::engine::LoadOptions;
use bessemer::train::model_source::ModelOrigin;
use bessemer::{RunConfig, Silent, TrainError, TrainingData, initialize};
use serde_json::json;
use std::path::Path;

/// Trains a small GPT on a text file; returns the step of the best state and its loss over 32 validation rows.
pub(crate) fn train(text: &Path, output: &Path, steps: u64) -> Result<(u64, f64), TrainError> {
    let config = json!({
        "model": { "config": { "model_type": "gpt2", "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
                               "vocab_size": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } },
        "data": { "train": text, "validation": { "split": 0.1 }, "tokenizer": "byte", "sequence_length": 64 },
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": { "type": "AdamW", "params": { "lr": 2e-3 } },
    });
    let config = RunConfig::from_value(config, "engine")?;
    let data = TrainingData::open(&config, None, Some(64), Some(256), &mut Silent)?;
    let (source, ..) = config.for_training()?;
    let model = ModelOrigin::open(&config, source)?.build(data.tokenizer.as_ref(), 64)?;
    let validation: Vec<Sample> = (0..32).map(|row| data.validation[0].dataset.get(row)).collect();
    let checkpoints = output.join("checkpoints");

    let mut engine = initialize(model, config)?;
    let mut best = f64::INFINITY;
    for micro_step in 0..4 * steps {
        let loss = engine.forward(&data.loader.batch(4 * micro_step, 4))?;
        engine.backward(&loss)?;
        // Three times nothing but counted, the fourth time an update.
        let Some(report) = engine.step()? else { continue };
        if !engine.global_steps().is_multiple_of(20) {
            continue;
        }
        let evaluation = engine.eval_batch(&validation)?;
        println!("step {}: loss {:.3}, validation {:.3}", engine.global_steps(), report.loss, evaluation.loss);
        if evaluation.loss < best {
            best = evaluation.loss;
            engine.save_checkpoint(&checkpoints, Some("best"), json!({ "validation_loss": best }))?;
        }
        if report.loss < 2.5 {
            engine.set_lr(1e-3)?;
        }
    }

    let loaded = engine.load_checkpoint(&checkpoints, Some("best"), LoadOptions::default())?;
    let client_state = loaded.expect("the checkpoint of the loop").client_state;
    engine.save_16bit_model(&output.join("model"))?;
    Ok((engine.global_steps(), client_state["validation_loss"].as_f64().expect("what the loop saved")))
}

#[allow(dead_code, reason = "the tests run `train`")]
fn main() {
    match train(Path::new("examples/data/tinyshakespeare.txt"), Path::new("runs/engine"), 200) {
        Ok((step, loss)) => println!("the best is step {step}, validation loss {loss:.3}: runs/engine/model"),
        Err(error) => eprintln!("error: {error}"),
    }
}
