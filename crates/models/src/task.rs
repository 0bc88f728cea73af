//! What a model is for: the next token of a text, or the class of a whole one.
//!
//! A `config.json` says it by `architectures`: a family's `...ForSequenceClassification` is a classifier, everything else is
//! read as a causal language model. The labels of a classifier stand in `id2label`; without it there are `num_labels` (2 by
//! default) of them, named `LABEL_0`, `LABEL_1`, ... Source: `configuration_utils.py` of Transformers 5.23.
//!
//! Only single-label classification is done: `problem_type` may be that or absent. Regression (one label) and multi-label
//! classification are refused by name.

use crate::hf::ConfigError;
use crate::hf::keys::Keys;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The name of a classification head's weight, `[labels, embed]`.
pub const SCORE: &str = "score.weight";

/// What a model is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// The next token.
    #[default]
    CausalLm,
    /// One of so many classes for a whole row, read off its last token.
    SequenceClassification(Labels),
}

impl Task {
    /// The classes, if it is classification.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            Self::CausalLm => None,
            Self::SequenceClassification(labels) => Some(labels),
        }
    }
}

/// The names of the classes in the order of their ids: at least two, all different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// Classes of these names.
    ///
    /// # Errors
    /// What is wrong with them, as the end of a sentence that begins with the key.
    pub fn new(names: Vec<String>) -> Result<Self, String> {
        if names.len() < 2 {
            return Err(format!("names {} of them; there must be at least 2 (regression is not done)", names.len()));
        }
        let mut seen = BTreeSet::new();
        match names.iter().find(|name| !seen.insert(name.as_str())) {
            Some(twice) => Err(format!("names {twice:?} twice; each must have its own name")),
            None => Ok(Self(names)),
        }
    }

    /// So many classes, named as Transformers does.
    ///
    /// # Errors
    /// As [`Labels::new`].
    pub fn numbered(count: usize) -> Result<Self, String> {
        Self::new((0..count).map(|id| format!("LABEL_{id}")).collect())
    }

    /// The names, by id.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

/// Reads the task; `classifier` is the family's class with a classification head.
pub(crate) fn read(keys: &Keys<'_>, classifier: &str) -> Result<Task, ConfigError> {
    let architectures = keys.value("architectures").and_then(Value::as_array);
    if !architectures.is_some_and(|names| names.iter().any(|name| name == classifier)) {
        return Ok(Task::CausalLm);
    }
    keys.only("problem_type", &json!("single_label_classification"))?;
    keys.value("label2id"); // `id2label` the other way round
    let (count, names) = (keys.size("num_labels")?, keys.value("id2label"));
    let (key, labels) = match names {
        Some(names) => ("id2label", Labels::new(names_by_id(keys, names)?)),
        None => ("num_labels", Labels::numbered(count.unwrap_or(2))),
    };
    let labels = labels.map_err(|problem| keys.error(format!("{key} {problem}")))?;
    match count.filter(|count| *count != labels.names().len()) {
        Some(count) => {
            let found = labels.names().len();
            Err(keys.error(format!("num_labels is {count} but id2label has {found} labels; keep one of them")))
        }
        None => Ok(Task::SequenceClassification(labels)),
    }
}

/// `{"0": "negative", "1": "positive"}` in the order of the ids, which leave none out.
fn names_by_id(keys: &Keys<'_>, value: &Value) -> Result<Vec<String>, ConfigError> {
    let rule = "an object of ids, \"0\" and on, and names";
    let wrong = || keys.wrong("id2label", value, rule);
    let object = value.as_object().ok_or_else(wrong)?;
    let name = |id: usize| object.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
    (0..object.len()).map(|id| name(id).ok_or_else(wrong)).collect()
}

/// Adds a classifier's keys.
pub(crate) fn write(labels: &Labels, out: &mut Map<String, Value>) {
    let names = labels.names().iter().enumerate();
    let id2label: Map<String, Value> = names.clone().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let label2id: Map<String, Value> = names.map(|(id, name)| (name.clone(), json!(id))).collect();
    out.insert("id2label".to_owned(), Value::Object(id2label));
    out.insert("label2id".to_owned(), Value::Object(label2id));
    out.insert("problem_type".to_owned(), json!("single_label_classification"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(config: Value) -> Result<Task, String> {
        let mut config = config;
        config["architectures"] = json!(["GPT2ForSequenceClassification"]);
        let object = config.as_object().unwrap();
        read(&Keys::new(object, "config.json"), "GPT2ForSequenceClassification").map_err(|error| error.to_string())
    }

    #[test]
    fn labels_are_named_by_id2label_or_numbered() {
        let names = |task: Task| task.labels().unwrap().names().to_vec();
        assert_eq!(names(task(json!({})).unwrap()), ["LABEL_0", "LABEL_1"]);
        assert_eq!(names(task(json!({"num_labels": 3})).unwrap()), ["LABEL_0", "LABEL_1", "LABEL_2"]);
        let named = json!({"id2label": {"1": "good", "0": "bad"}, "label2id": {"bad": 0, "good": 1}});
        assert_eq!(names(task(named).unwrap()), ["bad", "good"]);
    }

    #[test]
    fn what_is_not_single_label_classification_is_refused_by_name() {
        for (config, message) in [
            (
                json!({"problem_type": "regression"}),
                "config.json: problem_type is \"regression\", which Bessemer does not do; it must be \
                 \"single_label_classification\" or absent",
            ),
            (
                json!({"num_labels": 1}),
                "config.json: num_labels names 1 of them; there must be at least 2 (regression is not done)",
            ),
            (
                json!({"id2label": {"0": "a", "1": "a"}}),
                "config.json: id2label names \"a\" twice; each must have its own name",
            ),
            (
                json!({"id2label": {"0": "a", "2": "b"}}),
                "config.json: id2label is {\"0\":\"a\",\"2\":\"b\"}; it must be an object of ids, \"0\" and on, and names",
            ),
            (
                json!({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}),
                "config.json: num_labels is 3 but id2label has 2 labels; keep one of them",
            ),
        ] {
            assert_eq!(task(config).unwrap_err(), message);
        }
    }
}
