//! The `data` section of the run file: types only. No file is opened and nothing is derived here.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::dataset::validation_key;

/// The `data` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is trained on: a path, a glob, or a list of sources.
    pub train: Sources,
    /// What is validated on: the same, `{ "split": 0.1 }`, or several sets by name. Absent: no validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// Path of a `tokenizer.json` or of a folder that holds one, `"char"`, or `"byte"`. Absent: the model folder's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Inputs of one sample, in tokens; at least 1. Absent: the caller derives it from the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<usize>,
    /// How documents become samples.
    #[serde(default)]
    pub packing: Packing,
    /// Whether samples come in a new order every epoch (from `run.seed`) or in file order.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Folder of the token cache. Absent: see [`crate::default_cache`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// One corpus.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// A file, or a glob with `*`, `?`, `[abc]` and `**`; the files are taken in the order of their paths.
    pub path: String,
    /// The files' format. Absent: by their ending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Share of the samples drawn from this source, relative to the other weights; above 0. If no source has a
    /// weight, an epoch is every sample once; if some have, the others count as 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The field of a JSONL row that holds the text.
    #[serde(default = "text")]
    pub text_field: String,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The whole file is one document.
    Text,
    /// A document a line, in `text_field`.
    Jsonl,
    /// JSONL rows `{"input_ids": [...], "labels": [...]}`.
    Tokenized,
}

impl Format {
    /// The name in the run file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Jsonl => "jsonl",
            Self::Tokenized => "tokenized",
        }
    }
}

/// How documents become samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Documents are joined into rows of full length.
    #[default]
    Concat,
    /// One document, one sample.
    None,
}

/// One or more sources: a string, an object, or a list of either.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Sources(pub Vec<DataSource>);

/// What `data.validation` may be.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Validation {
    /// The last `split` of the training data.
    Split {
        /// Share of the characters (text) or rows that is held out, above 0 and below 1.
        split: f64,
    },
    /// Data of its own.
    Sources(Sources),
    /// Several sets, each evaluated by itself.
    Named(NamedSources),
}

/// Validation sets by name, in the order of the file; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedSources(pub Vec<(String, Sources)>);

impl Serialize for NamedSources {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, sources)| (name, sources)))
    }
}

impl Validation {
    /// The sources beside the training data, each set under the key that messages call it.
    pub fn sources(&self) -> Vec<(String, &Sources)> {
        match self {
            Self::Split { .. } => Vec::new(),
            Self::Sources(sources) => vec![(validation_key(None), sources)],
            Self::Named(NamedSources(sets)) => {
                sets.iter().map(|(name, sources)| (validation_key(Some(name)), sources)).collect()
            }
        }
    }
}

impl DataSource {
    /// The source that a bare path or glob means.
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: path.into(), format: None, weight: None, text_field: text() }
    }
}

impl From<&str> for Sources {
    fn from(path: &str) -> Self {
        Self(vec![DataSource::path(path)])
    }
}

fn yes() -> bool {
    true
}

fn text() -> String {
    "text".to_owned()
}

/// A [`DataSource`] as it stands in a list: an object, or a bare path.
struct Listed(DataSource);

struct ListedVisitor;

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListedVisitor)
    }
}

impl<'de> Visitor<'de> for ListedVisitor {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path or an object {path, format, weight, text_field}")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Listed, E> {
        Ok(Listed(DataSource::path(path)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listed, A::Error> {
        DataSource::deserialize(MapAccessDeserializer::new(map)).map(Listed)
    }
}

struct SourcesVisitor;

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SourcesVisitor)
    }
}

