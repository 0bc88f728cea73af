//! What stands between a gradient and the weights, and what changes over a run beside the rate: penalties, clipping by
//! value, the guard against loss spikes, plateaus, and steps that grow.

mod common;

use common::{run, set, shakespeare, small, try_run, weights};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use train::{RunConfig, TrainError};

/// [`small`] with these keys set.
fn with(output: &Path, keys: &[(&str, Value)]) -> Value {
    let mut config = small(output);
    for (key, value) in keys {
        set(&mut config, key, value.clone());
    }
    config
}

fn refusal(keys: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let run = try_run(&with(&folder.path().join("run"), keys), false, None);
    run.map(|_| ()).expect_err("a refusal").to_string()
}

/// One epoch of 80 rows of text and 8 of bytes that the text never has, which come as the eleventh batch.
fn with_a_strange_batch(folder: &Path, spike: Value) -> Value {
    let mut text = fs::read(shakespeare()).expect("the text");
    text.truncate(80 * 32);
    text.extend((0..8 * 32 + 1).map(|i: u32| 1 + (i * i % 7) as u8));
    text.extend(&fs::read(shakespeare()).expect("the text")[4000..8000]);
    let path = folder.join("text.txt");
    fs::write(&path, text).expect("a text");
    let keys = [
        ("data.train", json!(path)),
        ("data.shuffle", json!(false)),
        ("run.steps", json!(16)),
        ("run.loss_spike", spike),
    ];
    with(&folder.join("run"), &keys)
}

#[test]
fn l2_in_sgd_is_its_own_weight_decay_to_the_last_bits_and_l1_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, decay: f64, penalty: Value| {
        let optimizer = json!({ "type": "SGD", "params": { "lr": 0.1, "weight_decay": decay }, "no_decay": ["*bias"] });
        let keys = [("optimizer", optimizer), ("gradient_clipping", json!(0.0)), ("run.l2_penalty", penalty)];
        run(&with(&folder.path().join(name), &keys), false, None).steps.iter().map(|s| s.loss).collect::<Vec<_>>()
    };
    let (decay, penalty, none) =
        (losses("decay", 0.1, json!(0.0)), losses("penalty", 0.0, json!(0.1)), losses("none", 0.0, json!(0.0)));
    for (a, b) in decay.iter().zip(&penalty) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    assert!((decay[11] - none[11]).abs() > 1e-4, "the decay does nothing");
}

#[test]
fn a_penalty_shrinks_the_weights_and_no_decay_keeps_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let norms = |name: &str, key: &str, value: f64| {
        let output = folder.path().join(name);
        let optimizer = json!({ "type": "SGD", "params": { "lr": 0.1 }, "no_decay": ["*wte*"] });
        let keys = [("optimizer", optimizer), (key, json!(value)), ("gradient_clipping", json!(0.0))];
        run(&with(&output, &keys), false, None);
        let bytes = weights(&output);
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"].map(|name| {
            let data = file.tensor(name).expect("a weight").data().to_vec();
            let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).abs());
            values.map(f64::from).sum::<f64>()
        })
    };
    let plain = norms("plain", "run.l1_penalty", 0.0);
    for (name, key, value) in [("l1", "run.l1_penalty", 0.01), ("l2", "run.l2_penalty", 0.3)] {
        let [kept, shrunk] = norms(name, key, value);
        assert!(shrunk < 0.8 * plain[1], "{key}: {shrunk} of {}", plain[1]);
        assert!((kept - plain[0]).abs() < 0.02 * plain[0], "{key}: {kept} of {}", plain[0]);
    }
}

