//! Progressive layer drop in a run: what it changes, what it does not, and across a resume.

mod common;

use common::{Trained, run, set, small, weights};
use serde_json::json;
use std::path::Path;

fn dropping(output: &Path, theta: f64, more: &[(&str, serde_json::Value)]) -> Trained {
    run(&config(output, theta, more), false, None)
}

fn config(output: &Path, theta: f64, more: &[(&str, serde_json::Value)]) -> serde_json::Value {
    let mut config = small(output);
    // Theta is at its end from the second step on.
    set(&mut config, "progressive_layer_drop", json!({ "enabled": true, "theta": theta, "gamma": 50.0 }));
    more.iter().for_each(|(path, value)| set(&mut config, path, value.clone()));
    config
}

#[test]
fn nothing_is_left_out_in_the_first_two_steps_or_with_a_theta_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = run(&small(&folder.path().join("plain")), false, None).losses();
    assert_eq!(dropping(&folder.path().join("one"), 1.0, &[]).losses(), plain);
    let half = dropping(&folder.path().join("half"), 0.5, &[]).losses();
    assert_eq!(half[..2], plain[..2]);
    assert_ne!(half[2..], plain[2..]);
}

/// The bytes of the tensors of the final model whose names hold `part`.
fn tensors(output: &Path, part: &str) -> Vec<Vec<u8>> {
    let bytes = weights(output);
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize);
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).expect("a header");
    let ranges = header.iter().filter(|(name, _)| name.contains(part)).map(|(_, entry)| {
        let at = |end: usize| entry["data_offsets"][end].as_u64().expect("an offset") as usize;
        data[at(0)..at(1)].to_vec()
    });
    ranges.collect()
}

#[test]
fn a_layer_that_is_left_out_is_not_trained_and_the_others_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let after = |steps: u64| {
        let output = folder.path().join(steps.to_string());
        let sgd = json!({ "type": "SGD", "params": { "lr": 0.1 } });
        dropping(&output, 0.0, &[("run.steps", json!(steps)), ("optimizer", sgd)]);
        [".h.1.", ".wte."].map(|part| tensors(&output, part))
    };
    let ([last_once, tokens_once], [last, tokens]) = (after(2), after(4));
    // After the second step the last of the two layers runs with probability 0.
    assert_eq!(last.len(), 12);
    assert!(last == last_once, "the last layer was trained");
    assert!(tokens != tokens_once, "the embedding was not trained");
}

#[test]
fn recompute_threads_and_a_resume_draw_the_same_layers() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = dropping(&folder.path().join("whole"), 0.5, &[]).losses();
    let changed = [("run.recompute", json!(true)), ("run.threads", json!(1))];
    assert_eq!(dropping(&folder.path().join("changed"), 0.5, &changed).losses(), whole);
    let cut = config(&folder.path().join("cut"), 0.5, &[]);
    let parts = [run(&cut, false, Some(5)).losses(), run(&cut, true, None).losses()];
    assert_eq!(parts.concat(), whole);
}
