//! Several validation sets, early stopping, the best checkpoints: in whole runs, stopped and resumed ones too.

mod common;

use common::{run, set, small, try_run, weights};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use train::metrics::MetricsFile;
use train::{Outcome, Run, RunConfig, Silent};

/// [`small`] with validation data and further keys.
fn with(output: &Path, keys: &[(&str, Value)]) -> Value {
    let mut config = small(output);
    set(&mut config, "data.validation", json!({ "split": 0.01 }));
    for (key, value) in keys {
        set(&mut config, key, value.clone());
    }
    config
}

fn refusal(keys: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    try_run(&with(&folder.path().join("run"), keys), false, None).err().expect("a refusal").to_string()
}

/// Lines of evaluations in a run's metrics.
fn evaluations(output: &Path) -> Vec<Value> {
    let lines = MetricsFile::read_all(&output.join("metrics.jsonl")).expect("metrics");
    lines.into_iter().filter(|line| line.get("eval_loss").is_some()).collect()
}

/// Steps whose checkpoints are there, and what `latest` and `best` name.
fn checkpoints(output: &Path) -> (Vec<u64>, [Option<String>; 2]) {
    let folder = output.join("checkpoints");
    let names = fs::read_dir(&folder).expect("checkpoints").map(|entry| entry.expect("an entry").file_name());
    let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = names.filter_map(step).collect();
    steps.sort();
    let named = |file: &str| fs::read_to_string(folder.join(file)).ok().map(|name| name.trim_end().to_owned());
    (steps, ["latest", "best"].map(named))
}

fn named(step: u64) -> Option<String> {
    Some(format!("step-{step:08}"))
}

/// Two texts to validate on.
fn two_texts(folder: &Path) -> [PathBuf; 2] {
    let text = fs::read_to_string(common::shakespeare()).expect("the text");
    let paths = ["first.txt", "second.txt"].map(|name| folder.join(name));
    for (path, text) in paths.iter().zip([&text[..3000], &text[500_000..504_000]]) {
        fs::write(path, text).expect("a text");
    }
    paths
}

#[test]
fn each_named_set_has_its_own_line_with_the_figures_it_has_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = two_texts(folder.path());
    let run_with = |name: &str, validation: Value| {
        let output = folder.path().join(name);
        run(&with(&output, &[("data.validation", validation), ("run.eval_every", json!(6))]), false, None);
        evaluations(&output)
    };
    let alone = [run_with("a", json!(first)), run_with("b", json!([{ "path": second, "format": "text" }]))];
    let both = run_with("ab", json!({ "one": first, "two": { "path": second } }));
    let order: Vec<_> = both.iter().map(|line| (line["step"].as_u64(), line["eval_set"].as_str())).collect();
    let (six, twelve) = (Some(6), Some(12));
    assert_eq!(order, [(six, Some("one")), (six, Some("two")), (twelve, Some("one")), (twelve, Some("two"))]);
    for (line, (set, evaluation)) in both.iter().zip([(0, 0), (1, 0), (0, 1), (1, 1)]) {
        let alone = &alone[set][evaluation];
        assert_eq!(alone.get("eval_set"), None);
        for figure in ["eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_tokens"] {
            assert_eq!(line[figure], alone[figure], "{figure}");
        }
        let figure = |name: &str| line[name].as_f64().expect("a number");
        // Bytes are the tokens; all but the first are predicted.
        let bits = figure("eval_loss") / std::f64::consts::LN_2 * figure("eval_tokens") / (figure("eval_tokens") + 1.0);
        assert!((figure("eval_bits_per_byte") - bits).abs() < 1e-12 * bits, "{line}");
    }
}

#[test]
fn the_set_that_is_followed_is_the_first_or_the_one_that_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = two_texts(folder.path());
    for (chosen, followed) in [(Value::Null, "one"), (json!("two"), "two")] {
        let output = folder.path().join(followed);
        let keys = [
            ("data.validation", json!({ "one": first, "two": second })),
            ("run.eval_set", chosen),
            ("run.eval_every", json!(4)),
            ("run.keep_best", json!({ "count": 3 })),
        ];
        run(&with(&output, &keys), false, None);
        let manifest = fs::read_to_string(output.join("checkpoints/step-00000012/manifest.json")).expect("a manifest");
        let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
        let of_followed = |line: &&Value| line["eval_set"] == followed;
        let lines = evaluations(&output);
        let mut losses: Vec<f64> =
            lines.iter().filter(of_followed).filter_map(|line| line["eval_loss"].as_f64()).collect();
        losses.sort_by(f64::total_cmp);
        let best = manifest["best"]["best"].as_array().expect("the best").iter();
        assert_eq!(best.filter_map(|scored| scored["value"].as_f64()).collect::<Vec<_>>(), losses);
    }
}

