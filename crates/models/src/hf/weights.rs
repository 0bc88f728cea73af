//! Reading the weights of a Hugging Face folder: headers first, then one tensor, or part of one, at a time.
//!
//! A safetensors file is 8 bytes of header length (little-endian), a JSON header, and the tensors' bytes without gaps.
//! Source: the format section of the `safetensors` crate's README; the index file is Transformers' own.
//!
//! # Invariants
//! - [`WeightFiles::open`] reads no tensor. When it returns, each file is exactly as long as its header says, so a
//!   truncated copy is found before anything is allocated.
//! - The header's length is held against the file's before it is read: a corrupt one cannot ask for memory.
//! - Files stay open: a folder that is replaced by a rename meanwhile is still read as it was.
//! - At most one MiB beyond the caller's buffer is in memory while a tensor is converted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::error::HfError;

/// The name of the weights in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The `safetensors` crate's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of header length at the start of a file.
const LENGTH_BYTES: u64 = 8;
/// How much of a tensor is read and converted at once; a multiple of every element size.
const CHUNK_BYTES: usize = 1 << 20;

/// The weights of one folder, opened and checked but not read.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

/// What a file says about one of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightEntry<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The stored type.
    pub dtype: Dtype,
    /// The shape, row-major.
    pub shape: &'a [usize],
    /// The file that holds it.
    pub path: &'a Path,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    /// Names in the order of the file.
    entries: Vec<(String, Entry)>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    shard: usize,
    /// Of the first byte in the file.
    start: u64,
    len: usize,
}

impl WeightFiles {
    /// Opens `folder`'s `model.safetensors`, or else the shards of its `model.safetensors.index.json`.
    pub fn open(folder: &Path) -> Result<Self, HfError> {
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX_FILE);
        if single.exists() {
            Self::join_shards(folder, vec![Shard::open(&single, 0)?])
        } else if index.exists() {
            Self::open_sharded(folder, &index)
        } else {
            Err(no_weights(folder))
        }
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self, HfError> {
        let weight_map = read_index(index)?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut shard_of_file = BTreeMap::new();
        for (tensor, file) in &weight_map {
            if shard_of_file.contains_key(file.as_str()) {
                continue;
            }
            let path = folder.join(file);
            if !path.exists() {
                let problem = format!("the file is missing; {INDEX_FILE} says that it holds {tensor}");
                return Err(HfError::damaged(&path, problem));
            }
            shard_of_file.insert(file.as_str(), shards.len());
            shards.push(Shard::open(&path, shards.len())?);
        }
        let files = Self::join_shards(folder, shards)?;
        for (tensor, file) in &weight_map {
            let found = files.entries.get(tensor).map(|entry| entry.shard);
            if found != Some(shard_of_file[file.as_str()]) {
                let problem = format!("it does not hold {tensor}; {INDEX_FILE} says that it does");
                return Err(HfError::damaged(&folder.join(file), problem));
            }
        }
        Ok(files)
    }

