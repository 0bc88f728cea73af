//! Writing weights in the Hugging Face layout, one tensor in memory at a time.
//!
//! Names, types and shapes are known before the first byte, so the header is written first and the tensors follow as
//! the caller hands them over. The result is the same byte for byte whenever the tensors are.
//!
//! # Order of events
//! 1. The tensors are dealt to shards, in the order given, each as full as `max_shard_bytes` allows.
//! 2. Each shard is written beside its final name and synced.
//! 3. When all are, they are renamed, the index last; weights of an earlier model with other file names are removed.
//!
//! An error up to step 3 leaves the folder as it was.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::atomic::{AtomicFile, sync_folder, sync_parent};
use super::error::HfError;
use super::weights::{INDEX_FILE, SINGLE_FILE};

/// Transformers 5's `max_shard_size`.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 50_000_000_000;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name in the file.
    pub name: String,
    /// Its type in the file.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
}

impl WeightSpec {
    fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    fn num_bytes(&self) -> u64 {
        self.num_elements() * self.dtype.bitsize() as u64 / 8
    }
}

/// Writes the weights of one folder.
#[derive(Clone, Debug)]
pub struct WeightWriter {
    folder: PathBuf,
    max_shard_bytes: u64,
}

impl WeightWriter {
    /// A writer into `folder`, which is created if need be.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), max_shard_bytes: DEFAULT_MAX_SHARD_BYTES }
    }

    /// Cuts the weights into shards of at most this many bytes of tensors (a larger tensor has a shard of its own).
    pub fn max_shard_bytes(self, max_shard_bytes: u64) -> Self {
        Self { max_shard_bytes, ..self }
    }

    /// Writes `specs`, asking `tensor` for the bytes of each in turn: row-major, little-endian.
    ///
    /// `tensor` is called once per name in the order of `specs`, but within a shard larger element types come first,
    /// so that each tensor is aligned to its element size. Returns the files of weights written, in order.
    ///
    /// # Panics
    /// If `tensor` returns another number of bytes than its spec says, or two specs have one name.
    pub fn write<'t, E: From<HfError>>(
        &self,
        specs: &[WeightSpec],
        mut tensor: impl FnMut(&str) -> Result<Cow<'t, [u8]>, E>,
    ) -> Result<Vec<PathBuf>, E> {
        let distinct: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert!(distinct.len() == specs.len(), "WeightWriter::write: two tensors have one name");
        fs::create_dir_all(&self.folder).map_err(|e| HfError::io(&self.folder, "create the folder", e))?;

        let shards = deal(specs, self.max_shard_bytes);
        let names: Vec<String> = (1..=shards.len()).map(|number| shard_name(number, shards.len())).collect();
        let mut files = Vec::with_capacity(shards.len() + 1);
        for (name, shard) in names.iter().zip(&shards) {
            files.push(write_shard(&self.folder.join(name), shard, &mut tensor)?);
        }
        if shards.len() > 1 {
            let mut file = AtomicFile::create(&self.folder.join(INDEX_FILE))?;
            file.write(pretty(&index(&names, &shards)).as_bytes())?;
            file.finish()?;
            files.push(file);
        }
        for file in files {
            file.commit()?;
        }
        remove_stale(&self.folder, &names)?;
        sync_folder(&self.folder)?;
        Ok(names.iter().map(|name| self.folder.join(name)).collect())
    }
}

