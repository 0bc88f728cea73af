//! Training in fp16: the loss of f32, the scale from overflow to overflow, and what is refused.

mod common;

use common::{Trained, run, set, shakespeare, small, try_run, weights};
use serde_json::{Value, json};
use std::path::Path;
use train::metrics::MetricsFile;
use train::plan::report::PlanReport;
use train::{Outcome, RunConfig};

fn fp16(output: &Path, settings: Value) -> Value {
    let mut config = small(output);
    set(&mut config, "fp16", settings);
    set(&mut config, "fp16.enabled", json!(true));
    config
}

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

#[test]
fn three_hundred_steps_in_fp16_reach_the_loss_of_f32_within_one_percent() {
    let folder = tempfile::tempdir().expect("a folder");
    let f32_loss = final_loss(&run(&example(&folder.path().join("f32")), false, None));
    assert!((2.0..2.6).contains(&f32_loss), "{f32_loss} of ln 65 = 4.17 before training");
    let mut config = example(&folder.path().join("fp16"));
    set(&mut config, "fp16", json!({ "enabled": true }));
    let loss = final_loss(&run(&config, false, None));
    println!("f32 {f32_loss:.4}, fp16 {loss:.4}");
    assert!((loss / f32_loss - 1.0).abs() < 0.01, "{loss}, in f32 {f32_loss}");
}

#[test]
fn an_overflow_skips_the_update_holds_the_schedule_and_lowers_the_scale_once_hysteresis_is_used_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = fp16(&output, json!({ "initial_scale_power": 26, "hysteresis": 3 }));
    let params = json!({ "warmup_min_lr": 0.001, "warmup_num_steps": 10, "warmup_type": "linear" });
    set(&mut config, "scheduler", json!({ "type": "WarmupLR", "params": params }));
    let trained = run(&config, false, None);
    let scales: Vec<f64> = trained.steps.iter().map(|step| step.loss_scale.expect("a scale").log2()).collect();
    assert_eq!(scales[..5], [26.0, 26.0, 26.0, 25.0, 24.0]);
    let skipped = trained.steps.iter().take_while(|step| step.skipped == Some(true)).count();
    assert!((4..12).contains(&skipped), "{skipped} steps skipped");
    assert!(trained.steps[..=skipped].iter().all(|step| step.lr == 0.001), "the rate moved with a skipped step");
    assert!(trained.steps[..skipped].iter().all(|step| step.grad_norm.is_none()));
    assert_eq!(trained.notices.len(), skipped);
    assert_eq!(
        trained.notices[..3],
        [
            "step 1: a gradient overflowed at loss scale 67108864, which stays; the update was skipped",
            "step 2: a gradient overflowed at loss scale 67108864, which stays; the update was skipped",
            "step 3: a gradient overflowed at loss scale 67108864; the update was skipped and the scale is now \
         33554432",
        ]
    );
    let lines = MetricsFile::read_all(&output.join("metrics.jsonl")).expect("metrics");
    assert_eq!((&lines[0]["loss_scale"], &lines[0]["skipped"]), (&json!(2f64.powi(26)), &json!(true)));
    assert_eq!(lines[11]["skipped"], json!(skipped > 11));
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_with_its_scale_and_hysteresis() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
    // Overflows and growths both come within the twelve steps.
    let settings = json!({ "initial_scale_power": 27, "loss_scale_window": 2, "hysteresis": 2 });
    let undisturbed = run(&fp16(&whole_output, settings.clone()), false, None);
    let cut = fp16(&cut_output, settings);
    let mut parts = Vec::new();
    for (resume, stop_after) in [(false, Some(1)), (true, Some(2)), (true, Some(7)), (true, None)] {
        parts.push(run(&cut, resume, stop_after));
    }
    assert_eq!(parts.last().map(|part| part.outcome), Some(Outcome::Finished));
    let of = |trained: &Trained| {
        let step =
            |step: &train::event::StepMetrics| (step.loss.to_bits(), step.loss_scale.map(f64::to_bits), step.skipped);
        trained.steps.iter().map(step).collect::<Vec<_>>()
    };
    let whole = of(&undisturbed);
    assert_eq!(parts.iter().flat_map(&of).collect::<Vec<_>>(), whole);
    assert!(
        whole.iter().any(|step| step.2 == Some(true)) && whole.windows(2).any(|pair| pair[1].1 > pair[0].1),
        "{whole:?}"
    );
    assert!(weights(&whole_output) == weights(&cut_output), "final weights differ");
}

#[test]
fn an_overflow_at_the_lowest_scale_stops_the_run_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = json!({ "initial_scale_power": 40, "hysteresis": 1, "min_loss_scale": 2f64.powi(39) });
    let error = try_run(&fp16(&folder.path().join("run"), settings), false, None).map(|_| ()).expect_err("an error");
    assert_eq!(
        error.to_string(),
        "step 2: a gradient overflows although the loss scale is 549755813888, the lowest that fp16.min_loss_scale \
         allows. The run has stopped before the update. Lower the learning rate, clip gradients (gradient_clipping), or \
         train in bf16"
    );
}

