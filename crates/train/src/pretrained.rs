//! MODEL on the command line, checkpoints included: what `eval`, `score`, `generate` and `export` open.

use crate::checkpoint::{self, Checkpoint};
use crate::config::precision;
use crate::error::{Result, TrainError};
use crate::export::Export;
use crate::state::WEIGHT;
use data::Tokenizer;
use generate::{LoadOptions, LoadedModel, ModelLocation, locate};
use models::ModelConfig;
use models::hf::{GenerationConfig, HfError};
use models::weights::WeightSource;
use optim::AVERAGE;
use std::path::Path;
use tensor::DType;

/// Loads a Hugging Face folder, a checkpoint, or what a run left in its output folder.
///
/// # Errors
/// There is no model at the path, or something about it is wrong.
pub fn open(path: &Path, options: LoadOptions) -> Result<LoadedModel> {
    let ModelLocation::Checkpoint(folder) = locate(path)? else { return Ok(LoadedModel::open(path, options)?) };
    let checkpoint = Checkpoint::open(&folder)?;
    let (config, tokenizer) = parts(&checkpoint)?;
    let tokens = &config.tokens;
    let generation = GenerationConfig::for_tokens(tokens.bos, &tokens.eos, tokens.pad);
    let weights = |_: &models::Model| Ok(weights(checkpoint));
    Ok(LoadedModel::from_parts(config, tokenizer, generation, weights, options)?)
}

/// The weights that a checkpoint holds; every piece is checked as it is read.
pub(crate) fn weights(checkpoint: Checkpoint) -> WeightSource {
    WeightSource::Reader(Box::new(move |spec, range| {
        let values = checkpoint.read_range(result_kind(&checkpoint, &spec.name), &spec.name, range);
        values.map_err(|error| HfError::Damaged { path: checkpoint.folder().to_owned(), problem: error.to_string() })
    }))
}

/// Writes a Hugging Face folder from any checkpoint, whatever mesh wrote it.
///
/// # Errors
/// `from` is no checkpoint, or the folder cannot be written.
pub fn export(from: &Path, to: &Path, dtype: Option<DType>) -> Result<()> {
    let checkpoint = checkpoint::open_any(from)?.ok_or_else(|| {
        TrainError::Request(format!(
            "{}: there is no checkpoint here; give a folder such as OUTPUT/checkpoints/step-00000500, or a run's output",
            from.display()
        ))
    })?;
    if to.exists() {
        return Err(TrainError::Request(format!("{}: already exists; give a folder that does not", to.display())));
    }
    let (config, tokenizer) = parts(&checkpoint)?;
    let trained_in = precision::dtype_of(&checkpoint.manifest().head.config);
    let tensors = checkpoint.manifest().tensors.iter().filter(|tensor| tensor.kind == WEIGHT);
    let export = Export {
        config: Some(&config),
        tokenizer: tokenizer.as_ref(),
        weights: tensors.map(|tensor| (tensor.name.as_str(), tensor.shape.clone())).collect(),
        dtype: dtype.unwrap_or(trained_in),
    };
    export.write(to, &mut |name| Ok(checkpoint.read(result_kind(&checkpoint, name), name)?))
}

/// What of a parameter is evaluated and exported: the average of its weights where the run kept one.
pub(crate) fn result_kind(checkpoint: &Checkpoint, name: &str) -> &'static str {
    if checkpoint.tensor(AVERAGE, name).is_some() { AVERAGE } else { WEIGHT }
}

/// The model's configuration, and the tokenizer of the run the checkpoint lies in.
pub(crate) fn parts(checkpoint: &Checkpoint) -> Result<(ModelConfig, Option<Tokenizer>)> {
    let (folder, model) = (checkpoint.folder(), &checkpoint.manifest().head.model);
    if model.is_null() {
        return Err(TrainError::Request(format!(
            "{}: the checkpoint is of a model of a user's own, which only the program that defined it can build",
            folder.display()
        )));
    }
    let place = folder.join("manifest.json").display().to_string();
    let config = ModelConfig::from_json(model, &place).map_err(HfError::from)?;
    // OUTPUT/checkpoints/step-N: the tokenizer lies in OUTPUT.
    let output = folder.parent().and_then(Path::parent);
    let file = output.map(|output| output.join("tokenizer.json")).filter(|file| file.exists());
    let tokenizer = file.map(|file| Tokenizer::load(&file)).transpose()?;
    Ok((config, tokenizer))
}
