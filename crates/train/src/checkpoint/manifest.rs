//! `manifest.json`: everything a checkpoint says about itself but the values of its tensors.
//!
//! The last key is the crc32c of the text before it, so that a flipped bit in a counter is found like one in a weight.

use super::label;
use crate::best::BestState;
use crate::early_stop::EarlyStopState;
use crate::loss_scale::LossScale;
use crate::loss_spike::SpikeState;
use crate::precision::adaptive::Raised;
use optim::schedule::PlateauState;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// The manifest's name in the folder of a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The layout that this module reads and writes.
pub const FORMAT_VERSION: u64 = 1;
/// The type of every tensor.
pub const DTYPE: &str = "F32";
/// Of one element.
pub(crate) const ELEMENT_BYTES: usize = 4;

/// What stands between the checked text and its checksum.
const CHECKSUM_KEY: &str = ",\n  \"crc32c\": ";

/// What `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u64,
    /// The state of the run beside its tensors.
    #[serde(flatten)]
    pub head: Head,
    /// Every tensor, in the order they were written.
    pub tensors: Vec<TensorEntry>,
}

/// The state of a run beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// How far the run is.
    pub counters: Counters,
    /// Where the data stand.
    pub loader: Loader,
    /// What randomness follows from.
    pub rng: Rng,
    /// Ranks by axis of the mesh that wrote this.
    pub mesh: BTreeMap<String, usize>,
    /// The run file with every key resolved.
    pub config: Value,
    /// The model as a Hugging Face `config.json`; null if it has none.
    pub model: Value,
    /// The optimizer's type.
    pub optimizer: String,
    /// Of an fp16 run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Of a run with a guard against loss spikes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_spike: Option<SpikeState>,
    /// Of a run whose rate depends on evaluations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau: Option<PlateauState>,
    /// Of a run that may end early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopState>,
    /// Of a run that keeps its best checkpoints; this one may be among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestState>,
    /// Ops in f32 for a while, in a run whose precision adapts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_precision: Option<Vec<Raised>>,
    /// The last step whose evaluation was made, and is in the state above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<u64>,
    /// The rate that was set by hand, while it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_lr: Option<f64>,
    /// Where optimizer and schedule began anew.
    #[serde(default, skip_serializing_if = "FreshFrom::is_start")]
    pub fresh_from: FreshFrom,
    /// A callback has asked for an evaluation that was not made: a signal came.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluation_asked: bool,
    /// What each callback goes on from, with its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callbacks: Vec<(String, Value)>,
    /// What the program that saved it goes on from.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub client_state: Value,
}

/// Steps that changed the weights before optimizer and schedule began anew: both count from there. 0: with the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreshFrom {
    /// Before the optimizer's first step.
    pub optimizer: u64,
    /// Before the schedule's first step.
    pub schedule: u64,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Optimizer steps, the skipped ones too.
    pub step: u64,
    /// Optimizer steps that changed the weights.
    pub applied_steps: u64,
    /// Samples consumed.
    pub samples: u64,
    /// Tokens consumed.
    pub tokens: u64,
}

/// Where the data stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loader {
    /// Samples consumed: the next one has this number.
    pub samples: u64,
    /// Of the data and how they are cut: a run goes on only with the same.
    pub fingerprint: String,
}

/// What randomness follows from: every draw is a function of the seed and the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    /// The run's seed.
    pub seed: u64,
}

/// A global tensor and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// The Hugging Face name of the parameter.
    pub name: String,
    /// `weight`, or the optimizer's name for a state: `exp_avg`.
    pub kind: String,
    /// [`DTYPE`].
    pub dtype: String,
    /// The global shape.
    pub shape: Vec<usize>,
    /// In the order of `start`; together every element once.
    pub pieces: Vec<Piece>,
}

/// A run of a tensor's elements in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The file's name in the folder of the checkpoint.
    pub file: String,
    /// Of its first byte in the file, the safetensors header counted.
    pub offset: u64,
    /// Its first element in the flat global tensor.
    pub start: usize,
    /// Elements.
    pub length: usize,
    /// Of its bytes.
    pub crc32c: u32,
}

