//! The mesh: ranks on named axes.
//!
//! Ranks are numbered row-major over `[pipe, data, expert, sequence, tensor]`, the last axis fastest, so that those that talk
//! most are neighbours. These are DeepSpeed's orders: `[pipe, data, model]` of `PipeModelDataParallelTopology`, experts over
//! consecutive data-parallel ranks (its "E+D"), sequence within data.
//!
//! `expert` divides the data-parallel ranks: what is no expert's has `data x expert` replicas, an expert `data`.

use std::fmt;

/// A direction in which ranks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Stages of layers.
    Pipe,
    /// Replicas of everything.
    Data,
    /// Shares of the experts.
    Expert,
    /// Parts of one sequence.
    Sequence,
    /// Shares of each matrix.
    Tensor,
}

impl Axis {
    /// Slowest first.
    pub const ALL: [Axis; 5] = [Self::Pipe, Self::Data, Self::Expert, Self::Sequence, Self::Tensor];

    /// The name in messages and in `plan`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Data => "data",
            Self::Expert => "expert",
            Self::Sequence => "sequence",
            Self::Tensor => "tensor",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Ranks along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    sizes: [usize; 5],
}

impl Mesh {
    /// One rank.
    pub const ONE: Mesh = Mesh { sizes: [1; 5] };

    /// The same with `size` ranks along `axis`.
    ///
    /// # Panics
    /// If there are none: plans check that before.
    pub fn with(mut self, axis: Axis, size: usize) -> Self {
        assert!(size > 0, "Mesh::with: no ranks along {axis}");
        self.sizes[axis as usize] = size;
        self
    }

    /// Ranks along an axis.
    pub fn along(&self, axis: Axis) -> usize {
        self.sizes[axis as usize]
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Where a rank stands, by axis in the order of [`Axis::ALL`].
    pub fn place(&self, mut rank: usize) -> [usize; 5] {
        assert!(rank < self.size(), "Mesh::place: rank {rank} of {}", self.size());
        let mut place = [0; 5];
        for axis in (0..5).rev() {
            place[axis] = rank % self.sizes[axis];
            rank /= self.sizes[axis];
        }
        place
    }

    /// The rank at a place.
    pub fn rank(&self, place: [usize; 5]) -> usize {
        place.iter().zip(self.sizes).fold(0, |rank, (&at, size)| {
            assert!(at < size, "Mesh::rank: {place:?} in {:?}", self.sizes);
            rank * size + at
        })
    }

    /// The ranks that differ from `rank` along `axes` alone, in order, itself among them.
    pub fn group(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let own = self.place(rank);
        let stays = |other: &usize| {
            let place = self.place(*other);
            Axis::ALL.iter().all(|axis| axes.contains(axis) || place[*axis as usize] == own[*axis as usize])
        };
        (0..self.size()).filter(stays).collect()
    }

    /// A name for the group along `axes`: `data`, `data x expert`.
    pub fn group_name(axes: &[Axis]) -> String {
        axes.iter().map(|axis| axis.name()).collect::<Vec<_>>().join(" x ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Axis::{Data, Expert, Pipe, Sequence, Tensor};

    #[test]
    fn every_place_has_one_rank() {
        let mesh = Mesh::ONE.with(Pipe, 2).with(Data, 3).with(Expert, 2).with(Sequence, 2).with(Tensor, 4);
        assert_eq!(mesh.size(), 96);
        for rank in 0..96 {
            assert_eq!(mesh.rank(mesh.place(rank)), rank);
        }
        assert_eq!(mesh.place(95), [1, 2, 1, 1, 3]);
    }

    #[test]
    fn pipe_data_and_model_ranks_are_numbered_as_in_deepspeed() {
        // PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=2)
        let mesh = Mesh::ONE.with(Pipe, 2).with(Data, 2).with(Tensor, 2);
        assert_eq!(mesh.group(0, &[Tensor]), [0, 1]);
        assert_eq!(mesh.group(0, &[Data]), [0, 2]);
        assert_eq!(mesh.group(1, &[Data]), [1, 3]);
        assert_eq!(mesh.group(3, &[Pipe]), [3, 7]);
    }

    #[test]
    fn expert_groups_are_those_of_deepspeed_on_16_ranks() {
        // tensor 2, expert parallel 4: [0, 2, 4, 6], ... and expert-data [0, 8], [2, 10], ...
        let mesh = Mesh::ONE.with(Data, 2).with(Expert, 4).with(Tensor, 2);
        let groups: Vec<Vec<usize>> = [0, 8, 1, 9].iter().map(|&rank| mesh.group(rank, &[Expert])).collect();
        assert_eq!(groups, [[0, 2, 4, 6], [8, 10, 12, 14], [1, 3, 5, 7], [9, 11, 13, 15]]);
        assert_eq!(mesh.group(2, &[Data]), [2, 10]);
        assert_eq!(mesh.group(0, &[Data, Expert]), [0, 2, 4, 6, 8, 10, 12, 14]);
        assert_eq!(Mesh::group_name(&[Data, Expert]), "data x expert");
    }
}
