//! A run may begin with the weights of another: `model.path` is a checkpoint, a run's output, or what a program saved.

mod common;

use common::{run, set, small};
use serde_json::{Value, json};
use std::path::Path;
use train::engine::LoadOptions;
use train::model_source::ModelOrigin;
use train::{RunConfig, Silent, TrainingData, initialize};

/// Four steps with another optimizer, other data and no dropout of counters past: from the weights in `path`.
fn second(folder: &Path, name: &str, path: &Path) -> Value {
    let mut config = small(&folder.join(name));
    set(&mut config, "model", json!({ "path": path }));
    set(&mut config, "run.steps", json!(4));
    set(&mut config, "run.seed", json!(8));
    set(&mut config, "optimizer", json!({ "type": "Lion", "params": { "lr": 1e-3 } }));
    config
}

#[test]
fn a_run_from_the_weights_of_another_is_a_new_run_with_a_fresh_optimizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let first = small(&folder.join("first"));
    let first_losses = run(&first, false, None).steps;
    let output = folder.join("first");
    let of_checkpoint = run(&second(folder, "a", &output.join("checkpoints/step-00000012")), false, None);
    assert_eq!(of_checkpoint.steps.iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(of_checkpoint.steps[0].tokens, 8 * 32, "tokens count from the start");
    assert!(
        of_checkpoint.steps[0].loss < first_losses[9].loss.max(first_losses[11].loss) + 0.3,
        "it begins where the other ended"
    );
    assert!(of_checkpoint.steps[0].loss < first_losses[0].loss - 1.0);
    // The output of the run means its final model: in f32 the same weights.
    assert_eq!(run(&second(folder, "b", &output), false, None).losses(), of_checkpoint.losses());
    // An earlier checkpoint is another start.
    let earlier = run(&second(folder, "c", &output.join("checkpoints/step-00000005")), false, None);
    assert_ne!(earlier.losses(), of_checkpoint.losses());

    // A program gets the same by loading the weights alone, and what it saves is a start as well.
    let mut config = second(folder, "d", &output);
    set(&mut config, "model", first["model"].clone());
    let config = RunConfig::from_value(config, "test").expect("a configuration");
    let data = TrainingData::open(&config, None, Some(32), Some(256), &mut Silent).expect("data");
    let (source, ..) = config.for_training().expect("complete");
    let model = ModelOrigin::open(&config, source).and_then(|mut origin| origin.build(None, 32)).expect("a model");
    let mut engine = initialize(model, config).expect("an engine");
    let module_only = LoadOptions { module_only: true, ..LoadOptions::default() };
    engine.load_checkpoint(&output, None, module_only).expect("a whole checkpoint").expect("the newest");
    let saved = engine.save_checkpoint(&folder.join("mine"), Some("start"), Value::Null).expect("a checkpoint");
    let losses: Vec<u64> = (0..4)
        .map(|step| engine.train_batch(&data.loader.batch(8 * step, 8)).expect("a step").loss.to_bits())
        .collect();
    assert_eq!(losses, of_checkpoint.losses());
    assert_eq!(run(&second(folder, "e", &saved), false, None).losses(), losses);
}
