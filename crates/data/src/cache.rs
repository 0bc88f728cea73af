//! The token cache: the ids of a corpus in one memory-mapped file, with document boundaries and, if given, labels.
//!
//! # File
//! `ids` (u16 or u32) · pad to 8 · `labels` (i32, absent if no row had any) · pad · `soft_ends` (u64, one a token: the end of
//! its list) and `soft` (entries of u32 id and f32 probability), both absent if no row had any · `starts` (u64, one a document:
//! the number of its first token) · pad · footer of 128 bytes: magic, key, SHA-256 of everything before the footer, counts.
//! Little endian. The name is the key: the hash of content, part and tokenizer. The class of a classifier's row is the label
//! of its last token.
//!
//! # Order of events
//! [`Writer`] streams ids to a file beside; [`Writer::finish`] appends labels, starts and footer, syncs and
//! renames. A file under its own name is therefore complete. [`TokenStore::open`] still checks sizes every time and the
//! hash whenever the file is not the one that was checked before ([`crate::remember`]); a file that fails is reported
//! as damaged and written again.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};
use crate::remember::{beside, remember};
use crate::soft::SoftLabels;
use crate::source::labels::Distribution;

const MAGIC: [u8; 8] = *b"BSMRTOK1";
const FOOTER_BYTES: usize = 128;
const BLOCK_BYTES: usize = 1 << 18;

/// Fixed facts at the end of a cache file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
struct Footer {
    magic: [u8; 8],
    key: [u8; 32],
    payload_sha256: [u8; 32],
    num_tokens: u64,
    num_documents: u64,
    text_bytes: u64,
    id_bytes: u32,
    has_labels: u32,
    /// Entries of soft labels; 0: there are none.
    num_soft: u64,
    reserved: [u64; 2],
}

/// Where the parts of a cache file lie, in bytes.
#[derive(Clone, Debug)]
struct Layout {
    ids: Range<usize>,
    labels: Range<usize>,
    soft_ends: Range<usize>,
    soft: Range<usize>,
    starts: Range<usize>,
}

impl Layout {
    /// `None` if the counts cannot be those of a file.
    fn of(footer: &Footer) -> Option<Self> {
        let num_tokens = usize::try_from(footer.num_tokens).ok()?;
        let num_documents = usize::try_from(footer.num_documents).ok()?;
        let ids = 0..num_tokens.checked_mul(footer.id_bytes as usize)?;
        let label_bytes = if footer.has_labels == 1 { num_tokens.checked_mul(4)? } else { 0 };
        let labels_at = ids.end.checked_next_multiple_of(8)?;
        let labels = labels_at..labels_at.checked_add(label_bytes)?;
        let num_soft = usize::try_from(footer.num_soft).ok()?;
        let soft_ends_at = labels.end.checked_next_multiple_of(8)?;
        let soft_end_bytes = if num_soft > 0 { num_tokens.checked_mul(8)? } else { 0 };
        let soft_ends = soft_ends_at..soft_ends_at.checked_add(soft_end_bytes)?;
        let soft = soft_ends.end..soft_ends.end.checked_add(num_soft.checked_mul(8)?)?;
        let starts = soft.end..soft.end.checked_add(num_documents.checked_mul(8)?)?;
        Some(Self { ids, labels, soft_ends, soft, starts })
    }
}

/// The tokens of one source, mapped.
#[derive(Debug)]
pub(crate) struct TokenStore {
    map: Mmap,
    layout: Layout,
    footer: Footer,
}

