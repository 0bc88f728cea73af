//! Device memory behind a shared handle.

use crate::memory::{Allocator, MemoryKind};
use kernels::aligned::AlignedMemory;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, RwLock};

/// The memory of a buffer, as the device that owns it knows it.
pub enum Storage {
    /// Memory of this process. The lock turns a kernel's arguments that overlap by mistake into a named panic.
    Host(RwLock<AlignedMemory>),
    /// Whatever a device needs to find its memory.
    Device(Box<dyn Any + Send + Sync>),
}

impl Storage {
    /// Zeroed memory of this process, or `None` if the system has no more.
    pub fn host(bytes: usize) -> Option<Self> {
        AlignedMemory::zeroed(bytes).map(|memory| Self::Host(RwLock::new(memory)))
    }
}

/// A shared handle on device memory. When the last one is dropped, the memory goes back to its queue.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    /// `None` only while the buffer is being dropped.
    storage: Option<Storage>,
    capacity: usize,
    kind: MemoryKind,
    allocator: Arc<Allocator>,
}

impl Buffer {
    pub(crate) fn new(storage: Storage, capacity: usize, kind: MemoryKind, allocator: Arc<Allocator>) -> Self {
        Self(Arc::new(Inner { storage: Some(storage), capacity, kind, allocator }))
    }

    /// The memory itself, for the device that owns it.
    pub fn storage(&self) -> &Storage {
        self.0.storage.as_ref().expect("Buffer::storage: taken only by drop")
    }

    /// Bytes that were set aside.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Whether this is the only handle, so that writing in place is seen by nobody else.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Whether two handles are on the same memory.
    pub fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(storage) = self.storage.take() {
            self.allocator.give_back(self.kind, self.capacity, storage);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes of {})", self.capacity(), self.0.kind.name())
    }
}