    fn join_shards(folder: &Path, mut shards: Vec<Shard>) -> Result<Self, HfError> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for index in 0..shards.len() {
            for (name, entry) in std::mem::take(&mut shards[index].entries) {
                if let Some(other) = entries.get(&name) {
                    let problem = format!("it holds {name}, and so does {}", shards[other.shard].path.display());
                    return Err(HfError::damaged(&shards[index].path, problem));
                }
                entries.insert(name, entry);
            }
        }
        Ok(Self { folder: folder.to_owned(), shards, entries })
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every tensor in the files, by name.
    pub fn entries(&self) -> impl Iterator<Item = WeightEntry<'_>> {
        self.entries.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// The tensor that the files call `name`.
    pub fn entry(&self, name: &str) -> Option<WeightEntry<'_>> {
        self.entries.get_key_value(name).map(|(name, entry)| self.view(name, entry))
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a Entry) -> WeightEntry<'a> {
        WeightEntry { name, dtype: entry.dtype, shape: &entry.shape, path: &self.shards[entry.shard].path }
    }

    /// The stored bytes of the tensor called `name`: row-major, little-endian.
    ///
    /// # Panics
    /// If the files have no such tensor: the caller takes names from [`entries`](Self::entries) or
    /// [`match_weights`](super::match_weights).
    pub fn read(&self, name: &str) -> Result<Vec<u8>, HfError> {
        let entry = self.expect(name);
        let mut bytes = vec![0; entry.len];
        self.read_at(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Elements `range` of the tensor called `name`, counted row-major, as f32.
    ///
    /// # Panics
    /// If the files have no such tensor or it has fewer elements.
    pub fn read_f32(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, HfError> {
        let mut out = vec![0.0; range.len()];
        self.read_f32_into(name, range.start, &mut out)?;
        Ok(out)
    }

    /// Fills `out` with the elements of the tensor called `name` from element `start` on, as f32.
    ///
    /// f64 is rounded to the nearest f32. Types that are not floating point, and 8-bit ones, are an error that names
    /// the tensor.
    ///
    /// # Panics
    /// If the files have no such tensor or it has fewer elements.
    pub fn read_f32_into(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), HfError> {
        let entry = self.expect(name);
        let Some(convert) = converter(entry.dtype) else {
            let problem = format!("{name} is stored as {}; weights must be F32, BF16, F16 or F64", entry.dtype);
            return Err(HfError::mismatch(&self.shards[entry.shard].path, problem));
        };
        let element_bytes = entry.dtype.bitsize() / 8;
        let mut offset = start * element_bytes;
        let mut bytes = vec![0; CHUNK_BYTES.min(out.len() * element_bytes)];
        for out in out.chunks_mut(CHUNK_BYTES / element_bytes) {
            let bytes = &mut bytes[..out.len() * element_bytes];
            self.read_at(entry, offset, bytes)?;
            convert(bytes, out);
            offset += bytes.len();
        }
        Ok(())
    }

    /// Whether two tensors are stored as the same bytes; compared chunk by chunk.
    pub(crate) fn same_bytes(&self, a: &str, b: &str) -> Result<bool, HfError> {
        let (a, b) = (self.expect(a), self.expect(b));
        if a.len != b.len {
            return Ok(false);
        }
        let (mut a_bytes, mut b_bytes) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        for start in (0..a.len).step_by(CHUNK_BYTES) {
            let len = CHUNK_BYTES.min(a.len - start);
            self.read_at(a, start, &mut a_bytes[..len])?;
            self.read_at(b, start, &mut b_bytes[..len])?;
            if a_bytes[..len] != b_bytes[..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn expect(&self, name: &str) -> &Entry {
        let Some(entry) = self.entries.get(name) else { panic!("WeightFiles: there is no tensor called {name}") };
        entry
    }

    fn read_at(&self, entry: &Entry, offset: usize, out: &mut [u8]) -> Result<(), HfError> {
        assert!(offset + out.len() <= entry.len, "WeightFiles: read past the end of a tensor");
        let shard = &self.shards[entry.shard];
        // A thread that panicked while holding the lock left at worst another position, and we seek first.
        let mut file = shard.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start + offset as u64))
            .and_then(|_| file.read_exact(out))
            .map_err(|e| HfError::io(&shard.path, "read", e))
    }
}

impl Shard {
    /// Reads the header of the file at `path` and holds the file's length against it.
    fn open(path: &Path, shard: usize) -> Result<Self, HfError> {
        let mut file = File::open(path).map_err(|e| HfError::io(path, "open the file", e))?;
        let file_len = file.metadata().map_err(|e| HfError::io(path, "read", e))?.len();
        let header = read_header(path, &mut file, file_len)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| {
            HfError::damaged(path, format!("its header is not that of a safetensors file ({e}); copy the file again"))
        })?;
        let data_start = LENGTH_BYTES + header.len() as u64;
        let described = data_start + metadata.data_len() as u64;
        if file_len != described {
            let how = if file_len < described { "truncated" } else { "followed by something else" };
            let problem = format!(
                "it is {file_len} bytes long but its header describes {described}: the file is {how}; copy it again"
            );
            return Err(HfError::damaged(path, problem));
        }
        let names = metadata.offset_keys().into_iter();
        let entries = names
            .map(|name| {
                let info = metadata.info(&name).expect("offset_keys lists names that info knows");
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    shard,
                    start: data_start + start as u64,
                    len: end - start,
                };
                (name, entry)
            })
            .collect();
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), entries })
    }
}