impl TokenStore {
    /// Opens the cache file of `key` in `cache`. `Ok(Err(why))` if it cannot be used and must be written again; `why` is `None` if
    /// there is none.
    pub(crate) fn open(cache: &Path, key: [u8; 32]) -> Result<Result<Self, Option<String>>> {
        let path = path_of(cache, &key);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err(None)),
            other => other.map_err(DataError::cache(&path, "read"))?,
        };
        let size = file.metadata().map_err(DataError::cache(&path, "read"))?.len();
        if size < FOOTER_BYTES as u64 {
            return Ok(Err(Some(format!("it is {size} bytes long, a footer alone has {FOOTER_BYTES}"))));
        }
        let map = crate::mmap::map(&file).map_err(DataError::cache(&path, "map"))?;
        let footer: Footer = bytemuck::pod_read_unaligned(&map[map.len() - FOOTER_BYTES..]);
        if footer.magic != MAGIC || footer.key != key || !matches!(footer.id_bytes, 2 | 4) {
            return Ok(Err(Some("its footer is not that of this cache".to_owned())));
        }
        let layout = Layout::of(&footer).filter(|layout| layout.starts.end + FOOTER_BYTES == map.len());
        let Some(layout) = layout else {
            return Ok(Err(Some(format!("its size, {size} bytes, is not what its footer says"))));
        };
        let payload = layout.starts.end as u64;
        let found = remember(cache, &path, "payload", || {
            hash_of_start(&file, payload).map_err(DataError::cache(&path, "read"))
        })?;
        if found != footer.payload_sha256 {
            return Ok(Err(Some("its content does not have the checksum in its footer".to_owned())));
        }
        Ok(Ok(Self { map, layout, footer }))
    }

    /// The hash of content, part and tokenizer.
    pub(crate) fn key(&self) -> [u8; 32] {
        self.footer.key
    }

    /// Tokens in all documents.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.footer.num_tokens
    }

    /// Documents, empty ones too.
    pub(crate) fn num_documents(&self) -> usize {
        self.footer.num_documents as usize
    }

    /// Bytes of the UTF-8 text that was tokenised; 0 for rows that came as tokens.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.footer.text_bytes
    }

    /// The number of the first token of each document.
    pub(crate) fn starts(&self) -> &[u64] {
        bytemuck::cast_slice(&self.map[self.layout.starts.clone()])
    }

    /// The tokens of document `document`, as a range of token numbers.
    pub(crate) fn document(&self, document: usize) -> Range<u64> {
        let starts = self.starts();
        starts[document]..starts.get(document + 1).copied().unwrap_or(self.footer.num_tokens)
    }

    /// Appends the ids of `tokens` to `ids`.
    pub(crate) fn read_ids(&self, tokens: Range<u64>, ids: &mut Vec<u32>) {
        let bytes = &self.map[self.layout.ids.clone()];
        let tokens = tokens.start as usize..tokens.end as usize;
        if self.footer.id_bytes == 2 {
            ids.extend(bytemuck::cast_slice::<u8, u16>(bytes)[tokens].iter().map(|&id| u32::from(id)));
        } else {
            ids.extend_from_slice(&bytemuck::cast_slice(bytes)[tokens]);
        }
    }

    /// Appends the labels of `tokens` to `labels`: those given, else the ids themselves.
    pub(crate) fn read_labels(&self, tokens: Range<u64>, labels: &mut Vec<i32>) {
        let range = tokens.start as usize..tokens.end as usize;
        if self.footer.has_labels == 1 {
            labels.extend_from_slice(&bytemuck::cast_slice(&self.map[self.layout.labels.clone()])[range]);
        } else {
            let mut ids = Vec::with_capacity(range.len());
            self.read_ids(tokens, &mut ids);
            labels.extend(ids.into_iter().map(|id| id as i32));
        }
    }

    /// Whether some token has soft labels.
    pub(crate) fn has_soft(&self) -> bool {
        self.footer.num_soft > 0
    }

    /// Appends the soft labels of `tokens`, one list each, which is empty where there are none.
    pub(crate) fn read_soft(&self, tokens: Range<u64>, soft: &mut SoftLabels) {
        let ends: &[u64] = bytemuck::cast_slice(&self.map[self.layout.soft_ends.clone()]);
        let entries: &[SoftEntry] = bytemuck::cast_slice(&self.map[self.layout.soft.clone()]);
        for token in tokens.start as usize..tokens.end as usize {
            let start = if token == 0 { 0 } else { ends[token - 1] };
            let list = &entries[start as usize..ends[token] as usize];
            soft.push(list.iter().map(|entry| (entry.id, entry.probability)));
        }
    }
}

/// A list of soft labels as it lies in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct SoftEntry {
    id: u32,
    probability: f32,
}

/// SHA-256 of the first `num_bytes` of a file, read in blocks: through the map, all of it would become resident.
fn hash_of_start(mut file: &File, num_bytes: u64) -> std::io::Result<[u8; 32]> {
    let (mut hasher, mut block, mut left) = (Sha256::new(), vec![0; BLOCK_BYTES], num_bytes as usize);
    file.seek(SeekFrom::Start(0))?;
    while left > 0 {
        let count = left.min(BLOCK_BYTES);
        file.read_exact(&mut block[..count])?;
        hasher.update(&block[..count]);
        left -= count;
    }
    Ok(hasher.finalize().into())
}

