//! Copies part of a matrix into a panel, `[k_words][width]` as the micro-kernel reads it.
//!
//! A *line* is a row of A or a column of B. Where lines lie next to each other the copy takes a vector of lines for each
//! word of k; where k does, it transposes squares of words in registers.

use super::micro::{MAX_LANES, Simd, prefetch};
use crate::element::Element;

/// Rows of k by which a copy prefetches: each may lie in a page of its own.
const AHEAD_ROWS: usize = 8;
/// Squares by which a transpose prefetches.
const AHEAD_SQUARES: usize = 4;

/// Lines `0..lines` and elements `0..k` of a matrix, to be packed into one panel.
pub(super) struct Strip<T> {
    /// Line 0, element 0.
    pub(super) src: *const T,
    /// Elements from one line to the next; 1 or `k_stride` is 1.
    pub(super) line_stride: usize,
    /// Elements from one k to the next.
    pub(super) k_stride: usize,
    /// Lines there are; the panel may be wider.
    pub(super) lines: usize,
    pub(super) k: usize,
    /// Lines of the panel: a multiple of `LANES`.
    pub(super) width: usize,
}

/// Fills the panel `out`. Lines and elements past the last are zero, except for whole vectors of lines, which are left as
/// they are: no micro-kernel reads them.
///
/// # Safety
/// The elements of the strip may be read.
#[inline(always)]
pub(super) unsafe fn strip<S: Simd, T: Element>(s: S, strip: &Strip<T>, out: &mut [u32]) {
    let k_words = strip.k.div_ceil(S::K_PER_WORD);
    assert!(out.len() >= k_words * strip.width && strip.lines <= strip.width, "gemm: a panel is too small");
    if strip.line_stride == 1 {
        // SAFETY: as the caller promises, and the panel has a row for each word of k.
        unsafe { copy(s, strip, out.as_mut_ptr()) };
    } else {
        for first in (0..strip.lines).step_by(S::LANES) {
            // SAFETY: line `first` is one of the strip's, and vectors of lines from `first` on fit into the panel's rows.
            unsafe { transpose(s, strip, first, out.as_mut_ptr()) };
        }
    }
}

/// Packs lines that lie next to each other, all of them for each word of k: a line of the cache is read once. (Several
/// panels in one walk down k were slower by 4 to 8 %.)
#[inline(always)]
unsafe fn copy<S: Simd, T: Element>(s: S, strip: &Strip<T>, out: *mut u32) {
    for (word, k) in (0..strip.k).step_by(S::K_PER_WORD).enumerate() {
        // SAFETY: element `k` of each line exists; the panel has a row for each word.
        unsafe {
            let src = strip.src.add(k * strip.k_stride);
            for next in 0..S::K_PER_WORD {
                prefetch(src.wrapping_add((AHEAD_ROWS + next) * strip.k_stride));
            }
            for first in (0..strip.lines).step_by(S::LANES) {
                let reg = s.across(src.add(first), strip.k_stride, strip.k - k, strip.lines - first);
                s.store(out.add(word * strip.width + first), reg);
            }
        }
    }
}

/// Packs `LANES` lines along which k is contiguous.
#[inline(always)]
unsafe fn transpose<S: Simd, T: Element>(s: S, strip: &Strip<T>, first: usize, out: *mut u32) {
    let k_words = strip.k.div_ceil(S::K_PER_WORD);
    let lines = (strip.lines - first).min(S::LANES);
    for word in (0..k_words).step_by(S::LANES) {
        let k = word * S::K_PER_WORD;
        let mut block = [s.zero(); MAX_LANES];
        for (line, reg) in block.iter_mut().enumerate().take(S::LANES) {
            if line < lines {
                // SAFETY: the line and element `k` exist.
                *reg = unsafe {
                    let src = strip.src.add((first + line) * strip.line_stride + k);
                    prefetch(src.wrapping_add(AHEAD_SQUARES * S::LANES * S::K_PER_WORD));
                    s.along_k(src, strip.k - k)
                };
            }
        }
        s.transpose(&mut block);
        let words = (k_words - word).min(S::LANES);
        for (i, reg) in block.iter().enumerate().take(S::LANES) {
            if i < words {
                // SAFETY: the panel has a row for word `word + i`.
                unsafe { s.store(out.add((word + i) * strip.width + first), *reg) };
            }
        }
    }
}
