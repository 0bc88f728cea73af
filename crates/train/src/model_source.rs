//! Where a model comes from: a folder, a preset, or a configuration in the run file.

use crate::checkpoint::Checkpoint;
use crate::config::{ModelSource, RunConfig};
use crate::error::{Result, TrainError};
use crate::pretrained;
use crate::training_data::at_fault;
use data::Tokenizer;
use generate::{ModelLocation, locate};
use models::families::{TokenIds, presets};
use models::weights::WeightSource;
use models::{Model, ModelConfig, registry};
use std::path::{Path, PathBuf};

/// Tokens that begin a text, by the names tokenizers give them; where there is none, the one that ends it does both.
const BEGIN_OF_TEXT_NAMES: [&str; 3] = ["<s>", "<|begin_of_text|>", "<bos>"];

/// A model's configuration, where its weights will come from, and the tokenizer of its folder.
pub struct ModelOrigin {
    /// The configuration; its vocabulary may still be open.
    pub config: ModelConfig,
    weights: Origin,
    /// The folder's own tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Where messages say the configuration stands.
    place: String,
    /// The configuration says itself which tokens begin and end a text.
    names_tokens: bool,
    /// The classification head is `model.labels`' and starts at random.
    has_fresh_head: bool,
}

/// Where weights come from.
enum Origin {
    Random,
    /// A Hugging Face folder.
    Folder(PathBuf),
    Checkpoint(Box<Checkpoint>),
}

impl ModelOrigin {
    /// What a run file's `model` section names, under a fresh classification head if it has `labels`.
    pub fn open(config: &RunConfig, source: ModelSource<'_>) -> Result<Self> {
        let mut origin = Self::open_source(config, source)?;
        let Some(wanted) = config.model.as_ref().and_then(|model| model.labels.as_ref()) else { return Ok(origin) };
        let wrong = |message: String| config.error(format!("model.labels {message}"));
        let labels = wanted.labels().map_err(wrong)?;
        match origin.config.task.labels() {
            Some(own) if *own == labels => {}
            Some(own) => {
                let (wanted, own, place) = (labels.names().join(", "), own.names().join(", "), &origin.place);
                let rule = "leave model.labels out to train that head, or take the language model under it";
                return Err(wrong(format!("names {wanted}, but {place} is of a classifier of {own}; {rule}")).into());
            }
            None => {
                origin.config.classify(labels);
                origin.has_fresh_head = true;
            }
        }
        Ok(origin)
    }

    fn open_source(config: &RunConfig, source: ModelSource<'_>) -> Result<Self> {
        match source {
            ModelSource::Path(path) => match path.to_str().filter(|name| presets::NAMES.contains(name)) {
                Some(name) if !path.exists() => Self::preset(name).map_err(|error| config.error(error).into()),
                _ if !path.is_dir() => Err(config.error_at("model.path", no_folder(path)).into()),
                _ => Self::folder(path),
            },
            ModelSource::Preset(name) => Self::preset(name).map_err(|error| config.error(error).into()),
            ModelSource::Config(value) => {
                let place = "model.config".to_owned();
                let value = serde_json::Value::Object(value.clone());
                let model = ModelConfig::from_json(&value, &place).map_err(|error| config.error(error))?;
                let names_tokens = ["bos_token_id", "eos_token_id"].iter().any(|key| value.get(key).is_some());
                let place = format!("{}: {place}", config.name());
                Ok(Self {
                    config: model,
                    weights: Origin::Random,
                    tokenizer: None,
                    place,
                    names_tokens,
                    has_fresh_head: false,
                })
            }
        }
    }

    fn preset(name: &str) -> Result<Self, models::hf::ConfigError> {
        let place = "model.preset".to_owned();
        let config = presets::preset(name, &place)?;
        let weights = Origin::Random;
        Ok(Self { config, weights, tokenizer: None, place, names_tokens: false, has_fresh_head: false })
    }

