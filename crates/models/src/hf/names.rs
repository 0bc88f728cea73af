//! Fitting the tensors of a folder to the parameters of a model, by name and shape.
//!
//! Our parameters carry the names of Transformers' causal language models. Files differ from them in three ways:
//! exports of the base model lack its prefix (`wte.weight` for `transformer.wte.weight`; the original GPT-2 is such a
//! file), old ones carry buffers that are computed today (`h.0.attn.bias`, a causal mask), and tied heads may be stored
//! a second time. What differs otherwise is an error that names the tensor.

use std::collections::BTreeSet;

use super::error::HfError;
use super::weights::{WeightEntry, WeightFiles, is_readable};

/// How one family's files may differ from its parameter names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRules<'a> {
    /// What base-model exports leave out, with its point: `transformer.`.
    pub prefix: &'static str,
    /// Endings of the names of buffers that old files carry.
    pub ignored_endings: &'a [&'a str],
    /// A tensor that may be stored a second time, and the parameter that it must then equal.
    pub tied: Option<(&'static str, &'static str)>,
}

/// A parameter that is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedWeight {
    /// The parameter's name, prefix included.
    pub name: String,
    /// Its shape, from the configuration.
    pub shape: Vec<usize>,
    /// What the axes are, in the words of the configuration: `vocab_size x n_embd`. May be empty.
    pub axes: String,
}

/// The name under which a file holds `parameter`: as it is, else without `prefix`.
pub fn resolve<'a>(files: &'a WeightFiles, parameter: &str, prefix: &str) -> Option<WeightEntry<'a>> {
    files.entry(parameter).or_else(|| files.entry(parameter.strip_prefix(prefix)?))
}

/// The tensor for each wanted parameter, in order; an error if any is missing, has another shape or is not floating
/// point, or if the files hold a tensor that no parameter wants.
///
/// Reads no tensor, but for a tied head stored twice, which is compared to the embedding byte for byte.
pub fn match_weights<'a>(
    files: &'a WeightFiles,
    rules: &NameRules<'_>,
    wanted: &[WantedWeight],
) -> Result<Vec<WeightEntry<'a>>, HfError> {
    let mut found = Vec::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for weight in wanted {
        match resolve(files, &weight.name, rules.prefix).or_else(|| stored_as_tied(files, rules, &weight.name)) {
            Some(entry) => found.push(entry),
            None => missing.push(weight.name.as_str()),
        }
    }
    if !missing.is_empty() {
        let problem = format!("the weights lack {}, which config.json asks for", list(&missing));
        return Err(HfError::mismatch(files.folder(), problem));
    }
    for (entry, weight) in found.iter().zip(wanted) {
        check(entry, weight)?;
    }
    refuse_unwanted(files, rules, &found)?;
    Ok(found)
}

/// A file that stored the tied head but not the embedding.
fn stored_as_tied<'a>(files: &'a WeightFiles, rules: &NameRules<'_>, parameter: &str) -> Option<WeightEntry<'a>> {
    let (copy, original) = rules.tied?;
    if parameter == original { files.entry(copy) } else { None }
}

fn check(entry: &WeightEntry<'_>, weight: &WantedWeight) -> Result<(), HfError> {
    if entry.shape != weight.shape {
        let axes = if weight.axes.is_empty() { String::new() } else { format!(" ({})", weight.axes) };
        let problem = format!("{} is {:?}; config.json asks for {:?}{axes}", entry.name, entry.shape, weight.shape);
        return Err(HfError::mismatch(entry.path, problem));
    }
    if !is_readable(entry.dtype) {
        let problem = format!("{} is stored as {}; weights must be F32, BF16, F16 or F64", entry.name, entry.dtype);
        return Err(HfError::mismatch(entry.path, problem));
    }
    Ok(())
}

fn refuse_unwanted(files: &WeightFiles, rules: &NameRules<'_>, found: &[WeightEntry<'_>]) -> Result<(), HfError> {
    let used: BTreeSet<&str> = found.iter().map(|entry| entry.name).collect();
    let ignored = |name: &str| rules.ignored_endings.iter().any(|ending| name.ends_with(ending));
    let mut unwanted = Vec::new();
    for entry in files.entries().filter(|entry| !used.contains(entry.name) && !ignored(entry.name)) {
        match rules.tied {
            Some((copy, original)) if entry.name == copy => check_tied(files, rules, &entry, original)?,
            _ => unwanted.push(entry),
        }
    }
    let Some(first) = unwanted.first() else { return Ok(()) };
    let names: Vec<&str> = unwanted.iter().map(|entry| entry.name).collect();
    let problem = format!(
        "it holds {}, which a model of this config.json does not have; remove the tensor or correct the configuration",
        list(&names)
    );
    Err(HfError::mismatch(first.path, problem))
}

/// A head that is tied by the configuration and stored nevertheless must be the embedding.
fn check_tied(
    files: &WeightFiles,
    rules: &NameRules<'_>,
    copy: &WeightEntry<'_>,
    original: &str,
) -> Result<(), HfError> {
    let original = resolve(files, original, rules.prefix).expect("match_weights found every parameter");
    let same =
        original.shape == copy.shape && original.dtype == copy.dtype && files.same_bytes(original.name, copy.name)?;
    if same {
        return Ok(());
    }
    let problem = format!(
        "{} differs from {}, but config.json ties them (tie_word_embeddings); set tie_word_embeddings to false",
        copy.name, original.name
    );
    Err(HfError::mismatch(copy.path, problem))
}

/// The first few of a list of names.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