#[test]
fn a_run_without_gain_ends_early_as_a_finished_one_and_one_that_was_stopped_ends_at_the_same_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = [("run.eval_every", json!(2)), ("run.early_stop", json!({ "patience": 2, "min_gain": 10.0 }))];
    let whole_output = folder.path().join("whole");
    let whole = run(&with(&whole_output, &keys), false, None);
    assert_eq!((whole.outcome, whole.steps.len()), (Outcome::Finished, 6), "evaluations 2 and 3 bring no gain of 10");
    let said = whole.notices.iter().find(|notice| notice.starts_with("step 6: 2 evaluations in a row without a gain"));
    assert!(said.is_some_and(|said| said.contains("eval_loss") && said.contains("at step 2")), "{:?}", whole.notices);
    assert_eq!(checkpoints(&whole_output), (vec![5, 6], [named(6), None]));
    // The stop at 6 leaves the evaluation that ends the run to the next.
    for stops in [[3, 5], [4, 6], [6, 6]] {
        let output = folder.path().join(format!("{stops:?}"));
        let cut = with(&output, &keys);
        let mut losses = run(&cut, false, Some(stops[0])).losses();
        let second = run(&cut, true, Some(stops[1]));
        losses.extend(second.losses());
        losses.extend(run(&cut, true, None).losses());
        assert_eq!(losses, whole.losses(), "{stops:?}");
        assert!(weights(&output) == weights(&whole_output), "{stops:?}");
        assert_eq!(evaluations(&output), evaluations(&whole_output));
    }
    let again = run(&with(&whole_output, &keys), true, None);
    assert_eq!((again.outcome, again.steps.len()), (Outcome::Finished, 0));
    assert!(again.notices.iter().any(|notice| notice.contains("raise its patience")), "{:?}", again.notices);
    let mut patient = with(&whole_output, &keys);
    set(&mut patient, "run.early_stop.patience", json!(3));
    assert_eq!(run(&patient, true, None).steps.len(), 2);
}

#[test]
fn the_best_are_saved_when_they_are_measured_and_kept_beside_the_newest() {
    for is_async in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = |mode: &str| {
            [
                ("run.eval_every", json!(2)),
                ("run.checkpoint_every", json!(0)),
                ("run.checkpoint_async", json!(is_async)),
                ("run.keep_checkpoints", json!(1)),
                ("run.keep_best", json!({ "metric": "eval_perplexity", "mode": mode, "count": 2 })),
            ]
        };
        // The loss falls from evaluation to evaluation: by `max` the first ones stay the best.
        let output = folder.path().join("max");
        let worst = run(&with(&output, &keys("max")), false, None);
        assert_eq!(worst.saved.len(), 3, "at 2 and 4, and at the end");
        assert_eq!(checkpoints(&output), (vec![2, 4, 12], [named(12), named(2)]));
        let output = folder.path().join("min");
        let config = with(&output, &keys("min"));
        assert_eq!(run(&config, false, Some(7)).outcome, Outcome::Interrupted { signal: 15 });
        assert_eq!(checkpoints(&output), (vec![4, 6, 7], [named(7), named(6)]));
        // Killed between a checkpoint and the file that names the best one.
        fs::write(output.join("checkpoints/best"), "step-00000004\n").expect("an older name");
        run(&config, true, Some(8));
        assert_eq!(checkpoints(&output), (vec![4, 6, 8], [named(8), named(6)]));
        // The evaluation at 8 was left to this run, and is among the best.
        run(&config, true, Some(9));
        assert_eq!(checkpoints(&output), (vec![6, 8, 9], [named(9), named(8)]));
        run(&config, true, None);
        assert_eq!(checkpoints(&output), (vec![10, 12], [named(12), named(12)]));
    }
}

#[test]
fn a_best_checkpoint_that_is_gone_is_forgotten_and_without_the_key_none_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let keys = [("run.eval_every", json!(2)), ("run.keep_best", json!({ "mode": "max" }))];
    run(&with(&output, &keys), false, Some(7));
    assert_eq!(checkpoints(&output).1, [named(7), named(2)]);
    fs::remove_dir_all(output.join("checkpoints/step-00000002")).expect("it was there");
    run(&with(&output, &keys), true, Some(9));
    assert_eq!(checkpoints(&output).1, [named(9), named(8)], "the best of those since");
    run(&with(&output, &keys[..1]), true, None);
    assert_eq!(checkpoints(&output).1, [named(12), None]);
}

