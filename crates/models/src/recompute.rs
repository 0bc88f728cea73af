//! Recompute: which parts of a forward pass are kept for backward and which are run again in it.
//!
//! The *layers* are the blocks between the first and the last. What is run again gives the same bits: kernels are
//! deterministic, and dropout draws from its key.
//!
//! | | kept | run again |
//! | --- | --- | --- |
//! | [`Recompute::Nothing`] | what every op saves | nothing |
//! | [`Recompute::Segments`] | the input of every n-th layer | every layer, n at a time: while they run backward, what their ops save is there as well |
//! | [`Recompute::Parts`] | as segments, so long that there are at most n | as segments |
//! | [`Recompute::Every`] | the input of every n-th layer, what the ops of the others save | every n-th layer |
//! | [`Recompute::Ops`] | what ops save, but for outputs of the chosen ops | the chosen ops |
//!
//! A layer's ops save about 14 times what its input takes, so a segment of one layer takes the least memory up to about 30
//! layers, and one of two beyond them.
//!
//! Under segments and parts the first block is run again as well. The last block, the head, is never run again: it goes
//! backward right after its forward.
//!
//! Source: Chen et al. 2016, arXiv:1604.06174, section 4 (segments); Korthikanti et al. 2022, arXiv:2205.05198, section 5
//! (ops).

use ops::RecomputedOp;

/// See the head of this module. Every number is at least 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Everything is kept.
    #[default]
    Nothing,
    /// So many layers at a time; 1: each by itself.
    Segments(usize),
    /// So many segments, or fewer where that does not divide the layers.
    Parts(usize),
    /// One layer in so many.
    Every(usize),
    /// In every block, some ops.
    Ops(Vec<RecomputedOp>),
}

/// `true`: every layer by itself.
impl From<bool> for Recompute {
    fn from(on: bool) -> Self {
        if on { Self::Segments(1) } else { Self::Nothing }
    }
}

impl Recompute {
    /// The segment, counted from the first block on, in which a block is run again; none: it is not. Blocks of one segment
    /// lie next to each other.
    pub(crate) fn segment_of(&self, block: usize, num_blocks: usize) -> Option<usize> {
        let num_layers = num_blocks.saturating_sub(2);
        let length = match *self {
            _ if block + 1 >= num_blocks => return None,
            Self::Nothing | Self::Ops(_) => return None,
            Self::Every(step) => return Some(block).filter(|layer| *layer > 0 && layer % step == 0),
            Self::Segments(length) => length,
            Self::Parts(parts) => num_layers.div_ceil(parts).max(1),
        };
        Some(block.div_ceil(length))
    }

    /// The ops whose outputs are not kept.
    pub(crate) fn ops(&self) -> &[RecomputedOp] {
        match self {
            Self::Ops(ops) => ops,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(recompute: Recompute, num_blocks: usize) -> Vec<Option<usize>> {
        (0..num_blocks).map(|block| recompute.segment_of(block, num_blocks)).collect()
    }

    #[test]
    fn layers_are_cut_into_segments_and_the_ends_stand_alone() {
        let (a, b, c) = (Some(1), Some(2), Some(3));
        assert_eq!(segments(Recompute::Segments(2), 7), [Some(0), a, a, b, b, c, None]);
        assert_eq!(segments(Recompute::Segments(9), 4), [Some(0), a, a, None]);
        assert_eq!(segments(Recompute::Parts(2), 7), [Some(0), a, a, a, b, b, None]);
        // Four segments of two are three.
        assert_eq!(segments(Recompute::Parts(4), 7), [Some(0), a, a, b, b, c, None]);
        assert_eq!(segments(Recompute::Parts(9), 4), [Some(0), a, b, None]);
        assert_eq!(segments(Recompute::Parts(3), 2), [Some(0), None]);
        assert_eq!(segments(true.into(), 4), [Some(0), a, b, None]);
    }

    #[test]
    fn one_layer_in_so_many_stands_alone_and_ops_are_in_no_segment() {
        assert_eq!(segments(Recompute::Every(2), 7), [None, None, Some(2), None, Some(4), None, None]);
        assert_eq!(segments(Recompute::Every(1), 4), [None, Some(1), Some(2), None]);
        assert_eq!(segments(Recompute::Ops(vec![RecomputedOp::Norm]), 3), [None; 3]);
        assert_eq!(segments(false.into(), 3), [None; 3]);
    }
}
