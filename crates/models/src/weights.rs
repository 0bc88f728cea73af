//! Where the values of a model's parameters come from, and their way into a store.
//!
//! Values are made or read one tensor at a time: besides the model at most one is in memory.

use crate::block::Model;
use crate::hf::{HfError, NameRules, WantedWeight, WeightFiles, match_weights};
use crate::param::ParamSpec;
use crate::task::SCORE;
use ops::{OpError, ParamId, ParamStore, Part, Role};
use std::ops::Range;
use std::path::Path;
use tensor::{DType, KernelError, MemoryKind, Queue, Tensor};

/// Why weights could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The files are at fault.
    #[error(transparent)]
    Files(#[from] HfError),
    /// The device is.
    #[error(transparent)]
    Op(#[from] OpError),
}

impl From<KernelError> for WeightError {
    fn from(error: KernelError) -> Self {
        Self::Op(error.into())
    }
}

/// Reads a range of a parameter's elements.
pub type ReadValues = dyn Fn(&ParamSpec, Range<usize>) -> Result<Vec<f32>, HfError>;

/// Where values come from.
pub enum WeightSource {
    /// As Transformers initialises them: a function of (seed, name, index).
    Random {
        /// `run.seed`.
        seed: u64,
    },
    /// No values at all: a dry run looks at shapes alone.
    Shapes,
    /// Whatever the function reads: elements of a parameter, as a checkpoint holds them.
    Reader(Box<ReadValues>),
    /// A Hugging Face folder whose names and shapes have been held against the model.
    Files {
        /// The open files.
        files: WeightFiles,
        /// Per parameter the name of its tensor in the files; `None` for computed tables.
        names: Vec<Option<String>>,
    },
    /// Another source, of a language model, under a classification head that starts at random.
    FreshHead {
        /// What everything but the head comes from.
        base: Box<WeightSource>,
        /// `run.seed`.
        seed: u64,
    },
}

impl WeightSource {
    /// Opens a folder and holds every name and shape against the model. Reads headers only.
    pub fn folder(folder: &Path, model: &Model) -> Result<Self, HfError> {
        let config = model.config.as_ref().expect("WeightSource::folder: a model read from a folder has a config");
        Self::matched(folder, model, &config.name_rules(), &ParamSpec::is_table)
    }

    /// The same for a classifier and the folder of a language model, whose head is left where it is.
    pub fn folder_of_base(folder: &Path, model: &Model, seed: u64) -> Result<Self, HfError> {
        let config =
            model.config.as_ref().expect("WeightSource::folder_of_base: a model read from a folder has a config");
        let rules = config.name_rules();
        let endings = [rules.ignored_endings, &["lm_head.weight"]].concat();
        let rules = NameRules { ignored_endings: &endings, ..rules };
        let is_made = |spec: &ParamSpec| spec.is_table() || spec.name == SCORE;
        let base = Box::new(Self::matched(folder, model, &rules, &is_made)?);
        Ok(Self::FreshHead { base, seed })
    }

    /// `is_made`: parameters that no file holds.
    fn matched(
        folder: &Path,
        model: &Model,
        rules: &NameRules<'_>,
        is_made: &dyn Fn(&ParamSpec) -> bool,
    ) -> Result<Self, HfError> {
        let files = WeightFiles::open(folder)?;
        let stored: Vec<&ParamSpec> = model.params.iter().filter(|spec| !is_made(spec)).collect();
        let wanted: Vec<WantedWeight> = (stored.iter())
            .map(|spec| {
                let axes: Vec<String> = spec.dims.iter().map(axes).collect();
                WantedWeight { name: spec.name.clone(), shape: spec.shape().dims().to_vec(), axes: axes.join(" x ") }
            })
            .collect();
        let found = match_weights(&files, rules, &wanted)?;
        let mut found = found.into_iter().map(|entry| entry.name.to_owned());
        let names = model.params.iter().map(|spec| if is_made(spec) { None } else { found.next() }).collect();
        Ok(Self::Files { files, names })
    }

    /// The values of one rank's share of a parameter.
    pub fn values(&self, id: ParamId, spec: &ParamSpec, part_of: &dyn Fn(&str) -> Part) -> Result<Vec<f32>, HfError> {
        let mut values = Vec::with_capacity(spec.share_shape(part_of).elements());
        for run in spec.share_runs(part_of) {
            values.extend(self.elements(id, spec, run)?);
        }
        Ok(values)
    }

    /// A range of a parameter's elements, row-major.
    pub fn elements(&self, id: ParamId, spec: &ParamSpec, run: Range<usize>) -> Result<Vec<f32>, HfError> {
        match self {
            Self::Files { files, names } => match &names[id.index()] {
                Some(name) => files.read_f32(name, run),
                None => Ok(spec.initial(0, run)),
            },
            Self::Random { seed } => Ok(spec.initial(*seed, run)),
            Self::Reader(_) if spec.is_table() => Ok(spec.initial(0, run)),
            Self::Reader(read) => read(spec, run),
            Self::FreshHead { seed, .. } if spec.name == SCORE => Ok(spec.initial(*seed, run)),
            Self::FreshHead { base, .. } => base.elements(id, spec, run),
            Self::Shapes => Ok(vec![0.0; run.len()]),
        }
    }
}

fn axes(dim: &crate::Dim) -> String {
    let parts: Vec<&str> = dim.parts.iter().map(|(axis, _)| *axis).collect();
    let parts = parts.join(" + ");
    if dim.unit == 1 { parts } else { format!("({parts}) x head_dim") }
}

/// A store with every parameter of a model declared and none in memory. Computed tables are frozen.
pub fn declare(model: &Model, part_of: &dyn Fn(&str) -> Part) -> ParamStore {
    declare_frozen(model, part_of, &|_| false)
}

/// The same with more parameters that are read only.
pub fn declare_frozen(
    model: &Model,
    part_of: &dyn Fn(&str) -> Part,
    is_frozen: &dyn Fn(ParamId) -> bool,
) -> ParamStore {
    let mut store = ParamStore::default();
    for (id, spec) in model.iter() {
        let role = if spec.is_table() || is_frozen(id) { Role::Frozen } else { Role::Trained };
        store.declare(spec.name.clone(), spec.share_shape(part_of), role);
    }
    store
}

/// Puts one rank's share of a parameter on the device, in f32.
pub fn load_one(
    source: &WeightSource,
    queue: &Queue,
    (id, spec): (ParamId, &ParamSpec),
    part_of: &dyn Fn(&str) -> Part,
) -> Result<Tensor, WeightError> {
    let shape = spec.share_shape(part_of);
    if matches!(source, WeightSource::Shapes) {
        return Ok(queue.alloc(MemoryKind::Weights, DType::F32, shape)?);
    }
    Ok(queue.upload(MemoryKind::Weights, shape, &source.values(id, spec, part_of)?)?)
}

/// The tensor in another format; the same handle if it has it already.
pub fn cast(queue: &Queue, x: &Tensor, dtype: DType) -> Result<Tensor, KernelError> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let out = queue.alloc(MemoryKind::Weights, dtype, x.shape())?;
    (queue.backend().copy)(queue, tensor::CopyArgs { x, out: &out })?;
    Ok(out)
}

/// A store with all weights in place in `dtype`, for evaluation and generation. Tables stay f32.
pub fn load(model: &Model, source: &WeightSource, queue: &Queue, dtype: DType) -> Result<ParamStore, WeightError> {
    let whole = |_: &str| Part::WHOLE;
    let store = declare(model, &whole);
    for (id, spec) in model.iter() {
        let values = load_one(source, queue, (id, spec), &whole)?;
        let dtype = if spec.is_table() { DType::F32 } else { dtype };
        store.set_weight(id, Some(cast(queue, &values, dtype)?));
    }
    Ok(store)
}
