//! Classifiers in training: Transformers' losses and gradients, fresh heads on language models, and what is refused.

mod common;

use common::{run, set, shakespeare, try_run};
use models::ModelConfig;
use models::hf::WeightFiles;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use testing::close::{Bound, assert_close};
use train::metrics::MetricsFile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures").join(name)
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("expected.json")).expect("a file")).expect("JSON")
}

fn write_rows(path: &Path, rows: impl IntoIterator<Item = Value>) {
    let lines: Vec<String> = rows.into_iter().map(|row| row.to_string()).collect();
    fs::write(path, lines.join("\n")).expect("a file of rows");
}

/// The fixture's rows, with its labels, their names, or its distributions.
fn fixture_rows(expected: &Value, kind: &str) -> Vec<Value> {
    let names = ["negative", "neutral", "positive"];
    let row = |i: usize| {
        let mut row = json!({ "input_ids": expected["rows"][i] });
        match kind {
            "soft" => row["class_probs"] = expected["class_probs"][i].clone(),
            "named" => row["label"] = json!(names[expected["labels"][i].as_u64().expect("a label") as usize]),
            "one-hot" => {
                let label = expected["labels"][i].as_u64().expect("a label");
                row["class_probs"] = json!([0, 1, 2].map(|class| u8::from(class == label)));
            }
            _ => row["label"] = expected["labels"][i].clone(),
        }
        row
    };
    (0..4).map(row).collect()
}

/// One step of SGD with rate 1 over the fixture's four rows.
fn one_step(folder: &Path, name: &str, kind: &str, micro_batch: u64) -> Value {
    write_rows(&folder.join("rows.jsonl"), fixture_rows(&expected(name), kind));
    json!({
        "model": { "path": fixture(name) },
        "data": { "train": folder.join("rows.jsonl"), "validation": folder.join("rows.jsonl"), "sequence_length": 16,
                  "packing": "none", "shuffle": false, "cache": folder.join("cache") },
        "run": { "output": folder.join("out"), "steps": 1 },
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": micro_batch, "gradient_clipping": 0.0,
        "optimizer": { "type": "SGD", "params": { "lr": 1.0 } },
    })
}

type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn weights(folder: &Path) -> Weights {
    let files = WeightFiles::open(folder).expect("weights");
    let read = |name: &str, shape: &[usize]| files.read_f32(name, 0..shape.iter().product()).expect("a weight");
    let entry = |entry: models::hf::WeightEntry<'_>| {
        (entry.name.to_owned(), (entry.shape.to_vec(), read(entry.name, entry.shape)))
    };
    files.entries().map(entry).collect()
}

#[test]
fn hard_and_soft_labels_have_the_loss_and_gradients_of_transformers_however_they_are_accumulated() {
    for name in ["gpt2-classifier", "llama-classifier"] {
        for (kind, of) in [("hard", "hard"), ("named", "hard"), ("soft", "soft")] {
            for micro_batch in [4, 1] {
                let folder = tempfile::tempdir().expect("a folder");
                let trained = run(&one_step(folder.path(), name, kind, micro_batch), false, None);
                let (loss, want) = (trained.steps[0].loss, expected(name)["losses"][of].as_f64().expect("a loss"));
                assert!((loss - want).abs() < 1e-6, "{name} {kind} by {micro_batch}: {loss} and {want}");
                let (before, after) = (weights(&fixture(name)), weights(&folder.path().join("out/model")));
                let bytes = fs::read(fixture(name).join("expected.safetensors")).expect("a file");
                let gradients = safetensors::SafeTensors::deserialize(&bytes).expect("gradients");
                for (parameter, (_, after)) in after {
                    let want = gradients.tensor(&format!("grad.{of}.{parameter}")).expect("a gradient");
                    let want: Vec<f32> = want.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
                    let mut got: Vec<f32> = before[&parameter].1.iter().zip(after).map(|(a, b)| a - b).collect();
                    if parameter == "model.embed_tokens.weight" {
                        // Llama's embedding has a `padding_idx` in PyTorch: that token gets no gradient there.
                        got[3 * 16..4 * 16].fill(0.0);
                    }
                    assert_close(&format!("{name} {kind} {parameter}"), &got, &want, Bound::Absolute(3e-6));
                }
            }
        }
    }
}