    /// A Hugging Face folder, a checkpoint, or what a run left in its output folder.
    fn folder(path: &Path) -> Result<Self> {
        match locate(path)? {
            ModelLocation::HuggingFace(folder) => {
                let config = ModelConfig::from_folder(&folder)?;
                let file = folder.join("tokenizer.json");
                let tokenizer = file.exists().then(|| Tokenizer::load(&file)).transpose()?;
                let place = folder.join("config.json").display().to_string();
                let weights = Origin::Folder(folder);
                Ok(Self { config, weights, tokenizer, place, names_tokens: true, has_fresh_head: false })
            }
            ModelLocation::Checkpoint(folder) => {
                let checkpoint = Checkpoint::open(&folder)?;
                let (config, tokenizer) = pretrained::parts(&checkpoint)?;
                let place = folder.display().to_string();
                let weights = Origin::Checkpoint(Box::new(checkpoint));
                Ok(Self { config, weights, tokenizer, place, names_tokens: true, has_fresh_head: false })
            }
        }
    }

    /// The tokenizer of a run whose data are not opened; made only where the vocabulary depends on it.
    pub fn tokenizer_of(&self, config: &RunConfig) -> Result<Option<Tokenizer>> {
        match &config.data {
            Some(section) if self.config.vocab_size.is_none() => {
                let cache = section.cache.clone().map_or_else(data::default_cache, Ok)?;
                let chosen = data::choose_tokenizer(section, self.tokenizer.as_ref(), &cache);
                chosen.map_err(|error| at_fault(config, error))
            }
            _ => Ok(self.tokenizer.clone()),
        }
    }

    /// Settles the vocabulary and builds the model, for rows of at most `positions` tokens.
    pub fn build(&mut self, tokenizer: Option<&Tokenizer>, positions: usize) -> Result<Model> {
        match (tokenizer, self.config.vocab_size) {
            (Some(tokenizer), _) => {
                let resolved = self.config.resolve_vocab_size(tokenizer.vocab_size(), &self.place);
                resolved.map_err(models::hf::HfError::from)?;
                if !self.names_tokens {
                    // A family's usual ids would be ordinary tokens of this tokenizer.
                    let eos = tokenizer.end_of_text();
                    let bos = BEGIN_OF_TEXT_NAMES.iter().find_map(|name| tokenizer.token_id(name)).or(eos);
                    let pad = self.pad(Some(tokenizer));
                    self.config.tokens = TokenIds { bos, eos: eos.into_iter().collect(), pad };
                }
            }
            (None, Some(_)) => {}
            (None, None) => {
                let place = &self.place;
                let rule = "vocab_size is absent and there is no tokenizer to take it from; give one of them";
                return Err(TrainError::Request(format!("{place}: {rule}")));
            }
        }
        Ok(registry::build(&self.config, positions))
    }

    /// The token that fills up a classifier's rows, if there is one; see [`ModelConfig::classify`].
    pub(crate) fn pad(&self, tokenizer: Option<&Tokenizer>) -> Option<u32> {
        let ends_text = || tokenizer.and_then(Tokenizer::end_of_text);
        self.config.task.labels().and_then(|_| if self.names_tokens { self.config.tokens.pad } else { ends_text() })
    }

    /// Where the weights come from; names and shapes of files have been held against the model.
    pub fn weights(self, model: &Model, seed: u64) -> Result<WeightSource> {
        Ok(match self.weights {
            Origin::Random => WeightSource::Random { seed },
            Origin::Folder(folder) if self.has_fresh_head => WeightSource::folder_of_base(&folder, model, seed)?,
            Origin::Folder(folder) => WeightSource::folder(&folder, model)?,
            Origin::Checkpoint(checkpoint) if self.has_fresh_head => {
                WeightSource::FreshHead { base: Box::new(pretrained::weights(*checkpoint)), seed }
            }
            Origin::Checkpoint(checkpoint) => pretrained::weights(*checkpoint),
        })
    }
}

fn no_folder(path: &Path) -> String {
    let problem = if path.exists() { "is a file" } else { "there is no such folder" };
    format!(
        "{}: {problem}; it must be a folder in the Hugging Face layout, a checkpoint, the output of a run, or a preset \
         ({})",
        path.display(),
        presets::NAMES.join(", ")
    )
}
