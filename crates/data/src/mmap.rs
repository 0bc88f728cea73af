//! The one place with `unsafe`: a read-only map of a finished cache file.
//!
//! A map is the only way to hand out token ids as slices without reading a corpus into memory. It is sound as long as nobody
//! shortens or rewrites the file while it is mapped. We never do: a cache file is written under another name,
//! renamed when complete, and replaced only by renaming a new file over it, which leaves the mapped one as it was.

#![allow(unsafe_code, reason = "memory maps cannot be had without it; the argument stands at the head of this module")]

use std::fs::File;
use std::io;

/// Maps `file` for reading.
pub(crate) fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: `file` is a finished cache file; by the rule at the head of this module it is never written to again.
    unsafe { memmap2::Mmap::map(file) }
}
