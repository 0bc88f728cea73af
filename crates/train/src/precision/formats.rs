//! The formats of op families as the run file has them.
//!
//! # Order of events
//! 1. The mode says where all families begin: `fp16.enabled` and `bf16.enabled` all low, `torch_autocast` as
//!    [`AUTOCAST`], nothing all f32.
//! 2. Entries of `run.precision` are written over that: those that name a family alone for all blocks, then those that name
//!    blocks by a glob (`transformer.h.0/linear`); of two globs that match a block the first in the file.
//!
//! # Invariants
//! - A run has one 16-bit format beside f32, the format of the rounded weights.
//! - fp16 comes with a scaled loss, so `run.precision` alone cannot ask for it.
//!
//! Source of [`AUTOCAST`]: the op lists of `torch.autocast` for CUDA. Where we differ: logits are f32
//! here and in the 16-bit format there; rotary embedding runs with attention, in f32 inside and rounded once; frozen weights
//! are kept in the 16-bit format alone.

use crate::config::{AutocastConfig, ConfigError, RunConfig};
use data::glob_matches;
use models::Model;
use ops::{Family, Precision, Site};
use serde_json::Value;
use std::collections::BTreeMap;
use tensor::DType;

/// Families that run in the 16-bit format under `torch_autocast`. Norms, the embedding and the residual stream are f32:
/// autocast lists norms for f32, and leaves the others to the format of what they read, which is f32.
const AUTOCAST: [Family; 4] = [Family::Linear, Family::Attention, Family::Activation, Family::Head];

/// What a run file says of formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Formats {
    /// The 16-bit format, or f32 where the run has none.
    pub low: DType,
    /// By family, for every block.
    base: [DType; Family::ALL.len()],
    /// Globs over names of blocks, in the order of the file.
    of_blocks: Vec<(String, Family, DType)>,
}

/// An entry of `run.precision`.
struct Entry<'a> {
    key: &'a str,
    blocks: Option<&'a str>,
    family: Family,
    dtype: DType,
}

impl Formats {
    /// Resolves the keys of a run file against each other.
    ///
    /// # Errors
    /// A family that does not exist, a second 16-bit format, or fp16 without a loss scale.
    pub fn of(config: &RunConfig) -> Result<Self, ConfigError> {
        let entries = config.run.precision.iter().map(|(key, value)| entry(config, key, value));
        let entries = entries.collect::<Result<Vec<Entry<'_>>, ConfigError>>()?;
        let autocast = config.torch_autocast.low();
        let mode = match (config.fp16.enabled, config.bf16.enabled) {
            (true, _) => Some(DType::F16),
            (_, true) => Some(DType::BF16),
            _ => autocast,
        };
        let named = entries.iter().map(|entry| entry.dtype).find(|dtype| *dtype != DType::F32);
        let low = mode.or(named).unwrap_or(DType::F32);
        let is_low = |family: &Family| mode.is_some() && (autocast.is_none() || AUTOCAST.contains(family));
        let base = Family::ALL.map(|family| if is_low(&family) { low } else { DType::F32 });
        let mut formats = Self { low, base, of_blocks: Vec::new() };
        for entry in &entries {
            check(config, entry, mode, low)?;
            match entry.blocks {
                None => formats.base[entry.family as usize] = entry.dtype,
                Some(blocks) => formats.of_blocks.push((blocks.to_owned(), entry.family, entry.dtype)),
            }
        }
        Ok(formats)
    }

    /// Whether every op runs in one format.
    pub fn is_uniform(&self) -> bool {
        self.base == [self.low; Family::ALL.len()] && self.of_blocks.iter().all(|(_, _, dtype)| *dtype == self.low)
    }

    /// The formats of a model's blocks.
    ///
    /// # Errors
    /// A glob that matches no block.
    pub fn table(&self, config: &RunConfig, model: &Model) -> Result<FormatTable, ConfigError> {
        let mut blocks = vec![self.base; model.blocks.len()];
        for (glob, family, dtype) in self.of_blocks.iter().rev() {
            let matches = |name: &str| glob_matches(glob, name);
            if !model.blocks.iter().any(|block| matches(&block.name)) {
                let names: Vec<&str> = model.blocks.iter().map(|block| block.name.as_str()).collect();
                let (first, last) = (names.first().unwrap_or(&""), names.last().unwrap_or(&""));
                return Err(config.error(format!(
                    "run.precision has \"{glob}/{}\", which matches no block; the model's go from {first} to {last}",
                    family.name()
                )));
            }
            for (formats, _) in blocks.iter_mut().zip(&model.blocks).filter(|(_, block)| matches(&block.name)) {
                formats[*family as usize] = *dtype;
            }
        }
        Ok(FormatTable { blocks })
    }

    /// By family: its format, and where blocks differ.
    pub fn lines(&self) -> BTreeMap<&'static str, String> {
        let line = |family: Family| {
            let mut line = shown(self.base[family as usize]).to_owned();
            for (glob, _, dtype) in self.of_blocks.iter().filter(|(_, of, _)| *of == family) {
                line.push_str(&format!("; {} in {glob}", shown(*dtype)));
            }
            (family.name(), line)
        };
        Family::ALL.into_iter().map(line).collect()
    }
}

/// As a user writes a format.
pub(crate) fn shown(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "fp16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

fn entry<'a>(config: &RunConfig, key: &'a str, value: &Value) -> Result<Entry<'a>, ConfigError> {
    let (blocks, name) = match key.rsplit_once('/') {
        Some((blocks, name)) => (Some(blocks), name),
        None => (None, key),
    };
    let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) else {
        let names = Family::ALL.map(Family::name).join(", ");
        return Err(config.error(format!(
            "run.precision has {key:?}; it must be a family of ops ({names}), or blocks and a family: \
             \"transformer.h.0/linear\""
        )));
    };
    let dtype = match value.as_str() {
        Some("bf16") => DType::BF16,
        Some("fp16") => DType::F16,
        _ => DType::F32,
    };
    Ok(Entry { key, blocks, family, dtype })
}

fn check(config: &RunConfig, entry: &Entry<'_>, mode: Option<DType>, low: DType) -> Result<(), ConfigError> {
    let is = || format!("run.precision has {} for {:?}", shown(entry.dtype), entry.key);
    if entry.dtype == DType::F16 && mode.is_none() {
        return Err(config.error(format!(
            "{}, but the loss is not scaled; fp16 needs fp16.enabled, or torch_autocast with dtype float16",
            is()
        )));
    }
    if entry.dtype != DType::F32 && entry.dtype != low {
        return Err(config.error(format!(
            "{}, but the run's 16-bit format is {}; it must be f32 or {}",
            is(),
            shown(low),
            shown(low)
        )));
    }
    Ok(())
}

impl AutocastConfig {
    /// The 16-bit format, if autocast is on.
    pub fn low(&self) -> Option<DType> {
        let is_fp16 = matches!(self.dtype.as_deref(), Some("fp16" | "float16" | "half"));
        self.enabled.then_some(if is_fp16 { DType::F16 } else { DType::BF16 })
    }
}

/// The format of every family of every block of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatTable {
    blocks: Vec<[DType; Family::ALL.len()]>,
}

impl Precision for FormatTable {
    fn dtype(&self, site: Site) -> DType {
        self.blocks[site.block][site.family as usize]
    }
}
