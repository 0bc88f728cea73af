//! Schedules as run files name them: defaults, refusals, notices, and the momentum of a cycle in a run.

mod common;

use common::{run, set, small};
use optim::schedule::Schedule;
use serde_json::{Value, json};
use train::RunConfig;

fn schedule(kind: &str, params: Value) -> Schedule {
    let file = json!({ "scheduler": { "type": kind, "params": params } });
    RunConfig::from_value(file, "r.json").unwrap_or_else(|e| panic!("{e}")).schedule(0.5, 100)
}

fn refusal(kind: &str, params: Value) -> String {
    let file = json!({ "scheduler": { "type": kind, "params": params } });
    RunConfig::from_value(file, "r.json").expect_err("a refusal").to_string()
}

#[test]
fn what_the_file_leaves_out_is_deepspeeds_or_transformers_default_and_totals_are_the_runs() {
    let rates = |schedule: Schedule, steps: [u64; 3]| steps.map(|step| schedule.lr(step));
    assert_eq!(
        rates(schedule("onecycle", json!({ "cycle_min_lr": 0.25, "cycle_max_lr": 1.25 })), [0, 2000, 3000]),
        [0.25, 1.25, 0.75]
    );
    assert_eq!(
        schedule("OneCycle", json!({ "cycle_min_lr": 0, "cycle_max_lr": 1 })).betas(2000),
        Some([0.9 - (0.9 - 0.8), 0.99])
    );
    assert_eq!(rates(schedule("LRRangeTest", json!({})), [0, 1000, 4000]), [0.001, 0.0015, 0.003]);
    assert_eq!(rates(schedule("cosine_with_restarts", json!({})), [0, 50, 100]), [0.5, 0.25, 0.0]);
    assert_eq!(rates(schedule("cosine_with_min_lr", json!({ "min_lr": 0.25 })), [0, 50, 100]), [0.5, 0.375, 0.25]);
    assert_eq!(rates(schedule("polynomial", json!({ "lr_end": 0.25 })), [0, 50, 100]), [0.5, 0.375, 0.25]);
    assert_eq!(rates(schedule("inverse_sqrt", json!({})), [0, 30_000, 150_000]), [0.5, 0.25, 0.125]);
    assert_eq!(rates(schedule("warmup_stable_decay", json!({ "num_decay_steps": 20 })), [0, 79, 90]), [0.5, 0.5, 0.25]);
}

#[test]
fn settings_without_a_default_are_asked_for_and_a_wrong_name_gets_the_nearest() {
    for (kind, params, want) in [
        ("OneCycle", json!({}), "scheduler.params.cycle_min_lr is missing; it must be a number of at least 0"),
        (
            "OneCycle",
            json!({ "cycle_min_lr": 0.1 }),
            "scheduler.params.cycle_max_lr is missing; it must be a number of at least 0",
        ),
        (
            "OneCycle",
            json!({ "cycle_first_step": 3 }),
            "scheduler.params.cycle_first_step is not a known key; the nearest one is \
             scheduler.params.cycle_first_step_size",
        ),
        (
            "OneCycle",
            json!({ "cycle_first_step_size": 0 }),
            "scheduler.params.cycle_first_step_size is 0; it must be a whole number of at least 1",
        ),
        (
            "LRRangeTest",
            json!({ "lr_range_test_step_size": 0.5 }),
            "scheduler.params.lr_range_test_step_size is 0.5; it must be a whole number of at least 1",
        ),
        (
            "warmup_stable_decay",
            json!({}),
            "scheduler.params.num_decay_steps is missing; it must be a whole number of at least 0",
        ),
        (
            "warmup_stable_decay",
            json!({ "num_decay_steps": 1, "decay_type": "sqrt" }),
            "scheduler.params.decay_type is \"sqrt\"; it must be \"linear\", \"cosine\" or \"1-sqrt\"",
        ),
        (
            "cosine_with_min_lr",
            json!({}),
            "scheduler.params.min_lr is missing; one of it and scheduler.params.min_lr_rate must be given",
        ),
        (
            "cosine_with_min_lr",
            json!({ "min_lr": 0.1, "min_lr_rate": 0.5 }),
            "scheduler.params.min_lr is 0.1 and scheduler.params.min_lr_rate is 0.5; keep one of them",
        ),
    ] {
        assert_eq!(refusal(kind, params), format!("r.json: {want}"));
    }
}

#[test]
fn a_run_says_what_is_odd_about_its_schedule_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let notices = |name: &str, scheduler: Value, optimizer: &str| {
        let mut config = small(&folder.path().join(name));
        set(&mut config, "run.steps", json!(2));
        set(&mut config, "optimizer.type", json!(optimizer));
        set(&mut config, "scheduler", scheduler);
        run(&config, false, None).notices
    };
    let short = json!({ "type": "WarmupDecayLR", "params": { "total_num_steps": 5, "warmup_num_steps": 10 } });
    assert_eq!(
        notices("total", short, "AdamW"),
        ["the scheduler's total of 5 steps is less than its warm-up of 10: the decay is over before it begins"]
    );
    let short = json!({ "type": "WarmupCosineLR", "params": { "warmup_num_steps": 10 } });
    assert_eq!(
        notices("length", short, "AdamW"),
        ["the run's length of 2 steps is less than its warm-up of 10: the decay is over before it begins"]
    );
    let cycle = json!({ "type": "OneCycle", "params": { "cycle_min_lr": 0.001, "cycle_max_lr": 0.01 } });
    assert_eq!(
        notices("cycle", cycle.clone(), "SGD"),
        ["scheduler.params.cycle_momentum has no effect: the optimizer has no betas for the cycle to move"]
    );
    assert!(notices("betas", cycle, "AdamW").is_empty());
}

#[test]
fn the_momentum_of_a_cycle_reaches_the_optimizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, moves: bool, betas: Value| {
        let mut config = small(&folder.path().join(name));
        let params = json!({ "cycle_min_lr": 0.01, "cycle_max_lr": 0.01, "cycle_first_step_size": 4,
                             "cycle_momentum": moves, "cycle_min_mom": 0.5, "cycle_max_mom": 0.5 });
        set(&mut config, "scheduler", json!({ "type": "OneCycle", "params": params }));
        set(&mut config, "optimizer.params.betas", betas);
        run(&config, false, None).losses()
    };
    let fixed = losses("fixed", false, json!([0.5, 0.99]));
    assert_eq!(losses("moved", true, json!([0.9, 0.999])), fixed, "the betas of the cycle are those written by hand");
    assert_ne!(losses("own", false, json!([0.9, 0.999])), fixed);
}

#[test]
fn a_polynomial_that_would_rise_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = small(&folder.path().join("run"));
    set(&mut config, "scheduler", json!({ "type": "polynomial", "params": { "lr_end": 0.5 } }));
    let error = common::try_run(&config, false, None).map(|_| ()).expect_err("a refusal").to_string();
    assert_eq!(error, "test: scheduler.params.lr_end is 0.5; it must be below 0.01, the optimizer's rate");
}
