//! Help, logs, pipes, the start.

use crate::common::{Place, keys, losses, run_file_with};
use serde_json::{Value, json};
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

const COMMANDS: [&str; 12] =
    ["train", "watch", "plan", "eval", "score", "generate", "export", "bench", "tune", "info", "completions", "man"];

#[test]
fn every_command_has_help_with_an_example() {
    let place = Place::new();
    let help = place.output_of(&["--help"]);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the list");
        let help = place.output_of(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("  bessemer {command} ")), "{command}: {help}");
        assert!(help.contains("--quiet") && help.contains("--log-format"), "{command}: {help}");
    }
    assert_eq!(place.output_of(&["--version"]).trim(), format!("bessemer {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.output_of(&["completions", shell]).contains("bessemer"), "{shell}");
    }
    assert!(place.output_of(&["man"]).contains(".TH bessemer 1"));
}

#[test]
fn the_program_starts_within_20_ms() {
    let place = Place::new();
    let seconds = |_| {
        let start = Instant::now();
        place.output_of(&["--help"]);
        start.elapsed()
    };
    // The best of many: the machine may be busy with other tests.
    let best = (0..30).map(seconds).min().expect("a time");
    assert!(best < Duration::from_millis(20), "{best:?}");
}

/// A run file with a validation set and samples, so that every kind of event happens.
fn with_every_event() -> Place {
    let place = Place::new();
    let run = json!({"output": "out", "steps": 20, "eval_every": 10, "checkpoint_every": 10, "sample_every": 10,
                     "sample_prompt": "The", "sample_tokens": 8});
    let no_effect = json!({"synchronize_checkpoint_boundary": true});
    let changes = [("run", run), ("data.validation", json!({"split": 0.1})), ("activation_checkpointing", no_effect)];
    place.write("r.json", run_file_with(&changes).to_string());
    place
}

#[test]
fn progress_goes_to_standard_error_and_the_final_sample_to_standard_output() {
    let place = with_every_event();
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.out.starts_with("The"), "{}", ended.out);
    let lines: Vec<&str> = ended.err.lines().collect();
    let count = |begins: &str| lines.iter().filter(|line| line.starts_with(begins)).count();
    for (begins, times) in [
        ("tokenized corpus.txt: ", 1),
        ("note: these keys have no effect here: activation_checkpointing.synchronize_checkpoint_boundary", 1),
        ("23,008 parameters, f32, ", 1),
        ("20 steps of 4 x 32 tokens", 1),
        ("step 10/20  loss ", 1),
        ("step 20/20  loss ", 1),
        ("step 10  validation loss ", 1),
        ("step 20  validation loss ", 1),
        ("--- sample after step 10", 1),
        ("saved out/checkpoints/step-00000010", 1),
        ("saved out/checkpoints/step-00000020", 1),
        ("the trained model is in out/model", 1),
    ] {
        assert_eq!(count(begins), times, "{begins:?} in {}", ended.err);
    }
    assert!(!ended.err.contains('\x1b'), "no terminal codes where there is no terminal");
}

#[test]
fn quiet_prints_results_and_errors_only() {
    let place = with_every_event();
    let ended = place.run(&["train", "r.json", "--quiet"]);
    assert_eq!((ended.status, ended.err.as_str()), (0, ""), "{ended:?}");
    assert!(ended.out.starts_with("The"), "{}", ended.out);
    for args in [
        &["export", "out", "exported", "--quiet"][..],
        &["eval", "out", "--data", "corpus.txt", "--quiet"],
        &["score", "out", "--text", "a", "--quiet"],
        &["generate", "out", "--prompt", "a", "--max-new-tokens", "500", "--quiet"],
        &["bench", "r.json", "--batch", "1", "--length", "16", "--steps", "1", "--quiet"],
    ] {
        let ended = place.run(args);
        assert_eq!((ended.status, ended.err.as_str()), (0, ""), "{args:?}");
    }
    assert!(place.refusal(&["train", "missing.json", "--quiet"]).starts_with("missing.json: "));
}

#[test]
fn the_json_log_is_one_object_a_line() {
    let place = with_every_event();
    let events_of = |args: &[&str], status: i32| -> Vec<Value> {
        let ended = place.run(&[args, &["--log-format", "json"]].concat());
        assert_eq!(ended.status, status, "{ended:?}");
        let lines = ended.err.lines();
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    };
    // Beside training, a checkpoint is there when it is there.
    let events = events_of(&["train", "r.json", "--set", "run.checkpoint_async=false"], 0);
    for event in &events {
        assert_eq!(keys(event)[0], "event", "{event}");
    }
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let want = [
        "tokenized",
        "notice",
        "started",
        "step",
        "evaluated",
        "saved",
        "sample",
        "step",
        "evaluated",
        "saved",
        "exported",
    ];
    assert_eq!(names, want);
    let step = &events[3];
    let losses = losses(&place.path("out"));
    assert_eq!((step["step"].as_u64(), step["loss"].as_f64()), (Some(10), Some(losses[9])));
    let errors = events_of(&["train", "r.json"], 2);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["event"], "error");
    assert!(errors[0]["message"].as_str().unwrap().contains("already holds a run"));
    events_of(&["export", "out", "exported"], 0);
    events_of(&["bench", "r.json", "--batch", "1", "--length", "16", "--steps", "1"], 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    // Enough positions for minutes of text.
    place.write("r.json", run_file_with(&[("model.config.n_positions", json!(100_000))]).to_string());
    place.output_of(&["train", "r.json"]);
    for args in [
        &["generate", "out", "--prompt", "The quick", "--max-new-tokens", "90000"][..],
        &["plan", "r.json", "--json"],
        &["man"],
        &["completions", "bash"],
        &["score", "out", "--text", "The quick brown fox"],
    ] {
        let mut child =
            place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut five = [0; 5];
        child.stdout.take().expect("its output").read_exact(&mut five).expect("five bytes");
        let ended = child.wait_with_output().expect("its end");
        let err = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && err.is_empty(), "{args:?}: {:?}: {err}", ended.status);
    }
}

#[test]
fn a_run_whose_log_nobody_reads_goes_on() {
    let place = Place::new();
    let mut child =
        place.command(&["train", "r.json", "--set", "run.log_every=1"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(losses(&place.path("out")).len(), 2);
}
