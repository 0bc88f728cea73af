//! Checkpoints: what is written comes back bit for bit, complete or not at all.

mod background;
mod damage;
mod folders;
mod no_space;
mod round_trip;

use optim::schedule::PlateauState;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use train::best::BestState;
use train::checkpoint::{Checkpoint, CheckpointError, Counters, FreshFrom, Head, Loader, Rng, TensorSpec, write};
use train::early_stop::EarlyStopState;
use train::evaluation::Scored;
use train::loss_scale::LossScale;
use train::loss_spike::SpikeState;

/// More than one chunk of a reader.
const LONG: usize = 300_001;

fn head(step: u64) -> Head {
    Head {
        counters: Counters { step, applied_steps: step - 1, samples: 12 * step, tokens: 768 * step },
        loader: Loader { samples: 12 * step, fingerprint: "3f9a".to_owned() },
        rng: Rng { seed: u64::MAX },
        mesh: BTreeMap::from([("data".to_owned(), 1)]),
        config: json!({"lr": 0.1 + 0.2, "run": {"seed": u64::MAX, "text": "a\n  \"crc32c\": 7"}}),
        model: json!(null),
        optimizer: "AdamW".to_owned(),
        loss_scale: Some(LossScale { scale: 2f64.powi(30) / 3.0, clean_steps: step, hysteresis: 2 }),
        loss_spike: Some(SpikeState { losses: [1.0 / 3.0, 0.1 + 0.2].into(), spikes: 1 }),
        plateau: Some(PlateauState { best: Some(1.0 / 3.0), bad: 1, cooldown: 2, reductions: 3 }),
        early_stop: Some(EarlyStopState {
            best: Some(Scored { step, value: 0.1 + 0.2 }),
            waited: 2,
            ..Default::default()
        }),
        best: Some(BestState { of: "eval_loss, min".to_owned(), best: vec![Scored { step, value: 1.0 / 3.0 }] }),
        adaptive_precision: None,
        evaluated: Some(step),
        set_lr: Some(0.1 + 0.2),
        fresh_from: FreshFrom { optimizer: step / 2, schedule: step / 3 },
        evaluation_asked: step.is_multiple_of(20),
        callbacks: vec![("stops".to_owned(), json!({ "best": 1.0 / 3.0 }))],
        client_state: json!({ "text": "a\n  \"crc32c\": 7", "list": [1e-300, u64::MAX, null] }),
    }
}

/// A weight, its state, a tensor longer than a chunk, a scalar and one without elements.
fn specs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::whole("wte.weight", "weight", &[5, 7]),
        TensorSpec::whole("wte.weight", "exp_avg", &[5, 7]),
        TensorSpec::whole("long.weight", "weight", &[LONG]),
        TensorSpec::whole("scale", "weight", &[]),
        TensorSpec::whole("none", "weight", &[0, 3]),
    ]
}

/// Any bit pattern, NaNs, infinities and subnormals too, another for each element of each tensor of each step.
fn value(step: u64, tensor: usize, element: usize) -> f32 {
    let mixed = (element as u64 + (tensor as u64 * 1_000_003 + step * 777_767_777)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    f32::from_bits((mixed >> 32) as u32)
}

/// What a rank has of tensor `tensor`: the values of its runs, one after the other.
fn owned(step: u64, spec: &TensorSpec, tensor: usize) -> Vec<f32> {
    spec.runs.iter().flat_map(|run| run.clone().map(|element| value(step, tensor, element))).collect()
}

fn write_step(dir: &Path, step: u64) -> Result<PathBuf, CheckpointError> {
    let specs = specs();
    write(dir, &head(step), &specs, &mut |index| Ok(owned(step, &specs[index], index)))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that `checkpoint` holds what [`write_step`] wrote.
fn assert_holds(checkpoint: &Checkpoint, step: u64) {
    assert_eq!(checkpoint.head(), &head(step));
    for (index, spec) in specs().iter().enumerate() {
        let got = checkpoint.read(&spec.kind, &spec.name).expect("a whole tensor");
        assert!(bits(&got) == bits(&owned(step, spec, index)), "{} {} differs", spec.kind, spec.name);
    }
}

/// The names in `dir`, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Flips one bit of the byte at `offset`; counted from the end if negative.
fn flip(path: &Path, offset: i64) {
    let mut bytes = fs::read(path).expect("a file");
    let place = if offset < 0 { bytes.len() - offset.unsigned_abs() as usize } else { offset as usize };
    bytes[place] ^= 4;
    fs::write(path, bytes).expect("a writable file");
}
