//! Distributions over tokens in training data: one-hot lists are labels, and the gradient is the slope of the loss.

mod common;

use common::{run, set, try_run};
use models::hf::WeightFiles;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/gpt2")
}

/// Four rows of nine tokens with some labels that do not count.
fn rows() -> Vec<(Vec<u32>, Vec<i64>)> {
    let row = |row: u32| {
        let ids: Vec<u32> = (0..9).map(|t| 2 + (row * 31 + t * t * 7) % 120).collect();
        let labels = ids.iter().enumerate().map(|(t, id)| if t == 3 { -100 } else { i64::from(*id) }).collect();
        (ids, labels)
    };
    (0..4).map(row).collect()
}

/// `[[id, 1]]` for every label that counts, but for every third, which is left to the label.
fn one_hot(labels: &[i64]) -> Value {
    let list = |(t, label): (usize, &i64)| if *label < 0 || t % 3 == 2 { json!(null) } else { json!([[label, 1]]) };
    labels.iter().enumerate().map(list).collect()
}

/// Three uneven probabilities at every label that counts.
fn spread(labels: &[i64]) -> Value {
    let list = |label: &i64| {
        if *label < 0 { json!([]) } else { json!([[label, 0.5], [1, 0.375], [(label * 3 + 1) % 131, 0.125]]) }
    };
    labels.iter().map(list).collect()
}

fn write(folder: &Path, soft: Option<fn(&[i64]) -> Value>) {
    let rows = rows().into_iter().map(|(ids, labels)| {
        let mut row = json!({ "input_ids": ids, "labels": labels });
        if let Some(soft) = soft {
            row["soft_labels"] = soft(&labels);
        }
        row.to_string()
    });
    fs::write(folder.join("rows.jsonl"), rows.collect::<Vec<String>>().join("\n")).expect("a file of rows");
}

fn config(folder: &Path, packing: &str) -> Value {
    let length = if packing == "none" { 9 } else { 7 };
    json!({
        "model": { "path": fixture() },
        "data": { "train": folder.join("rows.jsonl"), "validation": folder.join("rows.jsonl"), "sequence_length": length,
                  "packing": packing, "shuffle": false, "cache": folder.join("cache") },
        "run": { "output": folder.join("out"), "steps": 2 },
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0,
        "optimizer": { "type": "SGD", "params": { "lr": 0.1 } },
    })
}

#[test]
fn one_hot_lists_train_to_the_bits_of_labels_in_either_packing_and_every_precision() {
    for packing in ["none", "concat"] {
        for precision in ["f32", "bf16", "fp16"] {
            let [hard, soft] = [None, Some(one_hot as fn(&[i64]) -> Value)].map(|soft| {
                let folder = tempfile::tempdir().expect("a folder");
                write(folder.path(), soft);
                let mut config = config(folder.path(), packing);
                if precision != "f32" {
                    set(&mut config, precision, json!({ "enabled": true }));
                }
                let metrics = run(&config, false, None).losses();
                (metrics, common::weights(&folder.path().join("out")))
            });
            assert!(hard == soft, "{packing} {precision}");
        }
    }
}

/// One step of SGD with rate 1 from the fixture's weights, moved by `by` along `direction`: loss, and the gradient of the
/// tied embedding.
fn step(by: f32, direction: &[f32]) -> (f64, Vec<f32>) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base");
    fs::create_dir(&base).expect("a folder");
    fs::copy(fixture().join("config.json"), base.join("config.json")).expect("a copy");
    let bytes = fs::read(fixture().join("model.safetensors")).expect("weights");
    let (size, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let (mut moved, start) = (bytes.clone(), size + 8);
    let (from, to) = header.info("transformer.wte.weight").expect("the embedding").data_offsets;
    let numbers = moved[start + from..start + to].as_chunks_mut::<4>().0;
    let before: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let before: Vec<f32> =
        before.iter().enumerate().map(|(i, x)| x + by * direction.get(i).copied().unwrap_or(0.0)).collect();
    numbers.iter_mut().zip(&before).for_each(|(bytes, x)| *bytes = x.to_le_bytes());
    fs::write(base.join("model.safetensors"), moved).expect("weights");
    write(folder.path(), Some(spread));
    let mut config = config(folder.path(), "concat");
    set(&mut config, "model.path", json!(base));
    set(&mut config, "run.steps", json!(1));
    set(&mut config, "optimizer.params.lr", json!(1.0));
    let loss = run(&config, false, None).steps[0].loss;
    let files = WeightFiles::open(&folder.path().join("out/model")).expect("weights");
    let after = files.read_f32("transformer.wte.weight", 0..before.len()).expect("the embedding");
    (loss, before.iter().zip(after).map(|(before, after)| before - after).collect())
}

#[test]
fn the_gradient_of_spread_labels_is_the_slope_of_the_reported_loss() {
    let (loss, gradient) = step(0.0, &[]);
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let direction: Vec<f32> = gradient.iter().map(|g| (f64::from(*g) / norm) as f32).collect();
    let h = 1e-2;
    let at = |times: f32| step(times * h, &direction).0;
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(h));
    assert!((slope - norm).abs() < 1e-3 * norm, "slope {slope} along a gradient of norm {norm}");
    // Half of the probability lies elsewhere: not the loss of the labels.
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), None);
    let mut hard = config(folder.path(), "concat");
    set(&mut hard, "run.steps", json!(1));
    assert!((run(&hard, false, None).steps[0].loss - loss).abs() > 0.01);
}

#[test]
fn a_list_that_is_no_distribution_is_named_with_row_and_position() {
    for (soft, problem) in [
        (json!([null]), "soft_labels has 1 values and input_ids 2; they must be equally long"),
        (json!("x"), "\"soft_labels\" is a string; it must be an array of lists"),
        (json!([null, 3]), "soft_labels[1] is 3; it must be null or a list of pairs"),
        (json!([null, [[1]]]), "soft_labels[1] holds an array; it must hold pairs [id, probability]"),
        (json!([null, [[131, 1]]]), "soft_labels[1] has id 131; it must be a token id from 0 to 130"),
        (json!([null, [[7, 0.5], [7, 0.5]]]), "soft_labels[1] has id 7 twice; each id may stand once"),
        (
            json!([null, [[7, 0.5], [8, 0.25]]]),
            "the probabilities of soft_labels[1] add up to 0.75; they must add up to 1",
        ),
        (json!([null, [[7, "1"]]]), "soft_labels[1] has probability a string; it must be a number from 0 to 1"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [json!({ "input_ids": [5, 6] }), json!({ "input_ids": [5, 6], "soft_labels": soft })];
        fs::write(folder.path().join("rows.jsonl"), rows.map(|row| row.to_string()).join("\n")).expect("a file");
        let refusal = try_run(&config(folder.path(), "none"), false, None).err().expect("a refusal").to_string();
        let place = format!("{}/", folder.path().display());
        assert_eq!(refusal.replace(&place, ""), format!("test: data.train: rows.jsonl: line 2: {problem}"));
    }
}
