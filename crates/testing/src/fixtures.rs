//! The model fixtures: small pretrained folders with the numbers that Transformers and PyTorch computed from them.
//!
//! They lie in `crates/models/tests/fixtures/NAME/`: `config.json` and `model.safetensors` as Transformers saves them,
//! `expected.safetensors` and `expected.json` beside them. All is f32 on one CPU thread, eager attention, no dropout.
//! Read here with plain code that shares nothing with the loader under test.

use std::fs;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::oracle::{AdamW, Row, Tensors};

/// A small model and what it must compute. B = rows, T = tokens of a row, V = vocabulary.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// `config.json`.
    pub config: Value,
    /// `model.safetensors`: f32, names and orientation of Hugging Face.
    pub weights: Tensors<f32>,
    /// Tokens `[B][T]`.
    pub input_ids: Vec<Vec<u32>>,
    /// Targets `[B][T]`: `labels[b][t]` is held against the prediction at `t - 1`; -100 does not count.
    pub labels: Vec<Vec<i64>>,
    /// `[B, T, V]`, before any update.
    pub logits: Vec<f32>,
    /// Mean cross-entropy over the counted targets, before any update.
    pub loss: f64,
    /// Gradient of `loss` by each trained weight.
    pub gradients: Tensors<f32>,
    /// The settings of the AdamW steps; every weight decays.
    pub adamw: AdamW,
    /// The loss before each of those steps.
    pub adamw_losses: Vec<f64>,
    /// The weights after them.
    pub after: Tensors<f32>,
    /// The prompt of the greedy continuation.
    pub greedy_from: Vec<u32>,
    /// Prompt and continuation, with the weights before any update.
    pub greedy: Vec<u32>,
}

impl Fixture {
    /// Reads the fixture called `name`, for example `gpt2`.
    ///
    /// # Panics
    /// If a file is missing or not what `crates/models/tests/fixtures` promises.
    pub fn read(name: &str) -> Self {
        let config = read_json(name, "config.json");
        let expected = read_json(name, "expected.json");
        let bytes = read_bytes(name, "expected.safetensors");
        let tensors = parse(name, &bytes);
        let floats = float_tensors(&tensors);
        let number =
            |value: &Value, key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{name}: no number {key}"));
        let adamw = &expected["adamw"];
        let beta = |index: usize| adamw["betas"][index].as_f64().unwrap_or_else(|| panic!("{name}: no beta {index}"));
        let convert = |id: i64| u32::try_from(id).unwrap_or_else(|_| panic!("{name}: token {id}"));
        let input_ids = integer_rows(&tensors, "input_ids");
        Self {
            weights: float_tensors(&parse(name, &read_bytes(name, "model.safetensors"))),
            input_ids: input_ids.into_iter().map(|row| row.into_iter().map(convert).collect()).collect(),
            labels: integer_rows(&tensors, "labels"),
            logits: floats["logits"].1.clone(),
            loss: number(&expected, "loss"),
            gradients: with_prefix(&floats, "grad."),
            adamw: AdamW {
                lr: number(adamw, "lr"),
                beta1: beta(0),
                beta2: beta(1),
                eps: number(adamw, "eps"),
                weight_decay: number(adamw, "weight_decay"),
            },
            adamw_losses: list(&expected["adamw_losses"], Value::as_f64),
            after: with_prefix(&floats, "after."),
            greedy_from: list(&expected["greedy_from"], Value::as_i64).into_iter().map(convert).collect(),
            greedy: list(&expected["greedy"], Value::as_i64).into_iter().map(convert).collect(),
            config,
        }
    }

    /// Where the fixture called `name` lies, for tests of the loader.
    pub fn folder(name: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures")).join(name)
    }

    /// The batch as rows of one document each.
    pub fn rows(&self) -> Vec<Row> {
        self.input_ids.iter().zip(&self.labels).map(|(ids, labels)| Row::new(ids.clone(), labels.clone())).collect()
    }
}

fn read_bytes(name: &str, file: &str) -> Vec<u8> {
    let path = Fixture::folder(name).join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("fixture {}: {error}", path.display()))
}

fn read_json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&read_bytes(name, file)).unwrap_or_else(|error| panic!("fixture {name}/{file}: {error}"))
}

fn parse<'a>(name: &str, bytes: &'a [u8]) -> SafeTensors<'a> {
    SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("fixture {name}: {error}"))
}

/// Every f32 tensor of a file.
fn float_tensors(file: &SafeTensors<'_>) -> Tensors<f32> {
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        if view.dtype() == Dtype::F32 {
            let (chunks, _) = view.data().as_chunks::<4>();
            tensors
                .insert(name, (view.shape().to_vec(), chunks.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()));
        }
    }
    tensors
}

/// An i64 tensor `[B, T]` as B rows.
fn integer_rows(file: &SafeTensors<'_>, name: &str) -> Vec<Vec<i64>> {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), Dtype::I64, "{name}");
    let &[_, num_tokens] = view.shape() else { panic!("{name} is {:?}, not [B, T]", view.shape()) };
    let (chunks, _) = view.data().as_chunks::<8>();
    let all: Vec<i64> = chunks.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
    all.chunks(num_tokens).map(<[i64]>::to_vec).collect()
}

fn with_prefix(tensors: &Tensors<f32>, prefix: &str) -> Tensors<f32> {
    let strip = |(name, tensor): (&String, &(Vec<usize>, Vec<f32>))| {
        name.strip_prefix(prefix).map(|rest| (rest.to_string(), tensor.clone()))
    };
    tensors.iter().filter_map(strip).collect()
}

fn list<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let array = value.as_array().unwrap_or_else(|| panic!("{value} is not a list"));
    array.iter().map(|v| convert(v).unwrap_or_else(|| panic!("{v} in a list of another type"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_has_a_gradient_and_an_updated_weight_for_every_weight() {
        for name in ["gpt2", "llama", "llama3-rope", "mistral-window"] {
            let fixture = Fixture::read(name);
            let shapes = |tensors: &Tensors<f32>| -> Vec<_> {
                tensors.iter().map(|(name, (shape, data))| (name.clone(), shape.clone(), data.len())).collect()
            };
            assert_eq!(shapes(&fixture.gradients), shapes(&fixture.weights), "{name}");
            assert_eq!(shapes(&fixture.after), shapes(&fixture.weights), "{name}");
            assert_eq!((fixture.input_ids.len(), fixture.input_ids[0].len()), (3, 24), "{name}");
            assert_eq!(fixture.logits.len(), 3 * 24 * 131, "{name}");
            assert_eq!(fixture.adamw_losses[0], fixture.loss, "{name}");
            assert_eq!(fixture.greedy[..8], fixture.greedy_from, "{name}");
        }
    }
}
