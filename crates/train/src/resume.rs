//! Going on from the newest checkpoint: whether it is of this very run, and what has changed since.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::folder::path_of;
use crate::config::RunConfig;
use crate::engine::{Engine, LoadOptions};
use crate::error::{Result, TrainError};
use crate::event::{Event, Observer};
use crate::output::Output;
use crate::training_data::TrainingData;
use serde_json::Value;

/// Puts the newest checkpoint into an engine; returns its step, or `None` if there is none.
pub(crate) fn load_newest(
    engine: &mut Engine,
    data: &TrainingData,
    output: &Output,
    observer: &mut dyn Observer,
) -> Result<Option<u64>> {
    let Some(checkpoint) = newest(output, observer)? else { return Ok(None) };
    check_same_run(engine, data, &checkpoint, observer)?;
    engine.restore(&checkpoint, LoadOptions::default())?;
    engine.followers.retain_best(|step| path_of(&output.checkpoints(), step).is_dir());
    if engine.followers.is_stopped() {
        observer.on(Event::Notice("this run has ended by run.early_stop; raise its patience to go on"));
    }
    Ok(Some(engine.counters.step))
}

fn newest(output: &Output, observer: &mut dyn Observer) -> Result<Option<Checkpoint>> {
    let Some((checkpoint, notices)) = output.newest_checkpoint()? else {
        observer.on(Event::Notice("there is no checkpoint to resume from; the run starts from the beginning"));
        return Ok(None);
    };
    for notice in notices {
        observer.on(Event::Notice(&notice));
    }
    Ok(Some(checkpoint))
}

/// Refuses to go on with another model, other data or another seed, and lists what else has changed.
fn check_same_run(
    engine: &Engine,
    data: &TrainingData,
    checkpoint: &Checkpoint,
    observer: &mut dyn Observer,
) -> Result<()> {
    let head = &checkpoint.manifest().head;
    let refuse = |what: &str, held: &dyn std::fmt::Display, own: &dyn std::fmt::Display| {
        let folder = checkpoint.folder().display();
        let rule = "model, data, seed and optimizer type may not change between runs; start a new run.output for them";
        Err(TrainError::Request(format!("{folder}: the checkpoint has {what} {held}, this run {own}; {rule}")))
    };
    let model = model_json(engine);
    if head.model != model {
        return refuse("the model", &head.model, &model);
    }
    let own = fingerprint(data, &engine.config);
    if head.loader.fingerprint != own {
        return refuse("data", &head.loader.fingerprint, &own);
    }
    if head.rng.seed != engine.config.run.seed {
        return refuse("run.seed", &head.rng.seed, &engine.config.run.seed);
    }
    let mut changes = Vec::new();
    list_changes("", &head.config, &engine.plan.resolved(&engine.config), &mut changes);
    if !changes.is_empty() {
        observer.on(Event::Notice(&format!("changed since the checkpoint: {}", changes.join("; "))));
    }
    Ok(())
}

fn list_changes(path: &str, held: &Value, own: &Value, changes: &mut Vec<String>) {
    match (held, own) {
        (Value::Object(held), Value::Object(own)) => {
            for (key, value) in own {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                list_changes(&path, held.get(key).unwrap_or(&Value::Null), value, changes);
            }
        }
        _ if held != own => changes.push(format!("{path}: {held} -> {own}")),
        _ => {}
    }
}

/// What a checkpoint says of its model.
pub(crate) fn model_json(engine: &Engine) -> Value {
    engine.model.config.as_ref().map_or(Value::Null, |config| config.to_hf_json(models::hf::Dtype::F32))
}

/// What tells one order of training samples from another, in words a refusal can show.
pub(crate) fn fingerprint(data: &TrainingData, config: &RunConfig) -> String {
    let dataset = data.loader.dataset();
    let shuffled = config.data.as_ref().is_some_and(|data| data.shuffle);
    let order = if shuffled { "shuffled" } else { "in file order" };
    format!(
        "{} tokens in {} samples of {}, {order}, digest {}",
        dataset.num_tokens(),
        dataset.num_samples(),
        data.sequence_length,
        dataset.fingerprint()
    )
}
