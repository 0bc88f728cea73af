//! A file that appears under its name whole or not at all.
//!
//! Bytes go to a hidden file beside the final one; [`AtomicFile::finish`] makes them durable, [`AtomicFile::commit`]
//! renames. A file that is dropped before it is committed leaves nothing behind.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::HfError;

/// A file being written beside the name it will have: `.NAME.partial` until then.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once finished.
    writer: Option<BufWriter<File>>,
    committed: bool,
}

impl AtomicFile {
    /// Starts the file that will be `path`.
    ///
    /// # Panics
    /// If `path` does not end in a name.
    pub fn create(path: &Path) -> Result<Self, HfError> {
        let name = path.file_name().expect("AtomicFile::create: the path ends in a file name");
        let partial = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        let file = File::create(&partial).map_err(|e| HfError::io(path, "create the file", e))?;
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { path: path.to_owned(), partial, writer, committed: false })
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), HfError> {
        let writer = self.writer.as_mut().expect("AtomicFile::write: the file is not finished");
        writer.write_all(bytes).map_err(|e| HfError::io(&self.path, "write", e))
    }

    /// Flushes and syncs: after this, `commit` cannot run out of space. Called once, after the last `write`.
    pub fn finish(&mut self) -> Result<(), HfError> {
        let writer = self.writer.take().expect("AtomicFile::finish: called once");
        let synced = writer.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all());
        synced.map_err(|e| HfError::io(&self.path, "write", e))
    }

    /// Gives the finished file its name, replacing what had it; [`sync_folder`] makes the new name durable.
    pub fn commit(mut self) -> Result<(), HfError> {
        assert!(self.writer.is_none(), "AtomicFile::commit: the file is finished first");
        fs::rename(&self.partial, &self.path)
            .map_err(|e| HfError::io(&self.path, "give the written file its name", e))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: the error that brought us here is the one to report.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Makes the names in `folder` durable, so that a rename survives a power cut.
pub fn sync_folder(folder: &Path) -> Result<(), HfError> {
    // Only Unix lets a folder be opened and synced; elsewhere the file system orders renames itself.
    if cfg!(unix) {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| HfError::io(folder, "sync the folder", e))?;
    }
    Ok(())
}

/// [`sync_folder`] of the folder that `path` stands in.
pub fn sync_parent(path: &Path) -> Result<(), HfError> {
    sync_folder(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}
