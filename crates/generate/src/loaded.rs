//! MODEL on the command line: its files found, read and put on a device.
//!
//! # Order of events
//! 1. [`locate`] says what MODEL is.
//! 2. Configuration, generation defaults and tokenizer are read; the model's shapes are built.
//! 3. The weights' names and shapes are held against the model, then read.
//!
//! A Bessemer checkpoint is read by whoever knows its format, which makes a [`WeightSource`] of it and comes in at
//! [`LoadedModel::from_parts`].

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use data::{DataError, Tokenizer};
use models::families::config::FILE as CONFIG_FILE;
use models::hf::{ConfigError, GenerationConfig, HfError};
use models::weights::{self, WeightError, WeightSource};
use models::{Model, ModelConfig, Resident, registry};
use ops::{ParamStore, Single};
use tensor::{DType, Isa, Queue, cpu};

use crate::forward::Forward;
use crate::generator::GenerateError;
use crate::options::GenerateOptions;

/// Why MODEL could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is nothing at the path that is a model.
    #[error("{}: {problem}; MODEL must be a folder in the Hugging Face layout (config.json, model.safetensors or shards with an index, tokenizer.json), a Bessemer checkpoint, or the `output` folder of a run", .path.display())]
    NotAModel {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What is there.
        problem: String,
    },
    /// A checkpoint, which this crate does not read: see [`LoadedModel::from_parts`].
    #[error("{}: it is a Bessemer checkpoint and not a folder in the Hugging Face layout; turn it into one with `bessemer export`", .path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
    },
    /// Nothing says how many tokens there are.
    #[error("{}: config.json has no vocab_size and there is no tokenizer.json beside it to take it from; set it", .path.display())]
    NoVocabulary {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the folder is at fault.
    #[error(transparent)]
    Files(#[from] HfError),
    /// The tokenizer is.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// The weights are, or the device refused them.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

impl From<ConfigError> for LoadError {
    fn from(error: ConfigError) -> Self {
        Self::Files(error.into())
    }
}

/// What MODEL turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelLocation {
    /// A folder in the Hugging Face layout.
    HuggingFace(PathBuf),
    /// A folder with a checkpoint's manifest.
    Checkpoint(PathBuf),
}

/// Finds the model at `path`: the folder itself, or what a run left in its `output` folder: the final model in `model/`,
/// else the newest checkpoint.
pub fn locate(path: &Path) -> Result<ModelLocation, LoadError> {
    let not_a_model = |problem: &str| LoadError::NotAModel { path: path.to_owned(), problem: problem.to_owned() };
    if !path.exists() {
        return Err(not_a_model("there is no such folder"));
    }
    if !path.is_dir() {
        return Err(not_a_model("it is a file"));
    }
    let checkpoints = path.join("checkpoints");
    let newest = || fs::read_to_string(checkpoints.join("latest")).ok().map(|name| checkpoints.join(name.trim()));
    if is_checkpoint(path) {
        Ok(ModelLocation::Checkpoint(path.to_owned()))
    } else if path.join(CONFIG_FILE).is_file() {
        Ok(ModelLocation::HuggingFace(path.to_owned()))
    } else if path.join("model").join(CONFIG_FILE).is_file() {
        Ok(ModelLocation::HuggingFace(path.join("model")))
    } else if let Some(checkpoint) = newest().filter(|folder| is_checkpoint(folder)) {
        Ok(ModelLocation::Checkpoint(checkpoint))
    } else if path.join("run.json").is_file() {
        Err(not_a_model("it is the output of a run that has neither a model nor a complete checkpoint yet"))
    } else {
        Err(not_a_model("it has no config.json"))
    }
}

fn is_checkpoint(folder: &Path) -> bool {
    folder.join("manifest.json").is_file()
}

/// How a model is put in place.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// The float format of weights and activations; by default f32, which gives the numbers of the reference.
    pub dtype: Option<DType>,
    /// Threads; 0 = all cores.
    pub threads: usize,
    /// Instruction set; by default the best one found.
    pub isa: Option<Isa>,
    /// The longest row that will be run, so that tables are no larger; by default, and at most, the model's own limit.
    pub positions: Option<usize>,
}

/// A model in memory with everything that came with it.
pub struct LoadedModel {
    /// The device.
    pub queue: Queue,
    /// The blocks.
    pub model: Model,
    /// The weights.
    pub store: ParamStore,
    /// The configuration, `vocab_size` settled.
    pub config: ModelConfig,
    /// If the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// What `generation_config.json` says.
    pub generation: GenerationConfig,
    /// The format of weights and activations.
    pub dtype: DType,
    /// Tokens a row may have.
    pub positions: usize,
}

impl LoadedModel {
    /// Loads MODEL.
    pub fn open(path: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let folder = match locate(path)? {
            ModelLocation::HuggingFace(folder) => folder,
            ModelLocation::Checkpoint(path) => return Err(LoadError::Checkpoint { path }),
        };
        let mut config = ModelConfig::from_folder(&folder)?;
        let tokenizer = folder.join("tokenizer.json").is_file().then(|| Tokenizer::load(&folder)).transpose()?;
        match &tokenizer {
            Some(tokenizer) => {
                config.resolve_vocab_size(tokenizer.vocab_size(), &folder.join(CONFIG_FILE).display().to_string())?;
            }
            None if config.vocab_size.is_none() => return Err(LoadError::NoVocabulary { path: folder }),
            None => {}
        }
        let generation = GenerationConfig::from_folder(&folder)?;
        let weights = |model: &Model| Ok(WeightSource::folder(&folder, model)?);
        Self::from_parts(config, tokenizer, generation, weights, options)
    }

    /// The model of `config`, its weights from wherever `weights` finds them for it.
    ///
    /// # Panics
    /// If `config.vocab_size` is not settled.
    pub fn from_parts(
        config: ModelConfig,
        tokenizer: Option<Tokenizer>,
        generation: GenerationConfig,
        weights: impl FnOnce(&Model) -> Result<WeightSource, LoadError>,
        options: LoadOptions,
    ) -> Result<Self, LoadError> {
        let longest = config.max_positions();
        let positions = options.positions.map_or(longest, |asked| asked.clamp(1, longest));
        let model = registry::build(&config, positions);
        let source = weights(&model)?;
        let queue = cpu_queue(options);
        let dtype = options.dtype.unwrap_or(DType::F32);
        let store = weights::load(&model, &source, &queue, dtype)?;
        Ok(Self { queue, model, store, config, tokenizer, generation, dtype, positions })
    }

    /// Ready to run.
    pub fn forward(&self) -> Forward<'_> {
        Forward {
            queue: &self.queue,
            model: &self.model,
            params: &self.store,
            regions: &Single,
            residency: &Resident,
            dtype: self.dtype,
            precision: None,
            positions: self.positions,
        }
    }

    /// The model's own settings for a prompt of `prompt_tokens`.
    pub fn generate_options(&self, prompt_tokens: usize) -> GenerateOptions {
        GenerateOptions::for_model(&self.config, &self.generation, self.tokenizer.as_ref(), prompt_tokens)
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(GenerateError::NoTokenizer)?;
        Ok(tokenizer.encode(text)?)
    }
}

fn cpu_queue(options: LoadOptions) -> Queue {
    let cores = available_parallelism().map_or(1, |cores| cores.get());
    let threads = if options.threads == 0 { cores } else { options.threads };
    cpu::queue(threads, threads <= cores, options.isa.unwrap_or_else(Isa::detect))
}