impl TensorEntry {
    /// Elements of the global tensor; `None` if they cannot be counted.
    pub fn num_elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// Holds the pieces against the shape. The error is the end of "TENSOR ...".
    fn check(&self) -> Result<(), String> {
        if self.dtype != DTYPE {
            return Err(format!("is stored as {}; it must be {DTYPE}", self.dtype));
        }
        let num_elements = self.num_elements().ok_or_else(|| format!("has the impossible shape {:?}", self.shape))?;
        let mut covered = 0usize;
        for piece in &self.pieces {
            let file = &piece.file;
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(format!("lies in {file}; that must be the name of a file in the same folder"));
            }
            let end = piece.start.checked_add(piece.length).filter(|&end| end <= num_elements);
            let Some(end) = end.filter(|_| piece.start == covered) else {
                let Piece { start, length, .. } = piece;
                return Err(format!(
                    "has a piece of {length} elements from element {start} on in {file}; the pieces before it end at \
                     {covered}, and the shape {:?} has {num_elements}",
                    self.shape
                ));
            };
            covered = end;
        }
        if covered != num_elements {
            return Err(format!("has pieces for {covered} elements; the shape {:?} has {num_elements}", self.shape));
        }
        Ok(())
    }
}

impl Piece {
    /// The elements it holds.
    pub fn elements(&self) -> Range<usize> {
        self.start..self.start + self.length
    }

    /// Of the byte behind its last one; saturates where no file can be.
    fn end_byte(&self) -> u64 {
        self.offset.saturating_add((self.length as u64).saturating_mul(ELEMENT_BYTES as u64))
    }
}

impl Manifest {
    /// The text of `manifest.json`.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a manifest is plain JSON");
        let body = text.strip_suffix("\n}").expect("a manifest is an object over several lines");
        format!("{body}{CHECKSUM_KEY}{}\n}}\n", crc32c::crc32c(body.as_bytes()))
    }

    /// Reads and checks the text of `manifest.json`. The error is the end of "MANIFEST: ...".
    pub fn from_json(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Frame {
            format_version: u64,
            crc32c: Option<u32>,
        }
        let not_a_manifest = |e| format!("it is not the manifest of a checkpoint: {e}");
        let frame: Frame = serde_json::from_str(text).map_err(not_a_manifest)?;
        if frame.format_version != FORMAT_VERSION {
            let found = frame.format_version;
            return Err(format!("format_version is {found}; this version of Bessemer reads {FORMAT_VERSION}"));
        }
        let expected = frame.crc32c.ok_or("it has no crc32c; the file was changed after it was written")?;
        let body = text.rsplit_once(CHECKSUM_KEY).map_or(text, |(body, _)| body);
        let found = crc32c::crc32c(body.as_bytes());
        if found != expected {
            return Err(format!("its crc32c is {found:#010x}; it must be {expected:#010x}: the file is damaged"));
        }
        let manifest: Self = serde_json::from_str(text).map_err(not_a_manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether each tensor stands here once and is tiled by its pieces.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for tensor in &self.tensors {
            let label = label(&tensor.kind, &tensor.name);
            tensor.check().map_err(|problem| format!("{label} {problem}"))?;
            if !seen.insert((&tensor.kind, &tensor.name)) {
                return Err(format!("{label} stands in it twice"));
            }
        }
        Ok(())
    }

    /// The files that hold pieces, with the bytes each must have: a file ends with its last piece.
    pub(crate) fn file_lengths(&self) -> BTreeMap<&str, u64> {
        let mut lengths = BTreeMap::new();
        for piece in self.tensors.iter().flat_map(|tensor| &tensor.pieces) {
            let length: &mut u64 = lengths.entry(piece.file.as_str()).or_default();
            *length = piece.end_byte().max(*length);
        }
        lengths
    }
}
