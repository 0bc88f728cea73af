//! JSONL files: one JSON object a line; its `text_field` is a document.
//!
//! A file is read in blocks of whole lines, so that lines can be parsed in parallel and errors still know their number.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Scan;
use super::text::CharSet;
use crate::error::{DataError, Result};

const BLOCK_BYTES: usize = 1 << 20;

/// Consecutive whole lines of a file.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) path: PathBuf,
    /// Number of the first line, from 1.
    first_line: u64,
    /// Offset of the first byte in the file.
    offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Cuts a file into [`Lines`] of at least `block_bytes` (the last of a file may be shorter).
pub(crate) struct LineReader {
    path: PathBuf,
    file: File,
    block_bytes: usize,
    line: u64,
    offset: u64,
    kept: Vec<u8>,
}

impl LineReader {
    pub(crate) fn open(path: &Path, block_bytes: usize) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path, "read"))?;
        Ok(Self { path: path.to_owned(), file, block_bytes, line: 1, offset: 0, kept: Vec::new() })
    }

    /// The next block; `None` at the end of the file.
    pub(crate) fn next_block(&mut self) -> Result<Option<Lines>> {
        let mut bytes = std::mem::take(&mut self.kept);
        loop {
            let before = bytes.len();
            let wanted = self.block_bytes as u64;
            let read =
                (&mut self.file).take(wanted).read_to_end(&mut bytes).map_err(DataError::io(&self.path, "read"))?;
            let is_end = read == 0;
            // The kept bytes hold no newline, but for what follows the last one of an earlier block.
            let Some(last_newline) = bytes[before..].iter().rposition(|&byte| byte == b'\n') else {
                if is_end {
                    break;
                }
                continue;
            };
            self.kept = bytes.split_off(before + last_newline + 1);
            break;
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let lines = Lines { path: self.path.clone(), first_line: self.line, offset: self.offset, bytes };
        self.line += lines.num_lines();
        self.offset += lines.bytes.len() as u64;
        Ok(Some(lines))
    }
}

impl Lines {
    fn num_lines(&self) -> u64 {
        let newlines = self.bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        newlines + u64::from(self.bytes.last() != Some(&b'\n'))
    }

    /// Calls `visit` with every row that a number in `rows` (from 0 in the file) falls on.
    pub(crate) fn for_each_row(
        &self,
        rows: std::ops::Range<u64>,
        mut visit: impl FnMut(RowPlace<'_>, Map<String, Value>) -> Result<()>,
    ) -> Result<()> {
        let mut offset = self.offset;
        for (line, bytes) in (self.first_line..).zip(self.bytes.split_inclusive(|&byte| byte == b'\n')) {
            if rows.contains(&(line - 1)) {
                let place = RowPlace { path: &self.path, line };
                visit(place, parse(place, offset, bytes)?)?;
            }
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Where a row stands, for errors.
#[derive(Clone, Copy)]
pub(crate) struct RowPlace<'a> {
    path: &'a Path,
    line: u64,
}

impl RowPlace<'_> {
    pub(crate) fn error(self, problem: impl Into<String>) -> DataError {
        DataError::Row { path: self.path.to_owned(), line: self.line, problem: problem.into() }
    }
}

fn parse(place: RowPlace<'_>, offset: u64, line: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        DataError::NotUtf8 { path: place.path.to_owned(), offset: offset + at as u64, byte: line[at] }
    })?;
    let text = text.trim();
    if text.is_empty() {
        return Err(place.error("is blank; every line must be a JSON object"));
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(place.error(format!("is {}; every line must be a JSON object", kind(&other)))),
        Err(error) => {
            let reason = error.to_string().replace(" at line 1 column ", " at column ");
            Err(place.error(format!("is not valid JSON ({reason}); every line must be a JSON object")))
        }
    }
}

/// Takes the text out of a row.
pub(crate) fn text_of(place: RowPlace<'_>, mut row: Map<String, Value>, text_field: &str) -> Result<String> {
    match row.remove(text_field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(place.error(format!("{text_field:?} is {}; it must be a string", kind(&other)))),
        None => {
            let fields: Vec<String> = row.keys().map(|key| format!("{key:?}")).collect();
            let has = if fields.is_empty() { "no field at all".to_owned() } else { fields.join(", ") };
            Err(place
                .error(format!("has no field {text_field:?} but {has}; set text_field to the one that holds the text")))
        }
    }
}

