//! A device as one rank sees it.

use crate::memory::{Allocator, Ledger, MemoryKind, capacity};
use crate::{Backend, Buffer, DType, KernelError, Scalar, Shape, Tensor};
use std::any::Any;
use std::sync::Arc;

/// One device's stream of work, memory and kernels.
///
/// Kernel calls are enqueued in order; [`Queue::read`] waits for what it reads.
pub struct Queue {
    backend: &'static Backend,
    ordinal: usize,
    allocator: Arc<Allocator>,
    /// What the backend keeps: a thread pool, a stream, recorded calls.
    state: Box<dyn Any + Send + Sync>,
}

impl Queue {
    /// A queue on device `ordinal` of a backend, with the backend's own state.
    pub fn new(backend: &'static Backend, ordinal: usize, state: Box<dyn Any + Send + Sync>) -> Self {
        Self { backend, ordinal, allocator: Arc::default(), state }
    }

    /// The kernels.
    pub fn backend(&self) -> &'static Backend {
        self.backend
    }

    /// Which device of its kind.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The backend's own state.
    ///
    /// # Panics
    /// If it is not a `T`: a kernel was called with another backend's queue.
    pub fn state<T: 'static>(&self) -> &T {
        self.state.downcast_ref().unwrap_or_else(|| panic!("Queue::state: not a queue of {}", self.backend.name))
    }

    /// Memory in use, by kind.
    pub fn ledger(&self) -> Ledger {
        self.allocator.ledger()
    }

    /// Gives memory that is kept for reuse back to the system.
    pub fn trim(&self) {
        self.allocator.trim();
    }

    /// A tensor of unspecified content.
    pub fn alloc(&self, kind: MemoryKind, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor, KernelError> {
        let shape = shape.into();
        let capacity = capacity(kind, shape.elements() * dtype.size());
        let storage = match self.allocator.take(kind, capacity) {
            Some(storage) => storage,
            None => (self.backend.allocate)(self, capacity)?,
        };
        let buffer = Buffer::new(storage, capacity, kind, Arc::clone(&self.allocator));
        Ok(Tensor::new(buffer, dtype, shape))
    }

    /// A tensor of zeros.
    pub fn zeros(&self, kind: MemoryKind, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor, KernelError> {
        let out = self.alloc(kind, dtype, shape)?;
        (self.backend.fill)(self, crate::FillArgs { out: &out, value: 0.0 })?;
        Ok(out)
    }

    /// A tensor holding `data`.
    pub fn upload<T: Scalar>(
        &self,
        kind: MemoryKind,
        shape: impl Into<Shape>,
        data: &[T],
    ) -> Result<Tensor, KernelError> {
        let out = self.alloc(kind, T::DTYPE, shape)?;
        self.write(&out, data)?;
        Ok(out)
    }

    /// Copies `data` into a contiguous tensor.
    ///
    /// # Panics
    /// If format or length differ.
    pub fn write<T: Scalar>(&self, out: &Tensor, data: &[T]) -> Result<(), KernelError> {
        assert!(
            out.dtype() == T::DTYPE && out.shape().elements() == data.len() && out.is_contiguous(),
            "Queue::write: {} elements of {} into {} {}",
            data.len(),
            T::DTYPE,
            out.dtype(),
            out.shape()
        );
        (self.backend.write)(self, out, bytemuck::cast_slice(data))
    }

    /// Waits for a contiguous tensor and copies it to the host.
    ///
    /// # Panics
    /// If the format differs.
    pub fn read<T: Scalar>(&self, x: &Tensor) -> Result<Vec<T>, KernelError> {
        assert!(x.dtype() == T::DTYPE && x.is_contiguous(), "Queue::read: {} read as {}", x.dtype(), T::DTYPE);
        let mut data = vec![T::zeroed(); x.shape().elements()];
        (self.backend.read)(self, x, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    /// Like [`Queue::read`], widened to f32: any float format.
    pub fn read_f32(&self, x: &Tensor) -> Result<Vec<f32>, KernelError> {
        if x.dtype() == DType::F32 {
            return self.read(x);
        }
        let wide = self.alloc(MemoryKind::Workspace, DType::F32, x.shape())?;
        (self.backend.copy)(self, crate::CopyArgs { x, out: &wide })?;
        self.read(&wide)
    }
}