#[test]
fn threads_recompute_and_micro_batches_are_as_in_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, key: &str, value: Value| {
        let mut config = fp16(&folder.path().join(name), json!({ "loss_scale": 256 }));
        set(&mut config, key, value);
        run(&config, false, None)
    };
    let one = losses("one", "run.threads", json!(1));
    assert_eq!(losses("two", "run.threads", json!(2)).losses(), one.losses());
    assert_eq!(losses("again", "run.recompute", json!(true)).losses(), one.losses());
    let cut = losses("cut", "train_micro_batch_size_per_gpu", json!(2));
    for (whole, cut) in one.steps.iter().zip(&cut.steps) {
        assert!((whole.loss - cut.loss).abs() < 2e-3, "step {}: {} and {}", whole.step, whole.loss, cut.loss);
    }
}

#[test]
fn the_final_model_is_written_in_f16_and_the_plan_names_precision_and_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    run(&fp16(&output, json!({})), false, None);
    let config = std::fs::read_to_string(output.join("model/config.json")).expect("a config");
    assert!(config.contains("\"float16\""), "{config}");
    let precision = |settings: Value| {
        let config = RunConfig::from_value(fp16(&output, settings), "r.json").unwrap_or_else(|e| panic!("{e}"));
        let lines = PlanReport::of(&config, 1).unwrap_or_else(|e| panic!("{e}")).lines();
        let line = lines.into_iter().find_map(|line| line.strip_prefix("precision").map(|rest| rest.trim().to_owned()));
        line.expect("a line")
    };
    assert_eq!(precision(json!({})), "fp16, weights in f32, dynamic loss scale from 2^16");
    assert_eq!(precision(json!({ "loss_scale": "128" })), "fp16, weights in f32, loss scale 128.0");
}

#[test]
fn settings_that_make_no_scale_are_refused_and_those_of_a_scale_that_is_off_are_not_looked_at() {
    let parse = |file: Value| RunConfig::from_value(file, "r.json").map(|_| ()).map_err(|e| e.to_string());
    let number = "it must be a number of at least 0 or such a number in quotes";
    for (file, want) in [
        (json!({ "fp16": { "loss_scale": true } }), format!("fp16.loss_scale is true; {number}")),
        (json!({ "fp16": { "loss_scale": "inf" } }), format!("fp16.loss_scale is \"inf\"; {number}")),
        (json!({ "fp16": { "loss_scale": "nan" } }), format!("fp16.loss_scale is \"nan\"; {number}")),
        (json!({ "fp16": { "loss_scale": -1 } }), format!("fp16.loss_scale is -1; {number}")),
        (json!({ "fp16": { "loss_scale": [1] } }), format!("fp16.loss_scale is [1]; {number}")),
        (
            json!({ "fp16": { "enabled": true, "loss_scale": 1e39 } }),
            "fp16.loss_scale is 1e39; it must be at most 2^126".into(),
        ),
        (
            json!({ "fp16": { "enabled": true, "loss_scale_window": 0 } }),
            "fp16.loss_scale_window is 0; it must be above 0 where fp16.loss_scale is 0, which is dynamic".into(),
        ),
        (
            json!({ "fp16": { "enabled": true, "min_loss_scale": 0 } }),
            "fp16.min_loss_scale is 0; it must be above 0 where fp16.loss_scale is 0, which is dynamic".into(),
        ),
        (
            json!({ "fp16": { "enabled": true }, "bf16": { "enabled": true } }),
            "fp16.enabled is true, and so is bf16.enabled; keep one of them".into(),
        ),
        (
            json!({ "fp16": { "enabled": true }, "data_types": { "param_dtype": "bf16" } }),
            "data_types.param_dtype is \"bf16\", but the weights are fp16 by fp16.enabled and bf16.enabled; remove it or make it \"fp16\"".into(),
        ),
    ] {
        assert_eq!(parse(file), Err(format!("r.json: {want}")));
    }
    for accepted in [
        json!({ "fp16": { "enabled": true, "loss_scale": 128, "loss_scale_window": 0, "min_loss_scale": 0 } }),
        json!({ "fp16": { "enabled": false, "loss_scale_window": 0, "min_loss_scale": 0 } }),
        json!({ "fp16": { "enabled": true, "loss_scale": " 2048 " }, "data_types": { "param_dtype": "half" } }),
        json!({ "fp16": { "enabled": true }, "data_types": { "grad_accum_dtype": "fp32" } }),
    ] {
        assert_eq!(parse(accepted.clone()), Ok(()), "{accepted}");
    }
}
