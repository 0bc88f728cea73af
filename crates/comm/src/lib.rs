//! Collectives: how ranks move tensors among themselves, and what they are told when one of them is gone.
//!
//! - [`Comm`]: one rank's place in one group; its methods are the collectives.
//! - [`Call`]: a collective as data; [`Transport`] and [`Link`]: who carries it. A transport knows the calls, not the methods.
//! - [`Flat`]: several tensors moved as one, without being copied together.
//! - [`Mesh`]: ranks on named axes, and the groups along them.
//! - [`local`]: ranks are threads of this process; [`dry`]: nobody is there. MPI and NCCL stand behind the same traits.
//! - [`Traffic`]: calls, elements and bytes, by kind of call.
//!
//! # Invariants
//! - Every sum follows a binary tree over the numbers of the ranks in their group ([`tensor::cpu::tree_sum`]), in f32 for
//!   floats, with one rounding at the end: the same bits whatever arrives first and whoever carries it.
//! - Nothing is padded: shares may be uneven, and empty.
//! - No wait lasts longer than the transport's timeout. Whoever waits in vain names the rank that did not answer and the
//!   call, its number and its group; from then on the others are told the same.
//! - All ranks of a group make the same calls in the same order. A call that differs is an error on every rank that names
//!   both.
#![forbid(unsafe_code)]

mod collective;
mod communicator;
pub mod dry;
mod error;
mod flat;
pub mod local;
mod mesh;
mod traffic;

pub use collective::{Call, Kind, Link, Operation, Transport};
pub use communicator::{Comm, Pending};
pub use error::{CallName, CommError};
pub use flat::Flat;
pub use local::Limits;
pub use mesh::{Axis, Mesh};
pub use traffic::{Traffic, TrafficByKind};

/// Result of a collective.
pub type Result<T> = std::result::Result<T, CommError>;

/// The lengths of `count` nearly equal shares of `elements`, cut at multiples of `unit`.
///
/// # Panics
/// If `count` or `unit` is 0.
pub fn even_shares(elements: usize, unit: usize, count: usize) -> Vec<usize> {
    assert!(count > 0 && unit > 0, "even_shares: {count} shares in units of {unit}");
    let units = elements.div_ceil(unit);
    let end = |share: usize| (share * units).div_ceil(count).min(units) * unit;
    (0..count).map(|share| end(share + 1).min(elements) - end(share).min(elements)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_cut_at_units_and_hold_everything_once() {
        assert_eq!(even_shares(10, 1, 4), [3, 2, 3, 2]);
        assert_eq!(even_shares(9000, 4096, 2), [8192, 808]);
        assert_eq!(even_shares(100, 4096, 3), [100, 0, 0]);
        assert_eq!(even_shares(0, 4096, 2), [0, 0]);
    }
}
