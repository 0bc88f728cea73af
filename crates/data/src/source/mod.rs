//! From what the run file names to files of a known format.
//!
//! A format is one file here: what a scan of the file finds and how a piece of it becomes documents. The ending decides the
//! format when the run file does not: `.jsonl` is `tokenized` if its first row has `input_ids`, else `jsonl`; everything
//! else is `text`.
//!
//! Not here: tokenising ([`crate::tokenize`]), rows of tokens ([`crate::packing`]).

mod glob;

pub use glob::glob_matches;
pub(crate) mod jsonl;
pub(crate) mod labels;
pub(crate) mod text;
pub(crate) mod tokenized;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{DataSource, Format};
use crate::error::{DataError, Result};
use crate::remember::remember;

/// The files of one source, in order, with the format they share.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) format: Format,
    pub(crate) text_field: String,
}

/// What one reading of a file finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scan {
    /// Size of the file.
    pub(crate) bytes: u64,
    /// Characters (text) or rows.
    pub(crate) units: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub(crate) sha256: String,
}

impl Files {
    /// Finds the files of `source`; each exists and holds at least a byte.
    pub(crate) fn resolve(source: &DataSource) -> Result<Self> {
        let path = Path::new(&source.path);
        let paths = if path.exists() || !glob::is_glob(&source.path) {
            vec![path.to_owned()]
        } else {
            glob::files(&source.path)?
        };
        let mut format = None;
        for path in &paths {
            check_file(path)?;
            let this = source.format.map_or_else(|| format_of(path), Ok)?;
            let (first, first_format) = *format.get_or_insert((path, this));
            if this != first_format {
                let (first_format, second_format) = (first_format.name(), this.name());
                return Err(DataError::MixedFormats {
                    first: first.clone(),
                    first_format,
                    second: path.clone(),
                    second_format,
                });
            }
        }
        let Some((_, format)) = format else { return Err(DataError::NoMatch { pattern: source.path.clone() }) };
        Ok(Self { paths, format, text_field: source.text_field.clone() })
    }

    /// One scan per file, remembered in `cache`.
    pub(crate) fn scan(&self, cache: &Path) -> Result<Vec<Scan>> {
        let scan = |path: &PathBuf| match self.format {
            Format::Text => remember(cache, path, "scan text", || text::scan(path)),
            Format::Jsonl | Format::Tokenized => remember(cache, path, "scan rows", || jsonl::scan(path)),
        };
        self.paths.iter().map(scan).collect()
    }

    /// Every character of the text, sorted, remembered in `cache`.
    pub(crate) fn characters(&self, cache: &Path) -> Result<String> {
        let mut all = text::CharSet::new();
        for path in &self.paths {
            let what = format!("characters {} {}", self.format.name(), self.text_field);
            let characters = remember(cache, path, &what, || match self.format {
                Format::Text => text::characters(path),
                Format::Jsonl => jsonl::characters(path, &self.text_field),
                Format::Tokenized => Ok(String::new()),
            });
            all.add(&characters?);
        }
        Ok(all.sorted())
    }
}

/// SHA-256 of files together with how they are read.
pub(crate) fn content_hash(files: &Files, scans: &[Scan]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(files.format.name());
    if files.format == Format::Jsonl {
        hasher.update(&files.text_field);
    }
    for scan in scans {
        hasher.update([0]);
        hasher.update(&scan.sha256);
    }
    hasher.finalize().into()
}

fn check_file(path: &Path) -> Result<()> {
    let metadata = match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::Missing { path: path.to_owned() });
        }
        other => other.map_err(DataError::io(path, "read"))?,
    };
    if metadata.is_dir() {
        return Err(DataError::Folder { path: path.to_owned() });
    }
    let what = if is_jsonl(path) { "row" } else { "character" };
    if metadata.len() == 0 {
        return Err(DataError::Empty { path: path.to_owned(), what });
    }
    Ok(())
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"))
}

fn format_of(path: &Path) -> Result<Format> {
    if !is_jsonl(path) {
        return Ok(Format::Text);
    }
    let has_ids = jsonl::first_row(path)?.get("input_ids").is_some();
    Ok(if has_ids { Format::Tokenized } else { Format::Jsonl })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn resolve(path: &Path) -> Result<Files> {
        Files::resolve(&DataSource::path(path.to_str().unwrap()))
    }

    #[test]
    fn the_ending_and_the_first_row_choose_the_format() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content, format) in [
            ("a.txt", "x", Format::Text),
            ("a.md", "x", Format::Text),
            ("a", "{\"input_ids\": [1]}", Format::Text),
            ("a.jsonl", "{\"text\": \"x\"}", Format::Jsonl),
            ("b.JSONL", "{\"input_ids\": [1]}", Format::Tokenized),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            assert_eq!(resolve(&path).unwrap().format, format, "{name}");
        }
        let error = resolve(&folder.path().join("a*")).unwrap_err().to_string();
        assert!(error.contains("a.jsonl is jsonl") || error.contains("is jsonl;"), "{error}");
    }

    #[test]
    fn missing_empty_and_folder_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        fs::write(folder.path().join("empty.txt"), "").unwrap();
        let message = |name: &str| resolve(&folder.path().join(name)).unwrap_err().to_string();
        assert_eq!(
            message("no.txt"),
            format!("{root}/no.txt: no such file; give the path of a file that exists, or a glob")
        );
        assert_eq!(
            message("empty.txt"),
            format!("{root}/empty.txt: is empty (0 bytes); it must hold at least one character")
        );
        assert_eq!(message(""), format!("{root}/: is a folder; it must be a file, or a glob such as {root}//*.txt"));
        assert!(message("*.md").contains("no file matches this glob"));
    }
}