fn path_of(cache: &Path, key: &[u8; 32]) -> PathBuf {
    let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    cache.join(format!("{name}.tokens"))
}

/// Writes a cache file as tokens come. Dropped before [`Writer::finish`], it leaves nothing behind.
pub(crate) struct Writer {
    path: PathBuf,
    ids: Beside,
    labels: Beside,
    soft_ends: Beside,
    soft: Beside,
    starts: Beside,
    footer: Footer,
    had_labels: bool,
    buffer: Vec<u8>,
}

impl Writer {
    /// Begins the cache file of `key`. Ids below 65,536 = `vocab_size` or less take two bytes, others four.
    pub(crate) fn create(cache: &Path, key: [u8; 32], vocab_size: Option<usize>) -> Result<Self> {
        std::fs::create_dir_all(cache).map_err(DataError::cache(cache, "create the folder"))?;
        let path = path_of(cache, &key);
        let id_bytes = if vocab_size.is_some_and(|size| size <= 1 << 16) { 2 } else { 4 };
        let footer = Footer { magic: MAGIC, key, id_bytes, ..bytemuck::Zeroable::zeroed() };
        let part = || Beside::create(&path);
        let [ids, labels, soft_ends, soft, starts] = [part()?, part()?, part()?, part()?, part()?];
        Ok(Self { path, ids, labels, soft_ends, soft, starts, footer, had_labels: false, buffer: Vec::new() })
    }

    /// Begins the next document.
    pub(crate) fn start_document(&mut self) -> Result<()> {
        self.footer.num_documents += 1;
        self.starts.write(&self.footer.num_tokens.to_le_bytes())
    }

    /// Appends tokens of text to the document.
    pub(crate) fn push(&mut self, ids: &[u32]) -> Result<()> {
        self.buffer.clear();
        if self.footer.id_bytes == 2 {
            let two_bytes =
                |&id: &u32| u16::try_from(id).expect("Writer::push: ids lie below the vocabulary size").to_le_bytes();
            self.buffer.extend(ids.iter().flat_map(two_bytes));
        } else {
            self.buffer.extend(ids.iter().flat_map(|&id| id.to_le_bytes()));
        }
        self.ids.write(&self.buffer)?;
        self.footer.num_tokens += ids.len() as u64;
        Ok(())
    }

    /// Appends tokens that came with labels, or could have.
    pub(crate) fn push_labelled(&mut self, ids: &[u32], labels: Option<&[i32]>) -> Result<()> {
        self.push(ids)?;
        self.had_labels |= labels.is_some();
        self.buffer.clear();
        match labels {
            Some(labels) => self.buffer.extend(labels.iter().flat_map(|label| label.to_le_bytes())),
            None => self.buffer.extend(ids.iter().flat_map(|&id| (id as i32).to_le_bytes())),
        }
        self.labels.write(&self.buffer)
    }

    /// The soft labels of the last tokens that were pushed, one list each.
    pub(crate) fn push_soft(&mut self, lists: &[Distribution]) -> Result<()> {
        // Tokens without any, since the last that had some.
        let first = self.footer.num_tokens - lists.len() as u64;
        while self.soft_ends.len < 8 * first {
            self.soft_ends.write(&self.footer.num_soft.to_le_bytes())?;
        }
        for list in lists {
            for (id, probability) in list {
                self.soft.write(bytemuck::bytes_of(&SoftEntry { id: *id, probability: *probability }))?;
            }
            self.footer.num_soft += list.len() as u64;
            self.soft_ends.write(&self.footer.num_soft.to_le_bytes())?;
        }
        Ok(())
    }

    /// Counts bytes of text that became tokens.
    pub(crate) fn add_text_bytes(&mut self, bytes: u64) {
        self.footer.text_bytes += bytes;
    }

    /// Completes the file and gives it its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.footer.has_labels = u32::from(self.had_labels);
        self.ids.pad()?;
        if self.had_labels {
            self.ids.append(&mut self.labels)?;
            self.ids.pad()?;
        }
        if self.footer.num_soft > 0 {
            while self.soft_ends.len < 8 * self.footer.num_tokens {
                self.soft_ends.write(&self.footer.num_soft.to_le_bytes())?;
            }
            self.ids.append(&mut self.soft_ends)?;
            self.ids.append(&mut self.soft)?;
        }
        self.ids.append(&mut self.starts)?;
        self.footer.payload_sha256 = self.ids.hasher.clone().finalize().into();
        self.ids.write(bytemuck::bytes_of(&self.footer))?;
        self.ids.rename(&self.path)
    }
}

