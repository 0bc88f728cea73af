//! MODEL and how to run it: arguments that `eval`, `score` and `generate` share.

use crate::cmd::numbers::threads;
use crate::failure::Failure;
use clap::ValueEnum;
use generate::{LoadOptions, LoadedModel};
use std::path::PathBuf;
use tensor::DType;

/// MODEL and how to run it.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// A folder in the Hugging Face layout, a checkpoint, or the output folder of a run
    pub(crate) model: PathBuf,
    /// The format of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Threads; 0 = all cores
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = threads)]
    pub(crate) threads: usize,
}

/// A format to compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// Single precision
    F32,
    /// bfloat16 with f32 accumulation
    Bf16,
}

impl Precision {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

impl ModelArgs {
    pub(crate) fn open(&self) -> Result<LoadedModel, Failure> {
        let options =
            LoadOptions { dtype: Some(self.precision.dtype()), threads: self.threads, ..LoadOptions::default() };
        train::pretrained::open(&self.model, options).map_err(Failure::before)
    }
}
