//! Ranks that are threads of one process: they train as one rank does, at every ZeRO stage; any layout goes on from any
//! other's checkpoint; and whoever is lost is named.

mod common;

use common::{run, run_on, set, small, weights};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use train::plan::report::PlanReport;
use train::{Outcome, RunConfig};

/// Eight micro-batches a step, evaluation and dropout on the way.
fn config(output: &Path) -> Value {
    let mut config = small(output);
    set(&mut config, "train_micro_batch_size_per_gpu", json!(1));
    set(&mut config, "data.validation", json!({ "split": 0.001 }));
    set(&mut config, "run.steps", json!(6));
    set(&mut config, "run.eval_every", json!(3));
    set(&mut config, "run.deterministic", json!(true));
    config
}

fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    changes.iter().for_each(|(path, value)| set(&mut config, path, value.clone()));
    config
}

/// Losses, norms and the final model of a run on `ranks` ranks.
fn trained(ranks: u64, config: &Value) -> (Vec<u64>, Vec<Option<f64>>, Vec<u8>) {
    let trained = if ranks == 1 {
        run(config, false, None)
    } else {
        run_on(ranks, config, false, |_| ()).unwrap_or_else(|error| panic!("{ranks} ranks: {error}"))
    };
    assert_eq!(trained.outcome, Outcome::Finished);
    let norms = trained.steps.iter().map(|step| step.grad_norm).collect();
    (trained.losses(), norms, weights(Path::new(config["run"]["output"].as_str().expect("a path"))))
}

#[test]
fn a_deterministic_run_is_the_same_bits_on_every_number_of_ranks_at_every_stage_in_every_precision() {
    let folder = tempfile::tempdir().unwrap();
    let precisions = [
        ("f32", vec![]),
        ("bf16", vec![("bf16", json!({ "enabled": true }))]),
        ("fp16", vec![("fp16", json!({ "enabled": true, "initial_scale_power": 8 }))]),
    ];
    for (precision, changes) in precisions {
        let at = |name: &str| with(config(&folder.path().join(name)), &changes);
        let want = trained(1, &at(&format!("{precision}-1")));
        for ranks in [2, 4, 8] {
            for stage in 0..4 {
                let mut config = at(&format!("{precision}-{ranks}-{stage}"));
                set(&mut config, "zero_optimization", json!({ "stage": stage }));
                let got = trained(ranks, &config);
                assert_eq!(got.0, want.0, "losses: {precision}, {ranks} ranks, stage {stage}");
                assert_eq!(got.1, want.1, "norms: {precision}, {ranks} ranks, stage {stage}");
                assert!(got.2 == want.2, "weights: {precision}, {ranks} ranks, stage {stage}");
            }
        }
    }
}

#[test]
fn what_goes_on_between_gradient_and_update_is_that_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, Vec<(&str, Value)>); 7] = [
        (
            "noise, penalties, clipping",
            vec![
                ("run.gradient_noise", json!(0.01)),
                ("run.l1_penalty", json!(1e-3)),
                ("run.l2_penalty", json!(1e-3)),
                ("run.clip_value", json!(0.05)),
                ("gradient_clipping", json!(0.1)),
            ],
        ),
        ("an average of the weights", vec![("run.ema_decay", json!(0.9)), ("bf16", json!({ "enabled": true }))]),
        ("layers left out", vec![("progressive_layer_drop", json!({ "enabled": true, "theta": 0.5, "gamma": 0.5 }))]),
        ("recompute", vec![("run.recompute", json!(true))]),
        ("whole matrices", vec![("optimizer", json!({ "type": "Muon", "params": { "lr": 1e-2 } }))]),
        ("norms of whole weights", vec![("optimizer", json!({ "type": "Lamb", "params": { "lr": 1e-2 } }))]),
        (
            "frozen weights",
            vec![
                ("optimizer.groups", json!([{ "match": ["*wpe*", "*h.0*"], "frozen": true }])),
                ("bf16", json!({ "enabled": true })),
            ],
        ),
    ];
    for (what, changes) in cases {
        let at = |name: &str| with(config(&folder.path().join(what).join(name)), &changes);
        let want = trained(1, &at("1"));
        for (ranks, stage) in [(2, 0), (2, 1), (4, 2), (2, 3)] {
            let mut config = at(&format!("{ranks}-{stage}"));
            set(&mut config, "zero_optimization", json!({ "stage": stage }));
            let got = trained(ranks, &config);
            assert!(got == want, "{what}, {ranks} ranks, stage {stage}: {:?} and {:?}", got.0, want.0);
        }
    }
}

