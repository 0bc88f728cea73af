//! Text to ids, once: in parallel, streaming, in the order of the documents.
//!
//! # Order of events
//! 1. One thread cuts the source into pieces: chunks of a text file, blocks of whole lines of a JSONL file.
//! 2. A batch of pieces is read and encoded by the threads of a pool of our own, each piece by one thread.
//! 3. One thread joins them in order ([`crate::join`]) and writes the cache file.
//!
//! # Invariants
//! - Ids do not depend on chunk size, batch size or thread count.
//! - Memory is bounded by threads x chunk size: neither a file nor its ids are ever held whole (but a row of JSONL is).

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::cache::Writer;
use crate::error::{DataError, Result};
use crate::join::{Chunk, Document, Joiner, cuts, encode_chunk, encode_document};
use crate::packing::IGNORE;
use crate::source::jsonl::{LineReader, Lines, text_of};
use crate::source::labels::{ClassLabel, Classes, class_of};
use crate::source::text::Span;
use crate::source::tokenized::{TokenRow, row_of};
use crate::tokenizer::Tokenizer;

/// Bytes of text one thread encodes at a time: 64 KiB to 1 MiB measured the same speed (2026-11), memory grows with it.
pub const CHUNK_BYTES: usize = 128 << 10;

/// The least chunk: an overlap on both sides must fit into it several times.
pub const LEAST_CHUNK_BYTES: usize = 8 << 10;

/// Bytes of text in a batch per thread: enough pieces that threads seldom wait for the slowest.
const BATCH_BYTES_PER_THREAD: u64 = 16 * CHUNK_BYTES as u64;

/// What tokenising needs besides text.
pub(crate) struct Workers<'a> {
    pool: rayon::ThreadPool,
    chunk_bytes: u64,
    /// Called after each batch with the bytes of input done so far.
    progress: &'a dyn Fn(u64),
}

/// Rows of a JSONL file.
pub(crate) struct RowRange {
    pub(crate) path: PathBuf,
    /// From 0.
    pub(crate) rows: std::ops::Range<u64>,
}

impl<'a> Workers<'a> {
    /// `threads`: 0 means all cores.
    pub(crate) fn new(threads: usize, chunk_bytes: usize, progress: &'a dyn Fn(u64)) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("tokenize-{index}"))
            .build();
        let pool = pool.map_err(|error| DataError::Tokenizer(format!("no threads to run on ({error})")))?;
        Ok(Self { pool, chunk_bytes: chunk_bytes.max(LEAST_CHUNK_BYTES) as u64, progress })
    }

    fn batch_len(&self) -> usize {
        self.pool.current_num_threads() * (BATCH_BYTES_PER_THREAD / self.chunk_bytes).max(1) as usize
    }

    /// One document per span.
    pub(crate) fn text(&self, spans: &[Span], tokenizer: &Tokenizer, writer: &mut Writer) -> Result<()> {
        let chunk_bytes = self.chunk_bytes;
        let mut pieces = spans.iter().flat_map(|span| cuts(span.num_bytes(), chunk_bytes).map(move |cut| (span, cut)));
        let mut joiner: Option<Joiner<'_>> = None;
        let mut done = 0;
        loop {
            let batch: Vec<_> = pieces.by_ref().take(self.batch_len()).collect();
            if batch.is_empty() {
                break;
            }
            let chunks: Vec<Result<Chunk>> = self.pool.install(|| {
                // One piece a task: rayon would otherwise hand out runs of pieces and leave threads idle at the end.
                let encode = |&(span, (from, to)): &(&Span, (u64, u64))| encode_chunk(span, tokenizer, from, to);
                batch.par_iter().with_max_len(1).map(encode).collect()
            });
            for (&(span, (from, to)), chunk) in batch.iter().zip(chunks) {
                if from == 0 {
                    finish(joiner.replace(Joiner::new(span, tokenizer)), writer)?;
                    writer.start_document()?;
                    writer.add_text_bytes(span.num_bytes());
                }
                let joiner = joiner.as_mut().expect("the first chunk of a document starts at 0");
                joiner.push(chunk?, &mut |ids| writer.push(ids))?;
                done += to - from;
            }
            (self.progress)(done);
        }
        finish(joiner, writer)
    }

