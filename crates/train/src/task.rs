//! What a run's model is for, where training must know: next-token prediction, or sequence classification.
//!
//! A classifier is a model whose configuration has a classification head, or any language model under `model.labels`, which
//! gives it a fresh one. Its targets are classes, one a row: the loss is the mean over rows, and what counts targets counts
//! rows (`tokens` in `metrics.jsonl`, `eval_tokens`).
//!
//! Not here: the head ([`models::layers::ClassificationHead`]), the labels in files (`data`), accuracy and F1
//! ([`generate::Confusion`]).

use crate::config::{ConfigError, RunConfig};
use crate::plan::RunPlan;
use data::{Packing, Sample};
use models::{Labels, Model};
use serde::{Deserialize, Serialize};

/// `model.labels`: the classes of a fresh classification head.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum LabelsConfig {
    /// So many, named as Transformers does: `LABEL_0`, `LABEL_1`, ...
    Count(usize),
    /// Their names, by id.
    Names(Vec<String>),
}

impl LabelsConfig {
    /// The classes; the error ends a sentence that begins with the key.
    pub(crate) fn labels(&self) -> Result<Labels, String> {
        match self {
            Self::Count(count) => Labels::numbered(*count),
            Self::Names(names) => Labels::new(names.clone()),
        }
    }
}

/// Refuses what makes no sense for a classifier.
pub(crate) fn check_classification(config: &RunConfig) -> Result<(), ConfigError> {
    if config.data.as_ref().is_some_and(|data| data.packing != Packing::None) {
        let rule = "it must be \"none\" for a classifier, whose rows have one class each";
        return Err(config.error(format!("data.packing is \"concat\"; {rule}")));
    }
    if let Some(tokens) = config.run.tokens {
        let rule = "a classifier counts rows: give run.steps or run.epochs";
        return Err(config.error(format!("run.tokens is {tokens}; {rule}")));
    }
    if let Some(prompt) = &config.run.sample_prompt {
        let rule = "a classifier makes no text: leave it out";
        return Err(config.error(format!("run.sample_prompt is {prompt:?}; {rule}")));
    }
    Ok(())
}

/// Targets of a step whose rows are all full: what the gradients of a micro-batch are divided by.
pub(crate) fn nominal_targets(plan: &RunPlan, model: &Model) -> u64 {
    if model.labels().is_some() { plan.batch.train_batch_size } else { plan.nominal_targets() }
}

/// A full row with a target after every token, or a class, as the model wants it: for measurements.
pub(crate) fn full_row(model: &Model, input_ids: Vec<u32>, targets: Vec<i32>) -> Sample {
    let positions = (0..input_ids.len() as u32).collect();
    let class = model.labels().map(|_| 0);
    Sample { input_ids, targets, positions, document_starts: vec![0], class, soft: None }
}
