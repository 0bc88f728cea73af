//! Every optimizer through a whole run: it learns, stops and goes on bit for bit, on any number of threads; frozen weights
//! stay, and averaged ones are what is evaluated and exported.

mod common;

use common::{run, set, small, weights};
use serde_json::{Value, json};
use std::path::Path;
use train::checkpoint::Checkpoint;

/// Every type, with a rate that suits the small model, and other formats of moments.
fn optimizers() -> Vec<Value> {
    let mut all: Vec<Value> = [
        ("SGD", json!({ "lr": 0.3, "momentum": 0.9, "nesterov": true })),
        ("Adam", json!({ "lr": 1e-2, "adam_w_mode": false, "weight_decay": 0.01 })),
        ("AdamW", json!({ "lr": 1e-2, "amsgrad": true })),
        ("Adagrad", json!({ "lr": 0.05 })),
        ("RMSprop", json!({ "lr": 3e-3, "centered": true, "momentum": 0.5 })),
        ("Adadelta", json!({ "lr": 1.0 })),
        ("Adamax", json!({ "lr": 1e-2 })),
        ("NAdam", json!({ "lr": 1e-2 })),
        ("RAdam", json!({ "lr": 1e-2 })),
        ("Lion", json!({ "lr": 3e-3, "betas": [0.9, 0.99] })),
        ("Lamb", json!({ "lr": 0.02 })),
        ("Muon", json!({ "lr": 0.02, "adam_lr": 1e-2 })),
        ("Adafactor", json!({ "lr": 0.1 })),
        ("AdamWScheduleFree", json!({ "lr": 1e-2, "warmup_steps": 3 })),
    ]
    .map(|(kind, params)| json!({ "type": kind, "params": params }))
    .into();
    for (kind, moments) in [("AdamW", "bf16"), ("AdamW", "int8"), ("Lion", "int8"), ("Muon", "bf16")] {
        all.push(json!({ "type": kind, "params": { "lr": 3e-3 }, "moments": moments }));
    }
    all
}

#[test]
fn every_optimizer_learns_and_goes_on_bit_for_bit_after_a_stop_on_any_number_of_threads() {
    for (index, optimizer) in optimizers().iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
        let mut whole = small(&whole_output);
        set(&mut whole, "optimizer", optimizer.clone());
        set(&mut whole, "bf16", json!({ "enabled": index % 2 == 0 }));
        let mut cut = whole.clone();
        set(&mut cut, "run.output", json!(cut_output));
        set(&mut cut, "run.threads", json!(3));
        let undisturbed = run(&whole, false, None);
        let mut losses = run(&cut, false, Some(6)).losses();
        losses.extend(run(&cut, true, None).losses());
        assert_eq!(losses, undisturbed.losses(), "{optimizer}");
        assert!(weights(&whole_output) == weights(&cut_output), "final weights differ: {optimizer}");
        let (first, last) = (&undisturbed.steps[0], &undisturbed.steps[11]);
        assert!(last.loss < first.loss - 0.1, "{optimizer}: the loss went from {} to {}", first.loss, last.loss);
    }
}

fn checkpoint(output: &Path, step: u64) -> Checkpoint {
    Checkpoint::open(&output.join(format!("checkpoints/step-{step:08}"))).expect("a checkpoint")
}

const FROZEN: &str = "transformer.h.0.attn.c_attn.weight";
const TRAINED: &str = "transformer.h.1.attn.c_attn.weight";

#[test]
fn frozen_weights_stay_have_no_state_and_are_in_checkpoints_and_exports() {
    for bf16 in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("run");
        let mut config = small(&output);
        set(&mut config, "bf16", json!({ "enabled": bf16 }));
        set(&mut config, "optimizer.groups", json!([{ "match": ["*wte*", "*wpe*", "*h.0.*"], "frozen": true }]));
        run(&config, false, Some(6));
        run(&config, true, None);
        let (early, late) = (checkpoint(&output, 6), checkpoint(&output, 12));
        let of = |checkpoint: &Checkpoint, name: &str| checkpoint.read("weight", name).expect("a weight");
        assert!(of(&early, FROZEN) == of(&late, FROZEN), "a frozen weight changed");
        assert!(of(&early, TRAINED) != of(&late, TRAINED), "a trained weight stayed");
        assert!(late.tensor("exp_avg", FROZEN).is_none() && late.tensor("exp_avg", TRAINED).is_some());
        let exported = models::hf::WeightFiles::open(&output.join("model")).expect("the export");
        let values = exported.read_f32(FROZEN, 0..of(&late, FROZEN).len()).expect("a weight");
        assert!(values == of(&late, FROZEN), "the export has other values");
    }
}

