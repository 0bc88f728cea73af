//! The rates of DeepSpeed 0.19.8 and Transformers 5.23, step by step.
//!
//! `fixtures/schedules.json` is the part of `reference/schedules.json` whose schedules are built; `lr[i]` is the rate at
//! optimizer step `i`, written with nine digits.

use optim::schedule::{Schedule, Warmup, WarmupType};
use serde_json::Value;

fn schedule(case: &Value) -> Schedule {
    let params = &case["params"];
    let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{key} in {case}"));
    let steps = |key: &str| params[key].as_u64().unwrap_or_else(|| panic!("{key} in {case}"));
    let lr = case["base_lr"].as_f64().expect("a number");
    let warmup = || Warmup {
        steps: steps("warmup_num_steps"),
        kind: if params["warmup_type"] == "linear" { WarmupType::Linear } else { WarmupType::Log },
    };
    match case["type"].as_str().expect("a name") {
        "WarmupLR" => {
            Schedule::WarmupLR { min_lr: number("warmup_min_lr"), max_lr: number("warmup_max_lr"), warmup: warmup() }
        }
        "WarmupDecayLR" => Schedule::WarmupDecayLR {
            min_lr: number("warmup_min_lr"),
            max_lr: number("warmup_max_lr"),
            warmup: warmup(),
            total_steps: steps("total_num_steps"),
        },
        "WarmupCosineLR" => Schedule::WarmupCosineLR {
            lr,
            min_ratio: number("warmup_min_ratio"),
            warmup: warmup(),
            cos_min_ratio: number("cos_min_ratio"),
            total_steps: steps("total_num_steps"),
        },
        "constant" => Schedule::Constant { lr },
        "constant_with_warmup" => Schedule::ConstantWithWarmup { lr, warmup_steps: steps("num_warmup_steps") },
        "linear" => {
            Schedule::Linear { lr, warmup_steps: steps("num_warmup_steps"), total_steps: steps("num_training_steps") }
        }
        "cosine" => Schedule::Cosine {
            lr,
            warmup_steps: steps("num_warmup_steps"),
            total_steps: steps("num_training_steps"),
            num_cycles: 0.5,
        },
        other => panic!("no schedule is called {other}"),
    }
}

#[test]
fn every_rate_is_the_reference_within_a_millionth() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/schedules.json")).expect("the fixture is JSON");
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let schedule = schedule(case);
        for (step, want) in case["lr"].as_array().expect("a list").iter().enumerate() {
            let (got, want) = (schedule.lr(step as u64), want.as_f64().expect("a number"));
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{schedule:?} step {step}: {got}, want {want}");
        }
    }
}
