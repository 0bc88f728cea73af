//! Ranks as threads of one process, for tests.
//!
//! [`ranks`] runs one OS thread per rank over [`comm::local`], whose waits end after two seconds here. Unlike
//! [`comm::local::run`] it lends what the test owns, so it waits for every thread.
//!
//! # Invariant
//! The panic reported is the one that came first; the others' are its consequences.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use comm::{Comm, CommError, Limits, local};
use tensor::{DType, Isa, MemoryKind, Queue, cpu};

/// How ranks of tests wait.
pub const LIMITS: Limits = Limits { timeout: Duration::from_secs(2), spin: false };

/// One of the threads that [`ranks`] runs.
pub struct Rank {
    /// Counted from 0.
    pub index: usize,
    /// Ranks in all.
    pub count: usize,
    /// All of them.
    pub comm: Comm,
    /// For what is given and taken as host memory.
    queue: Queue,
}

impl Rank {
    /// Gives `mine` and takes what every rank gave, in the order of ranks; the lengths may differ.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn all_gather(&self, mine: Vec<f32>) -> Result<Vec<Vec<f32>>, CommError> {
        let counts = self.comm.exchange(&self.queue, &[mine.len() as u64])?;
        let counts: Vec<usize> = counts.into_iter().map(|count| count[0] as usize).collect();
        let x = self.queue.upload(MemoryKind::Workspace, [mine.len()], &mine)?;
        let out = self.queue.alloc(MemoryKind::Workspace, DType::F32, [counts.iter().sum()])?;
        self.comm.all_gather(&self.queue, &x, &counts, &out)?;
        let mut all = self.queue.read::<f32>(&out)?.into_iter();
        Ok(counts.into_iter().map(|count| all.by_ref().take(count).collect()).collect())
    }
}

/// Runs `work` on `count` ranks, each an OS thread, and returns their results in the order of ranks.
///
/// # Panics
/// If a rank panics: with its number and its message, after all ranks have ended.
#[track_caller]
pub fn ranks<T: Send>(count: usize, work: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    let first_panic: Mutex<Option<(usize, String)>> = Mutex::default();
    let run = |comm: Comm| {
        let rank = Rank { index: comm.rank(), count, comm, queue: cpu::queue(1, false, Isa::detect()) };
        let result = catch_unwind(AssertUnwindSafe(|| work(&rank)));
        if let Err(panic) = &result {
            let message = message(panic.as_ref());
            let mut first = first_panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| (rank.index, message.clone()));
            drop(first);
            rank.comm.abort(&message);
        }
        result.ok()
    };
    let run = &run;
    let results: Vec<Option<T>> = thread::scope(|scope| {
        let spawn = |comm: Comm| {
            let thread = thread::Builder::new().name(format!("rank {}", comm.rank()));
            thread.spawn_scoped(scope, move || run(comm)).expect("a thread for a rank")
        };
        let threads: Vec<_> = local::world(count, LIMITS).into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught in run")).collect()
    });
    if let Some((rank, message)) = first_panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        panic!("rank {rank} of {count}: {message}");
    }
    results.into_iter().flatten().collect()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_ranks() {
        assert_eq!(ranks(4, |rank| 10 * rank.index), [0, 10, 20, 30]);
    }

    #[test]
    fn every_rank_takes_what_every_rank_gave_a_thousand_times() {
        ranks(3, |rank| {
            for round in 0..1000 {
                let mine = vec![round as f32; rank.index];
                let all = rank.all_gather(mine).unwrap();
                assert_eq!(*all, [vec![], vec![round as f32], vec![round as f32; 2]]);
            }
        });
    }

    #[test]
    #[should_panic(expected = "rank 1 of 3: out of luck")]
    fn a_panic_names_its_rank_and_ends_those_that_wait_for_it() {
        ranks(3, |rank| {
            assert!(rank.index != 1, "out of luck");
            rank.all_gather(Vec::new()).expect("a partner");
        });
    }

    #[test]
    fn a_rank_that_returns_early_leaves_nobody_waiting() {
        let results = ranks(2, |rank| (rank.index == 1).then(|| rank.all_gather(Vec::new()).unwrap_err().to_string()));
        let want = "all_gather 0 of group world (ranks 0, 1): rank 0 has ended; it has begun no call";
        assert_eq!(results, [None, Some(want.to_owned())]);
    }
}
