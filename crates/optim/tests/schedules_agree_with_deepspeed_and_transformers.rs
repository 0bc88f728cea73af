//! The rates of DeepSpeed 0.19.8 and Transformers 5.23, step by step.
//!
//! `fixtures/schedules.json` is `reference/schedules.json`; `lr[i]` is the rate at optimizer step `i`, written with nine
//! digits.

use optim::schedule::{Curve, LrRangeTest, OneCycle, Schedule, StableDecay, Warmup, WarmupType};
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
        name @ ("cosine" | "cosine_with_min_lr") => Schedule::Cosine {
            lr,
            warmup_steps: steps("num_warmup_steps"),
            total_steps: steps("num_training_steps"),
            num_cycles: 0.5,
            min_ratio: if name == "cosine" { 0.0 } else { number("min_lr_rate") },
        },
        "cosine_with_restarts" => Schedule::CosineWithRestarts {
            lr,
            warmup_steps: steps("num_warmup_steps"),
            total_steps: steps("num_training_steps"),
            num_cycles: steps("num_cycles"),
        },
        "polynomial" => Schedule::Polynomial {
            lr,
            warmup_steps: steps("num_warmup_steps"),
            total_steps: steps("num_training_steps"),
            end_lr: number("lr_end"),
            power: number("power"),
        },
        "inverse_sqrt" => {
            Schedule::InverseSqrt { lr, warmup_steps: steps("num_warmup_steps"), timescale: steps("num_warmup_steps") }
        }
        "warmup_stable_decay" => Schedule::WarmupStableDecay {
            lr,
            parts: StableDecay {
                warmup_steps: steps("num_warmup_steps"),
                stable_steps: steps("num_training_steps") - steps("num_warmup_steps") - steps("num_decay_steps"),
                decay_steps: steps("num_decay_steps"),
                warmup: Curve::Linear,
                decay: Curve::Cosine,
                min_ratio: number("min_lr_ratio"),
                num_cycles: 0.5,
            },
        },
        "OneCycle" => Schedule::OneCycle(OneCycle {
            cycle_min_lr: number("cycle_min_lr"),
            cycle_max_lr: number("cycle_max_lr"),
            decay_lr_rate: number("decay_lr_rate"),
            cycle_first_step_size: steps("cycle_first_step_size"),
            cycle_second_step_size: params["cycle_second_step_size"].as_u64(),
            cycle_first_stair_count: params["cycle_first_stair_count"].as_u64().unwrap_or(0),
            cycle_second_stair_count: None,
            decay_step_size: steps("decay_step_size"),
            cycle_momentum: true,
            cycle_min_mom: 0.8,
            cycle_max_mom: 0.9,
            decay_mom_rate: 0.0,
        }),
        "LRRangeTest" => Schedule::LRRangeTest(LrRangeTest {
            lr_range_test_min_lr: number("lr_range_test_min_lr"),
            lr_range_test_step_size: steps("lr_range_test_step_size"),
            lr_range_test_step_rate: number("lr_range_test_step_rate"),
            lr_range_test_staircase: params["lr_range_test_staircase"] == true,
        }),
        other => panic!("no schedule is called {other}"),
    }
}

#[test]
fn every_rate_is_the_reference_within_a_millionth() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/schedules.json")).expect("the fixture is JSON");
    assert_eq!(cases.len(), 19);
    for case in &cases {
        let schedule = schedule(case);
        for (step, want) in case["lr"].as_array().expect("a list").iter().enumerate() {
            let (got, want) = (schedule.lr(step as u64), want.as_f64().expect("a number"));
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{schedule:?} step {step}: {got}, want {want}");
        }
    }
}
