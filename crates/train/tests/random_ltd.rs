//! Random-LTD in a run: how many tokens layers run on, what that costs, what does not change, and what is refused.

mod common;

use common::{run, set, small, try_run, weights};
use data::Sample;
use models::weights::WeightSource;
use models::{ModelConfig, registry};
use serde_json::{Value, json};
use std::path::Path;
use train::plan::report::PlanReport;
use train::{Engine, RunConfig, StepReport};

/// Layer 1 of the small run's two keeps 8 tokens of 32 at first, then 8 more every second step.
fn ltd() -> Value {
    json!({ "enabled": true, "seed": 5, "data_routing": { "enabled": true, "random_ltd": {
        "enabled": true, "total_layer_num": 2, "random_ltd_layer_num": 1, "random_ltd_layer_id": [1],
        "model_mask_name": "attention_mask", "model_type": "decoder", "hidden_state_order": "batch_seq_dim",
        "micro_batch_size": 8, "random_ltd_schedule": { "min_value": 8, "max_value": 32, "schedule_type": "fixed_linear",
            "schedule_config": { "require_steps": 6, "seq_per_step": 8 } } } } })
}

fn dropping(output: &Path, more: &[(&str, Value)]) -> Value {
    let mut config = small(output);
    set(&mut config, "data_efficiency", ltd());
    more.iter().for_each(|(path, value)| set(&mut config, path, value.clone()));
    config
}

const SCHEDULE: &str = "data_efficiency.data_routing.random_ltd.random_ltd_schedule";

#[test]
fn the_metrics_show_deepspeeds_schedule_and_a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
    let whole = run(&dropping(&whole_output, &[]), false, None);
    let kept: Vec<u64> = whole.steps.iter().map(|step| step.random_ltd_tokens.expect("a number")).collect();
    assert_eq!(kept, [8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 32, 32]);
    let cut = dropping(&cut_output, &[]);
    let parts = [run(&cut, false, Some(4)).losses(), run(&cut, true, None).losses()];
    assert_eq!(parts.concat(), whole.losses());
    assert!(weights(&whole_output) == weights(&cut_output), "final weights differ");
}

#[test]
fn rows_that_keep_all_their_tokens_give_the_bits_of_a_run_without_and_shorter_ones_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses =
        |name: &str, more: &[(&str, Value)]| run(&dropping(&folder.path().join(name), more), false, None).losses();
    let plain = losses("plain", &[("data_efficiency.enabled", json!(false))]);
    let whole = [(&*format!("{SCHEDULE}.min_value"), json!(32))];
    assert_eq!(losses("whole", &whole), plain);
    let dropped = losses("dropped", &[]);
    assert!(dropped.iter().zip(&plain).all(|(a, b)| a != b), "a step is as without token dropping");
    // Another seed draws other tokens.
    assert_ne!(losses("seed", &[("data_efficiency.seed", json!(6))]), dropped);
    let inner = [("data_efficiency.data_routing.enabled", json!(false))];
    assert_eq!(losses("inner", &inner), plain);
}

