//! A trained model as a Hugging Face folder.

use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::pretrained::result_kind;
use bytemuck::cast_slice;
use data::Tokenizer;
use models::ModelConfig;
use models::hf::{Dtype, GenerationConfig, WeightSpec, WeightWriter, write_json};
use std::borrow::Cow;
use std::path::Path;
use tensor::{DType, bf16, f16};

/// Weights by name in the order of a model, read one at a time.
pub(crate) struct Export<'a> {
    pub(crate) config: Option<&'a ModelConfig>,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// Name and shape.
    pub(crate) weights: Vec<(&'a str, Vec<usize>)>,
    /// The format of the file: F32, BF16 or F16.
    pub(crate) dtype: DType,
}

impl Export<'_> {
    /// Makes the folder, or replaces it: complete or not at all. What fails on the way leaves an older one as it was.
    pub(crate) fn write(&self, folder: &Path, read: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        let beside = |ending: &str| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            folder.with_file_name(format!(".{name}.{ending}"))
        };
        let (partial, old) = (beside("partial"), beside("old"));
        remove_folder(&partial)?;
        if let Err(error) = self.write_files(&partial, read) {
            // The error that stopped us is the one to tell.
            let _ = std::fs::remove_dir_all(&partial);
            return Err(error);
        }
        remove_folder(&old)?;
        if folder.exists() {
            std::fs::rename(folder, &old).map_err(TrainError::io(folder, "rename"))?;
        }
        if let Err(error) = std::fs::rename(&partial, folder) {
            let _ = std::fs::rename(&old, folder);
            return Err(TrainError::io(folder, "create")(error));
        }
        remove_folder(&old)
    }

    fn write_files(&self, folder: &Path, read: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder, "create"))?;
        let dtype = match self.dtype {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        if let Some(config) = self.config {
            write_json(&folder.join("config.json"), &config.to_hf_json(dtype))?;
            let tokens = &config.tokens;
            let defaults = GenerationConfig::for_tokens(tokens.bos, &tokens.eos, tokens.pad);
            write_json(&folder.join("generation_config.json"), &defaults.to_hf_json())?;
        }
        if let Some(tokenizer) = self.tokenizer {
            tokenizer.save(folder)?;
        }
        let specs: Vec<WeightSpec> = (self.weights.iter())
            .map(|(name, shape)| WeightSpec { name: (*name).to_owned(), dtype, shape: shape.clone() })
            .collect();
        WeightWriter::new(folder).write(&specs, |name| -> Result<Cow<'_, [u8]>> {
            let values = read(name)?;
            Ok(Cow::Owned(match dtype {
                Dtype::BF16 => {
                    let rounded: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                    cast_slice(&rounded).to_vec()
                }
                Dtype::F16 => {
                    let rounded: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
                    cast_slice(&rounded).to_vec()
                }
                _ => cast_slice(&values).to_vec(),
            }))
        })?;
        Ok(())
    }
}

/// Removes a folder, if it is there.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(folder, "remove")(error)),
        _ => Ok(()),
    }
}

impl Engine {
    /// Writes the model that a checkpoint of this run holds: what [`Engine::save_pretrained`] would write of whole weights.
    pub(crate) fn export_from(
        &self,
        checkpoint: &Checkpoint,
        folder: &Path,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<()> {
        let specs = self.model.params.iter().filter(|spec| !spec.is_table());
        let export = Export {
            config: self.model.config.as_ref(),
            tokenizer,
            weights: specs.map(|spec| (spec.name.as_str(), spec.shape().dims().to_vec())).collect(),
            dtype: self.config.dtype(),
        };
        export.write(folder, &mut |name| Ok(checkpoint.read(result_kind(checkpoint, name), name)?))
    }

    /// Writes the model as a Hugging Face folder that Transformers loads as it is, in the run's compute format;
    /// in f32 where formats go by op.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save_pretrained(&self, folder: &Path, tokenizer: Option<&Tokenizer>) -> Result<()> {
        self.export(folder, tokenizer, self.config.dtype())
    }

    pub(crate) fn export(&self, folder: &Path, tokenizer: Option<&Tokenizer>, dtype: DType) -> Result<()> {
        let masters: Vec<_> = self.state.results(&self.model).collect();
        let export = Export {
            config: self.model.config.as_ref(),
            tokenizer,
            weights: masters.iter().map(|(spec, _)| (spec.name.as_str(), spec.shape().dims().to_vec())).collect(),
            dtype,
        };
        export.write(folder, &mut |name| {
            let (_, master) = masters.iter().find(|(spec, _)| spec.name == name).expect("a name of the export");
            Ok(self.queue.read_f32(master)?)
        })
    }
}
