//! Tensors that are moved as one.

use std::ops::Range;
use std::sync::Arc;
use tensor::{DType, Tensor};

/// Contiguous tensors of one format, read in order as one row of elements. Cloning shares the memory.
///
/// The gradients of a block lie in buffers of their own; so a block is moved without being copied together first.
#[derive(Clone, Debug, Default)]
pub struct Flat {
    parts: Arc<[Tensor]>,
    /// Where each part begins, and the end.
    starts: Arc<[usize]>,
}

impl Flat {
    /// # Panics
    /// If formats differ or elements of a tensor lie apart.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let parts: Vec<Tensor> = (tensors.into_iter())
            .map(|tensor| {
                assert!(tensor.is_contiguous(), "Flat::new: elements of {} lie apart", tensor.shape());
                tensor.reshape([tensor.shape().elements()])
            })
            .collect();
        let mut starts = vec![0];
        for part in &parts {
            assert!(part.dtype() == parts[0].dtype(), "Flat::new: {} beside {}", part.dtype(), parts[0].dtype());
            starts.push(starts[starts.len() - 1] + part.shape().elements());
        }
        Self { parts: parts.into(), starts: starts.into() }
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Their format; none where there is no tensor.
    pub fn dtype(&self) -> Option<DType> {
        self.parts.first().map(Tensor::dtype)
    }

    /// The tensors.
    pub fn parts(&self) -> &[Tensor] {
        &self.parts
    }

    /// Elements from `start` on that lie next to each other in one tensor: a view of at most `most` of them.
    pub fn run(&self, start: usize, most: usize) -> Tensor {
        // Empty parts share their start with the next one: the last that begins here holds the element.
        let index = self.starts.partition_point(|&begin| begin <= start) - 1;
        let (begin, end) = (self.starts[index], self.starts[index + 1]);
        self.parts[index].rows(start - begin..(start + most).min(end) - begin)
    }

    /// A range of the elements.
    ///
    /// # Panics
    /// If it reaches beyond them.
    pub fn range(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.elements(), "Flat::range: {range:?} of {}", self.elements());
        let (mut at, mut parts) = (range.start, Vec::new());
        while at < range.end {
            let part = self.run(at, range.end - at);
            at += part.shape().elements();
            parts.push(part);
        }
        Self::new(parts)
    }
}

impl From<&Tensor> for Flat {
    fn from(tensor: &Tensor) -> Self {
        Self::new([tensor.clone()])
    }
}

impl From<Tensor> for Flat {
    fn from(tensor: Tensor) -> Self {
        Self::new([tensor])
    }
}

impl From<&Flat> for Flat {
    fn from(flat: &Flat) -> Self {
        flat.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{Isa, MemoryKind, cpu};

    #[test]
    fn a_range_crosses_tensors_and_passes_over_empty_ones() {
        let queue = cpu::queue(1, false, Isa::detect());
        let tensor = |values: &[f32]| queue.upload(MemoryKind::Workspace, [values.len()], values).unwrap();
        let flat = Flat::new([tensor(&[1.0, 2.0]), tensor(&[]), tensor(&[3.0]), tensor(&[4.0, 5.0])]);
        let range = flat.range(1..4);
        let values: Vec<Vec<f32>> = range.parts().iter().map(|part| queue.read(part).unwrap()).collect();
        assert_eq!((flat.elements(), values), (5, vec![vec![2.0], vec![3.0], vec![4.0]]));
        assert_eq!((flat.range(2..2).elements(), Flat::default().elements()), (0, 0));
    }
}