/// Writes `value` as indented JSON with a final newline to `path`, which appears whole or not at all.
pub fn write_json(path: &Path, value: &Value) -> Result<(), HfError> {
    let mut file = AtomicFile::create(path)?;
    file.write(pretty(value).as_bytes())?;
    file.finish()?;
    file.commit()?;
    sync_parent(path)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Deals tensors to shards in the order given; no specs make one empty shard.
fn deal(specs: &[WeightSpec], max_shard_bytes: u64) -> Vec<Vec<&WeightSpec>> {
    let mut shards = vec![Vec::new()];
    let mut shard_bytes = 0;
    for spec in specs {
        let last = shards.last_mut().expect("there is a first shard");
        if !last.is_empty() && shard_bytes + spec.num_bytes() > max_shard_bytes {
            shards.push(vec![spec]);
            shard_bytes = spec.num_bytes();
        } else {
            last.push(spec);
            shard_bytes += spec.num_bytes();
        }
    }
    for shard in &mut shards {
        // `Dtype` is ordered by alignment; the sort is stable.
        shard.sort_by_key(|spec| std::cmp::Reverse(spec.dtype));
    }
    shards
}

fn shard_name(number: usize, num_shards: usize) -> String {
    if num_shards == 1 { SINGLE_FILE.to_owned() } else { format!("model-{number:05}-of-{num_shards:05}.safetensors") }
}

fn write_shard<'t, E: From<HfError>>(
    path: &Path,
    shard: &[&WeightSpec],
    tensor: &mut impl FnMut(&str) -> Result<Cow<'t, [u8]>, E>,
) -> Result<AtomicFile, E> {
    let mut file = AtomicFile::create(path)?;
    file.write(&file_header(shard.iter().copied()))?;
    for spec in shard {
        let bytes = tensor(&spec.name)?;
        let (got, want) = (bytes.len() as u64, spec.num_bytes());
        assert!(got == want, "WeightWriter::write: {} came with {got} bytes, its shape needs {want}", spec.name);
        file.write(&bytes)?;
    }
    file.finish()?;
    Ok(file)
}

/// What a safetensors file of `specs` begins with: the length of the header and the header. The tensors' bytes follow
/// in the order of `specs` without gaps, the first at a multiple of 8 bytes: all are aligned if larger types come first.
pub fn file_header<'a>(specs: impl IntoIterator<Item = &'a WeightSpec>) -> Vec<u8> {
    let mut offset = 0;
    let tensors = specs.into_iter().map(|spec| {
        let start = offset;
        offset += spec.num_bytes() as usize;
        let info = TensorInfo { dtype: spec.dtype, shape: spec.shape.clone(), data_offsets: (start, offset) };
        (spec.name.clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), tensors.collect()).expect("the offsets are contiguous by construction");
    let mut header = serde_json::to_vec(&metadata).expect("a header is plain JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    bytes
}

/// The index file: which shard holds which tensor, with the totals that Transformers writes.
fn index(names: &[String], shards: &[Vec<&WeightSpec>]) -> Value {
    let specs = || shards.iter().flatten();
    let shard_of = names.iter().zip(shards).flat_map(|(name, shard)| shard.iter().map(move |spec| (&spec.name, name)));
    let weight_map: BTreeMap<_, _> = shard_of.collect();
    json!({
        "metadata": {
            "total_parameters": specs().map(|spec| spec.num_elements()).sum::<u64>(),
            "total_size": specs().map(|spec| spec.num_bytes()).sum::<u64>(),
        },
        "weight_map": weight_map,
    })
}

/// Removes weights that an earlier, differently sharded model left: a reader would prefer them or mix them in.
fn remove_stale(folder: &Path, written: &[String]) -> Result<(), HfError> {
    let entries = fs::read_dir(folder).map_err(|e| HfError::io(folder, "list the folder", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| HfError::io(folder, "list the folder", e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_weights = name == SINGLE_FILE || name == INDEX_FILE || is_shard_name(name);
        let is_current = written.iter().any(|file| file == name) || (name == INDEX_FILE && written.len() > 1);
        if is_weights && !is_current {
            fs::remove_file(entry.path()).map_err(|e| HfError::io(&entry.path(), "remove the older weights", e))?;
        }
    }
    Ok(())
}

/// `model-00001-of-00002.safetensors`.
fn is_shard_name(name: &str) -> bool {
    let middle = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = middle.and_then(|middle| middle.split_once("-of-"));
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(number, total)| is_number(number) && is_number(total))
}
