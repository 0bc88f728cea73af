//! Label smoothing and z-loss through whole models, held against Transformers' own `LabelSmoother`.

use data::Sample;
use models::hf::WeightFiles;
use models::weights::WeightSource;
use models::{ModelConfig, ParamSpec, registry};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use testing::fixtures::Fixture;
use train::{Engine, RunConfig};

/// Every weight by name.
type Weights = BTreeMap<String, Vec<f32>>;

fn weights(folder: &std::path::Path) -> Weights {
    let files = WeightFiles::open(folder).expect("weights");
    let read = |name: &str, shape: &[usize]| files.read_f32(name, 0..shape.iter().product()).expect("a weight");
    files.entries().map(|entry| (entry.name.to_owned(), read(entry.name, entry.shape))).collect()
}

fn samples(fixture: &Fixture) -> Vec<Sample> {
    let rows = fixture.input_ids.iter().zip(&fixture.labels);
    rows.map(|(ids, labels)| Sample {
        input_ids: ids.clone(),
        targets: labels[1..].iter().map(|label| *label as i32).chain([data::IGNORE]).collect(),
        positions: (0..ids.len() as u32).collect(),
        document_starts: vec![0],
        ..Sample::default()
    })
    .collect()
}

/// A fixture's model with the given weights, trained by SGD with rate 1: a step subtracts the gradient.
fn engine(name: &str, weights: Weights, run: Value, precision: &str) -> Engine {
    let mut config = json!({
        "run": run, "train_batch_size": 3, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0,
        "optimizer": { "type": "SGD", "params": { "lr": 1.0 } },
    });
    match precision {
        "bf16" => config["bf16"] = json!({ "enabled": true }),
        "fp16" => config["fp16"] = json!({ "enabled": true, "loss_scale": 256 }),
        _ => {}
    }
    let config = RunConfig::from_value(config, "test").expect("a configuration");
    let model = ModelConfig::from_folder(&Fixture::folder(name)).expect("a model's configuration");
    let read = move |spec: &ParamSpec, range: std::ops::Range<usize>| Ok(weights[&spec.name][range].to_vec());
    let source = WeightSource::Reader(Box::new(read));
    Engine::with_weights(registry::build(&model, 24), config, &source).expect("an engine")
}

/// Loss, norm of the gradient, and the gradient.
fn step(name: &str, at: &Weights, run: Value, precision: &str) -> (f64, f64, Weights) {
    let mut engine = engine(name, at.clone(), run, precision);
    let report = engine.train_batch(&samples(&Fixture::read(name))).expect("a step");
    let folder = tempfile::tempdir().expect("a folder");
    engine.save_pretrained(&folder.path().join("model"), None).expect("a model folder");
    let mut gradient = weights(&folder.path().join("model"));
    for (name, after) in &mut gradient {
        after.iter_mut().zip(&at[name]).for_each(|(after, before)| *after = before - *after);
    }
    (report.loss, report.grad_norm, gradient)
}

/// `LabelSmoother(epsilon)` of Transformers 5.23 on the fixtures' logits, in f64, and the mean of `logsumexp(logits)^2` over
/// the counted targets.
const REFERENCE: [(&str, f64, f64, f64); 2] = [
    ("gpt2", 5.205803069207195, 5.188208716571143, 25.246499228915983),
    ("llama", 5.013740832165351, 5.016580916543726, 25.486126458723852),
];

#[test]
fn the_training_loss_is_transformers_smoothed_loss_plus_the_z_loss_in_every_precision() {
    for (name, plain, smoothed, square) in REFERENCE {
        let at = weights(&Fixture::folder(name));
        for (precision, bound) in [("f32", 2e-6), ("bf16", 4e-3), ("fp16", 4e-4)] {
            for (run, want) in [
                (json!({}), plain),
                (json!({ "label_smoothing": 0.1 }), smoothed),
                (json!({ "z_loss": 0.01 }), plain + 0.01 * square),
                (json!({ "label_smoothing": 0.1, "z_loss": 0.01 }), smoothed + 0.01 * square),
            ] {
                let (loss, ..) = step(name, &at, run.clone(), precision);
                assert!((loss - want).abs() < bound * want, "{name} {precision} {run}: {loss} and {want}");
            }
        }
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_reported_loss_and_in_half_precision_the_same_but_for_rounding() {
    for (name, ..) in REFERENCE {
        let at = Arc::new(weights(&Fixture::folder(name)));
        let run = json!({ "label_smoothing": 0.2, "z_loss": 0.05 });
        let (_, norm, gradient) = step(name, &at, run.clone(), "f32");
        let moved = |by: f64| -> f64 {
            let mut moved = Weights::clone(&at);
            for (name, values) in &mut moved {
                let slope = |g: &f32| (by * f64::from(*g) / norm) as f32;
                values.iter_mut().zip(&gradient[name]).for_each(|(value, g)| *value += slope(g));
            }
            step(name, &moved, run.clone(), "f32").0
        };
        let h = 1e-2;
        let slope = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
        assert!((slope - norm).abs() < 1e-3 * norm, "{name}: slope {slope} along a gradient of norm {norm}");
        for (precision, bound) in [("bf16", 0.03), ("fp16", 0.005)] {
            let (.., rounded) = step(name, &at, run.clone(), precision);
            let squares = |f: &dyn Fn(f32, f32) -> f32| -> f64 {
                let pairs = gradient.iter().flat_map(|(name, values)| values.iter().zip(&rounded[name]));
                pairs.map(|(a, b)| f64::from(f(*a, *b)).powi(2)).sum::<f64>().sqrt()
            };
            let off = squares(&|a, b| a - b) / norm;
            assert!(off < bound, "{name} {precision}: the gradient is off by {off:.1e} of its norm");
        }
    }
}
