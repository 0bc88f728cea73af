//! A collective as data, and the contract of those who carry it.
//!
//! | kind | each rank gives `x` | each rank gets `out` |
//! | --- | --- | --- |
//! | all_reduce | `[n]` | `x` itself: the sum |
//! | reduce_scatter | `[sum of counts]` | `[counts[rank]]`: its share of the sum |
//! | all_gather | `[counts[rank]]` | `[sum of counts]`: all shares in the order of ranks |
//! | broadcast | root: `[n]` | others: `[n]` |
//! | reduce | `[n]` | root: `[n]`, the sum |
//! | gather | `[counts[rank]]` | root: `[sum of counts]` |
//! | scatter | root: `[sum of counts]` | `[counts[rank]]` |
//! | all_to_all | `[sum of counts]`, `counts[i]` elements for rank i | `[sum of out_counts]`, `out_counts[i]` from rank i |
//! | send, recv | sender: `[n]` | receiver: `[n]` |
//! | barrier | nothing | nothing |
//!
//! Ranks are counted within the group here.

use crate::{CallName, Flat, Result};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tensor::{DType, Queue};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the table at the head of the module")]
pub enum Kind {
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast,
    Reduce,
    Gather,
    Scatter,
    AllToAll,
    Send,
    Recv,
    Barrier,
}

impl Kind {
    /// The name in messages, metrics and `plan`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::AllToAll => "all_to_all",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Barrier => "barrier",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One rank's part in a collective.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it does.
    pub kind: Kind,
    /// What this rank gives; empty where it gives nothing.
    pub x: Flat,
    /// What it gets; empty where it gets nothing.
    pub out: Flat,
    /// Elements by rank, where shares may differ; else empty.
    pub counts: Vec<usize>,
    /// Elements from each rank, of an all_to_all; else empty.
    pub out_counts: Vec<usize>,
    /// The root; of a message the other end; else 0.
    pub peer: usize,
}

impl Call {
    /// The format of what is moved; none where nothing is.
    pub fn dtype(&self) -> Option<DType> {
        self.x.dtype().or(self.out.dtype())
    }

    /// The elements of rank `index` among all shares.
    pub(crate) fn share(counts: &[usize], index: usize) -> Range<usize> {
        let start = counts[..index].iter().sum();
        start..start + counts[index]
    }

    /// Elements that must cross between this rank and others if none crosses twice for nothing: all but its own share where
    /// shares are summed or gathered, both for an all_reduce. Over all ranks a reduce_scatter or an all_gather of n elements
    /// adds up to (N - 1) n.
    pub fn volume(&self, index: usize, size: usize) -> usize {
        let others = |counts: &[usize]| counts.iter().sum::<usize>() - counts.get(index).copied().unwrap_or(0);
        match self.kind {
            Kind::Barrier => 0,
            Kind::Send | Kind::Recv => self.x.elements() + self.out.elements(),
            _ if size == 1 => 0,
            Kind::AllReduce => 2 * others(&self.all_reduce_shares(size)),
            Kind::ReduceScatter | Kind::AllGather | Kind::AllToAll => others(&self.counts),
            Kind::Broadcast | Kind::Reduce => self.x.elements().max(self.out.elements()),
            Kind::Gather | Kind::Scatter if index == self.peer => others(&self.counts),
            Kind::Gather | Kind::Scatter => self.counts[index],
        }
    }

    /// What each rank sums of an all_reduce.
    pub(crate) fn all_reduce_shares(&self, size: usize) -> Vec<usize> {
        /// Whole cache lines of any format.
        const UNIT: usize = 64;
        crate::even_shares(self.x.elements(), UNIT, size)
    }

    /// Holds the call against the table at the head of the module.
    ///
    /// # Panics
    /// If it does not fit: a broken promise of the caller.
    pub(crate) fn check(&self, index: usize, size: usize) {
        let Self { kind, x, out, counts, out_counts, peer } = self;
        let (given, taken, is_root) = (x.elements(), out.elements(), index == *peer);
        let (all, own) = (counts.iter().sum::<usize>(), counts.get(index).copied().unwrap_or(0));
        let by_rank = counts.len() == size;
        let fits = match kind {
            Kind::AllReduce => taken == 0,
            Kind::ReduceScatter => by_rank && given == all && taken == own,
            Kind::AllGather => by_rank && given == own && taken == all,
            Kind::Broadcast => {
                if is_root {
                    taken == 0
                } else {
                    given == 0
                }
            }
            Kind::Reduce => taken == if is_root { given } else { 0 },
            Kind::Gather => by_rank && given == own && taken == if is_root { all } else { 0 },
            Kind::Scatter => by_rank && taken == own && given == if is_root { all } else { 0 },
            Kind::AllToAll => {
                by_rank && out_counts.len() == size && given == all && taken == out_counts.iter().sum::<usize>()
            }
            Kind::Send => taken == 0 && !is_root,
            Kind::Recv => given == 0 && !is_root,
            Kind::Barrier => given + taken == 0,
        };
        assert!(
            fits && *peer < size,
            "Comm::{kind}: {given} elements in, {taken} out, counts {counts:?} and {out_counts:?}, peer {peer}, on rank \
             {index} of {size}"
        );
        if let (Some(x), Some(out)) = (x.dtype(), out.dtype()) {
            assert!(x == out, "Comm::{kind}: {x} in, {out} out");
        }
    }
}

/// What carries collectives between the ranks of a run.
pub trait Transport: Send + Sync {
    /// This rank, counted over the whole run.
    fn rank(&self) -> usize;

    /// Ranks of the whole run.
    fn size(&self) -> usize;

    /// This rank's end of a group. All its ranks must ask for it, in the same order where they ask for several. `ranks`:
    /// counted over the whole run, in the order of the group, this one among them.
    ///
    /// # Errors
    /// A rank is lost.
    fn link(&self, group: &str, ranks: &[usize]) -> Result<Arc<dyn Link>>;

    /// Tells the others that this rank ends here and why, so that none waits for it.
    fn abort(&self, why: &str);
}

/// One rank's end of one group.
pub trait Link: Send + Sync {
    /// Begins a call: other ranks may see what this one gives. Does not wait.
    ///
    /// # Errors
    /// A rank of the group has begun another call in this place.
    fn begin(&self, call: Call) -> Result<Box<dyn Operation>>;
}

/// A call under way. Dropping it before [`Operation::output`] returned leaves the others without this rank.
pub trait Operation: Send {
    /// How messages name it.
    fn name(&self) -> CallName;

    /// Waits until what this rank gets is there.
    ///
    /// # Errors
    /// A rank is lost, or made another call.
    fn output(&mut self, queue: &Queue) -> Result<()>;

    /// Waits, after [`Operation::output`], until nobody reads what this rank gave.
    ///
    /// # Errors
    /// As [`Operation::output`].
    fn inputs_free(&mut self) -> Result<()>;
}
