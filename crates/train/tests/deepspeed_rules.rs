//! DeepSpeed's rules of what a configuration may say and what follows from it, on any number of ranks.

use serde_json::{Value, json};
use train::RunConfig;
use train::config::{Origin, Overrides};
use train::plan::report::PlanReport;

/// Every key resolved on `ranks` ranks, or the refusal.
fn plan(file: Value, ranks: u64) -> Result<Value, String> {
    let config = RunConfig::from_value(file, "ds.json").map_err(|error| error.to_string())?;
    PlanReport::of(&config, ranks).map(|report| report.config).map_err(|error| error.to_string())
}

fn notices(file: Value) -> Vec<String> {
    RunConfig::from_value(file, "ds.json").unwrap_or_else(|error| panic!("{error}")).notices()
}

/// A file with an optimizer and a batch, and one more section.
fn with(section: &str, value: Value) -> Value {
    let mut file = json!({ "train_batch_size": 8, "optimizer": { "type": "Adam", "params": { "lr": 0.00015 } } });
    file[section] = value;
    file
}

fn accepted(cases: impl IntoIterator<Item = Value>) {
    for file in cases {
        plan(file.clone(), 1).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

fn refused(cases: impl IntoIterator<Item = Value>) {
    for file in cases {
        assert!(plan(file.clone(), 1).is_err(), "{file} was accepted");
    }
}

const BATCH: [&str; 3] = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"];

#[test]
fn every_part_of_the_batch_triangle_gives_the_rest_or_is_refused_whole() {
    let keep = |sizes: [u64; 3], kept: [bool; 3]| -> Value {
        (0..3).filter(|&i| kept[i]).map(|i| (BATCH[i].to_owned(), json!(sizes[i]))).collect()
    };
    let [all, no_steps, no_micro, no_train] =
        [[true, true, true], [true, true, false], [true, false, true], [false, true, true]];
    for (sizes, fits) in [
        ([32, 16, 1], &[all, no_steps, no_micro, no_train, [true, false, false], [false, true, false]][..]),
        ([32, 8, 2], &[all, no_steps, no_micro, no_train]),
    ] {
        for kept in fits {
            let resolved = plan(keep(sizes, *kept), 2).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(BATCH.map(|key| resolved[key].as_u64()), sizes.map(Some), "{kept:?}");
        }
    }
    for (sizes, kept) in [
        ([33, 17, 2], all),
        ([33, 17, 2], no_steps),
        ([33, 17, 2], no_micro),
        ([32, 18, 1], all),
        ([32, 18, 1], no_steps),
        ([32, 18, 1], [false, false, true]),
    ] {
        assert!(plan(keep(sizes, kept), 2).is_err(), "{sizes:?} {kept:?}");
    }
}

#[test]
fn settings_of_a_dynamic_scale_are_above_zero_where_there_is_one_and_may_be_anything_elsewhere() {
    for key in ["loss_scale_window", "hysteresis", "min_loss_scale"] {
        let fp16 = |enabled: bool, scale: f64, value: Value| {
            with("fp16", json!({ "enabled": enabled, "loss_scale": scale, key: value }))
        };
        for value in [0, -1] {
            refused([fp16(true, 0.0, json!(value))]);
            accepted([fp16(true, 128.0, json!(value)), fp16(false, 0.0, json!(value))]);
        }
        accepted([fp16(true, 0.0, json!(1)), fp16(true, 0.0, json!(1000))]);
        refused([json!(true), json!("abc"), Value::Null].map(|value| fp16(true, 0.0, value)));
    }
    accepted(
        [json!(0), json!(1.0), json!(65536.0), json!("3")].map(|scale| with("fp16", json!({ "loss_scale": scale }))),
    );
    let wrong = [json!(-1), json!(true), json!([]), json!({}), json!("inf"), json!("nan")];
    refused(wrong.map(|scale| with("fp16", json!({ "loss_scale": scale }))));
}

#[test]
fn one_precision_at_a_time() {
    for pair in [["fp16", "bf16"], ["fp16", "amp"], ["bf16", "amp"]] {
        let mut file = with(pair[0], json!({ "enabled": true }));
        file[pair[1]] = json!({ "enabled": true });
        refused([file]);
    }
}

#[test]
fn a_warmup_takes_a_whole_number_of_steps_above_zero_under_every_schedule() {
    for kind in ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"] {
        let steps = |steps: Value| with("scheduler", json!({ "type": kind, "params": { "warmup_num_steps": steps } }));
        refused([json!(0), json!(-5), json!(1.5), Value::Null].map(steps));
        accepted([json!(1), json!(10)].map(steps));
    }
}

#[test]
fn a_warmup_of_an_unknown_curve_is_logarithmic_and_says_so() {
    for kind in ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"] {
        let file = |curve: &str| {
            let params = json!({ "warmup_num_steps": 10, "warmup_type": curve });
            with("scheduler", json!({ "type": kind, "params": params }))
        };
        let schedule = |curve| RunConfig::from_value(file(curve), "ds.json").expect("a file").schedule(0.1, 100);
        assert_eq!(schedule("not_a_warmup_type"), schedule("log"));
        assert_ne!(schedule("linear"), schedule("log"));
        let want = "scheduler.params.warmup_type is \"cubic\", which is neither log nor linear: it is taken for log";
        assert_eq!(notices(file("cubic")), [want]);
        assert_eq!(plan(file("cubic"), 1).expect("a plan")["scheduler"]["params"]["warmup_type"], "log");
    }
}