/// The last line of metrics with a validation loss.
fn validation_loss(output: &Path) -> f64 {
    let lines = train::metrics::MetricsFile::read_all(&output.join("metrics.jsonl")).expect("metrics");
    lines.iter().rev().find_map(|line| line["eval_loss"].as_f64()).expect("an evaluation")
}

#[test]
fn an_average_of_weights_is_evaluated_exported_and_resumed_and_does_not_touch_training() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain_output = folder.path().join("plain");
    let mut plain = small(&plain_output);
    set(&mut plain, "data.validation", json!({ "split": 0.01 }));
    let undisturbed = run(&plain, false, None);
    let averaged: [(&str, Value); 2] = [
        ("run.ema_decay", json!(0.9)),
        ("optimizer", json!({ "type": "AdamWScheduleFree", "params": { "lr": 1e-2, "warmup_steps": 3 } })),
    ];
    for (index, (key, value)) in averaged.into_iter().enumerate() {
        let (output, cut_output) = (folder.path().join(format!("{index}")), folder.path().join(format!("cut {index}")));
        let mut config = plain.clone();
        set(&mut config, key, value);
        set(&mut config, "run.output", json!(output));
        let trained = run(&config, false, None);
        assert_eq!(trained.losses() == undisturbed.losses(), key == "run.ema_decay", "{key}");
        set(&mut config, "run.output", json!(cut_output));
        run(&config, false, Some(6));
        run(&config, true, None);
        assert!(weights(&output) == weights(&cut_output), "{key}: a resumed run has another average");
        assert_eq!(validation_loss(&output).to_bits(), validation_loss(&cut_output).to_bits());
        assert_ne!(validation_loss(&output).to_bits(), validation_loss(&plain_output).to_bits());
        let last = checkpoint(&output, 12);
        let (weight, average) = (last.read("weight", TRAINED).unwrap(), last.read("average", TRAINED).unwrap());
        assert!(weight != average);
        let exported = models::hf::WeightFiles::open(&output.join("model")).expect("the export");
        assert!(exported.read_f32(TRAINED, 0..average.len()).unwrap() == average, "{key}: the export is no average");
        let again = folder.path().join(format!("export {index}"));
        train::pretrained::export(last.folder(), &again, None).expect("an export of the checkpoint");
        let again = models::hf::WeightFiles::open(&again).expect("the export");
        assert!(
            again.read_f32(TRAINED, 0..average.len()).unwrap() == average,
            "{key}: the checkpoint's export differs"
        );
    }
}

#[test]
fn a_group_s_rate_and_decay_are_what_its_weights_move_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = small(&output);
    set(&mut config, "run.steps", json!(6));
    set(&mut config, "optimizer.groups", json!([{ "match": [FROZEN], "lr": 0 }]));
    run(&config, false, None);
    let of = |name: &str| [5, 6].map(|step| checkpoint(&output, step).read("weight", name).expect("a weight"));
    let [before, after] = of(FROZEN);
    assert!(before == after, "a rate of 0 moved a weight");
    assert!(checkpoint(&output, 6).tensor("exp_avg", FROZEN).is_some());
    let [before, after] = of(TRAINED);
    assert!(before != after, "the other weights must move");
}

#[test]
fn the_plan_counts_moments_in_their_format_and_nothing_for_frozen_weights() {
    let memory = |optimizer: Value| {
        let config = json!({ "model": { "preset": "gpt2-124m" }, "train_batch_size": 1, "optimizer": optimizer });
        let config = train::RunConfig::from_value(config, "plan").expect("a run file");
        let memory = train::plan::report::PlanReport::of(&config, 1).expect("a plan").memory_per_rank;
        ["optimizer", "gradients"].map(|kind| memory[kind] as f64 / 124_439_808.0)
    };
    let close = |got: f64, want: f64| (got - want).abs() < 0.01;
    for (moments, bytes) in [("f32", 8.0), ("bf16", 4.0), ("int8", 2.0 * 65.0 / 64.0)] {
        let [optimizer, gradients] = memory(json!({ "type": "AdamW", "moments": moments }));
        assert!(close(optimizer, bytes) && close(gradients, 4.0), "{moments}: {optimizer} bytes for each weight");
    }
    // The embeddings are 39.4 of the 124.4 million.
    let frozen = json!([{ "match": ["*wte*", "*wpe*"], "frozen": true }]);
    let [optimizer, gradients] = memory(json!({ "type": "AdamW", "groups": frozen }));
    assert!(close(optimizer, 8.0 * 0.6835) && close(gradients, 4.0 * 0.6835), "{optimizer} and {gradients}");
    let [optimizer, _] = memory(json!({ "type": "Adafactor" }));
    assert!(optimizer < 0.02, "Adafactor keeps {optimizer} bytes for each weight");
}