#[test]
fn one_hot_distributions_train_to_the_bits_of_labels_and_smoothing_gives_transformers_loss() {
    for name in ["gpt2-classifier", "llama-classifier"] {
        let [hard, soft] = ["hard", "one-hot"].map(|kind| {
            let folder = tempfile::tempdir().expect("a folder");
            let trained = run(&one_step(folder.path(), name, kind, 2), false, None);
            (trained.losses(), common::weights(&folder.path().join("out")))
        });
        assert!(hard == soft, "{name}");
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = one_step(folder.path(), name, "hard", 4);
        set(&mut config, "run.label_smoothing", json!(0.1));
        let (loss, want) = (run(&config, false, None).steps[0].loss, expected(name)["losses"]["smoothed"].as_f64());
        assert!((loss - want.expect("a loss")).abs() < 1e-6, "{name}: {loss} and {want:?}");
    }
}

#[test]
fn an_evaluation_has_the_plain_loss_and_the_accuracy_and_f1_of_the_logits() {
    for (name, accuracy, f1) in FIGURES {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = one_step(folder.path(), name, "hard", 4);
        set(&mut config, "run.label_smoothing", json!(0.1));
        set(&mut config, "optimizer.params.lr", json!(0.0));
        run(&config, false, None);
        let lines = MetricsFile::read_all(&folder.path().join("out/metrics.jsonl")).expect("metrics");
        let line = lines.last().expect("an evaluation");
        let want = expected(name)["losses"]["hard"].as_f64().expect("a loss");
        assert!((line["eval_loss"].as_f64().expect("a loss") - want).abs() < 1e-6, "{name}: {line}");
        assert_eq!((&line["eval_accuracy"], &line["eval_tokens"]), (&json!(accuracy), &json!(4)), "{name}");
        assert!((line["eval_f1"].as_f64().expect("a figure") - f1).abs() < 1e-12, "{name}: {line}");
    }
}

/// scikit-learn's `accuracy_score` and `f1_score(average="macro")` of the fixtures' logits.
const FIGURES: [(&str, f64, f64); 2] = [("gpt2-classifier", 0.75, 5.0 / 9.0), ("llama-classifier", 0.25, 1.0 / 6.0)];

/// Rows of 'a' or 'b' with some noise around them, labelled by which there is more of.
fn letters(path: &Path) {
    let text = shakespeare();
    let text = fs::read_to_string(text).expect("the corpus");
    let rows = text.split_whitespace().filter(|word| word.is_ascii()).take(240).enumerate().map(|(i, word)| {
        let (letter, label) = if i % 3 == 0 { ("zz", "sleepy") } else { ("!!", "loud") };
        json!({ "text": format!("{}{letter}", &word[..word.len().min(8)]), "label": label })
    });
    write_rows(path, rows);
}

fn letters_run(folder: &Path) -> Value {
    letters(&folder.join("rows.jsonl"));
    json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": 256, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2 },
                   "labels": ["sleepy", "loud"] },
        "data": { "train": folder.join("rows.jsonl"), "validation": { "split": 0.2 }, "tokenizer": "byte",
                  "sequence_length": 16, "packing": "none", "cache": folder.join("cache") },
        "run": { "output": folder.join("out"), "steps": 30, "checkpoint_every": 10, "eval_every": 10, "seed": 3 },
        "train_batch_size": 16, "train_micro_batch_size_per_gpu": 8,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-2 } },
    })
}

