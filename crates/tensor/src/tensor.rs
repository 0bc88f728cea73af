//! A tensor: a handle on device memory, with a dtype and a shape.

use crate::{Buffer, DType, Shape};
use std::ops::Range;

/// Elements of one format in device memory, row-major. Cloning shares the memory.
///
/// Only rows may lie apart ([`Tensor::columns`]); elements of a row are always next to each other.
#[derive(Clone, Debug)]
pub struct Tensor {
    buffer: Buffer,
    dtype: DType,
    /// Elements before the first one.
    offset: usize,
    shape: Shape,
    /// Elements from one row to the next.
    row_stride: usize,
}

impl Tensor {
    pub(crate) fn new(buffer: Buffer, dtype: DType, shape: Shape) -> Self {
        Self { buffer, dtype, offset: 0, shape, row_stride: shape.width() }
    }

    /// The memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The format of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Elements of the buffer before the first one.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Elements from one row to the next; the width unless this is a range of columns.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Whether the elements lie next to each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.shape.width() || self.shape.rows() <= 1
    }

    /// Elements of the buffer from the first to the last, gaps included.
    pub fn span(&self) -> usize {
        match (self.shape.rows(), self.shape.width()) {
            (0, _) | (_, 0) => 0,
            (rows, width) => (rows - 1) * self.row_stride + width,
        }
    }

    /// Whether nobody else holds this memory: an op may then write its result in place.
    pub fn is_unique(&self) -> bool {
        self.buffer.is_unique()
    }

    /// The same elements in another buffer: for a device whose memory is in turn held by another device.
    pub fn in_buffer(&self, buffer: &Buffer) -> Self {
        let end = (self.offset + self.span()) * self.dtype.size();
        assert!(end <= buffer.capacity(), "Tensor::in_buffer: {end} bytes in {buffer:?}");
        Self { buffer: buffer.clone(), ..self.clone() }
    }

    /// The same elements under another shape of as many elements.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert!(
            self.is_contiguous() && shape.elements() == self.shape.elements(),
            "Tensor::reshape: {} to {shape}",
            self.shape
        );
        Self { shape, row_stride: shape.width(), ..self.clone() }
    }

    /// Columns `range` of a matrix, without a copy.
    pub fn columns(&self, range: Range<usize>) -> Self {
        assert!(
            self.shape.dims().len() == 2 && range.start <= range.end && range.end <= self.shape.width(),
            "Tensor::columns: {range:?} of {}",
            self.shape
        );
        let shape = Shape::from([self.shape.rows(), range.len()]);
        Self { shape, offset: self.offset + range.start, ..self.clone() }
    }

    /// Rows `range` along the first axis, without a copy.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let dims = self.shape.dims();
        assert!(range.start <= range.end && range.end <= dims[0], "Tensor::rows: {range:?} of {}", self.shape);
        let mut new = dims.to_vec();
        new[0] = range.len();
        // A vector is one row: its elements, not its rows, lie `1` apart.
        let stride = if dims.len() == 1 { 1 } else { self.row_stride * (self.shape.rows() / dims[0].max(1)) };
        let row_stride = if dims.len() == 1 { range.len() } else { self.row_stride };
        Self { shape: Shape::new(&new), offset: self.offset + range.start * stride, row_stride, ..self.clone() }
    }
}
