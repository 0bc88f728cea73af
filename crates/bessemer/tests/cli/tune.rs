//! `bessemer tune`: what it prints, what it leaves, and what it refuses.

use crate::common::{Place, keys, run_file_with};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};

/// A run with much that a trial must leave alone.
fn settings(changes: &[(&str, Value)]) -> String {
    let run = json!({"output": "out", "steps": 1000, "eval_every": 1, "checkpoint_every": 1, "sample_every": 1,
                     "sample_prompt": "The", "early_stop": {"patience": 1}, "keep_best": {}, "ema_decay": 0.9,
                     "load_best_at_end": true});
    let all = [("run", run), ("data.validation", json!({"split": 0.1}))];
    let all: Vec<_> = all.iter().chain(changes).cloned().collect();
    run_file_with(&all).to_string()
}

/// Names in the working directory beside the token cache and the corpus.
fn left(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        entries.filter(|name| !["cache", "corpus.txt", "r.json"].contains(&name.as_str())).collect();
    names.sort();
    names
}

#[test]
fn a_sweep_prints_a_table_and_a_rate_and_leaves_its_plots_alone() {
    let place = Place::new();
    place.write("r.json", settings(&[]));
    let text = place.output_of(&["tune", "lr", "r.json", "--steps", "40"]);
    assert_eq!(left(&place), ["out-lr"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["lr", "loss", "smoothed"]);
    assert!(lines[1].trim_start().starts_with("1.00e-7"), "{}", lines[1]);
    assert!(lines.last().unwrap().starts_with("suggested lr  "), "{text}");
    let sweep: Value = serde_json::from_slice(&fs::read(place.path("out-lr/lr.json")).unwrap()).unwrap();
    assert_eq!(keys(&sweep), ["suggested_lr", "steepest_lr", "lowest_lr", "diverges_lr", "rule", "points"]);
    let points = sweep["points"].as_array().unwrap();
    assert!(points.len() > 20 && points.len() <= 40);
    assert_eq!(keys(&points[0]), ["lr", "loss", "smoothed"]);
    let ratio = points[9]["lr"].as_f64().unwrap() / points[8]["lr"].as_f64().unwrap();
    assert!((ratio - 1e7f64.powf(1.0 / 39.0)).abs() < 1e-9, "the same factor from step to step: {ratio}");
    let (suggested, diverges) = (sweep["suggested_lr"].as_f64().unwrap(), sweep["diverges_lr"].as_f64());
    assert!((1e-5..0.1).contains(&suggested), "{suggested}");
    assert!(diverges.is_none_or(|diverges| suggested <= diverges / 10.0));
    assert!(fs::read_to_string(place.path("out-lr/lr.svg")).unwrap().contains("suggested"));
    assert!(fs::read(place.path("out-lr/lr.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_sweep_is_the_same_again_and_a_range_test_in_the_run_file_brings_its_rates() {
    let place = Place::new();
    let test = json!({"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.001, "lr_range_test_step_size": 5,
                                                        "lr_range_test_step_rate": 2.0}});
    place.write("r.json", settings(&[("scheduler", test)]));
    let sweep = || place.json_of(&["tune", "lr", "r.json", "--steps", "12", "--output", "plots", "--json"]);
    let first = sweep();
    assert_eq!(left(&place), ["plots"]);
    assert_eq!(first, sweep());
    for (step, point) in first["points"].as_array().unwrap().iter().enumerate() {
        let want = 0.001 * (1.0 + 2.0 * step as f64 / 5.0);
        assert!((point["lr"].as_f64().unwrap() - want).abs() < 1e-12, "{point}");
    }
    assert_eq!(
        place.refusal(&["tune", "lr", "r.json", "--max", "1"]),
        "r.json: scheduler.type is LRRangeTest, which brings its own rates; leave --min and --max out"
    );
}

#[test]
fn sizes_are_measured_and_the_suggestion_keeps_the_batch() {
    let place = Place::new();
    place.write("r.json", settings(&[("train_batch_size", json!(12))]));
    let found = place.json_of(&["tune", "batch", "r.json", "--steps", "1", "--json"]);
    assert_eq!(left(&place), [""; 0]);
    assert_eq!((&found["train_batch_size"], &found["largest_micro_batch"]), (&json!(12), &json!(12)));
    assert_eq!(found["is_limited_by_memory"], false);
    let sizes = found["sizes"].as_array().unwrap();
    let tried: Vec<u64> = sizes.iter().map(|size| size["micro_batch"].as_u64().unwrap()).collect();
    assert_eq!(tried, [1, 2, 4, 8, 12]);
    for pair in sizes.windows(2) {
        assert!(pair[0]["predicted_bytes"].as_u64() < pair[1]["predicted_bytes"].as_u64());
    }
    let suggested = &found["suggested"];
    let of = |key: &str| suggested[key].as_u64().unwrap();
    assert_eq!(of("train_micro_batch_size_per_gpu") * of("gradient_accumulation_steps"), 12);
    let text = place.output_of(&["tune", "batch", "r.json", "--steps", "1"]);
    assert!(text.contains("largest micro-batch that fits: 12 (limited by train_batch_size 12)"), "{text}");
    // The run file with the suggestion is one.
    let keys =
        ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps"].map(|key| format!("{key}={}", of(key)));
    place.output_of(&["plan", "r.json", "--set", &keys[0], "--set", &keys[1]]);
}

#[test]
fn memory_limits_the_micro_batch_and_too_little_is_refused() {
    let place = Place::new();
    place.write("r.json", settings(&[("train_batch_size", json!(4096)), ("run.ema_decay", Value::Null)]));
    let needs = |micro: u64| {
        let set = format!("train_batch_size={micro}");
        let plan = place.json_of(&["plan", "r.json", "--json", "--set", &set]);
        plan["memory_per_rank"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>()
    };
    let limit = needs(300);
    let found = place.run(&["tune", "batch", "r.json", "--steps", "1", "--json", "--memory", &gibibytes(limit)]);
    assert_eq!(found.status, 0, "{found:?}");
    let found: Value = serde_json::from_str(&found.out).unwrap();
    let largest = found["largest_micro_batch"].as_u64().unwrap();
    // Buffers come in classes of size: some larger ones need no more.
    assert!(largest >= 300, "{largest}");
    assert_eq!(found["is_limited_by_memory"], true);
    assert!(needs(largest) <= limit && needs(largest + 1) > limit);
    let refusal = place.refusal(&["tune", "batch", "r.json", "--memory", "0.0001"]);
    assert!(refusal.starts_with("r.json: a micro-batch of 1 needs "), "{refusal}");
    assert!(refusal.contains("of memory and the limit is 104.9 KiB; take a smaller model"), "{refusal}");
}

fn gibibytes(bytes: u64) -> String {
    format!("{}", bytes as f64 / (1u64 << 30) as f64)
}

#[test]
fn wrong_words_are_refused_before_anything_is_done() {
    let place = Place::new();
    place.write("file", "x");
    let rule = "it must be a number above 0";
    assert!(place.refusal(&["tune", "lr", "r.json", "--min", "0"]).contains(rule));
    assert!(place.refusal(&["tune", "lr", "r.json", "--steps", "3"]).contains("it must be a whole number from 10"));
    assert_eq!(
        place.refusal(&["tune", "lr", "r.json", "--min", "0.1", "--max", "0.01"]),
        "--min is 1e-1 and --max is 1e-2; --min must be below --max"
    );
    assert_eq!(
        place.refusal(&["tune", "lr", "r.json", "--output", "file/plots"]),
        "--output is file/plots, and file is a file; it must be a folder"
    );
    assert!(place.refusal(&["tune", "batch", "r.json", "--memory", "no"]).contains(rule));
    let elastic = json!({"enabled": true, "max_train_batch_size": 8, "micro_batch_sizes": [2], "version": 0.2,
                         "ignore_non_elastic_batch_info": true});
    place.write("r.json", settings(&[("elasticity", elastic)]));
    let refusal = place.refusal(&["tune", "batch", "r.json"]);
    assert!(refusal.starts_with("r.json: elasticity.enabled is true, and elasticity chooses"), "{refusal}");
}

#[test]
#[cfg(unix)]
fn a_signal_ends_a_sweep_and_leaves_nothing() {
    use std::io::Read;
    let place = Place::new();
    let args = ["tune", "lr", "r.json", "--steps", "1000000", "--max", "1e-6"];
    let mut child = place.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let status = child.wait().expect("its end");
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((status.code(), out.as_str()), (Some(130), ""), "{err}");
    assert!(err.contains("stopped by SIGINT; nothing was written"), "{err}");
    assert_eq!(left(&place), [""; 0]);
}

#[test]
fn each_trial_has_help_with_examples() {
    let place = Place::new();
    for what in ["lr", "batch"] {
        let help = place.output_of(&["tune", what, "--help"]);
        assert!(help.contains("Examples:") && help.contains(&format!("  bessemer tune {what} ")), "{help}");
        assert!(help.contains("--set") && help.contains("--json") && help.contains("--quiet"), "{help}");
    }
}