#[test]
fn clipping_by_value_bounds_the_norm_whatever_the_micro_batch_and_the_loss_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let norms = |name: &str, more: &[(&str, Value)]| {
        let mut keys = vec![("run.clip_value", json!(1e-4)), ("run.steps", json!(3))];
        keys.extend_from_slice(more);
        let trained = run(&with(&folder.path().join(name), &keys), false, None);
        trained.steps.iter().map(|step| step.grad_norm.expect("finite")).collect::<Vec<_>>()
    };
    let whole = norms("whole", &[]);
    // 256 x 32 + 32 x 32 + 2 x 12,704 + 64 weights, each at most 1e-4.
    let most = 1e-4 * f64::from(34_688).sqrt();
    assert!(whole.iter().all(|norm| (0.3 * most..=most).contains(norm)), "{whole:?}, at most {most}");
    let parts = norms("parts", &[("train_micro_batch_size_per_gpu", json!(2))]);
    let scaled = norms("scaled", &[("fp16", json!({ "enabled": true, "loss_scale": 1024 }))]);
    for (index, norm) in whole.iter().enumerate() {
        assert!((norm - parts[index]).abs() < 1e-3 * norm, "step {index}: {norm} and {}", parts[index]);
        assert!((norm - scaled[index]).abs() < 2e-2 * norm, "step {index}: {norm} and {}", scaled[index]);
    }
}

#[test]
fn noise_changes_what_follows_the_first_update_and_is_the_same_after_a_stop_and_on_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |name: &str, eta: f64, threads: u64| {
        let optimizer = json!({ "type": "SGD", "params": { "lr": 0.1 } });
        let keys = [
            ("optimizer", optimizer),
            ("run.gradient_noise", json!(eta)),
            ("run.threads", json!(threads)),
            ("run.steps", json!(6)),
        ];
        with(&folder.path().join(name), &keys)
    };
    let none = run(&config("none", 0.0, 1), false, None).losses();
    let whole = run(&config("whole", 1e-3, 1), false, None).losses();
    assert_eq!(none[0], whole[0]);
    assert_ne!(none[1], whole[1]);
    let cut = config("cut", 1e-3, 3);
    let mut losses = run(&cut, false, Some(3)).losses();
    losses.extend(run(&cut, true, None).losses());
    assert_eq!(losses, whole);
}

#[test]
fn a_batch_whose_loss_leaps_is_named_and_skipped_also_after_a_stop_in_between() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = with_a_strange_batch(folder.path(), json!({ "factor": 1.2, "window": 5 }));
    let whole = run(&config, false, None);
    let skipped: Vec<u64> =
        whole.steps.iter().filter(|step| step.skipped == Some(true)).map(|step| step.step).collect();
    assert_eq!(skipped, [11]);
    let notice = whole.notices.iter().find(|notice| notice.starts_with("step 11:")).expect("a notice");
    assert!(notice.contains("the update was skipped (samples 80 to 87 of the run, counted from 0)"), "{notice}");
    let mut cut = config.clone();
    set(&mut cut, "run.output", json!(folder.path().join("cut")));
    let mut losses = run(&cut, false, Some(8)).losses();
    losses.extend(run(&cut, true, None).losses());
    assert_eq!(losses, whole.losses());
}

#[test]
fn a_guard_that_stops_ends_the_run_before_the_update_and_names_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = with_a_strange_batch(folder.path(), json!({ "factor": 1.2, "window": 5, "action": "stop" }));
    let Err(error) = try_run(&config, false, None) else { panic!("the run went on") };
    assert!(matches!(error, TrainError::LossSpike { step: 11, first: 80, last: 87, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("(run.loss_spike.factor is 1.2). The batch is samples 80 to 87 of the run"), "{text}");
    // Ten steps are not lost: with a guard that lets the batch pass the run goes on behind them.
    assert!(folder.path().join("run/checkpoints/step-00000010").is_dir());
    let mut patient = config.clone();
    set(&mut patient, "run.loss_spike.factor", json!(1000.0));
    assert_eq!(run(&patient, true, None).steps[0].step, 11);
}

#[test]
fn an_evaluation_made_on_resuming_is_remembered_though_no_step_follows_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let params = json!({ "factor": 0.5, "patience": 0, "threshold": 10.0, "threshold_mode": "abs" });
    let keys = [
        ("scheduler", json!({ "type": "reduce_lr_on_plateau", "params": params })),
        ("data.validation", json!({ "split": 0.01 })),
        ("run.eval_every", json!(3)),
    ];
    let whole = run(&with(&folder.path().join("whole"), &keys), false, None).losses();
    let cut = with(&folder.path().join("cut"), &keys);
    // The first stop leaves the evaluation due at step 6 to the second run, which is stopped behind it.
    let mut losses = run(&cut, false, Some(6)).losses();
    assert!(run(&cut, true, Some(6)).steps.is_empty());
    losses.extend(run(&cut, true, None).losses());
    assert_eq!(losses, whole);
    let metrics = std::fs::read_to_string(folder.path().join("cut/metrics.jsonl")).expect("metrics");
    let evaluations = metrics.lines().filter(|line| line.contains("eval_loss")).count();
    assert_eq!(evaluations, 4, "one each at steps 3, 6, 9 and 12");
}

