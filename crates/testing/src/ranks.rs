//! Ranks as threads of one process, for tests.
//!
//! [`ranks`] runs one OS thread per rank; [`Rank::all_gather`] is the only way they meet.
//!
//! # Invariants
//! - Nobody waits for a rank that is gone: when one panics or returns, what the others still want of it is an error.
//! - The panic reported is the one that came first; the others' are its consequences.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// One of the threads that [`ranks`] runs.
pub struct Rank<'a> {
    /// Counted from 0.
    pub index: usize,
    /// Ranks in all.
    pub count: usize,
    shared: &'a Shared,
}

#[derive(Default)]
struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

/// One exchange, from the first rank that gives to the last one that takes.
#[derive(Default)]
struct Round {
    /// What each rank gave, in the order of ranks.
    given: Vec<Option<Vec<f32>>>,
    /// All of it, once it is complete, until everybody has taken it.
    all: Option<Arc<[Vec<f32>]>>,
    taken: usize,
    /// Why no further round can be complete.
    gone: Option<String>,
    /// The first panic: which rank, and its message.
    panic: Option<(usize, String)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`, or until that cannot happen any more.
    fn wait<'a>(
        &'a self,
        mut round: MutexGuard<'a, Round>,
        ready: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>, String> {
        while !ready(&round) {
            if let Some(gone) = &round.gone {
                return Err(gone.clone());
            }
            round = self.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(round)
    }

    /// A rank has returned, or panicked with this message.
    fn end(&self, rank: usize, panic: Option<String>) {
        let mut round = self.lock();
        let how = if panic.is_some() { "panicked" } else { "returned" };
        round.gone.get_or_insert_with(|| format!("rank {rank} has {how}"));
        if let Some(message) = panic {
            round.panic.get_or_insert((rank, message));
        }
        self.changed.notify_all();
    }
}

impl Rank<'_> {
    /// Gives `mine` and takes what every rank gave, in the order of ranks; the lengths may differ.
    ///
    /// # Errors
    /// If a rank is gone that has not given anything to this exchange.
    pub fn all_gather(&self, mine: Vec<f32>) -> Result<Arc<[Vec<f32>]>, String> {
        // The round before must be taken by all before the next one begins.
        let mut round = self.shared.wait(self.shared.lock(), |round| round.all.is_none())?;
        round.given.resize(self.count, None);
        round.given[self.index] = Some(mine);
        if round.given.iter().all(Option::is_some) {
            round.all = Some(std::mem::take(&mut round.given).into_iter().flatten().collect());
            self.shared.changed.notify_all();
        }
        let mut round = self.shared.wait(round, |round| round.all.is_some())?;
        let all = Arc::clone(round.all.as_ref().expect("waited for on the line above"));
        round.taken += 1;
        if round.taken == self.count {
            (round.all, round.taken) = (None, 0);
            self.shared.changed.notify_all();
        }
        Ok(all)
    }
}

/// Runs `work` on `count` ranks, each an OS thread, and returns their results in the order of ranks.
///
/// # Panics
/// If a rank panics: with its number and its message, after all ranks have ended.
#[track_caller]
pub fn ranks<T: Send>(count: usize, work: impl Fn(&Rank<'_>) -> T + Sync) -> Vec<T> {
    let shared = Shared::default();
    let run = |index: usize| {
        let rank = Rank { index, count, shared: &shared };
        let result = catch_unwind(AssertUnwindSafe(|| work(&rank)));
        shared.end(index, result.as_ref().err().map(|panic| message(panic.as_ref())));
        result.ok()
    };
    let results: Vec<Option<T>> = thread::scope(|scope| {
        let spawn =
            |index| thread::Builder::new().name(format!("rank {index}")).spawn_scoped(scope, move || run(index));
        let threads: Vec<_> = (0..count).map(|index| spawn(index).expect("a thread for a rank")).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught in run")).collect()
    });
    if let Some((rank, message)) = &shared.lock().panic {
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
        let results = ranks(2, |rank| (rank.index == 1).then(|| rank.all_gather(Vec::new()).unwrap_err()));
        assert_eq!(results, [None, Some("rank 0 has returned".to_owned())]);
    }
}