#[test]
fn threads_recompute_of_every_kind_and_micro_batches_draw_the_same_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let steps = |name: &str, more: &[(&str, Value)]| run(&dropping(&folder.path().join(name), more), false, None);
    let want = steps("want", &[]);
    for (name, recompute) in [
        ("true", json!(true)),
        ("segment", json!({ "segment": 2 })),
        ("every", json!({ "every": 2 })),
        ("ops", json!({ "ops": ["norm", "GELU", "attention", "linear"] })),
    ] {
        let changed = [("run.recompute", recompute), ("run.threads", json!(1))];
        assert_eq!(steps(name, &changed).losses(), want.losses(), "{name}");
    }
    let cut = steps("cut", &[("train_micro_batch_size_per_gpu", json!(2))]);
    for (a, b) in want.steps.iter().zip(&cut.steps) {
        // Sums over the batch are cut differently; tokens are drawn by the sample's number in the batch.
        assert!((a.loss - b.loss).abs() < 2e-5, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
}

#[test]
fn curriculum_layer_drop_token_dropping_and_recompute_go_together_and_across_a_resume() {
    let folder = tempfile::tempdir().expect("a folder");
    let curriculum = json!({ "enabled": true, "min_difficulty": 8, "max_difficulty": 32, "schedule_type": "fixed_linear",
        "schedule_config": { "total_curriculum_step": 8, "difficulty_step": 8 } });
    let all = [
        ("curriculum_learning", curriculum),
        ("progressive_layer_drop", json!({ "enabled": true, "theta": 0.5, "gamma": 50.0 })),
        (
            SCHEDULE,
            json!({ "min_value": 4, "max_value": 32, "schedule_config": { "require_steps": 10, "seq_per_step": 4 } }),
        ),
        ("fp16", json!({ "enabled": false })),
    ];
    let whole = run(&dropping(&folder.path().join("whole"), &all), false, None);
    for (name, recompute) in [("segment", json!({ "segment": 2 })), ("ops", json!({ "ops": ["norm", "gelu"] }))] {
        let changed: Vec<_> = all.iter().cloned().chain([("run.recompute", recompute)]).collect();
        let cut = dropping(&folder.path().join(name), &changed);
        let parts = [run(&cut, false, Some(5)).losses(), run(&cut, true, None).losses()];
        assert_eq!(parts.concat(), whole.losses(), "{name}");
    }
    // Each of the four alone changes the losses.
    for without in 0..3 {
        let mut rest = all.to_vec();
        rest[without] = (
            ["curriculum_learning.enabled", "progressive_layer_drop.enabled", "data_efficiency.enabled"][without],
            json!(false),
        );
        let output = folder.path().join(without.to_string());
        assert_ne!(run(&dropping(&output, &rest), false, None).losses(), whole.losses());
    }
}

fn row(length: u32) -> Sample {
    Sample {
        input_ids: (0..length).map(|i| i * 7 % 50).collect(),
        targets: (0..length as i32).map(|i| (i + 1) * 7 % 50).collect(),
        positions: (0..length).collect(),
        document_starts: vec![0],
        ..Sample::default()
    }
}

/// Width of the model below.
const D: u64 = 8;

/// Four layers, of which the middle two keep `kept` of 64 tokens.
fn config(kept: u64, recompute: Value) -> Value {
    let schedule =
        json!({ "min_value": kept, "max_value": kept, "schedule_config": { "require_steps": 1, "seq_per_step": 1 } });
    json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": 50, "n_positions": 64, "n_embd": D, "n_layer": 4, "n_head": 2 } },
        "run": { "threads": 1, "recompute": recompute, "steps": 9 }, "train_batch_size": 2,
        "optimizer": { "type": "SGD", "params": { "lr": 0.1 } },
        "data_efficiency": { "enabled": true, "data_routing": { "enabled": true, "random_ltd": { "enabled": true,
            "total_layer_num": 4, "random_ltd_layer_num": 2, "random_ltd_layer_id": [2, 1], "random_ltd_schedule": schedule } } },
    })
}

fn step(config: Value) -> StepReport {
    let model = ModelConfig::from_json(&config["model"]["config"], "test").expect("a model");
    let config = RunConfig::from_value(config, "test").expect("a configuration");
    let model = registry::build(&model, 64);
    let mut engine = Engine::with_weights(model, config, &WeightSource::Random { seed: 1 }).expect("an engine");
    engine.train_batch(&[row(64), row(64)]).expect("a step")
}

/// Operations of a layer's forward on so many tokens of a row: products, pairs of query and key, norms, GELU, residuals.
fn layer_flops(tokens: u64) -> u64 {
    tokens * (24 * D * D + 2 * D * (tokens + 1) + 16 * D + 60 * D + 4 * D)
}

#[test]
fn the_work_that_is_reported_is_that_of_the_tokens_that_ran_and_of_what_ran_again() {
    let whole = step(config(64, json!(false)));
    for kept in [16, 33] {
        let some = step(config(kept, json!(false)));
        assert_eq!(whole.cost.flops - some.cost.flops, 2 * 2 * (layer_flops(64) - layer_flops(kept)));
        assert_eq!(some.recomputed.flops, 0);
        let two_rows = 2 * (2 * layer_flops(64) + 2 * layer_flops(kept));
        // GPT-2's embedding adds positions to tokens and drops some.
        let again = step(config(kept, json!(true))).recomputed.flops;
        assert_eq!(again, two_rows + 2 * 2 * 64 * D);
        assert_eq!(step(config(kept, json!({ "segment": 3 }))).recomputed.flops, again);
        assert_eq!(step(config(kept, json!({ "every": 4 }))).recomputed.flops, 2 * layer_flops(64));
        let gelus = 2 * (2 * 64 + 2 * kept) * 60 * D;
        assert_eq!(step(config(kept, json!({ "ops": ["gelu"] }))).recomputed.flops, gelus);
    }
}

