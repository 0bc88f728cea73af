//! Zeroed memory aligned to a cache line, read and written as any plain number format.
//!
//! Large memory is mapped on its own and offered to the system as huge pages: a product walks down columns whose elements
//! each lie in a page of their own, and with pages of 4 KiB the processor would look most of them up anew. Streaming gains
//! as well: one core of a Zen 4 reads 33 GB/s instead of 22.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// A huge page of x86-64 and of most others. Memory smaller than this is the allocator's.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes of size and of alignment: no padding, and every bit pattern is a value.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Memory of this process. Pages are touched only when they are first used.
pub struct AlignedMemory(Memory);

enum Memory {
    Heap(Box<[Line]>),
    /// `len` bytes from `start` on, which lies on a huge page; the map is longer.
    Mapped {
        map: MmapMut,
        start: usize,
        len: usize,
    },
}

impl AlignedMemory {
    /// At least `bytes` bytes of zeros, or `None` if the system has no more.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let len = bytes.checked_next_multiple_of(size_of::<Line>())?;
        if len < HUGE_PAGE_BYTES {
            return bytemuck::allocation::try_zeroed_slice_box(len / size_of::<Line>())
                .ok()
                .map(Memory::Heap)
                .map(Self);
        }
        // Address space costs nothing: only what is touched becomes memory.
        let map = MmapMut::map_anon(len.checked_add(HUGE_PAGE_BYTES)?).ok()?;
        let start = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // A system without huge pages says no, and small ones do.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
        Some(Self(Memory::Mapped { map, start, len }))
    }

    /// The whole memory as elements.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        match &self.0 {
            Memory::Heap(lines) => bytemuck::cast_slice(lines),
            Memory::Mapped { map, start, len } => bytemuck::cast_slice(&map[*start..*start + *len]),
        }
    }

    /// The whole memory as elements.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Mapped { map, start, len } => bytemuck::cast_slice_mut(&mut map[*start..*start + *len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_at_least_as_long_as_asked() {
        for bytes in [0, 1, 63, 64, 65, 1000, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 77] {
            let mut memory = AlignedMemory::zeroed(bytes).expect("a few megabytes");
            let slice: &[u8] = memory.as_slice();
            assert!(slice.len() >= bytes && slice.iter().all(|&b| b == 0));
            assert!(bytes == 0 || slice.as_ptr().addr().is_multiple_of(64));
            assert!(bytes < HUGE_PAGE_BYTES || slice.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
            memory.as_mut_slice::<u8>().fill(7);
            assert!(memory.as_slice::<u8>().iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn more_memory_than_there_can_be_is_none() {
        assert!(AlignedMemory::zeroed(usize::MAX).is_none());
        assert!(AlignedMemory::zeroed(usize::MAX - 100).is_none());
        assert!(AlignedMemory::zeroed(1 << 60).is_none());
    }
}
