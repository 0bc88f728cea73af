//! TensorBoard event files: records of protocol buffers in TensorFlow's frames.
//!
//! A frame is `length: u64, masked crc32c of those 8 bytes: u32, data, masked crc32c of the data: u32`, little-endian, where
//! `mask(c) = (c rotated right by 15) + 0xa282ead8`. The data are an `Event`, written here field by field:
//!
//! | message | fields |
//! | --- | --- |
//! | Event | 1 wall_time double, 2 step int64, 3 file_version string, 5 summary Summary, 7 session_log SessionLog |
//! | Summary | 1 value Summary.Value, one for each scalar |
//! | Summary.Value | 1 tag string, 2 simple_value float |
//! | SessionLog | 1 status: 1 is START |
//!
//! Source: tensorflow/core/lib/io/record_writer.h, tensorboard/compat/proto/{event,summary}.proto.
//!
//! # Invariants
//! - Event files of one folder sort by name in the order they were begun: TensorBoard reads them in that order.
//! - A START at step s makes TensorBoard forget every scalar at or after s that it has read before.
//! - An event is written with one call and nothing is buffered: a killed process leaves at most one torn record, the last,
//!   which TensorBoard passes over.

use super::Scalar;
use crate::error::{Result, TrainError};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const PREFIX: &str = "events.out.tfevents.";

/// An event file being written.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    frames: Vec<u8>,
}

/// Whether a folder has event files.
pub(super) fn holds_run(folder: &Path) -> bool {
    !begun(folder).is_empty()
}

/// The second at which each event file of a folder was begun, as its name has it.
fn begun(folder: &Path) -> Vec<u64> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()).collect()
}

impl EventFile {
    /// Begins a file in `folder`, which is made; where there are others before it, scalars of theirs at or after `from` are
    /// declared void.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn begin(folder: &Path, from: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(TrainError::io(folder, "make the folder"))?;
        let last = begun(folder).into_iter().max();
        let second = last.map_or(0, |last| last + 1).max(now() as u64);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
        let path = folder.join(format!("{PREFIX}{second:010}.{host}.{}.0", std::process::id()));
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(TrainError::io(&path, "create the file"))?;
        let mut events = Self { path, file, frames: Vec::new() };
        events.frame(|event| bytes(event, 3, b"brain.Event:2"));
        if last.is_some() {
            events.frame(|event| {
                varint(event, 2, from);
                message(event, 7, |session_log| varint(session_log, 1, 1));
            });
        }
        events.flush()?;
        Ok(events)
    }

    /// Writes one event with all `scalars` at x = `step`. Values are rounded to f32, as TensorBoard keeps them.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn write(&mut self, step: u64, scalars: &[Scalar]) -> Result<()> {
        self.frame(|event| {
            varint(event, 2, step);
            message(event, 5, |summary| {
                for Scalar { tag, value } in scalars {
                    message(summary, 1, |entry| {
                        bytes(entry, 1, tag.as_bytes());
                        key(entry, 2, FIXED_32);
                        entry.extend((*value as f32).to_le_bytes());
                    });
                }
            });
        });
        self.flush()
    }

    /// Adds the frame of an event of now.
    fn frame(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut event = Vec::new();
        key(&mut event, 1, FIXED_64);
        event.extend(now().to_le_bytes());
        fill(&mut event);
        let length = (event.len() as u64).to_le_bytes();
        self.frames.extend(length);
        self.frames.extend(masked_crc(&length).to_le_bytes());
        self.frames.extend(&event);
        self.frames.extend(masked_crc(&event).to_le_bytes());
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.frames).map_err(TrainError::io(&self.path, "write"))?;
        self.frames.clear();
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

fn key(out: &mut Vec<u8>, field: u8, wire_type: u8) {
    out.push(field << 3 | wire_type);
}

fn raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint(out: &mut Vec<u8>, field: u8, value: u64) {
    key(out, field, VARINT);
    raw_varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    key(out, field, LENGTH_DELIMITED);
    raw_varint(out, value.len() as u64);
    out.extend(value);
}

fn message(out: &mut Vec<u8>, field: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, field, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_rotated_crc32c_plus_a_constant() {
        // crc32c("123456789") is 0xe3069283, the check value of the polynomial; the rest by hand.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_number_takes_seven_bits_a_byte_lowest_first() {
        let mut out = Vec::new();
        varint(&mut out, 2, 300);
        assert_eq!(out, [0x10, 0xac, 0x02]);
    }

    #[test]
    fn files_of_one_second_sort_in_the_order_they_were_begun() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..3).map(|_| EventFile::begin(dir.path(), 0).unwrap().path).collect();
        assert!(files.is_sorted() && files[0] != files[1] && files[1] != files[2], "{files:?}");
    }
}
