//! `metrics.jsonl`: whole lines only, and after a resume only those up to the checkpoint.

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use tempfile::{TempDir, tempdir};
use train::metrics::MetricsFile;

/// Steps 1 to 4, with an evaluation after step 2.
fn four_steps() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let mut file = MetricsFile::create(&path).unwrap();
    for line in lines() {
        file.append(&line).unwrap();
    }
    (dir, path)
}

fn lines() -> Vec<Value> {
    vec![
        json!({"step": 1, "loss": 4.25, "lr": 1e-3}),
        json!({"step": 2, "loss": 0.1 + 0.2, "lr": 1e-3}),
        json!({"step": 2, "eval_loss": 4.0, "eval_tokens": 640}),
        json!({"step": 3, "loss": 3.75, "lr": 1e-3}),
        json!({"step": 4, "loss": 3.5, "lr": 1e-3}),
    ]
}

#[test]
fn a_line_is_in_the_file_as_soon_as_it_is_appended() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let mut file = MetricsFile::create(&path).unwrap();
    assert_eq!(MetricsFile::read_all(&path).unwrap(), Vec::<Value>::new());
    file.append(&json!({"step": 1, "loss": 4.25})).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1,\"loss\":4.25}\n");
}

#[test]
fn every_line_comes_back() {
    let (_dir, path) = four_steps();
    assert_eq!(MetricsFile::read_all(&path).unwrap(), lines());
}

#[test]
fn a_resume_cuts_the_lines_after_its_step_and_goes_on_behind_the_rest() {
    let (dir, path) = four_steps();
    let before = fs::read_to_string(&path).unwrap();
    let mut file = MetricsFile::resume(&path, 2, true).unwrap();
    let kept: String = before.split_inclusive('\n').take(3).collect();
    assert_eq!(fs::read_to_string(&path).unwrap(), kept);
    for line in &lines()[3..] {
        file.append(line).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_half_written_last_line_is_dropped_wherever_it_was_cut() {
    let torn = "{\"step\":4,\"loss\":3.5}";
    for len in 1..=torn.len() {
        let (_dir, path) = four_steps();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&torn.as_bytes()[..len]).unwrap();
        assert_eq!(MetricsFile::read_all(&path).unwrap(), lines());
        let mut file = MetricsFile::resume(&path, 4, true).unwrap();
        file.append(&json!({"step": 5})).unwrap();
        let mut want = lines();
        want.push(json!({"step": 5}));
        assert_eq!(MetricsFile::read_all(&path).unwrap(), want);
    }
}

#[test]
fn another_line_that_is_not_json_is_named_and_the_file_stays() {
    let (dir, path) = four_steps();
    let text = fs::read_to_string(&path).unwrap().replacen("\"loss\":4.25", "\"loss\":", 1);
    fs::write(&path, &text).unwrap();
    let error = MetricsFile::resume(&path, 4, true).unwrap_err().to_string();
    let start = format!("{}: line 1 is not JSON (", path.display());
    assert!(error.starts_with(&start) && error.ends_with("; remove the line"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_resume_without_a_file_begins_one() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    MetricsFile::resume(&path, 7, true).unwrap().append(&json!({"step": 8})).unwrap();
    assert_eq!(MetricsFile::read_all(&path).unwrap(), [json!({"step": 8})]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("missing").join("metrics.jsonl");
    let error = MetricsFile::create(&path).unwrap_err().to_string();
    let want = format!("{}: cannot create the file: No such file or directory (os error 2)", path.display());
    assert_eq!(error, want);
}
