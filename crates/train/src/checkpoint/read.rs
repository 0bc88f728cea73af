//! Reading one checkpoint.
//!
//! # Order of events
//! 1. [`Checkpoint::open`] reads and checks the manifest and holds the files' lengths against it; no tensor is read.
//! 2. [`Checkpoint::verify`] reads everything and checks it.
//! 3. [`Checkpoint::read_range`] reads each piece it needs whole, hands on the elements asked for, and returns only after
//!    the piece's checksum was right.

use super::manifest::{ELEMENT_BYTES, MANIFEST_FILE};
use super::{CheckpointError, Head, Manifest, Piece, TensorEntry, label};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Elements that are read and checked at once.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// A checkpoint whose manifest and file lengths are right.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
    /// Places in `manifest.tensors` by label.
    places: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder` (`.../step-00000500`).
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the file and, where there is one, the tensor; [`CheckpointError::Io`].
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let bytes = fs::read(&path).map_err(|e| missing_or_io(&path, e))?;
        let text = str::from_utf8(&bytes)
            .map_err(|e| CheckpointError::damaged(&path, format!("it is not the manifest of a checkpoint: {e}")))?;
        let manifest = Manifest::from_json(text).map_err(|problem| CheckpointError::damaged(&path, problem))?;
        for (file, expected) in manifest.file_lengths() {
            let path = folder.join(file);
            let found = fs::metadata(&path).map_err(|e| missing_or_io(&path, e))?.len();
            if found != expected {
                let problem = format!("it is {found} bytes long; the manifest says {expected}: the file is damaged");
                return Err(CheckpointError::damaged(&path, problem));
            }
        }
        let labels = manifest.tensors.iter().map(|tensor| label(&tensor.kind, &tensor.name));
        let places = labels.enumerate().map(|(place, label)| (label, place)).collect();
        Ok(Self { folder: folder.to_owned(), manifest, places })
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything it says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The state of the run beside its tensors.
    pub fn head(&self) -> &Head {
        &self.manifest.head
    }

    /// What the manifest says about the tensor of this kind and name, if it has one.
    pub fn tensor(&self, kind: &str, name: &str) -> Option<&TensorEntry> {
        self.places.get(&label(kind, name)).map(|&place| &self.manifest.tensors[place])
    }

    /// Reads every byte and holds it against its checksum.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    pub fn verify(&self) -> Result<(), CheckpointError> {
        let mut reader = PieceReader::new(&self.folder);
        for tensor in &self.manifest.tensors {
            for piece in &tensor.pieces {
                reader.read(tensor, piece, 0..0, &mut [])?;
            }
        }
        Ok(())
    }

    /// All elements of a tensor, row-major.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    pub fn read(&self, kind: &str, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.expect(kind, name)?;
        self.read_elements(tensor, 0..count(tensor))
    }

    /// Elements `elements` of a tensor, counted row-major.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`]; [`CheckpointError::Damaged`] names file, tensor, found and expected checksum;
    /// [`CheckpointError::Io`].
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    pub fn read_range(&self, kind: &str, name: &str, elements: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.expect(kind, name)?;
        assert!(elements.end <= count(tensor), "Checkpoint::read_range: {name} ends before element {}", elements.end);
        self.read_elements(tensor, elements)
    }

    /// As [`Checkpoint::tensor`], of one that must be there.
    pub(crate) fn expect(&self, kind: &str, name: &str) -> Result<&TensorEntry, CheckpointError> {
        let missing = || CheckpointError::NoTensor { folder: self.folder.clone(), tensor: label(kind, name) };
        self.tensor(kind, name).ok_or_else(missing)
    }

    fn read_elements(&self, tensor: &TensorEntry, elements: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; elements.len()];
        let mut reader = PieceReader::new(&self.folder);
        for piece in tensor.pieces.iter().filter(|piece| !overlap(&piece.elements(), &elements).is_empty()) {
            reader.read(tensor, piece, elements.clone(), &mut out)?;
        }
        Ok(out)
    }
}

/// Reads pieces, keeping the file of the last one open.
struct PieceReader<'a> {
    folder: &'a Path,
    open: Option<(&'a str, File)>,
    chunk: Vec<u8>,
}

impl<'a> PieceReader<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, open: None, chunk: Vec::new() }
    }

    /// Reads and checks the whole piece; what of it lies in `wanted` goes to its place in `out`, which begins at
    /// `wanted.start`.
    fn read(
        &mut self,
        tensor: &TensorEntry,
        piece: &'a Piece,
        wanted: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let path = self.folder.join(&piece.file);
        let found = self.copy(piece, wanted, out).map_err(CheckpointError::io(&path, "read"))?;
        if found == piece.crc32c {
            return Ok(());
        }
        let problem = format!(
            "{}: the {} elements from {} on, at byte {}, have crc32c {found:#010x}; the manifest says {:#010x}: the file is \
             damaged",
            label(&tensor.kind, &tensor.name),
            piece.length,
            piece.start,
            piece.offset,
            piece.crc32c
        );
        Err(CheckpointError::damaged(&path, problem))
    }

    /// Returns the checksum of what it read.
    fn copy(&mut self, piece: &'a Piece, wanted: Range<usize>, out: &mut [f32]) -> io::Result<u32> {
        let file = match &mut self.open {
            Some((name, file)) if *name == piece.file => file,
            open => &mut open.insert((&piece.file, File::open(self.folder.join(&piece.file))?)).1,
        };
        file.seek(SeekFrom::Start(piece.offset))?;
        let mut crc = 0;
        for at in piece.elements().step_by(CHUNK_ELEMENTS) {
            let here = at..piece.elements().end.min(at + CHUNK_ELEMENTS);
            self.chunk.resize(here.len() * ELEMENT_BYTES, 0);
            file.read_exact(&mut self.chunk)?;
            crc = crc32c::crc32c_append(crc, &self.chunk);
            let both = overlap(&here, &wanted);
            if !both.is_empty() {
                let bytes = &self.chunk.as_chunks().0[both.start - at..both.end - at];
                let out = &mut out[both.start - wanted.start..both.end - wanted.start];
                for (out, &bytes) in out.iter_mut().zip(bytes) {
                    *out = f32::from_le_bytes(bytes);
                }
            }
        }
        Ok(crc)
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

fn count(tensor: &TensorEntry) -> usize {
    tensor.num_elements().expect("the manifest was checked when it was opened")
}

fn missing_or_io(path: &Path, error: io::Error) -> CheckpointError {
    if error.kind() == io::ErrorKind::NotFound {
        return CheckpointError::damaged(path, "the file is missing; a checkpoint is whole only with it");
    }
    CheckpointError::io(path, "read")(error)
}
