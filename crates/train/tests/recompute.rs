//! Recompute in a run: every word for it, the same bits, less memory in the plan, and what is refused.

mod common;

use common::{run, set, small};
use models::Recompute;
use ops::RecomputedOp;
use serde_json::{Value, json};
use train::RunConfig;
use train::plan::report::PlanReport;

fn config(file: Value) -> Result<RunConfig, String> {
    RunConfig::from_value(file, "r.json").map_err(|error| error.to_string())
}

#[test]
fn every_word_for_recompute_is_understood() {
    let ops = vec![RecomputedOp::Norm, RecomputedOp::SiluMul];
    let cases = [
        (json!({}), Recompute::Nothing),
        (
            json!({ "run": { "recompute": false }, "pipeline": { "activation_checkpoint_interval": 0 } }),
            Recompute::Nothing,
        ),
        (json!({ "run": { "recompute": true } }), Recompute::Segments(1)),
        (json!({ "run": { "recompute": { "segment": 3 } } }), Recompute::Segments(3)),
        (json!({ "run": { "recompute": { "every": 2 } } }), Recompute::Every(2)),
        (json!({ "run": { "recompute": { "ops": ["norm", "SILU_MUL"] } } }), Recompute::Ops(ops)),
        (json!({ "activation_checkpointing": { "number_checkpoints": 4, "profile": true } }), Recompute::Parts(4)),
        (json!({ "activation_checkpointing": { "number_checkpoints": 0 } }), Recompute::Nothing),
        (json!({ "pipeline": { "activation_checkpoint_interval": 2 } }), Recompute::Segments(2)),
    ];
    for (file, want) in cases {
        let first = config(file.clone()).expect("a configuration");
        assert_eq!(first.recompute(), want, "{file}");
        // What `run.json` holds means the same.
        assert_eq!(config(first.resolved(&[])).expect("a configuration").recompute(), want, "{file}");
    }
    let names = RecomputedOp::ALL.map(RecomputedOp::name);
    let all = config(json!({ "run": { "recompute": { "ops": names } } })).expect("every op has its name in the table");
    assert_eq!(all.recompute(), Recompute::Ops(RecomputedOp::ALL.to_vec()));
}

#[test]
fn two_wishes_or_half_of_one_are_refused_by_name() {
    let cases = [
        (
            json!({ "run": { "recompute": {} } }),
            "run.recompute has no kind; it must be true, false or hold one of every, segment and ops",
        ),
        (
            json!({ "run": { "recompute": { "every": 2, "ops": ["norm"] } } }),
            "run.recompute has every and ops; it must be true, false or hold one of every, segment and ops",
        ),
        (json!({ "run": { "recompute": { "ops": [] } } }), "run.recompute.ops is []; it must name at least one op"),
        (
            json!({ "run": { "recompute": { "every": 0 } } }),
            "run.recompute.every is 0; it must be a whole number of at least 1",
        ),
        (
            json!({ "run": { "recompute": { "ops": ["softmax"] } } }),
            "run.recompute.ops[0] is \"softmax\"; it must be \"norm\", \"gelu\", \"silu_mul\", \"attention\" or \"linear\"",
        ),
        (
            json!({ "run": { "recompute": true }, "activation_checkpointing": { "number_checkpoints": 4 } }),
            "run.recompute is true and activation_checkpointing.number_checkpoints is 4; keep one of them",
        ),
        (
            json!({ "activation_checkpointing": { "number_checkpoints": 4 }, "pipeline": { "activation_checkpoint_interval": 2 } }),
            "activation_checkpointing.number_checkpoints is 4 and pipeline.activation_checkpoint_interval is 2; keep one of them",
        ),
    ];
    for (file, want) in cases {
        assert_eq!(config(file).map(|_| ()), Err(format!("r.json: {want}")));
    }
}

#[test]
fn one_layer_in_more_than_there_are_is_refused_by_the_plan() {
    let plan = |every: u64| {
        let file = json!({ "model": { "preset": "gpt2-124m" }, "run": { "recompute": { "every": every } }, "train_batch_size": 1 });
        PlanReport::of(&config(file).expect("a configuration"), 1).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(plan(12), Ok(()));
    let want = "r.json: run.recompute.every is 13; it must be at most 12, the layers of the model";
    assert_eq!(plan(13), Err(want.to_owned()));
}

#[test]
fn every_kind_trains_to_the_bits_of_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, path: &str, value: Value| {
        let mut config = small(&folder.path().join(name));
        set(&mut config, path, value);
        run(&config, false, None).losses()
    };
    let want = losses("none", "run.recompute", json!(false));
    for (name, path, value) in [
        ("every", "run.recompute", json!({ "every": 2 })),
        ("segment", "run.recompute", json!({ "segment": 2 })),
        ("ops", "run.recompute", json!({ "ops": ["norm", "gelu", "attention", "linear"] })),
        ("parts", "activation_checkpointing.number_checkpoints", json!(1)),
        ("interval", "pipeline.activation_checkpoint_interval", json!(1)),
    ] {
        assert_eq!(losses(name, path, value), want, "{name}");
    }
}

#[test]
fn what_is_kept_is_what_the_plan_of_gpt2_124m_says() {
    let (rows, tokens, width, layers) = (2, 256, 768, 12);
    let activations = |recompute: Value| {
        let config = config(
            json!({ "model": { "preset": "gpt2-124m" }, "data": { "train": "x", "sequence_length": tokens },
                                    "run": { "recompute": recompute }, "train_batch_size": rows, "bf16": { "enabled": true } }),
        );
        PlanReport::of(&config.expect("a configuration"), 1).expect("a plan").memory_per_rank["activations"]
    };
    let whole = activations(json!(false));
    // What one hidden state of every token takes, in bf16.
    let state = (2 * rows * tokens * width) as u64;
    let saved =
        |recompute: Value| ((whole - activations(recompute)) as f64 / (layers * state) as f64 * 100.0).round() / 100.0;
    // A layer saves 16 hidden states a token: both norms' inputs and outputs, q, k, v, what attention gives, the wide
    // products before GELU (4) and after it (4).
    assert_eq!(saved(json!({ "ops": ["norm"] })), 2.0);
    let layer = saved(json!(true));
    assert!((13.0..15.0).contains(&layer), "{layer}");
    let ops = saved(json!({ "ops": ["norm", "gelu", "attention"] }));
    assert!((6.0..7.1).contains(&ops), "{ops}");
    let half = saved(json!({ "every": 2 }));
    assert!((6.0..7.6).contains(&half), "{half}");
}