/// A JSON value in words.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Reads the whole file once: its size, its number of rows, its hash.
pub(crate) fn scan(path: &Path) -> Result<Scan> {
    let (mut bytes, mut units, mut hasher) = (0, 0, Sha256::new());
    let mut reader = LineReader::open(path, BLOCK_BYTES)?;
    while let Some(lines) = reader.next_block()? {
        bytes += lines.bytes.len() as u64;
        units += lines.num_lines();
        hasher.update(&lines.bytes);
    }
    Ok(Scan { bytes, units, sha256: format!("{:x}", hasher.finalize()) })
}

/// The characters of all documents, sorted, each once.
pub(crate) fn characters(path: &Path, text_field: &str) -> Result<String> {
    let mut set = CharSet::new();
    let mut reader = LineReader::open(path, BLOCK_BYTES)?;
    while let Some(lines) = reader.next_block()? {
        lines.for_each_row(0..u64::MAX, |place, row| {
            set.add(&text_of(place, row, text_field)?);
            Ok(())
        })?;
    }
    Ok(set.sorted())
}

/// The first row of a file that is not empty.
pub(crate) fn first_row(path: &Path) -> Result<Map<String, Value>> {
    let mut first = None;
    if let Some(lines) = LineReader::open(path, BLOCK_BYTES)?.next_block()? {
        lines.for_each_row(0..1, |_, row| {
            first = Some(row);
            Ok(())
        })?;
    }
    first.ok_or_else(|| DataError::Empty { path: path.to_owned(), what: "row" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn texts(content: &[u8], block_bytes: usize) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, content).unwrap();
        let (mut texts, mut reader) = (Vec::new(), LineReader::open(&path, block_bytes)?);
        while let Some(lines) = reader.next_block()? {
            lines.for_each_row(0..u64::MAX, |place, row| {
                texts.push(text_of(place, row, "text")?);
                Ok(())
            })?;
        }
        assert_eq!(scan(&path)?.units, texts.len() as u64);
        Ok(texts)
    }

    fn message(content: &[u8]) -> String {
        let error = texts(content, 8).unwrap_err().to_string();
        error[error.find("a.jsonl: ").unwrap() + "a.jsonl: ".len()..].to_owned()
    }

    #[test]
    fn rows_are_the_same_for_any_block_size_with_or_without_a_last_newline() {
        for end in ["", "\n"] {
            let content = format!("{{\"text\": \"one\"}}\n{{\"text\": \"\"}}\r\n{{\"a\": 1, \"text\": \"é\\n\"}}{end}");
            for block_bytes in 1..60 {
                assert_eq!(texts(content.as_bytes(), block_bytes).unwrap(), ["one", "", "é\n"], "{block_bytes}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said_with_its_line() {
        let good = "{\"text\": \"x\"}\n";
        assert_eq!(
            message(format!("{good}{good}{{\"text\": \"x\"\n").as_bytes()),
            "line 3: is not valid JSON (EOF while parsing an object at column 12); every line must be a JSON object"
        );
        assert_eq!(message(format!("{good}[1]\n").as_bytes()), "line 2: is an array; every line must be a JSON object");
        assert_eq!(message(format!("{good}\n{good}").as_bytes()), "line 2: is blank; every line must be a JSON object");
        assert_eq!(
            message(b"{\"content\": \"x\", \"id\": 3}"),
            "line 1: has no field \"text\" but \"content\", \"id\"; set text_field to the one that holds the text"
        );
        assert_eq!(message(b"{\"text\": 3}"), "line 1: \"text\" is 3; it must be a string");
        let not_utf8 = [good.as_bytes(), b"{\"text\": \"caf\xe9\"}"].concat();
        assert!(message(&not_utf8).starts_with("not UTF-8 at byte offset 27 (byte 0xe9)"), "{}", message(&not_utf8));
    }
}