    /// One document per row, its text in `text_field`, with a class if rows have `classes`.
    pub(crate) fn jsonl(
        &self,
        ranges: &[RowRange],
        text_field: &str,
        tokenizer: &Tokenizer,
        classes: Option<Classes<'_>>,
        writer: &mut Writer,
    ) -> Result<()> {
        let chunk_bytes = self.chunk_bytes;
        let encode = |lines: &Lines, rows: std::ops::Range<u64>| {
            let mut documents = Vec::new();
            lines.for_each_row(rows, |place, row| {
                let class = classes.map(|classes| class_of(place, &row, classes.names)).transpose()?;
                let row = Row { path: &lines.path, text: text_of(place, row, text_field)? };
                documents.push((encode_document(&row, tokenizer, chunk_bytes)?, row.num_bytes(), class));
                Ok(())
            })?;
            Ok(documents)
        };
        self.rows(ranges, encode, |(ids, num_bytes, class)| {
            writer.start_document()?;
            writer.add_text_bytes(num_bytes);
            match class {
                Some(class) => push_classed(writer, ids, class, classes.and_then(|classes| classes.pad)),
                None => writer.push(&ids),
            }
        })
    }

    /// One document per row, tokens already, with a class if rows have `classes`.
    pub(crate) fn tokenized(
        &self,
        ranges: &[RowRange],
        vocab_size: Option<usize>,
        classes: Option<Classes<'_>>,
        writer: &mut Writer,
    ) -> Result<()> {
        let parse = |lines: &Lines, rows: std::ops::Range<u64>| {
            let mut documents = Vec::new();
            lines.for_each_row(rows, |place, row| {
                let class = classes.map(|classes| class_of(place, &row, classes.names)).transpose()?;
                documents.push((row_of(place, &row, vocab_size)?, class));
                Ok(())
            })?;
            Ok(documents)
        };
        self.rows(ranges, parse, |(TokenRow { input_ids, labels, soft }, class)| {
            writer.start_document()?;
            if let Some(class) = class {
                return push_classed(writer, input_ids, class, classes.and_then(|classes| classes.pad));
            }
            writer.push_labelled(&input_ids, labels.as_deref())?;
            soft.map_or(Ok(()), |lists| writer.push_soft(&lists))
        })
    }

    /// Runs `work` on blocks of lines in parallel and `write` on its results in order.
    fn rows<T: Send>(
        &self,
        ranges: &[RowRange],
        work: impl Fn(&Lines, std::ops::Range<u64>) -> Result<Vec<T>> + Sync,
        mut write: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        for range in ranges {
            let mut reader = LineReader::open(&range.path, self.chunk_bytes as usize)?;
            loop {
                let mut batch = Vec::new();
                while batch.len() < self.batch_len()
                    && let Some(lines) = reader.next_block()?
                {
                    done += lines.bytes.len() as u64;
                    batch.push(lines);
                }
                if batch.is_empty() {
                    break;
                }
                let blocks: Vec<Result<Vec<T>>> = self.pool.install(|| {
                    batch.par_iter().with_max_len(1).map(|lines| work(lines, range.rows.clone())).collect()
                });
                for block in blocks {
                    block?.into_iter().try_for_each(&mut write)?;
                }
                (self.progress)(done);
            }
        }
        Ok(())
    }
}

/// Appends a row whose class is the label of its last token; padding at its end is taken off, but for its first token.
fn push_classed(writer: &mut Writer, mut ids: Vec<u32>, class: ClassLabel, pad: Option<u32>) -> Result<()> {
    while ids.len() > 1 && ids.last().copied() == pad {
        ids.pop();
    }
    let mut labels = vec![IGNORE; ids.len()];
    let Some(last) = labels.last_mut() else { return Ok(()) };
    *last = class.class;
    writer.push_labelled(&ids, Some(&labels))?;
    class.soft.map_or(Ok(()), |soft| writer.push_soft(&[soft]))
}

fn finish(joiner: Option<Joiner<'_>>, writer: &mut Writer) -> Result<()> {
    match joiner {
        Some(joiner) => joiner.finish(&mut |ids| writer.push(ids)),
        None => Ok(()),
    }
}

impl Document for Span {
    fn num_bytes(&self) -> u64 {
        Span::num_bytes(self)
    }

    fn read(&self, from: u64, to: u64) -> Result<String> {
        Span::read(self, from, to)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The text of one row.
struct Row<'a> {
    path: &'a Path,
    text: String,
}

impl Document for Row<'_> {
    fn num_bytes(&self) -> u64 {
        self.text.len() as u64
    }

    fn read(&self, from: u64, to: u64) -> Result<String> {
        let character =
            |at: u64| (at as usize..).find(|&at| self.text.is_char_boundary(at)).expect("the end is a boundary");
        Ok(self.text[character(from)..character(to)].to_owned())
    }

    fn path(&self) -> &Path {
        self.path
    }
}
