//! Ranks are threads of this process.
//!
//! Nothing is sent: a rank shows the others the tensors it gives, and each reads from them what it needs, once, into the
//! place where it belongs. An all_reduce alone needs a second meeting: each rank sums its share of everybody's tensors into
//! memory of its own, and when all shares are there each copies them over its tensor, which nobody reads any more.
//!
//! # Order of events of a collective
//! 1. `begin` shows what this rank gives (`exchange`).
//! 2. `output` waits for those whose tensors are needed, reads them, and says so (`operation`).
//! 3. `inputs_free` waits until those who read this rank's tensors have said so.
//!
//! # Invariants
//! - All waits are in `exchange`, look at one lock and end at a deadline. A thread spins only where `Limits::spin` allows.
//! - The first fault stands; whoever waits then or later is told of that one.
//! - No lock is held while elements are read or summed.

mod exchange;
mod operation;
mod run;

pub use run::{End, run};

use crate::{Comm, Link, Result, Transport};
use exchange::World;
use operation::LocalLink;
use std::sync::Arc;
use std::time::Duration;

/// How ranks wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so long a rank that has not answered is lost: `run.comm_timeout`.
    pub timeout: Duration,
    /// Look again and again for about 50 microseconds before sleeping: only where all threads of all ranks have cores.
    pub spin: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), spin: false }
    }
}

/// The groups of all ranks of a new world, one for each rank; each goes to the thread that is the rank.
pub fn world(size: usize, limits: Limits) -> Vec<Comm> {
    let world = Arc::new(World::new(size, limits));
    let comm = |rank| {
        let local = Local(Arc::new(RankEnd { world: Arc::clone(&world), rank }));
        Comm::world(Arc::new(local)).expect("nobody is lost yet")
    };
    (0..size).map(comm).collect()
}

/// A rank as the world knows it: when the last handle is dropped, the rank has ended.
pub(crate) struct RankEnd {
    world: Arc<World>,
    rank: usize,
}

impl Drop for RankEnd {
    fn drop(&mut self) {
        let how = if std::thread::panicking() { "has panicked" } else { "has ended" };
        self.world.leave(self.rank, how);
    }
}

struct Local(Arc<RankEnd>);

impl Transport for Local {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn size(&self) -> usize {
        self.0.world.size()
    }

    fn link(&self, group: &str, ranks: &[usize]) -> Result<Arc<dyn Link>> {
        Ok(Arc::new(LocalLink::new(Arc::clone(&self.0), group, ranks)))
    }

    fn abort(&self, why: &str) {
        self.0.world.leave(self.0.rank, &format!("has stopped: {why}"));
    }
}