/// The JSON header, its length checked against the file's before any of it is read.
fn read_header(path: &Path, file: &mut File, file_len: u64) -> Result<Vec<u8>, HfError> {
    if file_len < LENGTH_BYTES {
        let problem = format!(
            "it is {file_len} bytes long; a safetensors file has at least {LENGTH_BYTES}: the file is truncated; copy \
             it again"
        );
        return Err(HfError::damaged(path, problem));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|e| HfError::io(path, "read", e))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER_BYTES {
        let problem = format!(
            "its header claims to be {header_len} bytes long; at most {MAX_HEADER_BYTES} are possible: this is not a \
             safetensors file, or it is corrupt"
        );
        return Err(HfError::damaged(path, problem));
    }
    if header_len > file_len - LENGTH_BYTES {
        let problem = format!(
            "it is {file_len} bytes long but its header alone claims {header_len}: the file is truncated or corrupt; \
             copy it again"
        );
        return Err(HfError::damaged(path, problem));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(|e| HfError::io(path, "read", e))?;
    Ok(header)
}

/// `weight_map` of an index file: tensor to file name, each a plain name inside the folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, HfError> {
    let text = std::fs::read_to_string(path).map_err(|e| HfError::io(path, "read", e))?;
    let index: Value =
        serde_json::from_str(&text).map_err(|e| HfError::damaged(path, format!("it is not JSON: {e}")))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(HfError::damaged(
            path,
            "weight_map is missing; it must be an object of tensor names and file names",
        ));
    };
    let mut weight_map = BTreeMap::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name));
        let Some(name) = name else {
            let problem = format!("weight_map.{tensor} is {file}; it must be the name of a file in the same folder");
            return Err(HfError::damaged(path, problem));
        };
        weight_map.insert(tensor.clone(), name.to_owned());
    }
    Ok(weight_map)
}

/// Says what the folder has instead of safetensors weights.
fn no_weights(folder: &Path) -> HfError {
    let problem = if !folder.is_dir() {
        "there is no such folder".to_owned()
    } else if let Some(pickle) =
        ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|name| folder.join(name).exists())
    {
        format!(
            "the weights are in {pickle}, a Python pickle that Bessemer does not run; convert them to safetensors: load \
             the model in Transformers and save_pretrained() it"
        )
    } else {
        format!("it holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    };
    HfError::NoWeights { folder: folder.to_owned(), problem }
}

/// Turns little-endian elements into f32, one for one.
type Convert = fn(&[u8], &mut [f32]);

/// How elements of a type become f32; `None` if they do not.
fn converter(dtype: Dtype) -> Option<Convert> {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
        for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = convert(bytes);
        }
    }
    match dtype {
        Dtype::F32 => Some(|bytes, out| each(bytes, out, f32::from_le_bytes)),
        Dtype::BF16 => Some(|bytes, out| each(bytes, out, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F16 => Some(|bytes, out| each(bytes, out, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Some(|bytes, out| each(bytes, out, |b| f64::from_le_bytes(b) as f32)),
        _ => None,
    }
}

/// Whether [`WeightFiles::read_f32`] reads tensors of this type.
pub(crate) fn is_readable(dtype: Dtype) -> bool {
    converter(dtype).is_some()
}
