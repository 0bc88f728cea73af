//! Precision that adapts while training: what raises an op to f32, what that saves, and how it ends.

mod common;

use common::{Trained, run, set, shakespeare, small, try_run, weights};
use models::weights::WeightSource;
use serde_json::{Value, json};
use std::path::Path;
use train::config::ModelSource;
use train::metrics::MetricsFile;
use train::model_source::ModelOrigin;
use train::plan::RunPlan;
use train::{Engine, Outcome, RunConfig};

/// Settings over [`small`].
fn with(output: &Path, settings: &[(&str, Value)]) -> Value {
    let mut config = small(output);
    settings.iter().for_each(|(path, value)| set(&mut config, path, value.clone()));
    config
}

fn fp16(settings: Value) -> (&'static str, Value) {
    let mut section = json!({ "enabled": true });
    section.as_object_mut().expect("a section").extend(settings.as_object().expect("settings").clone());
    ("fp16", section)
}

/// The folder of a two-layer GPT whose second block makes hidden values beyond fp16 and takes them back: `c_fc` is times
/// 400,000 and `c_proj` divided by it.
fn overflowing(folder: &Path) -> Value {
    let path = folder.join("start");
    let file = json!({ "model": { "config": { "model_type": "gpt2", "vocab_size": 256, "n_positions": 32, "n_embd": 32,
                                              "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                                              "attn_pdrop": 0.0 } },
                       "train_batch_size": 1, "optimizer": { "type": "AdamW" } });
    let config = RunConfig::from_value(file, "start").expect("a run file");
    let Some(source @ ModelSource::Config(_)) = config.model.as_ref().and_then(|model| model.source()) else {
        panic!("a config")
    };
    let model = ModelOrigin::open(&config, source).expect("a model").build(None, 32).expect("a model");
    let source = WeightSource::Reader(Box::new(|spec, range| {
        let factor = match spec.name.as_str() {
            "transformer.h.1.mlp.c_fc.weight" => 4e5,
            "transformer.h.1.mlp.c_proj.weight" => 1.0 / 4e5,
            _ => 1.0,
        };
        Ok(spec.initial(3, range).into_iter().map(|x| x * factor).collect())
    }));
    let engine = Engine::with_weights(model, config, &source).expect("an engine");
    engine.save_pretrained(&path, None).expect("a folder");
    json!({ "path": path })
}

/// A run of that model: the large weights shrink by a twentieth a step, the small ones stay.
fn shrinking(output: &Path, model: &Value, steps: u64) -> Value {
    json!({
        "model": model,
        "data": { "train": shakespeare(), "tokenizer": "byte", "sequence_length": 32 },
        "run": { "output": output, "steps": steps, "checkpoint_every": 5, "seed": 3 },
        "train_batch_size": 8,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-2 },
            "groups": [{ "match": ["*h.1.mlp.c_fc.weight"], "weight_decay": 5.0 },
                       { "match": ["*h.1.mlp.c_proj.weight"], "lr": 1e-12 }] },
    })
}

const SITE: &str = "linear of transformer.h.1";

