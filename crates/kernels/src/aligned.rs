//! Zeroed memory aligned to a cache line, read and written as any plain number format.

use bytemuck::{Pod, Zeroable};

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes of size and of alignment: no padding, and every bit pattern is a value.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Memory of this process. Pages are touched only when they are first used.
pub struct AlignedMemory(Box<[Line]>);

impl AlignedMemory {
    /// At least `bytes` bytes of zeros, or `None` if the system has no more.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        bytemuck::allocation::try_zeroed_slice_box(bytes.div_ceil(64)).ok().map(Self)
    }

    /// The whole memory as elements.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    /// The whole memory as elements.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_at_least_as_long_as_asked() {
        for bytes in [0, 1, 63, 64, 65, 1000] {
            let memory = AlignedMemory::zeroed(bytes).expect("a thousand bytes");
            let slice: &[u8] = memory.as_slice();
            assert!(slice.len() >= bytes && slice.iter().all(|&b| b == 0));
            assert!(bytes == 0 || slice.as_ptr().addr().is_multiple_of(64));
        }
    }
}