#[test]
fn a_classifier_from_scratch_learns_in_every_precision_and_resumes_to_the_same_bits() {
    for precision in ["f32", "bf16", "fp16"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = letters_run(folder.path());
        if precision != "f32" {
            set(&mut config, precision, json!({ "enabled": true }));
        }
        let whole = run(&config, false, None);
        let lines = MetricsFile::read_all(&folder.path().join("out/metrics.jsonl")).expect("metrics");
        let last = lines.last().expect("an evaluation");
        assert_eq!((&last["eval_accuracy"], &last["eval_f1"]), (&json!(1.0), &json!(1.0)), "{precision}: {last}");
        assert_eq!(lines.iter().filter(|line| line["eval_f1"].is_number()).count(), 3, "{precision}");
        // Every row counts once: 16 a step.
        assert_eq!(whole.steps[29].tokens, 30 * 16, "{precision}");

        let other = folder.path().join("other");
        set(&mut config, "run.output", json!(other));
        run(&config, false, Some(13));
        let rest = run(&config, true, None);
        assert_eq!(rest.losses(), whole.losses()[13..], "{precision}");
        assert!(common::weights(&other) == common::weights(&folder.path().join("out")), "{precision}");
    }
}

#[test]
fn a_language_model_is_the_base_of_a_classifier_whose_head_alone_is_new() {
    for (name, prefix) in [("gpt2", "transformer."), ("llama", "model.")] {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [json!({ "input_ids": [5, 6, 7], "label": 1 }), json!({ "input_ids": [8], "label": "cold" })];
        write_rows(&folder.path().join("rows.jsonl"), rows);
        let mut config = json!({
            "model": { "path": fixture(name), "labels": ["cold", "warm", "hot"] },
            "data": { "train": folder.path().join("rows.jsonl"), "sequence_length": 8, "packing": "none",
                      "cache": folder.path().join("cache") },
            "run": { "output": folder.path().join("out"), "steps": 1, "seed": 5 },
            "train_batch_size": 2, "optimizer": { "type": "SGD", "params": { "lr": 0.0 } },
        });
        run(&config, false, None);
        let model = folder.path().join("out/model");
        let (base, made) = (weights(&fixture(name)), weights(&model));
        let (score, rest): (Weights, Weights) = made.into_iter().partition(|(name, _)| name == "score.weight");
        assert!(rest.iter().all(|(name, values)| name.starts_with(prefix) && base[name] == *values), "{name}");
        let of_base = base.keys().filter(|name| *name != "lm_head.weight").count();
        assert_eq!(rest.len(), of_base, "{name}");
        let (shape, values) = &score["score.weight"];
        let std = (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt();
        // initializer_range of the fixtures is 0.08.
        assert!(*shape == [3, 48] && (std - 0.08).abs() < 0.02, "{name}: {shape:?}, {std}");
        let written = ModelConfig::from_folder(&model).expect("a configuration");
        assert_eq!(written.task.labels().expect("a classifier").names(), ["cold", "warm", "hot"]);

        // The classifier is a base for itself, and its checkpoint too; other classes are refused.
        for path in [model.clone(), folder.path().join("out/checkpoints/step-00000001")] {
            set(&mut config, "model.path", json!(path));
            for labels in [json!(null), json!(["cold", "warm", "hot"])] {
                set(&mut config, "model.labels", labels);
                set(&mut config, "run.output", json!(folder.path().join("again")));
                run(&config, false, None);
                assert!(weights(&folder.path().join("again/model")) == weights(&model), "{name} {}", path.display());
                fs::remove_dir_all(folder.path().join("again")).expect("the folder");
            }
        }
        set(&mut config, "model.labels", json!(2));
        let refusal = try_run(&config, false, None).err().expect("a refusal").to_string();
        let rule = "leave model.labels out to train that head, or take the language model under it";
        assert!(
            refusal.starts_with("test: model.labels names LABEL_0, LABEL_1, but ") && refusal.ends_with(rule),
            "{refusal}"
        );
    }
}

#[test]
fn a_checkpoint_of_a_language_model_is_a_base_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = common::small(&folder.path().join("lm"));
    set(&mut config, "run.steps", json!(1));
    run(&config, false, None);
    let mut classifier = letters_run(folder.path());
    set(
        &mut classifier,
        "model",
        json!({ "path": folder.path().join("lm/checkpoints/step-00000001"), "labels": ["sleepy", "loud"] }),
    );
    set(&mut classifier, "run.steps", json!(1));
    set(&mut classifier, "optimizer", json!({ "type": "SGD", "params": { "lr": 0.0 } }));
    run(&classifier, false, None);
    let (base, made) = (weights(&folder.path().join("lm/model")), weights(&folder.path().join("out/model")));
    assert_eq!(made.len(), base.len() + 1);
    assert!(base.iter().all(|(name, values)| made[name] == *values));
}

