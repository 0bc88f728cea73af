//! Text files: a file, or the part of it on one side of a split, is one document.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Scan;
use crate::error::{DataError, Result};

const BLOCK_BYTES: usize = 1 << 20;

/// A range of bytes of a text file that is one document. Both ends lie between characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The file.
    pub(crate) path: PathBuf,
    /// First byte.
    pub(crate) start: u64,
    /// Behind the last byte.
    pub(crate) end: u64,
}

impl Span {
    /// Length in bytes.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The text from the first character at or after byte `from` to the last one before `to`, counted from the start of the span: of two
    /// ranges that share an end, one ends where the other begins.
    pub(crate) fn read(&self, from: u64, to: u64) -> Result<String> {
        let (from, to) = (self.start + from, self.start + to);
        let beyond = (to + 3).min(self.end);
        let mut bytes = vec![0; (beyond - from) as usize];
        let mut file = File::open(&self.path).map_err(DataError::io(&self.path, "read"))?;
        file.seek(SeekFrom::Start(from)).map_err(DataError::io(&self.path, "read"))?;
        file.read_exact(&mut bytes).map_err(DataError::io(&self.path, "read"))?;
        let next_character =
            |at: usize| at + bytes[at..].iter().take(3).take_while(|&&byte| is_continuation(byte)).count();
        let start = if from == self.start { 0 } else { next_character(0) };
        let end = next_character((to - from) as usize);
        bytes.truncate(end);
        bytes.drain(..start);
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let offset = from + (start + at) as u64;
            DataError::NotUtf8 { path: self.path.clone(), offset, byte: error.as_bytes()[at] }
        })
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Reads the whole file once: its size, its number of characters, its hash. Everything must be UTF-8.
pub(crate) fn scan(path: &Path) -> Result<Scan> {
    let (mut bytes, mut units, mut hasher) = (0, 0, Sha256::new());
    for_each_block(path, |_, block| {
        bytes += block.len() as u64;
        units += num_characters(block);
        hasher.update(block);
        true
    })?;
    Ok(Scan { bytes, units, sha256: format!("{:x}", hasher.finalize()) })
}

/// The characters of the file, sorted, each once.
pub(crate) fn characters(path: &Path) -> Result<String> {
    let mut set = CharSet::new();
    for_each_block(path, |_, block| {
        set.add(block);
        true
    })?;
    Ok(set.sorted())
}

/// Offset of the byte at which character number `character` (from 0) starts; the file's size if it has no more than that.
pub(crate) fn byte_of_character(path: &Path, character: u64) -> Result<u64> {
    let (mut seen, mut byte) = (0, 0);
    for_each_block(path, |offset, block| {
        let here = num_characters(block);
        let is_last = seen + here > character;
        let within =
            if is_last { block.char_indices().nth((character - seen) as usize).map(|(at, _)| at) } else { None };
        byte = offset + within.unwrap_or(block.len()) as u64;
        seen += here;
        !is_last
    })?;
    Ok(byte)
}

/// Calls `visit(offset, block)` for consecutive blocks of whole characters until it returns false.
fn for_each_block(path: &Path, mut visit: impl FnMut(u64, &str) -> bool) -> Result<()> {
    let mut file = File::open(path).map_err(DataError::io(path, "read"))?;
    let mut buffer = vec![0; BLOCK_BYTES];
    let (mut offset, mut num_kept) = (0u64, 0);
    loop {
        let num_read = file.read(&mut buffer[num_kept..]).map_err(DataError::io(path, "read"))?;
        let filled = num_kept + num_read;
        let valid = match std::str::from_utf8(&buffer[..filled]) {
            Ok(_) => filled,
            // A character that the block's end cuts is completed by the next block.
            Err(error) if error.error_len().is_none() && num_read > 0 => error.valid_up_to(),
            Err(error) => {
                let at = error.valid_up_to();
                return Err(DataError::NotUtf8 { path: path.to_owned(), offset: offset + at as u64, byte: buffer[at] });
            }
        };
        let block = std::str::from_utf8(&buffer[..valid]).expect("checked above");
        if num_read == 0 || !visit(offset, block) {
            return Ok(());
        }
        buffer.copy_within(valid..filled, 0);
        num_kept = filled - valid;
        offset += valid as u64;
    }
}

fn num_characters(text: &str) -> u64 {
    text.bytes().filter(|&byte| !is_continuation(byte)).count() as u64
}

/// A set of characters, one bit each.
pub(crate) struct CharSet(Vec<u64>);

impl CharSet {
    pub(crate) fn new() -> Self {
        Self(vec![0; (char::MAX as usize >> 6) + 1])
    }

    pub(crate) fn add(&mut self, text: &str) {
        for c in text.chars() {
            self.0[c as usize >> 6] |= 1 << (c as u32 & 63);
        }
    }

    pub(crate) fn sorted(&self) -> String {
        let has = |c: &char| self.0[*c as usize >> 6] >> (*c as u32 & 63) & 1 == 1;
        ('\0'..=char::MAX).filter(has).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn characters_are_counted_across_block_borders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text = "aé你🚀".repeat(BLOCK_BYTES / 4); // ten bytes do not divide a block
        fs::write(&path, &text).unwrap();
        let scan = scan(&path).unwrap();
        assert_eq!((scan.bytes, scan.units), (text.len() as u64, text.chars().count() as u64));
        assert_eq!(scan.sha256, format!("{:x}", Sha256::digest(&text)));
        assert_eq!(characters(&path).unwrap(), "aé你🚀");
        for character in [0, 1, 2, 3, 4, 5, 419_431, 500_001, scan.units - 1] {
            let expected = text.char_indices().nth(character as usize).unwrap().0 as u64;
            assert_eq!(byte_of_character(&path, character).unwrap(), expected, "{character}");
        }
        assert_eq!(byte_of_character(&path, scan.units).unwrap(), scan.bytes);
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        for (content, offset, byte) in [
            ([vec![b'a'; BLOCK_BYTES + 5], vec![0xe9, b'x']].concat(), BLOCK_BYTES as u64 + 5, 0xe9),
            (b"caf\xc3".to_vec(), 3, 0xc3),
        ] {
            fs::write(&path, content).unwrap();
            let error = scan(&path).unwrap_err();
            assert!(
                matches!(&error, DataError::NotUtf8 { offset: o, byte: b, .. } if (*o, *b) == (offset, byte)),
                "{error}"
            );
        }
    }

    #[test]
    fn neighbouring_ranges_share_their_border_wherever_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text = "xé你🚀".repeat(20);
        fs::write(&path, &text).unwrap();
        let span = Span { path, start: 1, end: text.len() as u64 };
        for cut in 0..=span.num_bytes() {
            let joined = span.read(0, cut).unwrap() + &span.read(cut, span.num_bytes()).unwrap();
            assert_eq!(joined, text[1..], "{cut}");
        }
    }
}
