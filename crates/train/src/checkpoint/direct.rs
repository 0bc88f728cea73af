//! A file that is written once, from its start to its end, past the page cache where the file system allows it.
//!
//! A checkpoint has gigabytes that nobody reads soon. Through the page cache they would be copied once more, push out the
//! training data, and leave the sync at the end with all the writing to do. With `O_DIRECT` (Linux) the device fetches them
//! from our buffer, and the processor is hardly used.
//!
//! # Order of events
//! 1. Bytes are gathered in a buffer that begins on a page; a full one is written at a multiple of its own length.
//! 2. The last one is filled up to a whole [`BLOCK_BYTES`] and the file cut to its true length.
//! 3. The file is synced: what it held back, an error of the device too, is known when [`DirectFile::finish`] returns.
//!
//! Where `O_DIRECT` is refused (on opening: tmpfs, network file systems; on writing: devices with larger blocks) the file
//! goes on as a plain one. Each buffer is then synced and taken out of the page cache again, which bounds what waits
//! there. Elsewhere than on Linux it is a plain file.

use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Bytes that are written at once: enough that waiting for the device costs little beside its writing.
const BUFFER_BYTES: usize = 4 << 20;
/// Files written directly have lengths and places that are multiples of this: at least the blocks of common devices.
const BLOCK_BYTES: usize = 4096;

/// A file being written.
pub(crate) struct DirectFile {
    file: File,
    /// [`BUFFER_BYTES`] that begin on a page.
    buffer: MmapMut,
    /// Bytes of the buffer that are not in the file yet.
    filled: usize,
    /// Bytes in the file.
    written: u64,
    is_direct: bool,
}

impl DirectFile {
    /// Begins the file `path`; what had the name is gone.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let (file, is_direct) = open(path)?;
        let buffer = MmapMut::map_anon(BUFFER_BYTES)?;
        Ok(Self { file, buffer, filled: 0, written: 0, is_direct })
    }

    /// Bytes so far: the place of the next one.
    pub(crate) fn position(&self) -> u64 {
        self.written + self.filled as u64
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and syncs the file.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let length = self.position();
        let whole = self.filled.next_multiple_of(BLOCK_BYTES);
        self.buffer[self.filled..whole].fill(0);
        self.filled = whole;
        self.flush()?;
        self.file.set_len(length)?;
        self.file.sync_all()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut rest = &self.buffer[..self.filled];
        while !rest.is_empty() {
            match write_at(&mut self.file, rest, self.written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count as u64;
                    rest = &rest[count..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Blocks larger than ours, or a file system that refuses late.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput && self.is_direct => {
                    make_plain(&self.file)?;
                    self.is_direct = false;
                }
                Err(e) => return Err(e),
            }
        }
        if !self.is_direct {
            drop_from_cache(&self.file, self.written - self.filled as u64, self.filled)?;
        }
        self.filled = 0;
        Ok(())
    }
}

/// The file, and whether it is written past the page cache.
#[cfg(target_os = "linux")]
fn open(path: &Path) -> io::Result<(File, bool)> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    match options.clone().custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok((options.open(path)?, false)),
        file => Ok((file?, true)),
    }
}

#[cfg(not(target_os = "linux"))]
fn open(path: &Path) -> io::Result<(File, bool)> {
    Ok((OpenOptions::new().write(true).create(true).truncate(true).open(path)?, false))
}

#[cfg(unix)]
fn write_at(file: &mut File, bytes: &[u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, at)
}

/// Files are written in order: the cursor is already there.
#[cfg(not(unix))]
fn write_at(file: &mut File, bytes: &[u8], _at: u64) -> io::Result<usize> {
    io::Write::write(file, bytes)
}

#[cfg(target_os = "linux")]
fn make_plain(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - rustix::fs::OFlags::DIRECT)?)
}

#[cfg(not(target_os = "linux"))]
fn make_plain(_: &File) -> io::Result<()> {
    Ok(())
}

/// Writes out `length` bytes from `start` on and tells the system that nobody will read them soon.
#[cfg(target_os = "linux")]
fn drop_from_cache(file: &File, start: u64, length: usize) -> io::Result<()> {
    file.sync_data()?;
    // Advice: a file system that does not take it keeps the pages, and nothing is wrong.
    let _ = rustix::fs::fadvise(file, start, std::num::NonZeroU64::new(length as u64), rustix::fs::Advice::DontNeed);
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn drop_from_cache(_: &File, _: u64, _: usize) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_written_in_any_portions_is_the_file_at_every_length_around_block_and_buffer() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes: Vec<u8> = (0..2 * BUFFER_BYTES + 9).map(|i| (i * 31 % 251) as u8).collect();
        for around in [0, BLOCK_BYTES, BUFFER_BYTES, BUFFER_BYTES + BLOCK_BYTES, 2 * BUFFER_BYTES] {
            for length in [around.saturating_sub(1), around, around + 1, around + 7] {
                for make_it_plain in [false, true] {
                    let path = folder.path().join("file");
                    let mut file = DirectFile::create(&path).expect("a file");
                    let (first, rest) = bytes[..length].split_at(length / 3);
                    file.write(first).expect("room");
                    if make_it_plain {
                        make_plain(&file.file).expect("a plain file");
                        file.is_direct = false;
                    }
                    for portion in rest.chunks(100_003) {
                        file.write(portion).expect("room");
                    }
                    assert_eq!(file.position(), length as u64);
                    file.finish().expect("room");
                    assert!(fs::read(&path).expect("the file") == bytes[..length], "{length} bytes");
                }
            }
        }
    }
}
