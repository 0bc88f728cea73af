//! Where a model comes from: a folder, a preset, or a configuration in the run file.

use crate::config::{ModelSource, RunConfig};
use crate::error::{Result, TrainError};
use data::Tokenizer;
use models::families::{TokenIds, presets};
use models::weights::WeightSource;
use models::{Model, ModelConfig, registry};
use std::path::{Path, PathBuf};

/// A model's configuration, where its weights will come from, and the tokenizer of its folder.
pub struct ModelOrigin {
    /// The configuration; its vocabulary may still be open.
    pub config: ModelConfig,
    /// The folder with weights; none: random ones.
    pub folder: Option<PathBuf>,
    /// The folder's own tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Where messages say the configuration stands.
    place: String,
    /// The configuration says itself which tokens begin and end a text.
    names_tokens: bool,
}

impl ModelOrigin {
    /// What a run file's `model` section names.
    pub fn open(config: &RunConfig, source: ModelSource<'_>) -> Result<Self> {
        match source {
            ModelSource::Path(path) => match path.to_str().filter(|name| presets::NAMES.contains(name)) {
                Some(name) if !path.exists() => Self::preset(name).map_err(|error| config.error(error).into()),
                _ => Self::folder(path),
            },
            ModelSource::Preset(name) => Self::preset(name).map_err(|error| config.error(error).into()),
            ModelSource::Config(value) => {
                let place = "model.config".to_owned();
                let value = serde_json::Value::Object(value.clone());
                let model = ModelConfig::from_json(&value, &place).map_err(|error| config.error(error))?;
                let names_tokens = ["bos_token_id", "eos_token_id"].iter().any(|key| value.get(key).is_some());
                let place = format!("{}: {place}", config.name());
                Ok(Self { config: model, folder: None, tokenizer: None, place, names_tokens })
            }
        }
    }

    fn preset(name: &str) -> Result<Self, models::hf::ConfigError> {
        let place = "model.preset".to_owned();
        let config = presets::preset(name, &place)?;
        Ok(Self { config, folder: None, tokenizer: None, place, names_tokens: false })
    }

    fn folder(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(TrainError::Request(format!(
                "model.path is {}, which is not a folder; it must be a folder with config.json and model.safetensors",
                path.display()
            )));
        }
        // The output of a run holds its model in a sub-folder.
        let inner = path.join("model");
        let folder = if !path.join("config.json").exists() && inner.join("config.json").exists() {
            inner
        } else {
            path.to_owned()
        };
        let config = ModelConfig::from_folder(&folder)?;
        let file = folder.join("tokenizer.json");
        let tokenizer = file.exists().then(|| Tokenizer::load(&file)).transpose()?;
        let place = folder.join("config.json").display().to_string();
        Ok(Self { config, folder: Some(folder), tokenizer, place, names_tokens: true })
    }

    /// The tokenizer of a run whose data are not opened; made only where the vocabulary depends on it.
    pub fn tokenizer_of(&self, config: &RunConfig) -> Result<Option<Tokenizer>> {
        match &config.data {
            Some(section) if self.config.vocab_size.is_none() => {
                let cache = section.cache.clone().map_or_else(data::default_cache, Ok)?;
                Ok(data::choose_tokenizer(section, self.tokenizer.as_ref(), &cache)?)
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
                    let end_of_text = tokenizer.end_of_text();
                    let eos = end_of_text.into_iter().collect();
                    self.config.tokens = TokenIds { bos: end_of_text, eos, pad: None };
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

    /// Where the weights come from; names and shapes of files have been held against the model.
    pub fn weights(&self, model: &Model, seed: u64) -> Result<WeightSource> {
        Ok(match &self.folder {
            Some(folder) => WeightSource::folder(folder, model)?,
            None => WeightSource::Random { seed },
        })
    }
}