#[test]
fn without_determinism_losses_of_fifty_steps_stay_within_1e_4() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, stage: u64| {
        let changes = [
            ("run.deterministic", json!(false)),
            ("run.steps", json!(50)),
            ("optimizer.params.lr", json!(1e-3)),
            ("zero_optimization", json!({ "stage": stage })),
        ];
        with(config(&folder.path().join(name)), &changes)
    };
    let one = run(&at("1", 0), false, None);
    for stage in 0..4 {
        let two = run_on(2, &at(&format!("2-{stage}"), stage), false, |_| ()).unwrap();
        for (one, two) in one.steps.iter().zip(&two.steps) {
            let (a, b) = (one.loss, two.loss);
            assert!((a - b).abs() < 1e-4, "stage {stage}, step {}: {b}, one rank {a}", one.step);
        }
    }
}

#[test]
fn a_checkpoint_of_8_ranks_at_stage_3_goes_on_in_every_other_layout() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, stage: u64, steps: u64| {
        let changes = [("zero_optimization", json!({ "stage": stage })), ("run.steps", json!(steps))];
        with(config(&folder.path().join(name)), &changes)
    };
    let want = trained(8, &at("whole", 3, 10));
    for (ranks, stage) in [(1, 0), (2, 1), (4, 2), (2, 3), (8, 0)] {
        let name = format!("{ranks}-{stage}");
        run_on(8, &at(&name, 3, 5), false, |_| ()).unwrap();
        let config = at(&name, stage, 10);
        let on = if ranks == 1 { run(&config, true, None) } else { run_on(ranks, &config, true, |_| ()).unwrap() };
        assert_eq!(on.losses(), want.0[5..], "{name}");
        assert!(weights(&folder.path().join(&name)) == want.2, "{name}");
    }
}

#[test]
fn a_step_says_what_crossed_between_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    set(&mut config, "zero_optimization", json!({ "stage": 3 }));
    set(&mut config, "train_micro_batch_size_per_gpu", json!(4));
    let trained = run_on(2, &config, false, |_| ()).unwrap();
    let step = trained.steps[0].communication.as_ref().expect("of several ranks");
    // Half of about 36 thousand weights, forward and backward; the tied head is gathered for its block and the embedding's.
    let (gathered, scattered) = (step["all_gather"].elements, step["reduce_scatter"].elements);
    assert!(scattered > 10_000 && gathered > 2 * scattered, "{gathered} gathered, {scattered} scattered");
    assert!(
        run(&with(config, &[("run.output", json!(folder.path().join("one")))]), false, None).steps[0]
            .communication
            .is_none()
    );
}

