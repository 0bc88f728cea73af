//! Formats by op family: `torch_autocast` and `run.precision`, their table, and what they train to.

mod common;

use common::{Trained, run, set, shakespeare, small, weights};
use serde_json::{Value, json};
use std::path::Path;
use train::plan::report::PlanReport;
use train::{Outcome, RunConfig};

/// The model and settings of `examples/shakespeare.json`.
fn example(output: &Path) -> Value {
    json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": "auto", "n_positions": 64, "n_embd": 128,
                               "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } },
        "data": { "train": shakespeare(), "tokenizer": "char", "sequence_length": 64 },
        "run": { "output": output, "steps": 300 },
        "train_batch_size": 12,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1 } },
        "scheduler": { "type": "WarmupLR", "params": { "warmup_num_steps": 100, "warmup_type": "linear" } }
    })
}

/// The mean loss of the last 50 steps.
fn final_loss(trained: &Trained) -> f64 {
    let last = &trained.steps[trained.steps.len() - 50..];
    last.iter().map(|step| step.loss).sum::<f64>() / 50.0
}

fn with(output: &Path, settings: &[(&str, Value)]) -> Value {
    let mut config = small(output);
    settings.iter().for_each(|(path, value)| set(&mut config, path, value.clone()));
    config
}

fn autocast(dtype: &str) -> (&'static str, Value) {
    ("torch_autocast", json!({ "enabled": true, "dtype": dtype }))
}

#[test]
fn three_hundred_steps_under_autocast_reach_the_loss_of_f32_within_one_percent_in_either_format() {
    let folder = tempfile::tempdir().expect("a folder");
    let loss = |name: &str, dtype: Option<&str>| {
        let mut config = example(&folder.path().join(name));
        if let Some(dtype) = dtype {
            set(&mut config, "torch_autocast", json!({ "enabled": true, "dtype": dtype }));
        }
        final_loss(&run(&config, false, None))
    };
    let f32_loss = loss("f32", None);
    assert!((2.0..2.6).contains(&f32_loss), "{f32_loss} of ln 65 = 4.17 before training");
    for dtype in ["bfloat16", "float16"] {
        let loss = loss(dtype, Some(dtype));
        println!("f32 {f32_loss:.4}, autocast {dtype} {loss:.4}");
        assert!((loss / f32_loss - 1.0).abs() < 0.01, "{dtype}: {loss}, in f32 {f32_loss}");
    }
}

#[test]
fn every_family_in_f32_gives_the_bits_of_an_f32_run_whatever_the_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = run(&small(&folder.path().join("plain")), false, None);
    let families = ["embedding", "linear", "attention", "norm", "activation", "residual", "head"];
    let high: serde_json::Map<String, Value> = families.iter().map(|f| ((*f).to_owned(), json!("f32"))).collect();
    for mode in [autocast("bf16"), ("bf16", json!({ "enabled": true }))] {
        let output = folder.path().join(mode.0);
        let config = with(&output, &[mode, ("run.precision", Value::Object(high.clone()))]);
        assert_eq!(run(&config, false, None).losses(), plain.losses());
    }
}

#[test]
fn a_table_that_says_the_same_as_the_mode_gives_the_bits_of_the_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let bf16 = ("bf16", json!({ "enabled": true }));
    let plain = run(&with(&folder.path().join("plain"), std::slice::from_ref(&bf16)), false, None);
    // The last entry makes it a table and matches what is bf16 already; the one before it is overruled.
    let table = json!({ "linear": "bf16", "transformer.h.0/linear": "bf16", "*h.0/linear": "f32" });
    let tabled = run(&with(&folder.path().join("table"), &[bf16.clone(), ("run.precision", table)]), false, None);
    assert_eq!(tabled.losses(), plain.losses());
    let table = json!({ "transformer.h.0/linear": "f32" });
    let other = run(&with(&folder.path().join("other"), &[bf16, ("run.precision", table)]), false, None);
    assert_ne!(other.losses(), plain.losses());
}

#[test]
fn autocast_is_the_mode_it_names_but_for_f32_norms_embedding_and_residual_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let cast = run(&with(&folder.path().join("cast"), &[autocast("bf16")]), false, None);
    let high = json!({ "norm": "f32", "embedding": "f32", "residual": "f32" });
    let mode = [("bf16", json!({ "enabled": true })), ("run.precision", high)];
    assert_eq!(run(&with(&folder.path().join("mode"), &mode), false, None).losses(), cast.losses());
    let low = json!({ "linear": "bf16", "attention": "bf16", "activation": "bf16", "head": "bf16" });
    let table = [("run.precision", low)];
    assert_eq!(run(&with(&folder.path().join("table"), &table), false, None).losses(), cast.losses());
}

