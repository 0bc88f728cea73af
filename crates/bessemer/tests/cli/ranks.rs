//! Several ranks in one process.

use crate::common::{Place, run_file_with};
use serde_json::json;
use std::fs;

/// Eight micro-batches a step; the validation loss is made on the way.
fn run_file(output: &str) -> String {
    run_file_with(&[
        ("run.output", json!(output)),
        ("run.deterministic", json!(true)),
        ("run.steps", json!(4)),
        ("data.validation", json!({"split": 0.1})),
        ("train_batch_size", json!(8)),
        ("train_micro_batch_size_per_gpu", json!(1)),
        ("zero_optimization", json!({"stage": 3})),
    ])
    .to_string()
}

#[test]
fn four_ranks_leave_the_model_of_one_and_eval_and_export_read_what_they_left() {
    let place = Place::new();
    for (output, ranks) in [("one", "1"), ("four", "4")] {
        place.write("r.json", run_file(output));
        place.output_of(&["train", "r.json", "--ranks", ranks, "--quiet"]);
    }
    let model = |folder: &str| fs::read(place.path(folder).join("model.safetensors")).expect("a model");
    assert!(model("one/model") == model("four/model"), "other weights");
    place.output_of(&["export", "four", "exported"]);
    assert!(model("exported") == model("four/model"), "the checkpoint holds other weights than the model");
    let manifest = fs::read_to_string(place.path("four/checkpoints/step-00000004/manifest.json")).expect("a manifest");
    assert!(
        manifest.contains("rank-00003.safetensors") && manifest.contains("\"data\": 4"),
        "each rank writes its part"
    );
}

#[test]
fn what_the_plan_says_is_moved_is_what_a_step_moves() {
    let place = Place::new();
    for stage in 0..4 {
        let output = format!("out-{stage}");
        place.write("r.json", run_file(&output));
        let words = [format!("zero_optimization.stage={stage}"), "run.deterministic=false".to_owned()];
        let set = ["--set", &words[0], "--set", &words[1], "--ranks", "2"];
        let plan = place.json_of(&[&["plan", "r.json", "--json"], &set[..]].concat());
        place.output_of(&[&["train", "r.json", "--quiet"], &set[..]].concat());
        let metrics = fs::read_to_string(place.path(&output).join("metrics.jsonl")).expect("metrics");
        let first: serde_json::Value = serde_json::from_str(metrics.lines().next().expect("a step")).expect("JSON");
        let moved: serde_json::Map<_, _> = (first["communication"].as_object().expect("kinds").iter())
            .map(|(kind, moved)| (kind.clone(), moved["elements"].clone()))
            .collect();
        assert_eq!(json!(moved), plan["communication_per_step"], "stage {stage}");
        assert!(!moved.is_empty());
    }
}

#[test]
fn ranks_that_do_not_divide_the_batch_and_more_than_a_process_holds_are_refused() {
    let place = Place::new();
    place.write("r.json", run_file("out"));
    let refusal = place.refusal(&["train", "r.json", "--ranks", "16"]);
    assert!(refusal.contains("x 16 data-parallel ranks is 0"), "{refusal}");
    let refusal = place.refusal(&["train", "r.json", "--ranks", "2048"]);
    assert_eq!(refusal, "--ranks is 2048; ranks are threads of one process here, at most 1024 of them");
}