#[test]
fn lists_of_a_schedule_have_an_item_for_each_group_of_weights() {
    let file = |optimizer: Value, params: Value| json!({ "train_batch_size": 8, "optimizer": optimizer, "scheduler": { "type": "OneCycle", "params": params } });
    let adam = json!({ "type": "Adam", "groups": [{ "match": ["*bias"] }] });
    let lists = json!({ "cycle_min_lr": [0.001, 0.002], "cycle_max_lr": [0.01, 0.02], "cycle_min_mom": [0.8, 0.85] });
    accepted([file(adam.clone(), lists.clone()), file(json!({ "type": "Muon" }), lists.clone())]);
    assert_eq!(
        plan(file(json!({ "type": "Adam" }), lists.clone()), 1).unwrap_err(),
        "ds.json: scheduler.params.cycle_min_lr has 2 items; it must be a number or have 1, one for each of \
         optimizer.groups and then one for the other weights"
    );
    let muon = json!({ "type": "Muon", "groups": [{ "match": ["*attn*"], "lr": 0.1 }] });
    let refusal = plan(file(muon, lists), 1).unwrap_err();
    assert!(
        refusal.ends_with(
            "have 4, one for each of optimizer.groups and then one for the other weights, in each of \
                               them hidden matrices first"
        ),
        "{refusal}"
    );
    for (kind, key) in [("WarmupLR", "warmup_max_lr"), ("LRRangeTest", "lr_range_test_min_lr")] {
        let scheduler = |list: Value| with("scheduler", json!({ "type": kind, "params": { key: list } }));
        accepted([scheduler(json!([0.1]))]);
        refused([scheduler(json!([0.1, 0.2])), scheduler(json!([])), scheduler(json!([-0.1]))]);
    }
    let last =
        |step: Value| with("scheduler", json!({ "type": "WarmupLR", "params": { "last_batch_iteration": step } }));
    accepted([last(json!(-1)), last(json!(0)), last(json!(100))]);
    refused([last(json!(-2)), last(json!(0.5))]);
}

#[test]
fn elasticity_never_goes_beyond_the_largest_batch_and_takes_the_largest_micro_batch_that_divides() {
    let file = |changes: &[(&str, Value)]| {
        let mut section = json!({ "enabled": true, "max_train_batch_size": 10000, "micro_batch_sizes": [8, 12, 16, 17],
                                  "min_gpus": 32, "max_gpus": 1500, "min_time": 20, "version": 0.1 });
        for (key, value) in changes {
            section[*key] = value.clone();
        }
        json!({ "elasticity": section })
    };
    let sizes =
        |file, ranks| plan(file, ranks).map(|config| [0, 1].map(|i| config[BATCH[i]].as_u64().expect("a number")));
    assert_eq!(sizes(file(&[]), 64), Ok([9792, 17]));
    assert!(sizes(file(&[]), 128).unwrap_err().contains("128 data-parallel ranks cannot share"));
    let small =
        [("max_train_batch_size", json!(32)), ("micro_batch_sizes", json!([1, 2, 3, 7])), ("min_gpus", json!(1))];
    assert_eq!(sizes(file(&small), 4), Ok([24, 3]));
    let within =
        [("max_train_batch_size", json!(100)), ("micro_batch_sizes", json!([8, 10, 12])), ("min_gpus", json!(1))];
    assert!(sizes(file(&within), 1).unwrap()[0] <= 100);
    for (key, value) in [
        ("micro_batch_sizes", json!([1, 4, -1, 2, -10])),
        ("micro_batch_sizes", json!(5)),
        ("micro_batch_sizes", json!(["a", null, 0.5])),
        ("micro_batch_sizes", json!([2, 0.5, 4])),
        ("micro_batch_sizes", Value::Null),
        ("max_train_batch_size", Value::Null),
        ("min_gpus", json!(-1)),
        ("max_gpus", json!(-1)),
        ("max_gpus", json!(31)),
        ("model_parallel_size", json!(4)),
        ("version", json!(0.3)),
    ] {
        assert!(sizes(file(&[(key, value.clone())]), 64).is_err(), "{key} {value}");
    }
}