#[test]
fn an_overflowing_product_is_raised_trains_to_the_loss_of_f32_and_is_lowered_when_it_fits_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = overflowing(folder.path());
    let exact = run(&shrinking(&folder.path().join("f32"), &model, 60), false, None);
    // Without it the first step has no loss.
    let mut config = shrinking(&folder.path().join("fp16"), &model, 60);
    set(&mut config, "fp16", json!({ "enabled": true, "initial_scale_power": 8 }));
    let error = try_run(&config, false, None).map(|_| ()).expect_err("an overflow").to_string();
    assert!(error.contains("first block whose output is not finite is transformer.h.1"), "{error}");

    let output = folder.path().join("adaptive");
    config["run"]["output"] = json!(output);
    config["run"]["adaptive_precision"] = json!({ "every": 5, "window": 10, "max_underflow": 1, "max_error": 10 });
    let adaptive = run(&config, false, None);
    println!("{:#?}", adaptive.notices);
    let of_site: Vec<&String> = adaptive.notices.iter().filter(|notice| notice.contains(SITE)).collect();
    assert_eq!(of_site[0], &format!("step 1: {SITE} runs in f32 up to step 11: its output overflows fp16"));
    // Neither the gradient of the tiny `c_proj` nor its rounding raises anything here: looks see outputs alone.
    // Looks renew the window while the output is above half of fp16's largest number.
    assert!(of_site[1].ends_with(&format!("{SITE} runs in fp16 again")), "{of_site:?}");
    let lowered: u64 = of_site[1].trim_start_matches("step ").split(':').next().unwrap().parse().expect("a step");
    assert!((20..60).contains(&lowered), "lowered after step {lowered}");
    let raised = |step: usize| adaptive.steps[step - 1].precision.expect("metrics").raised;
    assert!(raised(1) >= 1 && raised(lowered as usize) >= 1 && raised(60) == 0, "{of_site:?}");
    assert!(adaptive.steps.iter().all(|step| step.skipped == Some(false)));

    let mean = |trained: &Trained| trained.steps[50..].iter().map(|step| step.loss).sum::<f64>() / 10.0;
    println!("f32 {:.4}, fp16 adaptive {:.4}", mean(&exact), mean(&adaptive));
    assert!((mean(&adaptive) / mean(&exact) - 1.0).abs() < 0.01, "{}, in f32 {}", mean(&adaptive), mean(&exact));
    let lines = MetricsFile::read_all(&output.join("metrics.jsonl")).expect("metrics");
    assert!(lines[0]["precision"]["raised"].as_u64() >= Some(1) && lines[1]["precision"].get("error").is_none());
    assert!(lines[5]["precision"]["error"].is_number(), "{}", lines[5]);
}

#[test]
fn a_stopped_run_raises_and_lowers_what_an_undisturbed_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = overflowing(folder.path());
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let config = |output: &Path| {
        let mut config = shrinking(output, &model, 45);
        set(&mut config, "fp16", json!({ "enabled": true, "initial_scale_power": 8 }));
        config["run"]["adaptive_precision"] = json!({ "every": 5, "window": 10, "max_underflow": 1, "max_error": 10 });
        config["train_micro_batch_size_per_gpu"] = json!(4);
        config
    };
    let undisturbed = run(&config(&whole), false, None);
    let parts = [(false, Some(3)), (true, Some(18)), (true, Some(41)), (true, None)];
    let parts = parts.map(|(resume, stop)| run(&config(&cut), resume, stop));
    assert_eq!(parts[3].outcome, Outcome::Finished);
    let of = |trained: &Trained| -> Vec<(u64, Option<u64>)> {
        trained.steps.iter().map(|step| (step.loss.to_bits(), step.precision.map(|p| p.raised))).collect()
    };
    assert_eq!(parts.iter().flat_map(&of).collect::<Vec<_>>(), of(&undisturbed));
    let said = |trained: &Trained| {
        let ours = trained.notices.iter().filter(|notice| notice.contains(" runs in ")).cloned();
        ours.collect::<Vec<String>>()
    };
    assert_eq!(parts.iter().flat_map(&said).collect::<Vec<_>>(), said(&undisturbed));
    assert!(weights(&whole) == weights(&cut), "final weights differ");
}

#[test]
fn a_run_in_which_nothing_is_raised_has_the_bits_of_one_without_it_and_shows_what_was_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, mode: &(&'static str, Value), adaptive: Value| {
        let settings = [mode.clone(), ("run.adaptive_precision", adaptive)];
        run(&with(&folder.path().join(name), &settings), false, None)
    };
    // Relative rounding: 2^-9 and 2^-12 at most for a value, more where terms cancel.
    for (mode, error) in [
        (("bf16", json!({ "enabled": true })), 5e-4..2e-2),
        (fp16(json!({ "initial_scale_power": 12 })), 5e-5..2e-3),
        (("torch_autocast", json!({ "enabled": true, "dtype": "bf16" })), 5e-4..2e-2),
    ] {
        let plain = losses(&format!("{} plain", mode.0), &mode, Value::Null);
        let watched = losses(&format!("{} watched", mode.0), &mode, json!({ "every": 1 }));
        assert!(watched.notices.is_empty(), "{:?}", watched.notices);
        assert_eq!(watched.losses(), plain.losses());
        let looks: Vec<_> =
            watched.steps.iter().map(|step| step.precision.expect("metrics").look.expect("a look")).collect();
        let worst = looks.iter().map(|look| look.error).fold(0.0, f64::max);
        println!("{}: {looks:?}", mode.0);
        assert!(error.contains(&worst), "{}: {worst}", mode.0);
    }
}