#[test]
fn a_rank_that_panics_or_stalls_ends_the_run_with_its_number_and_leaves_the_last_checkpoint_whole() {
    let folder = tempfile::tempdir().unwrap();
    type Case = (&'static str, fn(u64), &'static str);
    let cases: [Case; 2] = [
        ("panic", |step| assert!(step != 4, "an injected death"), "rank 0 panicked: an injected death"),
        (
            "stall",
            |step| {
                if step == 4 {
                    std::thread::sleep(Duration::from_secs(60));
                }
            },
            "rank 0 did not answer within 2 s; the last call it began was",
        ),
    ];
    for (name, on_step, what) in cases {
        let mut config = config(&folder.path().join(name));
        set(&mut config, "run.checkpoint_every", json!(3));
        set(&mut config, "run.comm_timeout", json!(2.0));
        let start = Instant::now();
        let error = run_on(4, &config, false, on_step).err().expect("a rank is lost");
        assert!(error.contains(what), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name} took {:?}", start.elapsed());
        if name == "panic" {
            // The stalled thread still holds the lock of its folder.
            let on = run_on(2, &config, true, |_| ()).unwrap();
            assert_eq!(on.steps[0].step, 4);
        }
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let refusal = |ranks| run_on(ranks, &config(&output), false, |_| ()).err().expect("a refusal");
    assert!(refusal(3).contains("run.deterministic is true on 3 data-parallel ranks"), "{}", refusal(3));
    assert!(refusal(16).contains("x 16 data-parallel ranks"), "{}", refusal(16));
    assert!(!output.exists());
}

#[test]
fn what_ranks_cannot_do_together_yet_is_refused_by_its_key_by_run_and_plan() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let bf16 = ("bf16", json!({ "enabled": true }));
    let stage = |stage: u64| ("zero_optimization", json!({ "stage": stage }));
    let masters = json!({ "enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true });
    let offload = json!({ "stage": 1, "offload_optimizer": { "device": "cpu" } });
    type Changes<'a> = &'a [(&'a str, Value)];
    let cases: [(Changes<'_>, &str); 6] = [
        (&[bf16.clone(), ("data_types", json!({ "grad_accum_dtype": "bf16" }))], "data_types.grad_accum_dtype keeps"),
        (&[("bf16", masters), ("zero_optimization", offload)], "bf16.bf16_master_weights_and_grads keeps"),
        (
            &[bf16.clone(), ("run.adaptive_precision", json!({}))],
            "run.adaptive_precision is given on 2 data-parallel ranks",
        ),
        (&[("torch_autocast", json!({ "enabled": true })), stage(1)], "torch_autocast gives ops formats of their own"),
        (
            &[bf16, ("run.precision", json!({ "norm": "f32" })), stage(3)],
            "run.precision gives ops formats of their own",
        ),
        (&[("run.norms_every", json!(1)), stage(2)], "run.norms_every is 1 and ranks share"),
    ];
    for (changes, what) in cases {
        let config = with(config(&output), changes);
        let refusal = run_on(2, &config, false, |_| ()).err().expect("a refusal");
        assert!(refusal.contains(what), "{refusal}");
        let planned = PlanReport::of(&RunConfig::from_value(config, "test").unwrap(), 2);
        assert!(planned.unwrap_err().to_string().contains(what), "{what}");
    }
    assert!(!output.exists());
}

#[test]
fn losses_and_formats_by_op_on_ranks_are_those_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let all = [(2, 0), (2, 1), (4, 2), (2, 3)];
    let whole = [(2, 0), (4, 0)];
    type Case<'a> = (&'a str, Vec<(&'a str, Value)>, &'a [(u64, u64)]);
    let cases: [Case<'_>; 3] = [
        ("loss terms", vec![("run.label_smoothing", json!(0.1)), ("run.z_loss", json!(1e-3))], &all),
        ("autocast", vec![("torch_autocast", json!({ "enabled": true }))], &whole),
        (
            "formats",
            vec![("bf16", json!({ "enabled": true })), ("run.precision", json!({ "norm": "f32", "linear": "f32" }))],
            &whole,
        ),
    ];
    for (what, changes, layouts) in cases {
        let at = |name: &str| with(config(&folder.path().join(what).join(name)), &changes);
        let want = trained(1, &at("1"));
        for (ranks, stage) in layouts {
            let mut config = at(&format!("{ranks}-{stage}"));
            set(&mut config, "zero_optimization", json!({ "stage": stage }));
            let got = trained(*ranks, &config);
            assert!(got == want, "{what}, {ranks} ranks, stage {stage}: {:?} and {:?}", got.0, want.0);
        }
    }
}

#[test]
fn a_classifier_with_soft_labels_on_ranks_is_that_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let row = |i: u32| match i % 3 {
        0 => json!({ "text": format!("cold {i}"), "label": 0 }),
        1 => json!({ "text": format!("warm and long {i}"), "label": 1 }),
        _ => json!({ "text": format!("hot {i}"), "class_probs": [0.125, 0.25, 0.625] }),
    };
    let lines: Vec<String> = (0..30).map(|i| row(i).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let at = |name: &str, stage: u64| {
        let changes = [
            ("model.labels", json!(["cold", "warm", "hot"])),
            ("data", json!({ "train": rows, "tokenizer": "byte", "sequence_length": 32, "packing": "none" })),
            ("run.eval_every", json!(0)),
            ("zero_optimization", json!({ "stage": stage })),
        ];
        with(config(&folder.path().join(name)), &changes)
    };
    let want = trained(1, &at("1", 0));
    for (ranks, stage) in [(2, 0), (4, 1), (4, 2), (2, 3)] {
        let got = trained(ranks, &at(&format!("{ranks}-{stage}"), stage));
        assert!(got == want, "{ranks} ranks, stage {stage}: {:?} and {:?}", got.0, want.0);
    }
}