#[test]
fn an_unmanaged_accumulation_goes_with_nothing_that_ends_steps_by_itself() {
    let file = |section: &str, value: Value| {
        let mut file = with(section, value);
        file["managed_gradient_accumulation"] = json!(false);
        file
    };
    accepted([file("zero_optimization", json!({ "stage": 2, "overlap_comm": true })), file("bf16", json!({}))]);
    refused([
        file("zero_optimization", json!({ "stage": 1, "overlap_comm": true })),
        file("compile", json!({ "deepcompile": true })),
        file("amp", json!({ "enabled": true })),
    ]);
    let piped = plan(file("pipeline", json!({ "stages": 2 })), 2).unwrap_err();
    assert!(piped.contains("does not go with pipeline.stages"), "{piped}");
}

#[test]
fn lengths_given_by_hand_need_a_last_step_and_are_looked_up_as_deepspeed_does() {
    let file = |difficulty: Value, max_step: Value| {
        with(
            "curriculum_learning",
            json!({ "enabled": true, "min_difficulty": 8, "max_difficulty": 64,
            "schedule_type": "fixed_discrete",
            "schedule_config": { "difficulty": difficulty, "max_step": max_step } }),
        )
    };
    accepted([file(json!([8, 16, 64]), json!([5, 10]))]);
    refused([file(json!([8]), json!([])), file(json!([8, 16]), json!([5, 10])), file(json!([]), json!([]))]);
}

/// A file's plan with words of the command line, on one rank.
fn plan_set(file: &Value, set: &[&str]) -> Result<PlanReport, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ds.json");
    std::fs::write(&path, file.to_string()).expect("a file");
    let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
    let config = RunConfig::load(&path, &Overrides { set: &set, ..Overrides::default() });
    let report = config
        .map_err(|error| error.to_string())
        .and_then(|config| PlanReport::of(&config, 1).map_err(|error| error.to_string()));
    report.map_err(|error| error.replace(&path.display().to_string(), "FILE"))
}

#[test]
fn what_the_command_line_says_is_blamed_on_it_in_plans_too() {
    let file = with("model", json!({ "preset": "gpt2-124m" }));
    for (set, want) in [
        (
            "train_micro_batch_size_per_gpu=3",
            "--set: train_batch_size is 8 (given), but train_micro_batch_size_per_gpu 3",
        ),
        ("sequence_parallel_size=2", "--set: 1 ranks cannot be divided into sequence_parallel_size 2"),
        ("run.batch_ramp.start=3", "--set: run.batch_ramp.steps is missing"),
        ("optimizer.no_decay=[\"nothing\"]", "--set: optimizer.no_decay has \"nothing\", which matches no weight"),
        ("optimizer.groups=[{\"match\": [\"*\"], \"frozen\": true}]", "--set: optimizer.groups freezes every weight"),
    ] {
        let refusal = plan_set(&file, &[set]).map(|_| ()).unwrap_err();
        assert!(refusal.starts_with(want), "{set}: {refusal}");
    }
    let misfit = plan_set(&json!({ "train_batch_size": 8, "gradient_accumulation_steps": 3 }), &["run.seed=1"]);
    assert!(misfit.map(|_| ()).unwrap_err().starts_with("FILE: train_batch_size is 8"));
}

#[test]
fn a_switch_of_offload_on_the_command_line_is_the_origin_of_the_section_it_stands_for() {
    for (switch, section) in [("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")] {
        let set = format!("zero_optimization.{switch}=true");
        let report = plan_set(&with("zero_optimization", json!({ "stage": 3 })), &[&set]).expect("a plan");
        let key = format!("zero_optimization.{section}.device");
        let setting = report.settings.iter().find(|setting| setting.key == key).expect("a device");
        assert_eq!((&setting.value, setting.origin), (&json!("cpu"), Origin::Set));
    }
}