#[test]
fn an_op_too_far_from_f32_is_raised_for_its_window_and_lowered_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    // Each look measures one block: the embedding at step 1, the first layer at step 3, the second at step 5, none again.
    let adaptive = json!({ "every": 2, "window": 3, "max_error": 1e-3 });
    let settings = [("bf16", json!({ "enabled": true })), ("run.adaptive_precision", adaptive)];
    let trained = run(&with(&folder.path().join("run"), &settings), false, None);
    println!("{:#?}", trained.notices);
    let begins = |text: &str| trained.notices.iter().filter(|notice| notice.starts_with(text)).count();
    assert!(begins("step 3: linear of transformer.h.0 runs in f32 up to step 6: its output is ") == 1);
    assert!(begins("step 6: linear of transformer.h.0 runs in bf16 again") == 1);
    assert!(begins("step 5: linear of transformer.h.1 runs in f32 up to step 8: its output is ") == 1);
    assert!(begins("step 8: linear of transformer.h.1 runs in bf16 again") == 1);
    let raised: Vec<u64> = trained.steps.iter().map(|step| step.precision.expect("metrics").raised).collect();
    assert!(raised[3] > raised[2] && raised[5] > raised[4], "{raised:?}");
}

#[test]
fn gradients_below_fp16_raise_their_ops_and_those_beyond_it_too_where_the_scale_is_fixed() {
    let folder = tempfile::tempdir().expect("a folder");
    let adaptive = ("run.adaptive_precision", json!({ "every": 4, "window": 4 }));
    let small_scale = [fp16(json!({ "loss_scale": 0.001 })), adaptive.clone()];
    let trained = run(&with(&folder.path().join("below"), &small_scale), false, None);
    assert!(
        trained
            .notices
            .iter()
            .any(|notice| notice.starts_with("step 1: linear of transformer.h.1 runs in f32 up to step 5: ")
                && notice.ends_with(" % of its gradient are below the normal numbers of fp16")),
        "{:#?}",
        trained.notices
    );
    let large_scale = [fp16(json!({ "loss_scale": 1e9 })), adaptive];
    let trained = run(&with(&folder.path().join("beyond"), &large_scale), false, None);
    assert!(
        trained.notices.iter().any(|notice| notice.ends_with("a gradient overflows fp16")),
        "{:#?}",
        trained.notices
    );
    assert!(trained.steps.iter().all(|step| step.skipped == Some(false)), "a step was lost");
    let plain = run(&small(&folder.path().join("f32")), false, None);
    for (plain, adaptive) in plain.steps.iter().zip(&trained.steps) {
        assert!((adaptive.loss / plain.loss - 1.0).abs() < 0.01, "step {}", plain.step);
    }
}

#[test]
fn threads_and_recompute_give_the_same_decisions_and_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = |name: &str, key: &'static str, value: Value| {
        let adaptive = ("run.adaptive_precision", json!({ "every": 2, "window": 3, "max_error": 1e-3 }));
        let settings = [("bf16", json!({ "enabled": true })), adaptive, (key, value)];
        let trained = run(&with(&folder.path().join(name), &settings), false, None);
        (trained.losses(), trained.notices)
    };
    let one = result("one", "run.threads", json!(1));
    assert_eq!(result("two", "run.threads", json!(2)), one);
    assert_eq!(result("again", "run.recompute", json!(true)), one);
}

#[test]
fn a_run_in_f32_has_nothing_to_adapt() {
    let file = json!({ "train_batch_size": 1, "run": { "steps": 1, "adaptive_precision": {} } });
    let config = RunConfig::from_value(file, "r.json").expect("keys that are right each by itself");
    assert_eq!(
        RunPlan::resolve(&config, 32, 0).map(|_| ()).unwrap_err().to_string(),
        "r.json: run.adaptive_precision is given, but every op runs in f32 already; set bf16.enabled, fp16.enabled, \
         torch_autocast or run.precision, or remove it"
    );
}
