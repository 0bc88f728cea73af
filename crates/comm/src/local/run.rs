//! Runs the ranks of this process, each on a thread of its own.

use super::{Limits, world};
use crate::Comm;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How a rank ended.
#[derive(Debug, PartialEq)]
pub enum End<T, E> {
    /// As it should.
    Done(T),
    /// With an error of its own.
    Failed(E),
    /// With a panic, whose message this is.
    Panicked(String),
    /// Not at all: it was still busy when the others had long given it up. Its thread lives on until the process ends.
    Stalled,
}

/// Time that the others have, beyond the timeout of their waits, to end after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `work` on `size` ranks and returns how each of them ended, in the order of ranks.
///
/// A rank that fails says why to the others, who then end in their next wait; one that never ends is left behind, so this
/// returns in any case.
pub fn run<T, E>(
    size: usize,
    limits: Limits,
    work: impl Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
) -> Vec<End<T, E>>
where
    T: Send + 'static,
    E: Send + ToString + 'static,
{
    let (work, (sender, receiver)) = (Arc::new(work), channel());
    for (rank, comm) in world(size, limits).into_iter().enumerate() {
        let (work, sender) = (Arc::clone(&work), sender.clone());
        let thread = thread::Builder::new().name(format!("rank {rank}"));
        let spawned = thread.spawn(move || {
            let end = end_of(&comm, &*work);
            // Nobody listens any more when this rank was given up.
            let _ = sender.send((rank, end));
        });
        spawned.expect("local::run: the system refused a thread");
    }
    drop(sender);
    collect(size, limits, &receiver)
}

/// Runs one rank to its end.
fn end_of<T, E: ToString>(comm: &Comm, work: impl Fn(Comm) -> Result<T, E>) -> End<T, E> {
    match catch_unwind(AssertUnwindSafe(|| work(comm.clone()))) {
        Ok(Ok(result)) => End::Done(result),
        Ok(Err(error)) => {
            comm.abort(&error.to_string());
            End::Failed(error)
        }
        Err(panic) => {
            let message = panic_message(&*panic);
            comm.abort(&format!("it panicked: {message}"));
            End::Panicked(message)
        }
    }
}

fn collect<T, E>(size: usize, limits: Limits, receiver: &Receiver<(usize, End<T, E>)>) -> Vec<End<T, E>> {
    let mut ends: Vec<Option<End<T, E>>> = (0..size).map(|_| None).collect();
    let mut give_up: Option<Instant> = None;
    while ends.iter().any(Option::is_none) {
        let received = match give_up {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let Ok((rank, end)) = received else { break };
        if !matches!(end, End::Done(_)) {
            give_up.get_or_insert(Instant::now() + limits.timeout + GRACE);
        }
        ends[rank] = Some(end);
    }
    ends.into_iter().map(|end| end.unwrap_or(End::Stalled)).collect()
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
