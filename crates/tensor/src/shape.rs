//! Shapes: up to four axes, row-major.

use std::fmt;

/// The lengths of a tensor's axes, outermost first. Kept inline: shapes are made by the thousand every step.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// # Panics
    /// If there are no axes or more than four.
    pub fn new(dims: &[usize]) -> Self {
        assert!((1..=4).contains(&dims.len()), "Shape::new: {dims:?} must have one to four axes");
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() as u8 }
    }

    /// The lengths.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..usize::from(self.rank)]
    }

    /// The product of the lengths.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The length of the last axis.
    pub fn width(&self) -> usize {
        self.dims[usize::from(self.rank) - 1]
    }

    /// The product of all lengths but the last.
    pub fn rows(&self) -> usize {
        self.dims()[..usize::from(self.rank) - 1].iter().product()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}
