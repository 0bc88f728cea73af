//! CSV files as DeepSpeed's `csv_monitor` writes them: one for each tag, `/` in it as `_`, with the header
//! `step,<the tag's last part>` and a row for each point. What DeepSpeed calls step there is the x axis: samples.
//!
//! On resume rows at or after the checkpoint's samples are cut, by a file that is written beside and renamed. DeepSpeed
//! begins anew in the middle, with a second header.

use super::Scalar;
use crate::error::{Result, TrainError};
use models::hf::atomic::{AtomicFile, sync_folder};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The files of one run.
pub(super) struct CsvFiles {
    folder: PathBuf,
    /// By tag.
    files: BTreeMap<String, (PathBuf, File)>,
}

/// Whether a folder has CSV files.
pub(super) fn holds_run(folder: &Path) -> bool {
    !csv_files(folder).is_empty()
}

fn csv_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "csv")).collect()
}

impl CsvFiles {
    /// Makes `folder`; files that it holds keep their rows before `from`.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn begin(folder: &Path, from: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(TrainError::io(folder, "make the folder"))?;
        let held = csv_files(folder);
        for path in &held {
            cut(path, from)?;
        }
        if !held.is_empty() {
            sync_folder(folder)?;
        }
        Ok(Self { folder: folder.to_owned(), files: BTreeMap::new() })
    }

    /// Appends a row to the file of each scalar.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn write(&mut self, step: u64, scalars: &[Scalar]) -> Result<()> {
        for Scalar { tag, value } in scalars {
            if !self.files.contains_key(tag) {
                let opened = open(&self.folder, tag)?;
                self.files.insert(tag.clone(), opened);
            }
            let (path, file) = &mut self.files.get_mut(tag).expect("CsvFiles::write: opened above");
            file.write_all(format!("{step},{value}\n").as_bytes()).map_err(TrainError::io(path, "write"))?;
        }
        Ok(())
    }
}

/// The file of a tag, with its header.
fn open(folder: &Path, tag: &str) -> Result<(PathBuf, File)> {
    let path = folder.join(format!("{}.csv", tag.replace(['/', ' '], "_")));
    let is_new = fs::metadata(&path).map_or(true, |held| held.len() == 0);
    let mut file =
        OpenOptions::new().append(true).create(true).open(&path).map_err(TrainError::io(&path, "create the file"))?;
    if is_new {
        let name = tag.rsplit('/').next().unwrap_or(tag);
        file.write_all(format!("step,{name}\n").as_bytes()).map_err(TrainError::io(&path, "write"))?;
    }
    Ok((path, file))
}

/// Keeps the header and the whole rows whose x is below `from`.
fn cut(path: &Path, from: u64) -> Result<()> {
    let mut kept = AtomicFile::create(path)?;
    let mut reader = BufReader::new(File::open(path).map_err(TrainError::io(path, "open the file"))?);
    let mut line = String::new();
    for number in 0.. {
        line.clear();
        if reader.read_line(&mut line).map_err(TrainError::io(path, "read"))? == 0 {
            break;
        }
        let x: Option<u64> = line.split(',').next().and_then(|x| x.parse().ok());
        if line.ends_with('\n') && (number == 0 || x.is_some_and(|x| x < from)) {
            kept.write(line.as_bytes())?;
        }
    }
    kept.finish()?;
    Ok(kept.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_file_with_a_header_and_going_on_cuts_later_and_torn_rows() {
        let dir = tempfile::tempdir().unwrap();
        let scalar = |value: f64| [Scalar { tag: "Train/Samples/train_loss".to_owned(), value }];
        let mut files = CsvFiles::begin(dir.path(), 0).unwrap();
        assert!(!holds_run(dir.path()));
        for (step, value) in [(8, 4.25), (16, 4.0), (24, 0.1 + 0.2)] {
            files.write(step, &scalar(value)).unwrap();
        }
        let path = dir.path().join("Train_Samples_train_loss.csv");
        let text = || fs::read_to_string(&path).unwrap();
        assert_eq!(text(), "step,train_loss\n8,4.25\n16,4\n24,0.30000000000000004\n");
        fs::write(&path, text() + "3").unwrap();
        let mut files = CsvFiles::begin(dir.path(), 16).unwrap();
        files.write(16, &scalar(3.5)).unwrap();
        assert_eq!(text(), "step,train_loss\n8,4.25\n16,3.5\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
