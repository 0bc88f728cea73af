//! What a run says of itself when it is asked, and `watch`.

use crate::common::{Place, run_file_with};
use serde_json::json;
use std::fs;

#[test]
fn a_finished_run_is_summed_up_where_there_is_no_terminal() {
    let place = Place::trained();
    let text = place.output_of(&["watch", "out"]);
    assert_eq!(text, place.output_of(&["watch", "out", "--once"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "out: finished");
    assert_eq!(lines[1], "step               2 of 2 (100 %)");
    let metrics = fs::read_to_string(place.path("out/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().nth(1).unwrap()).unwrap();
    assert_eq!(lines[2], format!("loss               {:.4}", last["loss"].as_f64().unwrap()));
    assert_eq!(lines.last(), Some(&"log                step      2  finished"), "{text}");
    assert!(!text.contains('\x1b'), "no terminal codes where there is no terminal");
}

#[test]
fn watching_changes_nothing_in_the_folder() {
    let place = Place::trained();
    let files = || {
        let mut files: Vec<_> = fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path)).collect::<Vec<_>>()
    };
    let before = files();
    place.output_of(&["watch", "out"]);
    assert_eq!(files(), before);
}

#[test]
fn a_folder_that_holds_no_run_is_refused_with_what_to_give() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    let rule = "give the folder that run.output names, once `bessemer train` has begun to train there";
    for (folder, why) in [
        ("missing", "missing: there is no such folder"),
        ("r.json", "r.json is a file"),
        ("empty", "empty holds no run: neither run.json nor metrics.jsonl is there"),
    ] {
        assert_eq!(place.refusal(&["watch", folder]), format!("{why}; {rule}"));
    }
}

#[test]
fn every_steps_per_print_a_step_says_where_its_time_and_memory_went() {
    let place = Place::new();
    let changes = [
        ("run.steps", json!(6)),
        ("steps_per_print", json!(2)),
        ("wall_clock_breakdown", json!(true)),
        ("memory_breakdown", json!(true)),
    ];
    place.write("r.json", run_file_with(&changes).to_string());
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let lines: Vec<&str> = ended.err.lines().collect();
    for step in [2, 4, 6] {
        let at =
            lines.iter().position(|line| line.starts_with(&format!("step {step}/6  loss "))).expect("a line of a step");
        assert!(lines[at + 1].starts_with(&format!("step {step}  time (ms) | data ")), "{}", lines[at + 1]);
        assert!(lines[at + 2].starts_with(&format!("step {step}  peak memory | weights ")), "{}", lines[at + 2]);
    }
    let of_steps = |begins: &str| lines.iter().filter(|line| line.contains(begins)).count();
    assert_eq!((of_steps("  loss "), of_steps("time (ms)"), of_steps("peak memory")), (3, 3, 3), "{}", ended.err);
}

#[test]
fn reports_are_printed_whole_and_are_one_object_in_a_json_log() {
    let changes = [("dump_state", json!(true)), ("flops_profiler", json!({"enabled": true, "module_depth": 1}))];
    let run = |more: &[&str]| {
        let place = Place::new();
        place.write("r.json", run_file_with(&changes).to_string());
        let ended = place.run(&[&["train", "r.json"], more].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        ended.err
    };
    let text = run(&[]);
    for line in ["train_batch_size = 4 (file)", "profile of step 1: 4 rows in 1 micro-batch"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let json = run(&["--log-format", "json"]);
    let reports = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let reports: Vec<_> = reports.filter(|event| event["event"] == "report").collect();
    let names: Vec<&str> = reports.iter().map(|report| report["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["state", "flops_profiler"]);
    assert!(reports[1]["text"].as_str().unwrap().starts_with("profile of step 1: "), "{}", reports[1]);
}

#[test]
fn services_of_others_are_refused_with_what_does_the_same() {
    let place = Place::new();
    for section in ["wandb", "comet"] {
        let refusal = place.refusal_of(&[(section, json!({"enabled": true}))]);
        assert!(
            refusal
                .starts_with(&format!("r.json: {section}.enabled is true, and this key reports to a network service")),
            "{refusal}"
        );
        assert!(
            refusal.contains("tensorboard.enabled true") && refusal.contains("csv_monitor.enabled true"),
            "{refusal}"
        );
        // Switched off it may stand, with its settings.
        place.write("r.json", run_file_with(&[(section, json!({"enabled": false, "project": "p"}))]).to_string());
        place.output_of(&["train", "r.json", "--dry-run"]);
    }
}