#[test]
fn a_run_exports_its_best_weights_if_it_is_asked_to_and_goes_on_from_its_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = with(
        &output,
        &[
            ("run.eval_every", json!(2)),
            ("run.keep_best", json!({ "mode": "max" })),
            ("run.load_best_at_end", json!(true)),
            ("run.ema_decay", json!(0.9)),
        ],
    );
    let trained = run(&config, false, None);
    assert!(
        trained.notices.iter().any(|notice| notice.starts_with("the model is that of step 2, the best one")),
        "{:?}",
        trained.notices
    );
    let short = folder.path().join("short");
    run(&with(&short, &[("run.steps", json!(2)), ("run.ema_decay", json!(0.9))]), false, None);
    assert!(weights(&output) == weights(&short), "the rate is constant: these are the weights of step 2");
    let whole = folder.path().join("whole");
    run(&with(&whole, &[("run.steps", json!(14)), ("run.ema_decay", json!(0.9))]), false, None);
    set(&mut config, "run.steps", json!(14));
    set(&mut config, "run.load_best_at_end", json!(false));
    assert_eq!(run(&config, true, None).steps.len(), 2);
    assert!(weights(&output) == weights(&whole), "the newest checkpoint is that of the last step");
}

#[test]
fn what_follows_evaluations_that_are_not_made_is_refused() {
    assert_eq!(
        refusal(&[("run.early_stop", json!({}))]),
        "test: run.early_stop follows the validation figures and the run does not measure them on the way; give \
         data.validation and a run.eval_every above 0"
    );
    assert_eq!(
        refusal(&[("run.keep_best", json!({})), ("run.eval_every", json!(2)), ("data.validation", Value::Null)]),
        "test: run.keep_best follows the validation figures and the run does not measure them on the way; give \
         data.validation and a run.eval_every above 0"
    );
    assert_eq!(
        refusal(&[("run.load_best_at_end", json!(true))]),
        "test: run.load_best_at_end is true and there is no best checkpoint; give run.keep_best, such as { \"count\": 1 }"
    );
    assert_eq!(
        refusal(&[("run.keep_best", json!({ "metric": "accuracy" }))]),
        "test: run.keep_best.metric is \"accuracy\"; it must be \"eval_loss\", \"eval_perplexity\", \
         \"eval_bits_per_byte\", \"eval_accuracy\" or \"eval_f1\""
    );
    assert_eq!(
        refusal(&[("run.keep_best", json!({ "metric": "eval_f1" })), ("run.eval_every", json!(2))]),
        "test: run.keep_best.metric is \"eval_f1\" and the model predicts tokens; only a classifier has it; follow eval_loss"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, "{\"input_ids\": [1, 2, 3]}\n").expect("rows");
    assert_eq!(
        refusal(&[
            ("data.validation", json!({ "rows": rows })),
            ("run.eval_every", json!(2)),
            ("run.early_stop", json!({ "metric": "eval_bits_per_byte" })),
        ]),
        "test: run.early_stop.metric is \"eval_bits_per_byte\" and data.validation.rows came as tokens, whose bytes are not \
         known; follow eval_loss"
    );
}

#[test]
fn sets_that_cannot_be_are_refused_by_name() {
    let text = common::shakespeare();
    for (validation, want) in [
        (json!({ "wiki": "missing.txt" }), "test: data.validation.wiki: missing.txt: no such file"),
        (json!({ "wiki": [] }), "test: data.validation.wiki is []; it must name at least one source"),
        (json!({ "wiki": {} }), "test: data.validation.wiki.path is missing; it must be a path or a glob"),
        (
            json!({ "wiki": [{ "path": text, "formt": "text" }] }),
            "test: data.validation.wiki[0].formt is not a known key; the nearest one is data.validation.*[].format",
        ),
        (
            json!({ "split": 0.1, "wiki": text }),
            "test: data.validation.wiki stands beside data.validation.split; a split has no name: leave one of them out",
        ),
        (
            json!({ "path": text }),
            "test: data.validation.path cannot be the name of a set; a source of its own stands in a list, [{ \"path\": ... }]",
        ),
        (
            json!({ "my set": text }),
            "test: data.validation.my set is a set called \"my set\"; its name must be letters",
        ),
        (
            json!({ "splitt": 0.1 }),
            "test: data.validation.splitt is not a known key; the nearest one is data.validation.split",
        ),
    ] {
        let refusal = refusal(&[("data.validation", validation)]);
        assert!(refusal.starts_with(want), "{refusal}");
    }
    assert_eq!(
        refusal(&[("data.validation", json!({ "a": text, "b": text })), ("run.eval_set", json!("c"))]),
        "test: run.eval_set is \"c\"; it must be a set of data.validation: \"a\" or \"b\""
    );
    assert_eq!(
        refusal(&[("run.eval_set", json!("c"))]),
        "test: run.eval_set is given and data.validation has no sets by name; remove it"
    );
}

#[test]
fn the_resolved_run_of_several_sets_is_a_run_file_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = two_texts(folder.path());
    let sets = json!({ "one": first, "two": [{ "path": second, "format": "text" }] });
    let config = with(&folder.path().join("run"), &[("data.validation", sets)]);
    let config = RunConfig::from_value(config, "test").expect("a configuration");
    let run = Run::prepare(config.clone(), false, &mut Silent).expect("a run");
    let again = RunConfig::from_value(run.plan().resolved(&config), "run.json").expect("a configuration");
    assert_eq!(again.data, config.data);
}
