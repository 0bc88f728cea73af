//! Classifiers of Transformers: the same logits and gradients, and the same `config.json` again.

mod common;

use common::{Loaded, sum};
use models::hf::Dtype;
use models::{ModelConfig, Recompute};
use ops::{Batch, Document, HeadRequest};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tensor::{DType, Isa, LossTerms};
use testing::close::{Bound, assert_close};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join(file)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

const NAMES: [&str; 2] = ["gpt2-classifier", "llama-classifier"];

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    for name in NAMES {
        let expected = json(name, "expected.json");
        let loaded = Loaded::from_folder(&fixture(name), DType::F32, Isa::detect());
        // The padding at the end of the last row is no part of it: whoever reads rows takes it off.
        let rows: Vec<Vec<u32>> = serde_json::from_value(expected["rows"].clone()).unwrap();
        let rows: Vec<&[u32]> =
            rows.iter().map(|row| &row[..row.len() - 2 * usize::from(row.ends_with(&[3, 3]))]).collect();
        let documents: Vec<Document> = (0..)
            .zip(&rows)
            .map(|(sample, row)| Document { len: row.len(), sample, row_position: 0, position: 0 })
            .collect();
        let classes: Vec<i32> = serde_json::from_value(expected["labels"].clone()).unwrap();
        let batch = Batch::new(&loaded.queue, &rows.concat(), None, &documents).unwrap();
        let batch = batch.with_classes(&loaded.queue, &classes).unwrap();

        let (logits, _) = loaded.pass().forward(&loaded.env(&batch, HeadRequest::AllLogits)).unwrap();
        let got: Vec<f32> = loaded.queue.read(&logits).unwrap();
        let want: Vec<f32> =
            expected["logits"].as_array().unwrap().iter().flat_map(numbers).map(|logit| logit as f32).collect();
        assert_close(&format!("{name} logits"), &got, &want, Bound::Absolute(1e-5));

        let head = HeadRequest::TokenLogprobs { seed: Some(-0.25), terms: LossTerms::default() };
        loaded.store.clear_gradients();
        let pass = loaded.pass().forward_backward(&loaded.env(&batch, head), 0.0, &Recompute::Nothing).unwrap();
        let loss = -sum(&loaded.queue, &pass.logprobs) / 4.0;
        let want = expected["losses"]["hard"].as_f64().unwrap();
        assert!((loss - want).abs() < 1e-6, "{name}: loss {loss} and {want}");
        let files = fs::read(fixture(name).join("expected.safetensors")).unwrap();
        let files = safetensors::SafeTensors::deserialize(&files).unwrap();
        for (id, gradient) in loaded.store.gradients(&loaded.queue).unwrap() {
            let parameter = loaded.store.name(id);
            let want = files.tensor(&format!("grad.hard.{parameter}")).unwrap();
            let want: Vec<f32> = want.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut got: Vec<f32> = loaded.queue.read(&gradient).unwrap();
            if parameter == "model.embed_tokens.weight" {
                // Llama's embedding has a `padding_idx` in PyTorch: even inside a row that token gets no gradient there.
                got[3 * 16..4 * 16].fill(0.0);
            }
            assert_close(&format!("{name} {parameter}"), &got, &want, Bound::Absolute(2e-6));
        }
    }
}

#[test]
fn the_configuration_of_a_classifier_is_written_as_transformers_wrote_it() {
    for name in NAMES {
        let config = ModelConfig::from_folder(&fixture(name)).unwrap();
        assert_eq!(config.task.labels().unwrap().names(), ["negative", "neutral", "positive"]);
        let (written, mut original) = (config.to_hf_json(Dtype::F32), json(name, "config.json"));
        for key in ["architectures", "id2label", "label2id", "problem_type", "pad_token_id"] {
            assert_eq!(written[key], original[key], "{name}: {key}");
        }
        assert_eq!(ModelConfig::from_json(&written, "again").unwrap(), config);
        // The same file as a language model keeps what it says of labels, which means nothing there.
        original["architectures"] = serde_json::json!([]);
        let base = ModelConfig::from_json(&original, "base").unwrap();
        assert_eq!((base.task.labels(), &base.kept["id2label"]), (None, &original["id2label"]));
    }
}
