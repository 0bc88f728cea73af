//! Each thread's working memory: it grows to the largest task seen and is used again by every call.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// One cache line: blocks begin on one, so that no vector crosses two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// Words of a cache line.
const LINE: usize = 16;

/// A piece of the thread's memory from which blocks are taken, one after the other.
pub(super) struct Scratch<'a>(&'a mut [Line]);

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `task` with room for blocks of the given numbers of words. The words hold what the last task left there.
pub(super) fn with_scratch<R>(lens: &[usize], task: impl FnOnce(Scratch<'_>) -> R) -> R {
    let num_lines = lens.iter().map(|len| len.div_ceil(LINE)).sum();
    LINES.with_borrow_mut(|lines| {
        if lines.len() < num_lines {
            // What was there is of no use: do not copy it.
            *lines = Vec::new();
            *lines = bytemuck::allocation::zeroed_vec(num_lines);
        }
        task(Scratch(&mut lines[..num_lines]))
    })
}

impl<'a> Scratch<'a> {
    /// The next block, `len` words.
    pub(super) fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let (block, rest) = std::mem::take(&mut self.0).split_at_mut(len.div_ceil(LINE));
        self.0 = rest;
        &mut bytemuck::cast_slice_mut(block)[..len]
    }
}
