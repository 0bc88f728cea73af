//! Writing a checkpoint so that it is complete or absent.
//!
//! # Order of events
//! 1. [`Staging::create`] removes what killed processes left and makes `.TAG.partial`.
//! 2. Each rank writes its file there ([`Staging::write_rank`]), one tensor after the other, past the page cache
//!    (`direct`), and syncs it.
//! 3. [`Staging::commit`] writes and syncs the manifest, prepares `latest` so that it cannot run out of space any more,
//!    renames the folder, syncs its parent, renames `latest`.
//!
//! An error up to the rename removes the folder and leaves the checkpoints before it and `latest` as they were. A process
//! killed between the two renames leaves `latest` at the checkpoint before, which is whole too.
//!
//! A folder that already has the name (a damaged one that was passed over, or steps done again) is set aside when the new
//! one is whole and synced, and removed when that has the name. A process killed between these two renames leaves no
//! folder of that name; what was set aside then counts as it, and gets its name back from whoever writes next
//! ([`folder`](mod@super::folder)).

use super::direct::DirectFile;
use super::folder::{self, LATEST_FILE};
use super::manifest::{DTYPE, FORMAT_VERSION, MANIFEST_FILE};
use super::{CheckpointError, Head, Manifest, Piece, Tag, TensorEntry, label};
use models::hf::atomic::{AtomicFile, sync_folder, sync_parent};
use models::hf::{Dtype, WeightSpec, file_header};
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Elements whose checksum is taken before they are copied for writing: few enough to be in the cache still.
const CHUNK_ELEMENTS: usize = 1 << 16;

const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are written as they lie in memory");

/// What one rank has of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The Hugging Face name of the parameter.
    pub name: String,
    /// `weight`, or the optimizer's name for a state.
    pub kind: String,
    /// The global shape.
    pub shape: Vec<usize>,
    /// The elements of the flat global tensor that this rank has, ascending.
    pub runs: Vec<Range<usize>>,
}

impl TensorSpec {
    /// A tensor that one rank has whole.
    pub fn whole(name: impl Into<String>, kind: impl Into<String>, shape: &[usize]) -> Self {
        let all = 0..shape.iter().product();
        Self { name: name.into(), kind: kind.into(), shape: shape.to_vec(), runs: vec![all] }
    }

    /// Elements that this rank has.
    pub fn num_owned(&self) -> usize {
        self.runs.iter().map(Range::len).sum()
    }

    /// Its entry in the safetensors file: a part is flat.
    fn stored(&self) -> WeightSpec {
        let is_whole = self.num_owned() == self.shape.iter().product::<usize>();
        let shape = if is_whole { self.shape.clone() } else { vec![self.num_owned()] };
        WeightSpec { name: label(&self.kind, &self.name), dtype: Dtype::F32, shape }
    }
}

/// Writes the checkpoint of a run on one rank into `dir` (`.../checkpoints`) and returns its folder.
///
/// `read` gives the values of a tensor, by its place in `tensors`: those of all its runs, one after the other. It is
/// called once for each, in order.
///
/// # Errors
/// What `read` returns, or [`CheckpointError::Write`] with the path and the system's words; either leaves the checkpoints
/// before it as they were.
///
/// # Panics
/// If `tensors` are not whole, one stands there twice, or `read` returns another number of values than the spec says.
pub fn write<V: AsRef<[f32]>, E: From<CheckpointError>>(
    dir: &Path,
    head: &Head,
    tensors: &[TensorSpec],
    read: &mut dyn FnMut(usize) -> Result<V, E>,
) -> Result<PathBuf, E> {
    write_tagged(dir, &Tag::of_step(head.counters.step), head, tensors, read)
}

/// The same under a tag of the caller's own.
///
/// # Errors
/// # Panics
/// As [`write`](fn@write).
pub fn write_tagged<V: AsRef<[f32]>, E: From<CheckpointError>>(
    dir: &Path,
    tag: &Tag,
    head: &Head,
    tensors: &[TensorSpec],
    read: &mut dyn FnMut(usize) -> Result<V, E>,
) -> Result<PathBuf, E> {
    let staging = Staging::tagged(dir, tag)?;
    let entries = staging.write_rank(0, tensors, read)?;
    Ok(staging.commit(head, entries)?)
}

/// A checkpoint in the making; dropped before it is committed, it leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    folder: PathBuf,
    partial: PathBuf,
    tag: Tag,
    /// Whether this rank made the folder, and removes what is not committed.
    is_own: bool,
}