#[test]
fn the_plan_is_that_of_the_last_step() {
    let plan = |schedule: Value, recompute: Value| {
        let mut config = config(64, recompute);
        set(&mut config, SCHEDULE, schedule);
        PlanReport::of(&RunConfig::from_value(config, "test").expect("a configuration"), 1).expect("a plan")
    };
    let constant = |kept: u64| json!({ "min_value": kept, "max_value": kept, "schedule_config": { "require_steps": 1, "seq_per_step": 1 } });
    // Step 9 of 16: 8 + 56 x 8 / 16, rounded down to a multiple of 8.
    let growing =
        json!({ "min_value": 8, "max_value": 64, "schedule_config": { "require_steps": 16, "seq_per_step": 8 } });
    for recompute in [json!(false), json!({ "ops": ["norm"] })] {
        let [grown, at_end, whole] =
            [growing.clone(), constant(32), constant(64)].map(|schedule| plan(schedule, recompute.clone()));
        assert_eq!((&grown.memory_per_rank, grown.flops_per_token), (&at_end.memory_per_rank, at_end.flops_per_token));
        assert!(grown.memory_per_rank["activations"] < whole.memory_per_rank["activations"]);
        assert!(grown.flops_per_token < whole.flops_per_token);
    }
}

#[test]
fn what_does_not_fit_together_is_refused_by_name_and_one_that_is_off_needs_nothing() {
    const LTD: &str = "data_efficiency.data_routing.random_ltd";
    let refusal = |path: &str, value: Value| {
        let mut config = config(8, json!(false));
        set(&mut config, &format!("{LTD}.{path}"), value);
        let error = RunConfig::from_value(config, "r.json").map_err(train::TrainError::from);
        error.and_then(|config| PlanReport::of(&config, 1)).map(|_| ()).map_err(|error| error.to_string())
    };
    let schedule = |path: &str| format!("random_ltd_schedule.{path}");
    let cases = [
        ("total_layer_num", Value::Null, "total_layer_num is missing; random_ltd needs it"),
        (&*schedule("min_value"), Value::Null, "random_ltd_schedule.min_value is missing; random_ltd needs it"),
        (
            "random_ltd_layer_num",
            json!(3),
            "random_ltd_layer_num is 3; random_ltd_layer_id names 2, and the two must agree",
        ),
        ("random_ltd_layer_id", json!([1, 1]), "random_ltd_layer_id[1] is 1, which stands there twice"),
        (&schedule("max_value"), json!(7), "random_ltd_schedule.max_value is 7; it must be at least 8, the min_value"),
        (
            "model_type",
            json!("encoder"),
            "model_type is \"encoder\"; the models here are decoders: it must be \"decoder\"",
        ),
        (
            "hidden_state_order",
            json!("dim_seq"),
            "hidden_state_order is \"dim_seq\"; it must be \"batch_seq_dim\" or \"seq_batch_dim\"",
        ),
        (
            "layer_token_lr_schedule",
            json!({ "enabled": true }),
            "layer_token_lr_schedule.enabled is true, which DeepSpeed does not have; it must be false",
        ),
        ("total_layer_num", json!(12), "total_layer_num is 12; the model has 4 layers"),
        ("random_ltd_layer_id", json!([0, 4]), "random_ltd_layer_id[1] is 4; the model's layers are 0 to 3"),
    ];
    for (path, value, want) in cases {
        assert_eq!(refusal(path, value), Err(format!("r.json: {LTD}.{want}")));
    }
    let rounding =
        json!({ "min_value": 8, "max_value": 64, "schedule_config": { "require_steps": 2, "seq_per_step": 16 } });
    let want = "random_ltd_schedule.min_value is 8; it must be at least 16, the seq_per_step: numbers of tokens are rounded \
                down to multiples of it";
    assert_eq!(refusal("random_ltd_schedule", rounding), Err(format!("r.json: {LTD}.{want}")));
    assert_eq!(refusal("layer_token_lr_schedule", json!({ "enabled": false, "total_layer_tokens": 9 })), Ok(()));
    let off = json!({ "data_efficiency": { "enabled": false, "data_routing": { "enabled": true, "random_ltd": { "enabled": true } } } });
    assert!(RunConfig::from_value(off, "r.json").is_ok());
}

#[test]
fn curricula_over_samples_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let sampling = json!({ "enabled": true, "curriculum_learning": { "enabled": true, "curriculum_metrics": {
        "rarity": { "min_difficulty": 1, "max_difficulty": 9 } } } });
    let config = dropping(&folder.path().join("run"), &[("data_efficiency.data_sampling", sampling)]);
    let refusal = try_run(&config, false, None).map(|_| ()).expect_err("a refusal").to_string();
    let want = "data_efficiency.data_sampling.enabled is true, which is not supported yet; it must be false (rows that grow with the steps \
         are the section curriculum_learning)";
    assert_eq!(refusal, format!("test: {want}"));
}