#[test]
fn threads_recompute_and_micro_batches_under_autocast_are_as_in_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, key: &'static str, value: Value| {
        run(&with(&folder.path().join(name), &[autocast("float16"), (key, value)]), false, None)
    };
    let one = losses("one", "run.threads", json!(1));
    assert_eq!(losses("two", "run.threads", json!(2)).losses(), one.losses());
    assert_eq!(losses("again", "run.recompute", json!(true)).losses(), one.losses());
    let ops = json!({ "ops": ["norm", "gelu", "attention", "linear"] });
    assert_eq!(losses("ops", "run.recompute", ops).losses(), one.losses());
    let cut = losses("cut", "train_micro_batch_size_per_gpu", json!(2));
    for (whole, cut) in one.steps.iter().zip(&cut.steps) {
        assert!((whole.loss - cut.loss).abs() < 2e-3, "step {}: {} and {}", whole.step, whole.loss, cut.loss);
    }
}

#[test]
fn a_stopped_autocast_run_goes_on_bit_for_bit_and_its_model_is_written_in_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let settings = [autocast("float16"), ("run.ema_decay", json!(0.5)), ("run.eval_every", json!(4))];
    let undisturbed = run(&with(&whole, &settings), false, None);
    let config = with(&cut, &settings);
    let parts = [(false, Some(4)), (true, Some(9)), (true, None)].map(|(resume, stop)| run(&config, resume, stop));
    assert_eq!(parts[2].outcome, Outcome::Finished);
    assert_eq!(parts.iter().flat_map(Trained::losses).collect::<Vec<_>>(), undisturbed.losses());
    assert!(undisturbed.steps.iter().all(|step| step.loss_scale.is_some()));
    assert!(weights(&whole) == weights(&cut), "final weights differ");
    let model = std::fs::read_to_string(whole.join("model/config.json")).expect("a config");
    assert!(model.contains("\"float32\""), "{model}");
}

#[test]
fn the_plan_shows_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = [autocast("bf16"), ("run.precision", json!({ "head": "f32", "transformer.h.1/norm": "bf16" }))];
    let config = RunConfig::from_value(with(folder.path(), &settings), "r.json").unwrap_or_else(|e| panic!("{e}"));
    let lines = PlanReport::of(&config, 1).unwrap_or_else(|e| panic!("{e}")).lines();
    let shown: Vec<String> = (lines.iter().filter(|line| line.starts_with("precision")))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        shown,
        [
            "precision bf16 by op family (torch_autocast), weights in f32",
            "precision: embedding f32",
            "precision: linear bf16",
            "precision: attention bf16",
            "precision: norm f32; bf16 in transformer.h.1",
            "precision: activation bf16",
            "precision: residual f32",
            "precision: head f32",
        ]
    );
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let families = "embedding, linear, attention, norm, activation, residual, head";
    for (settings, want) in [
        (
            json!({ "run": { "precision": { "liner": "f32" } } }),
            format!("run.precision has \"liner\"; it must be a family of ops ({families}), or blocks and a family: \"transformer.h.0/linear\""),
        ),
        (
            json!({ "run": { "precision": { "linear": "fp16" } } }),
            "run.precision has fp16 for \"linear\", but the loss is not scaled; fp16 needs fp16.enabled, or torch_autocast with dtype float16".into(),
        ),
        (
            json!({ "run": { "precision": { "linear": "bf16" } }, "fp16": { "enabled": true } }),
            "run.precision has bf16 for \"linear\", but the run's 16-bit format is fp16; it must be f32 or fp16".into(),
        ),
        (
            json!({ "run": { "precision": { "linear": "int8" } } }),
            "run.precision.linear is \"int8\"; it must be \"f32\", \"bf16\" or \"fp16\"".into(),
        ),
        (
            json!({ "torch_autocast": { "enabled": true }, "bf16": { "enabled": true } }),
            "torch_autocast.enabled is true, and so is bf16.enabled; keep one of them".into(),
        ),
        (
            json!({ "torch_autocast": { "enabled": true, "dtype": "fp32" } }),
            "torch_autocast.dtype is \"fp32\"; it must be \"bf16\", \"bfloat16\", \"fp16\", \"float16\" or \"half\"".into(),
        ),
    ] {
        let error = RunConfig::from_value(settings, "r.json").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), format!("r.json: {want}"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let config = with(folder.path(), &[("run.precision", json!({ "layers.0/linear": "bf16" }))]);
    let error = common::try_run(&config, false, None).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: run.precision has \"layers.0/linear\", which matches no block; the model's go from transformer.wte to lm_head"
    );
}
