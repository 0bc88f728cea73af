//! What a file was found to be, remembered for as long as the file is the same: path, size, times and inode.
//!
//! A large corpus is then read once, not at every start. One small JSON file per remembered fact under `<cache>/known`,
//! written beside and renamed, so that two runs may do it at the same time.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};

/// What tells a file from another one, or from itself after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified_ns: u128,
    /// Time of the last change of content or metadata, which no program can set back; 0 where there is none.
    changed_ns: i128,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let (inode, changed_ns) = inode_and_change(metadata);
        Self { size: metadata.len(), modified_ns: modified.map_or(0, |time| time.as_nanos()), changed_ns, inode }
    }
}

#[cfg(unix)]
fn inode_and_change(metadata: &Metadata) -> (u64, i128) {
    use std::os::unix::fs::MetadataExt;
    (metadata.ino(), i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
}

#[cfg(not(unix))]
fn inode_and_change(_: &Metadata) -> (u64, i128) {
    (0, 0)
}

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    path: PathBuf,
    stamp: Stamp,
    value: T,
}

/// The fact called `what` about the file at `path`: from `cache` if the file is as it was then, else from `compute`.
pub(crate) fn remember<T, F>(cache: &Path, path: &Path, what: &str, compute: F) -> Result<T>
where
    T: Serialize + DeserializeOwned,
    F: FnOnce() -> Result<T>,
{
    let stamp = || path.metadata().map(|metadata| Stamp::of(&metadata)).map_err(DataError::io(path, "read"));
    let absolute = path.canonicalize().map_err(DataError::io(path, "read"))?;
    let name = Sha256::new().chain_update(what).chain_update([0]).chain_update(absolute.as_os_str().as_encoded_bytes());
    let entry_path = cache.join("known").join(format!("{:x}.json", name.finalize()));
    let before = stamp()?;
    let known = std::fs::read(&entry_path).ok().and_then(|bytes| serde_json::from_slice::<Entry<T>>(&bytes).ok());
    if let Some(entry) = known
        && entry.stamp == before
        && entry.path == absolute
    {
        return Ok(entry.value);
    }
    let value = compute()?;
    let entry = Entry { path: absolute, stamp: before, value };
    // A file that was written to while it was read is not known.
    if entry.stamp == stamp()? {
        write_renamed(&entry_path, &serde_json::to_vec(&entry).expect("plain JSON"))?;
    }
    Ok(entry.value)
}

/// Writes `path` beside and renames it there; makes its folder.
fn write_renamed(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a file in the cache has a folder");
    std::fs::create_dir_all(folder).map_err(DataError::cache(folder, "create the folder"))?;
    let beside = beside(path);
    std::fs::write(&beside, bytes).map_err(DataError::cache(&beside, "write"))?;
    std::fs::rename(&beside, path).map_err(DataError::cache(path, "rename"))
}

/// A name beside `path` that no other process or thread uses.
pub(crate) fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("{}.{number}.tmp", std::process::id()))
}