#[test]
fn the_rate_falls_on_a_plateau_and_a_resumed_run_remembers_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let params = json!({ "factor": 0.5, "patience": 0, "threshold": 10.0, "threshold_mode": "abs" });
    let keys = [
        ("scheduler", json!({ "type": "reduce_lr_on_plateau", "params": params })),
        ("data.validation", json!({ "split": 0.01 })),
        ("run.eval_every", json!(3)),
    ];
    let config = with(&folder.path().join("whole"), &keys);
    let whole = run(&config, false, None);
    let rates: Vec<f64> = whole.steps.iter().map(|step| step.lr).collect();
    assert_eq!(rates, [0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.0025, 0.0025, 0.0025]);
    let notice = "step 6: the validation loss has stopped falling; the rate is now 0.005";
    assert!(whole.notices.iter().any(|found| found == notice), "{:?}", whole.notices);
    for stop in [5, 6, 7] {
        let mut cut = config.clone();
        set(&mut cut, "run.output", json!(folder.path().join(format!("{stop}"))));
        let mut losses = run(&cut, false, Some(stop)).losses();
        losses.extend(run(&cut, true, None).losses());
        assert_eq!(losses, whole.losses(), "stopped at {stop}");
    }
}

#[test]
fn a_plateau_without_evaluations_is_refused() {
    let scheduler = json!({ "type": "reduce_lr_on_plateau" });
    assert_eq!(
        refusal(&[("scheduler", scheduler)]),
        "test: scheduler.type is \"reduce_lr_on_plateau\", which follows the validation loss, and the run does not \
         measure it on the way; give data.validation and a run.eval_every above 0"
    );
}

#[test]
fn a_ramp_grows_the_steps_and_a_run_of_one_epoch_takes_more_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = [
        ("train_micro_batch_size_per_gpu", json!(2)),
        ("run.batch_ramp", json!({ "start": 2, "steps": 6 })),
        ("run.steps", Value::Null),
        ("run.tokens", json!(32 * 50)),
    ];
    let trained = run(&with(&folder.path().join("run"), &keys), false, None);
    let mut tokens: Vec<u64> = trained.steps.iter().map(|step| step.tokens).collect();
    for i in (1..tokens.len()).rev() {
        tokens[i] -= tokens[i - 1];
    }
    let rows: Vec<u64> = tokens.iter().map(|tokens| tokens / 32).collect();
    assert_eq!(rows, [2, 2, 4, 4, 6, 6, 8, 8, 8, 8]);
}

#[test]
fn a_ramp_that_does_not_fit_the_batch_is_refused() {
    let micro = ("train_micro_batch_size_per_gpu", json!(4));
    assert_eq!(
        refusal(&[micro.clone(), ("run.batch_ramp", json!({ "start": 6, "steps": 6 }))]),
        "test: run.batch_ramp.start is 6; it must be a multiple of 4, which is one micro-batch on every rank, and at most \
         8, the train_batch_size"
    );
    assert_eq!(
        refusal(&[micro, ("run.batch_ramp", json!({ "start": 4 }))]),
        "test: run.batch_ramp.steps is missing; it must be the number of steps until train_batch_size"
    );
    let file = json!({ "run": { "batch_ramp": { "step": 4 } } });
    let error = RunConfig::from_value(file, "r.json").expect_err("a refusal").to_string();
    assert_eq!(error, "r.json: run.batch_ramp.step is not a known key; the nearest one is run.batch_ramp.steps");
}