fn refusal(rows: &[Value], changes: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = letters_run(folder.path());
    if !rows.is_empty() {
        write_rows(&folder.path().join("rows.jsonl"), rows.iter().cloned());
        set(&mut config, "data.validation", json!(null));
    }
    for (path, value) in changes {
        set(&mut config, path, value.clone());
    }
    let refusal = try_run(&config, false, None).err().expect("a refusal").to_string();
    refusal.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_row_without_a_class_that_is_one_is_named_with_its_line() {
    let good = json!({ "text": "x", "label": 0 });
    for (row, problem) in [
        (
            json!({ "text": "x" }),
            "has neither label nor class_probs; a row of a classifier's data must have one of them, such as \"label\": 0",
        ),
        (
            json!({ "text": "x", "label": 2 }),
            "label is 2; it must be a class from 0 to 1 or one of \"sleepy\", \"loud\"",
        ),
        (
            json!({ "text": "x", "label": -1 }),
            "label is -1; it must be a class from 0 to 1 or one of \"sleepy\", \"loud\"",
        ),
        (
            json!({ "text": "x", "label": "Loud" }),
            "label is \"Loud\"; it must be a class from 0 to 1 or one of \"sleepy\", \"loud\"",
        ),
        (json!({ "text": "x", "label": 1, "class_probs": [0, 1] }), "has both label and class_probs; keep one of them"),
        (
            json!({ "text": "x", "class_probs": [1] }),
            "class_probs has 1 numbers; it must have one for each of 2 classes",
        ),
        (json!({ "text": "x", "class_probs": "even" }), "class_probs is a string; it must be an array of numbers"),
        (
            json!({ "text": "x", "class_probs": [0.5, 0.4] }),
            "the probabilities of class_probs add up to 0.9; they must add up to 1",
        ),
        (
            json!({ "text": "x", "class_probs": [1.5, -0.5] }),
            "class_probs has probability -0.5; it must be a number from 0 to 1",
        ),
    ] {
        assert_eq!(refusal(&[good.clone(), row], &[]), format!("test: data.train: rows.jsonl: line 2: {problem}"));
    }
}

#[test]
fn what_makes_no_sense_for_a_classifier_is_refused_by_name() {
    for (path, value, message) in [
        (
            "data.packing",
            json!("concat"),
            "data.packing is \"concat\"; it must be \"none\" for a classifier, whose rows have one class each",
        ),
        ("run.sample_prompt", json!("a"), "run.sample_prompt is \"a\"; a classifier makes no text: leave it out"),
        (
            "model.labels",
            json!(["one"]),
            "model.labels names 1 of them; there must be at least 2 (regression is not done)",
        ),
        ("model.labels", json!(["a", "a"]), "model.labels names \"a\" twice; each must have its own name"),
        (
            "model.labels",
            json!(1),
            "model.labels is 1; it must be a list [...] whose items are text in quotes or a whole number of at least 2 and at most 65536",
        ),
    ] {
        assert_eq!(refusal(&[], &[(path, value)]), format!("test: {message}"));
    }
    let refused = refusal(&[], &[("run.tokens", json!(100)), ("run.steps", json!(null))]);
    assert_eq!(refused, "test: run.tokens is 100; a classifier counts rows: give run.steps or run.epochs");
    let refused = refusal(&[], &[("data.train", json!(shakespeare())), ("data.validation", json!(null))]);
    assert!(refused.ends_with("is plain text, which has no labels; a classifier needs rows {\"text\", \"label\"} (jsonl) or {\"input_ids\", \"label\"} (tokenized)"), "{refused}");
}