impl Staging {
    /// Begins the checkpoint that a run calls by its step, in `dir`, which is created if need be.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    pub fn create(dir: &Path, step: u64) -> Result<Self, CheckpointError> {
        Self::tagged(dir, &Tag::of_step(step))
    }

    /// Begins the checkpoint `tag` in `dir`, which is created if need be.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    pub fn tagged(dir: &Path, tag: &Tag) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            fs::create_dir_all(dir).map_err(CheckpointError::write(dir))?;
            sync_parent(dir)?;
        }
        folder::clear_leftovers(dir, Some(tag))?;
        let folder = dir.join(tag.as_str());
        let partial = folder::partial_path(&folder);
        fs::create_dir(&partial).map_err(CheckpointError::write(&folder))?;
        Ok(Self { dir: dir.to_owned(), folder, partial, tag: tag.clone(), is_own: true })
    }

    /// The checkpoint `tag` that another rank has begun in `dir`, for [`Staging::write_rank`] alone.
    pub fn join(dir: &Path, tag: &Tag) -> Self {
        let folder = dir.join(tag.as_str());
        let partial = folder::partial_path(&folder);
        Self { dir: dir.to_owned(), folder, partial, tag: tag.clone(), is_own: false }
    }

    /// Writes the file of `rank` and returns what the manifest is to say about it; see [`write`](fn@write).
    ///
    /// # Errors
    /// # Panics
    /// As [`write`](fn@write), but parts are welcome.
    pub fn write_rank<V: AsRef<[f32]>, E: From<CheckpointError>>(
        &self,
        rank: usize,
        tensors: &[TensorSpec],
        read: &mut dyn FnMut(usize) -> Result<V, E>,
    ) -> Result<Vec<TensorEntry>, E> {
        let stored: Vec<_> = tensors.iter().filter(|spec| spec.num_owned() > 0).map(TensorSpec::stored).collect();
        let mut file = RankFile::create(self, format!("rank-{rank:05}.safetensors"))?;
        file.write(&file_header(&stored))?;
        let mut entries = Vec::with_capacity(tensors.len());
        for (index, spec) in tensors.iter().enumerate() {
            let values = read(index)?;
            let values = values.as_ref();
            let (got, want, name) = (values.len(), spec.num_owned(), &spec.name);
            assert!(got == want, "Staging::write_rank: {name} came with {got} values, its runs have {want}");
            let mut rest = values;
            let mut pieces = Vec::with_capacity(spec.runs.len());
            for run in spec.runs.iter().filter(|run| !run.is_empty()) {
                let (values, behind) = rest.split_at(run.len());
                pieces.push(file.write_piece(run.start, values)?);
                rest = behind;
            }
            let TensorSpec { name, kind, shape, .. } = spec.clone();
            entries.push(TensorEntry { name, kind, dtype: DTYPE.to_owned(), shape, pieces });
        }
        file.finish()?;
        Ok(entries)
    }

    /// Makes the checkpoint appear, from the entries of all ranks one after the other. Returns its folder.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    ///
    /// # Panics
    /// If the entries' pieces are not each element of each tensor once.
    pub fn commit(self, head: &Head, entries: Vec<TensorEntry>) -> Result<PathBuf, CheckpointError> {
        let of = folder::step_of(self.tag.as_str());
        assert!(of.is_none_or(|of| of == head.counters.step), "Staging::commit: the head is that of another step");
        let manifest = Manifest { format_version: FORMAT_VERSION, head: head.clone(), tensors: merge(entries) };
        if let Err(problem) = manifest.check() {
            panic!("Staging::commit: {problem}");
        }
        let mut file = RankFile::create(&self, MANIFEST_FILE.to_owned())?;
        file.write(manifest.to_json().as_bytes())?;
        file.finish()?;
        sync_folder(&self.partial)?;
        let mut latest = AtomicFile::create(&self.dir.join(LATEST_FILE))?;
        latest.write(format!("{}\n", self.tag.as_str()).as_bytes())?;
        latest.finish()?;

        let replaced = folder::set_aside(&self.folder, folder::REPLACED)?;
        if let Err(source) = fs::rename(&self.partial, &self.folder) {
            if let Some(replaced) = replaced {
                // Best effort: the error that brought us here is the one to report.
                let _ = fs::rename(replaced, &self.folder);
            }
            return Err(CheckpointError::Write { path: self.folder.clone(), source });
        }
        sync_folder(&self.dir)?;
        latest.commit()?;
        sync_folder(&self.dir)?;
        if let Some(replaced) = replaced {
            fs::remove_dir_all(&replaced).map_err(CheckpointError::io(&replaced, "remove the replaced checkpoint"))?;
        }
        Ok(self.folder.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.is_own {
            // Best effort, and not there any more once committed.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Joins the entries of several ranks: one per tensor, its pieces in the order of elements.
fn merge(entries: Vec<TensorEntry>) -> Vec<TensorEntry> {
    let mut merged: Vec<TensorEntry> = Vec::with_capacity(entries.len());
    let mut places = HashMap::new();
    for entry in entries {
        let label = label(&entry.kind, &entry.name);
        match places.get(&label) {
            None => {
                places.insert(label, merged.len());
                merged.push(entry);
            }
            Some(&place) => {
                let whole: &mut TensorEntry = &mut merged[place];
                assert!(whole.shape == entry.shape, "Staging::commit: two ranks disagree about the shape of {label}");
                whole.pieces.extend(entry.pieces);
            }
        }
    }
    for entry in &mut merged {
        entry.pieces.sort_by_key(|piece| piece.start);
    }
    merged
}

/// A file of a checkpoint in the making.
struct RankFile {
    name: String,
    /// What it will be called, for messages.
    path: PathBuf,
    file: DirectFile,
}

impl RankFile {
    fn create(staging: &Staging, name: String) -> Result<Self, CheckpointError> {
        let path = staging.folder.join(&name);
        let file = DirectFile::create(&staging.partial.join(&name)).map_err(CheckpointError::write(&path))?;
        Ok(Self { name, path, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write(bytes).map_err(CheckpointError::write(&self.path))
    }

    /// Appends `values`, which begin at element `start` of their tensor.
    fn write_piece(&mut self, start: usize, values: &[f32]) -> Result<Piece, CheckpointError> {
        let offset = self.file.position();
        let mut crc32c = 0;
        for values in values.chunks(CHUNK_ELEMENTS) {
            let bytes = bytemuck::cast_slice(values);
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            self.write(bytes)?;
        }
        Ok(Piece { file: self.name.clone(), offset, start, length: values.len(), crc32c })
    }

    fn finish(self) -> Result<(), CheckpointError> {
        self.file.finish().map_err(CheckpointError::write(&self.path))
    }
}