impl<'de> Visitor<'de> for SourcesVisitor {
    type Value = Sources;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a glob, or a list of sources {path, format, weight, text_field}")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Sources, E> {
        Ok(path.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sources, A::Error> {
        DataSource::deserialize(MapAccessDeserializer::new(map)).map(|source| Sources(vec![source]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Sources, A::Error> {
        let listed = Vec::<Listed>::deserialize(SeqAccessDeserializer::new(seq))?;
        if listed.is_empty() {
            return Err(de::Error::custom("the list of sources is empty; it must name at least one"));
        }
        Ok(Sources(listed.into_iter().map(|Listed(source)| source).collect()))
    }
}

/// Keys of a source: a section of several sets with one of them would be misread.
const SOURCE_KEYS: [&str; 4] = ["path", "format", "weight", "text_field"];

struct ValidationVisitor;

impl<'de> Deserialize<'de> for Validation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValidationVisitor)
    }
}

impl<'de> Visitor<'de> for ValidationVisitor {
    type Value = Validation;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a glob, a list of sources, {\"split\": share}, or sources by name")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Validation, E> {
        Ok(Validation::Sources(path.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Validation, A::Error> {
        SourcesVisitor.visit_seq(seq).map(Validation::Sources)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Validation, A::Error> {
        let (mut split, mut sets) = (None, Vec::new());
        let mut source = serde_json::Map::new();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "split" => split = map.next_value::<Option<f64>>()?,
                key if SOURCE_KEYS.contains(&key) => _ = source.insert(name, map.next_value()?),
                _ => sets.push((name, map.next_value::<Sources>()?)),
            }
        }
        match (split, source.is_empty(), sets.is_empty()) {
            (Some(split), true, true) => Ok(Validation::Split { split }),
            (None, false, true) => {
                let source: DataSource = serde_json::from_value(source.into()).map_err(de::Error::custom)?;
                Ok(Validation::Sources(Sources(vec![source])))
            }
            (None, true, false) => Ok(Validation::Named(NamedSources(sets))),
            _ => Err(de::Error::custom(
                "must have `split` alone, `path` (with format, weight, text_field), or names of sets",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DataConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_bare_path_means_one_source_with_every_default() {
        let config = parse(r#"{"train": "corpus.txt"}"#).unwrap();
        assert_eq!(config.train, Sources(vec![DataSource::path("corpus.txt")]));
        assert_eq!((config.validation, config.packing, config.shuffle), (None, Packing::Concat, true));
        assert_eq!(config.train.0[0].text_field, "text");
    }

    #[test]
    fn lists_objects_and_splits_are_read() {
        let config = parse(
            r#"{"train": ["a.txt", {"path": "b/*.jsonl", "format": "jsonl", "weight": 2.5, "text_field": "content"}],
                "validation": {"split": 0.1}, "tokenizer": "char", "sequence_length": 64, "packing": "none", "shuffle": false}"#,
        )
        .unwrap();
        assert_eq!(config.train.0[0], DataSource::path("a.txt"));
        assert_eq!(config.train.0[1].weight, Some(2.5));
        assert_eq!(config.train.0[1].format, Some(Format::Jsonl));
        assert_eq!(config.validation, Some(Validation::Split { split: 0.1 }));
        let config = parse(r#"{"train": "a", "validation": {"path": "v.jsonl", "text_field": "t"}}"#).unwrap();
        let Some(Validation::Sources(sources)) = config.validation else { panic!("sources") };
        assert_eq!(sources.0[0].text_field, "t");
    }

    #[test]
    fn an_unknown_key_is_named_at_any_depth() {
        for (text, key) in [
            (r#"{"train": "a", "sequence_lenght": 3}"#, "sequence_lenght"),
            (r#"{"train": [{"path": "a", "wieght": 3}]}"#, "wieght"),
            (r#"{"train": "a", "validation": {"wiki": {"path": "w", "txt_field": "t"}}}"#, "txt_field"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown field `{key}`")), "{error}");
        }
    }

    #[test]
    fn validation_sets_keep_their_names_and_the_order_of_the_file() {
        let text =
            r#"{"train": "a", "validation": {"wiki": "w.txt", "code": {"path": "c.jsonl", "text_field": "code"}}}"#;
        let config = parse(text).unwrap();
        let validation = config.validation.clone().unwrap();
        let keys: Vec<String> = validation.sources().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["data.validation.wiki", "data.validation.code"]);
        assert_eq!(validation.sources()[1].1.0[0].text_field, "code");
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        let both = parse(r#"{"train": "a", "validation": {"split": 0.1, "wiki": "w.txt"}}"#).unwrap_err().to_string();
        assert!(both.contains("`split` alone"), "{both}");
    }

    #[test]
    fn what_was_read_is_written_back_the_same() {
        let text = r#"{"train": [{"path": "a"}, {"path": "b", "weight": 0.25}], "validation": {"split": 0.1}, "packing": "none"}"#;
        let config = parse(text).unwrap();
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }
}
