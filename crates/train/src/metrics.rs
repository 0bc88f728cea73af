//! `metrics.jsonl`: one JSON object a line, for each optimizer step and each evaluation.
//!
//! # Invariants
//! - A line is written with one call and nothing is buffered: a killed process leaves at most one half-written line, the
//!   last.
//! - After a resume the file holds the lines up to the checkpoint and nothing else: what follows is written again.

use crate::error::{Result, TrainError};
use models::hf::atomic::{AtomicFile, sync_parent};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A `metrics.jsonl` being written.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Begins an empty file at `path`, whose folder exists.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(TrainError::io(path, "create the file"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on behind the lines up to optimizer step `step`; lines of later steps and a half-written last one are cut, by
    /// a file that is written beside and renamed, and so is the evaluation of `step` unless it `is_evaluated`, as it will be
    /// made again. Begins an empty file if there is none.
    ///
    /// # Errors
    /// [`TrainError::Request`] if another line than the last is not JSON; the file system's.
    pub fn resume(path: &Path, step: u64, is_evaluated: bool) -> Result<Self> {
        if !path.exists() {
            return Self::create(path);
        }
        let mut kept = AtomicFile::create(path)?;
        for_each_line(path, |line, value| {
            let of = value["step"].as_u64();
            let is_again = !is_evaluated && of == Some(step) && value.get("eval_loss").is_some();
            if is_again || of.is_some_and(|of| of > step) { Ok(()) } else { Ok(kept.write(line)?) }
        })?;
        kept.finish()?;
        kept.commit()?;
        sync_parent(path)?;
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io(path, "open the file"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, metrics: &Value) -> Result<()> {
        self.file.write_all(format!("{metrics}\n").as_bytes()).map_err(TrainError::io(&self.path, "write"))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts every line on the disk.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(TrainError::io(&self.path, "write"))
    }

    /// Every whole line of the file at `path`.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn read_all(path: &Path) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        for_each_line(path, |_, value| {
            lines.push(value);
            Ok(())
        })?;
        Ok(lines)
    }
}

/// Hands over every line with its final newline, but a half-written last one.
fn for_each_line(path: &Path, mut each: impl FnMut(&[u8], Value) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(TrainError::io(path, "open the file"))?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(TrainError::io(path, "read"))?;
        let is_last = reader.fill_buf().map_err(TrainError::io(path, "read"))?.is_empty();
        match serde_json::from_slice(&line) {
            Ok(value) if line.ends_with(b"\n") => each(&line, value)?,
            Err(e) if !is_last => {
                let place = path.display();
                return Err(TrainError::Request(format!("{place}: line {number} is not JSON ({e}); remove the line")));
            }
            _ => {}
        }
        if is_last {
            break;
        }
    }
    Ok(())
}
