//! Gradients, masters and moments in 16 bits: what they train to, what they take, and that they go on bit for bit.

mod common;

use common::{Trained, run, set, shakespeare, small, weights};
use serde_json::{Value, json};
use std::path::Path;
use train::plan::report::PlanReport;
use train::{Outcome, RunConfig};

/// The model and settings of `examples/shakespeare.json`, 80 steps of four micro-batches.
fn example(output: &Path, settings: &Value) -> Value {
    let mut config = json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": "auto", "n_positions": 64, "n_embd": 128,
                               "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } },
        "data": { "train": shakespeare(), "tokenizer": "char", "sequence_length": 64 },
        "run": { "output": output, "steps": 80 },
        "train_batch_size": 12,
        "train_micro_batch_size_per_gpu": 3,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1 } },
    });
    merge(&mut config, settings);
    config
}

fn merge(config: &mut Value, settings: &Value) {
    for (key, value) in settings.as_object().expect("settings") {
        set(config, key, value.clone());
    }
}

fn masters(mode: &str, more: Value) -> Value {
    let mut section = json!({ "enabled": true, format!("{mode}_master_weights_and_grads"): true });
    merge(&mut section, &more);
    json!({ mode: section, "zero_optimization": { "stage": 1, "offload_optimizer": { "device": "cpu" } } })
}

/// The mean loss of the last 20 steps.
fn final_loss(trained: &Trained) -> f64 {
    let last = &trained.steps[trained.steps.len() - 20..];
    last.iter().map(|step| step.loss).sum::<f64>() / 20.0
}

#[test]
fn sums_of_gradients_and_masters_in_16_bits_train_to_the_loss_of_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let loss = |name: &str, settings: &Value| {
        let loss = final_loss(&run(&example(&folder.path().join(name), settings), false, None));
        println!("{name} {loss:.6}");
        loss
    };
    let exact = loss("f32", &json!({}));
    for (name, settings, bound) in [
        (
            "gradients in bf16",
            json!({ "bf16": { "enabled": true }, "data_types": { "grad_accum_dtype": "bf16" } }),
            0.01,
        ),
        (
            "gradients in fp16",
            json!({ "fp16": { "enabled": true }, "data_types": { "grad_accum_dtype": "fp16" } }),
            0.01,
        ),
        ("masters in bf16", masters("bf16", json!({})), 0.02),
        ("all in bf16", masters("bf16", json!({ "bf16_optimizer_states": true })), 0.02),
        ("masters in fp16", masters("fp16", json!({})), 0.02),
    ] {
        let loss = loss(name, &settings);
        assert!((loss / exact - 1.0).abs() < bound, "{name}: {loss}, in f32 {exact}");
    }
}

#[test]
fn a_stopped_run_with_everything_in_bf16_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let config = |output: &Path| {
        let mut config = small(output);
        merge(&mut config, &masters("bf16", json!({ "bf16_optimizer_states": true })));
        merge(
            &mut config,
            &json!({ "train_micro_batch_size_per_gpu": 2, "run.clip_value": 0.1, "run.l2_penalty": 1e-3,
                                    "run.gradient_noise": 1e-6, "run.ema_decay": 0.5 }),
        );
        config
    };
    let undisturbed = run(&config(&whole), false, None);
    let parts =
        [(false, Some(4)), (true, Some(9)), (true, None)].map(|(resume, stop)| run(&config(&cut), resume, stop));
    assert_eq!(parts[2].outcome, Outcome::Finished);
    assert_eq!(parts.iter().flat_map(Trained::losses).collect::<Vec<_>>(), undisturbed.losses());
    assert!(weights(&whole) == weights(&cut), "final weights differ");
}

#[test]
fn threads_and_recompute_give_the_same_bits_with_gradients_summed_in_bf16() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, key: &str, value: Value| {
        let mut config = small(&folder.path().join(name));
        merge(
            &mut config,
            &json!({ "data_types": { "grad_accum_dtype": "bf16" }, "train_micro_batch_size_per_gpu": 2 }),
        );
        set(&mut config, key, value);
        run(&config, false, None).losses()
    };
    let one = losses("one", "run.threads", json!(1));
    assert_eq!(losses("two", "run.threads", json!(2)), one);
    assert_eq!(losses("again", "run.recompute", json!(true)), one);
    assert_eq!(losses("segments", "run.recompute", json!({ "segment": 2 })), one);
}

#[test]
fn one_micro_batch_summed_in_bf16_is_its_gradient_rounded_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let norm = |name: &str, dtype: Value| {
        let mut config = small(&folder.path().join(name));
        merge(&mut config, &json!({ "data_types": { "grad_accum_dtype": dtype }, "run.steps": 1 }));
        run(&config, false, None).steps[0].grad_norm.expect("a norm")
    };
    let (exact, rounded) = (norm("f32", json!("fp32")), norm("bf16", json!("bf16")));
    assert_ne!(exact, rounded);
    // Each element is off by 2^-9 of itself at most, and so is their norm.
    assert!((rounded / exact - 1.0).abs() < 2f64.powi(-9), "{rounded}, exactly {exact}");
}

#[test]
fn the_plan_counts_what_16_bits_save() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = |settings: &Value| {
        let mut config = example(folder.path(), settings);
        set(&mut config, "run.checkpoint_every", json!(0));
        PlanReport::of(&RunConfig::from_value(config, "r.json").expect("a run file"), 1).expect("a plan")
    };
    let plain = plan(&json!({ "bf16": { "enabled": true } }));
    let half = plan(&masters("bf16", json!({ "bf16_optimizer_states": true })));
    let gain = |kind: &str| half.memory_per_rank[kind] as f64 / plain.memory_per_rank[kind] as f64;
    // Weights: 4 + 2 bytes to 2, gradients 4 to 2, moments 8 to 4; small tensors are rounded up to cache lines.
    assert!((gain("gradients") - 0.5).abs() < 0.01 && (gain("optimizer") - 0.5).abs() < 0.01, "{half:?}");
    // At the peak the f32 values that a master is made of are there too.
    assert!(gain("weights") < 0.55, "{} of {}", half.memory_per_rank["weights"], plain.memory_per_rank["weights"]);
    let line = half.lines().into_iter().find(|line| line.starts_with("precision")).expect("a line");
    assert!(line.ends_with(" bf16, weights in bf16, gradients summed in bf16"), "{line}");
}

#[test]
fn moments_that_two_keys_want_in_two_formats_are_refused() {
    let mut file = masters("bf16", json!({ "bf16_optimizer_states": true }));
    file["optimizer"] = json!({ "type": "AdamW", "moments": "int8" });
    let error = RunConfig::from_value(file, "r.json").map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "r.json: bf16.bf16_optimizer_states is true and optimizer.moments is \"int8\"; keep one of them"
    );
}
