//! Each thread's working memory: it grows to the largest task seen and is used again by every call.

use std::cell::RefCell;

use bytemuck::Pod;

use crate::aligned::AlignedMemory;

/// Words of a cache line: every block begins on one, so that no vector crosses two.
const LINE: usize = 16;

/// Words that a block takes: its own and a line, so that the same element of two blocks, which are powers of two long, does
/// not fall on the same set of the cache. Backward gains 3 % by it.
const fn room(len: usize) -> usize {
    len.next_multiple_of(LINE) + LINE
}

/// A piece of the thread's memory from which blocks are taken, one after the other.
pub(super) struct Scratch<'a>(&'a mut [u32]);

thread_local! {
    static MEMORY: RefCell<Option<AlignedMemory>> = const { RefCell::new(None) };
}

/// Runs `task` with room for blocks of the given numbers of words. The words hold what the last task left there.
pub(super) fn with_scratch<R>(lens: &[usize], task: impl FnOnce(Scratch<'_>) -> R) -> R {
    let len: usize = lens.iter().map(|len| room(*len)).sum();
    MEMORY.with_borrow_mut(|memory| {
        if memory.as_ref().is_none_or(|memory| memory.as_slice::<u32>().len() < len) {
            // Freed first: what was there is of no use.
            *memory = None;
            *memory = Some(AlignedMemory::zeroed(len * size_of::<u32>()).expect("attention: no memory for a task"));
        }
        task(Scratch(memory.as_mut().map_or(&mut [], AlignedMemory::as_mut_slice)))
    })
}

impl<'a> Scratch<'a> {
    /// The next block, `len` words.
    pub(super) fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let (block, rest) = std::mem::take(&mut self.0).split_at_mut(room(len));
        self.0 = rest;
        bytemuck::cast_slice_mut(&mut block[..len])
    }
}