/// A file beside the one it belongs to, removed when dropped.
struct Beside {
    path: PathBuf,
    out: BufWriter<File>,
    len: u64,
    hasher: Sha256,
}

impl Beside {
    fn create(target: &Path) -> Result<Self> {
        let path = beside(target);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(DataError::cache(&path, "create the file"))?;
        Ok(Self { path, out: BufWriter::with_capacity(BLOCK_BYTES, file), len: 0, hasher: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(DataError::cache(&self.path, "write"))
    }

    fn pad(&mut self) -> Result<()> {
        let missing = self.len.next_multiple_of(8) - self.len;
        self.write(&[0; 8][..missing as usize])
    }

    fn append(&mut self, other: &mut Self) -> Result<()> {
        other.out.flush().map_err(DataError::cache(&other.path, "write"))?;
        let mut file = other.out.get_ref();
        file.seek(SeekFrom::Start(0)).map_err(DataError::cache(&other.path, "read"))?;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            match file.read(&mut block).map_err(DataError::cache(&other.path, "read"))? {
                0 => return Ok(()),
                count => self.write(&block[..count])?,
            }
        }
    }

    fn rename(&mut self, target: &Path) -> Result<()> {
        self.out.flush().map_err(DataError::cache(&self.path, "write"))?;
        self.out.get_ref().sync_all().map_err(DataError::cache(&self.path, "write"))?;
        std::fs::rename(&self.path, target).map_err(DataError::cache(target, "rename"))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn write(cache: &Path, vocab_size: usize, labelled: bool) {
        let mut writer = Writer::create(cache, KEY, Some(vocab_size)).unwrap();
        for ids in [&[1u32, 2, 3][..], &[], &[vocab_size as u32 - 1, 0]] {
            writer.start_document().unwrap();
            writer.push_labelled(ids, Some(&[-100, 1, 2][..ids.len()]).filter(|_| labelled && ids.len() == 3)).unwrap();
        }
        writer.add_text_bytes(11);
        writer.finish().unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_in_either_width() {
        let folder = tempfile::tempdir().unwrap();
        for (vocab_size, labelled, bytes) in [(1 << 16, false, 16 + 24), (1 << 17, true, 24 + 24 + 24)] {
            write(folder.path(), vocab_size, labelled);
            let store = TokenStore::open(folder.path(), KEY).unwrap().unwrap();
            assert_eq!(store.map.len(), bytes + FOOTER_BYTES);
            let (mut ids, mut labels) = (Vec::new(), Vec::new());
            store.read_ids(0..5, &mut ids);
            store.read_labels(0..5, &mut labels);
            let largest = vocab_size as u32 - 1;
            assert_eq!(ids, [1, 2, 3, largest, 0]);
            assert_eq!(labels, if labelled { [-100, 1, 2, largest as i32, 0] } else { [1, 2, 3, largest as i32, 0] });
            assert_eq!((store.num_tokens(), store.text_bytes()), (5, 11));
            let documents: Vec<_> = (0..store.num_documents()).map(|document| store.document(document)).collect();
            assert_eq!(documents, [0..3, 3..3, 3..5]);
            let left: Vec<_> =
                std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left.len(), 2, "one cache file and `known`: {left:?}");
        }
    }

    #[test]
    fn a_damaged_or_truncated_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(folder.path(), &KEY);
        let why = || TokenStore::open(folder.path(), KEY).unwrap().map(|_| ()).unwrap_err();
        assert_eq!(why(), None);
        write(folder.path(), 300, false);
        assert!(TokenStore::open(folder.path(), KEY).unwrap().is_ok());
        let whole = std::fs::read(&path).unwrap();
        for (bytes, reason) in [
            (whole[..100].to_vec(), "it is 100 bytes long"),
            (whole[8..].to_vec(), "its size"),
            (whole[..whole.len() - 8].to_vec(), "its footer"),
            ([&[9], &whole[1..]].concat(), "its content"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(why().unwrap().contains(reason), "{:?}", why());
        }
    }

    #[test]
    fn an_abandoned_writer_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path(), KEY, None).unwrap();
        writer.start_document().unwrap();
        writer.push(&[1]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
