//! Causal attention in tiles: `softmax(scale q k^T + mask) v` and its gradient, never a `T x T` matrix in memory.
//!
//! Forward keeps a running maximum and sum per query (online softmax) and saves the log-sum-exp; backward recomputes the
//! probabilities from it, block by block. Source: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4; Dao 2023,
//! arXiv:2307.08691, algorithms 1 and 2.
//!
//! # Words
//! - A *segment* is a run of queries with the run of keys it may see: a document in a packed row, or a sequence and its
//!   cache. Documents do not see each other because each is a segment of its own.
//! - A *block* is 64 queries by 64 keys. Its scores are kept transposed, `[key, query]`: softmax then runs
//!   down the lanes of vectors, without sums across a vector, and keys and values need no transposition.
//! - A *unit* is 16 queries or 16 keys. Of a block that the mask cuts, only the units that something is visible in are
//!   worked on.
//!
//! # Numbers
//! Scores, softmax and sums are f32. With bf16 inputs on a machine with AVX-512 BF16 the products take bf16 operands, so
//! that probabilities and score gradients are rounded to bf16 before they are multiplied (as the papers' own
//! kernels do); elsewhere products are f32 throughout. Products use fused multiply-add where the machine has it.
//!
//! # Invariants
//! - A task is (segment, head, a few blocks of queries) in forward and (segment, key head) in backward, and every sum inside it
//!   has a fixed order: the same bits come out of any number of threads.
//! - A query that sees no key gets zeros, a log-sum-exp of minus infinity, and passes no gradient.
//!
//! # Limits
//! Backward runs in parallel over segments and key heads only, and holds about `5 k_len head_dim` floats a thread.

mod backward;
mod dropout;
mod few;
mod forward;
mod geometry;
mod product;
mod scratch;
mod softmax;
mod tile;
mod work;

#[cfg(test)]
mod tests;

use crate::Element;
pub use backward::backward_packed;
pub use forward::forward;

/// Queries, and keys, of a block.
const BLOCK: usize = 64;

/// One run of queries against one run of keys: a document inside a row, or a sequence with its cache.
///
/// Query `i` sees key `j` if `k_position + j <= q_position + i` (when causal) and the key is inside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Row of the first query.
    pub q_start: usize,
    /// Number of queries.
    pub q_len: usize,
    /// Row of the first key.
    pub k_start: usize,
    /// Number of keys.
    pub k_len: usize,
    /// Position of the first query in its document.
    pub q_position: usize,
    /// Position of the first key in its document.
    pub k_position: usize,
    /// The sample in the global batch; for dropout only.
    pub sample: u32,
    /// Where the document begins in its sample; for dropout only, so that two documents of a sample draw different numbers.
    pub row_position: u32,
}

/// The form of attention, the same for every segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`, query head `h` uses key head `h / (num_heads / num_kv_heads)`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What products are multiplied by, above 0; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A query sees at most this many keys, itself included (`sliding_window`).
    pub window: Option<usize>,
    /// Scores become `c tanh(score / c)`, `c` above 0 (Gemma 2).
    pub softcap: Option<f32>,
    /// Dropout on probabilities.
    pub dropout: Option<AttentionDropout>,
    /// Whether a query sees only keys at its own position and before.
    pub causal: bool,
}

/// Dropout on attention probabilities: what is kept is multiplied by `1 / (1 - probability)`.
///
/// The decision for a probability is a function of the key here, the sample, the positions of query and key in the
/// sample and the global head alone, so that every mesh and every cut into blocks draws the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDropout {
    /// From 0 to below 1.
    pub probability: f32,
    /// Key of the random numbers: one for each step and layer.
    pub key: [u32; 2],
    /// Global number of the first of this call's query heads.
    pub first_head: u32,
}

/// Rows of `heads x head_dim` elements inside wider rows: element `(row, c)` lies at `row * stride + c`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// From the first element of the first row on.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Columns `column..column + width` of row `row`.
    #[inline(always)]
    fn row(&self, row: usize, column: usize, width: usize) -> &'a [T] {
        &self.data[row * self.stride + column..][..width]
    }

    /// The same rows from row `row`, column `column` on.
    #[inline(always)]
    fn starting_at(&self, row: usize, column: usize) -> Self {
        // A segment without keys may begin beyond the last row.
        let first = (row * self.stride + column).min(self.data.len());
        Rows { data: &self.data[first..], stride: self.stride }
    }
}

impl AttentionSpec {
    /// Query heads that share one key head.
    fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    fn check(&self, kernel: &str) {
        let heads_fit = self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads);
        assert!(heads_fit, "{kernel}: {} heads over {} key heads", self.num_heads, self.num_kv_heads);
        assert!(self.num_heads > 0 && self.head_dim > 0, "{kernel}: no heads");
        assert!(self.window != Some(0), "{kernel}: a window of 0 keys");
        let positive = self.scale > 0.0 && self.softcap.is_none_or(|cap| cap > 0.0);
        assert!(positive, "{kernel}: scale {} and softcap {:?} must be above 0", self.scale, self.softcap);
        if let Some(dropout) = self.dropout {
            assert!((0.0..1.0).contains(&dropout.probability), "{kernel}: dropout of {}", dropout.probability);
        }
    }
}

/// Calls `gap` for every run of query rows that no segment covers.
///
/// # Panics
/// If the segments are not in the order of their query rows, overlap, or go beyond `num_rows`.
fn for_gaps(kernel: &str, segments: &[Segment], num_rows: usize, mut gap: impl FnMut(std::ops::Range<usize>)) {
    let mut end = 0;
    for segment in segments {
        assert!(segment.q_start >= end, "{kernel}: segments overlap or are out of order at row {}", segment.q_start);
        gap(end..segment.q_start);
        end = segment.q_start + segment.q_len;
    }
    assert!(end <= num_rows, "{kernel}: segments reach row {end} of {num_rows}");
    gap(end..num_rows);
}

/// Checks that rows `0..end` of `width` columns are inside `rows`.
fn check_rows<T: Element>(kernel: &str, name: &str, rows: &Rows<T>, end: usize, width: usize) {
    let fits = end == 0 || (width <= rows.stride && (end - 1) * rows.stride + width <= rows.data.len());
    assert!(
        fits,
        "{kernel}: {name} has {} elements in rows of {}, needs {end} rows of {width}",
        rows.data.len(),
        rows.stride
    );
}
