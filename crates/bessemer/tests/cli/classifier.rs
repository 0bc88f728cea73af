//! A classifier from a run file to figures: `train`, `eval`, `export`, and the commands that need a language model.

use crate::common::{Place, keys, metrics, run_file_with};
use serde_json::{Value, json};
use std::fs;

/// A finished run over reviews of one word.
fn trained() -> Place {
    let place = Place::new();
    let row = |(i, word): (usize, &str)| json!({"text": word, "label": i % 2}).to_string();
    let words = ["good", "bad", "fine", "poor", "great", "awful"].into_iter().cycle().take(60).enumerate();
    place.write("reviews.jsonl", words.map(row).collect::<Vec<String>>().join("\n"));
    let data = json!({"train": "reviews.jsonl", "validation": {"split": 0.2}, "tokenizer": "byte", "sequence_length": 32,
                      "packing": "none"});
    let changes = [
        ("data", data),
        ("model.labels", json!(["positive", "negative"])),
        ("run.steps", json!(30)),
        ("train_batch_size", json!(16)),
        ("optimizer.params.lr", json!(1e-2)),
    ];
    place.write("r.json", run_file_with(&changes).to_string());
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.err.contains("accuracy 1.0000  F1 1.0000"), "{}", ended.err);
    place
}

#[test]
fn a_classifier_is_trained_evaluated_and_exported_and_makes_no_text() {
    let place = trained();
    let (steps, evaluations) = metrics(&place.path("out"));
    assert_eq!(steps.len(), 30);
    let names = ["step", "eval_loss", "eval_perplexity", "eval_tokens", "eval_accuracy", "eval_f1"];
    assert_eq!(keys(&evaluations[0]), names);
    assert_eq!((&evaluations[0]["eval_accuracy"], &evaluations[0]["eval_tokens"]), (&json!(1.0), &json!(12)));

    let config: Value = serde_json::from_slice(&fs::read(place.path("out/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["GPT2ForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "positive", "1": "negative"}));
    place.output_of(&["export", "out/checkpoints/step-00000030", "exported"]);
    for file in ["config.json", "model.safetensors"] {
        let [run, export] = ["out/model", "exported"].map(|folder| fs::read(place.path(folder).join(file)).unwrap());
        assert!(run == export, "{file}");
    }
    for model in ["out", "exported", "out/checkpoints/step-00000030"] {
        let figures = place.json_of(&["eval", model, "--data", "reviews.jsonl", "--json"]);
        assert_eq!(keys(&figures), ["loss", "perplexity", "bits_per_byte", "tokens", "accuracy", "f1"]);
        assert_eq!((&figures["accuracy"], &figures["f1"], &figures["tokens"]), (&json!(1.0), &json!(1.0), &json!(60)));
    }
    let text = place.output_of(&["eval", "out", "--data", "reviews.jsonl"]);
    assert!(text.contains("accuracy       1.0000\nF1 (macro)     1.0000\nrows           60\n"), "{text}");

    let no_text = "the model is a classifier, which makes no text; evaluate it on labelled rows (bessemer eval)";
    assert_eq!(place.refusal(&["generate", "out", "--prompt", "a"]), no_text);
    let no_tokens = "the model is a classifier, which predicts no tokens; evaluate it on labelled rows (bessemer eval)";
    assert_eq!(place.refusal(&["score", "out", "--text", "a"]), no_tokens);
    let refusal = place.refusal(&["eval", "out", "--data", "corpus.txt"]);
    assert!(refusal.starts_with("--data: corpus.txt: is plain text, which has no labels;"), "{refusal}");
}
