//! A run on several ranks that are threads of this process.
//!
//! Each rank is an OS thread with a queue, a model and a data loader of its own; the first one watches, writes the metrics and
//! makes the output folder, all write their parts of checkpoints. What is decided (stop, skip, save) follows from numbers that
//! every rank has.
//!
//! # Order of events
//! 1. The request is checked, as on one rank, before there are ranks: what is wrong is said once, and text is tokenised once.
//! 2. Every rank prepares. Whoever fails says why to the rest.
//! 3. All run the same steps. Evaluations and samples are made by every rank, and told by the first.
//!
//! # Invariant
//! The error that is reported is that of the rank that failed first, never that of a rank that merely lost another one; if
//! no rank has one, the lost rank is named with the call that it was missed in.

use crate::config::RunConfig;
use crate::error::{Result, TrainError};
use crate::event::{Observer, Silent};
use crate::run::{Outcome, Run, Stop};
use crate::system::num_cores;
use comm::local::{self, End};
use comm::{Comm, Limits};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tensor::{Isa, cpu};

/// Ranks at most: as many as `run.threads` may be.
const MAX_RANKS: u64 = 1024;

/// Why a run on several ranks did not end well.
#[derive(Debug)]
pub enum Ended {
    /// Before anything was written.
    Before(TrainError),
    /// While it ran.
    During(TrainError),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl Ended {
    fn error(&self) -> &TrainError {
        let (Self::Before(error) | Self::During(error)) = self;
        error
    }
}

/// Trains as `config` says, on [`RunConfig::num_ranks`] ranks, and gives back the observer, unless a rank that will not end
/// has it.
///
/// # Errors
/// What ended the rank that failed first.
pub fn run<O: Observer + Send + 'static>(
    config: RunConfig,
    resume: bool,
    mut observer: O,
    stop: &Stop,
) -> (Option<O>, Result<Outcome, Ended>) {
    if let Err(error) = check(config.clone(), resume, &mut observer) {
        return (Some(observer), Err(Ended::Before(error)));
    }
    let (size, limits) = (config.num_ranks() as usize, limits(&config));
    let watcher = Arc::new(Mutex::new(Some(observer)));
    let (theirs, stop) = (Arc::clone(&watcher), stop.clone());
    let ends = local::run(size, limits, move |comm| {
        let lock = || theirs.lock().unwrap_or_else(PoisonError::into_inner);
        if comm.index() > 0 {
            return run_rank(config.clone(), resume, &mut Silent, comm, &stop);
        }
        let mut observer = lock().take().expect("ranks::run: the first rank takes it once");
        let result = run_rank(config.clone(), resume, &mut observer, comm, &stop);
        *lock() = Some(observer);
        result
    });
    let observer = watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
    (observer, outcome(ends))
}

/// Checks everything that can be wrong with the request of such a run, and loads nothing.
///
/// # Errors
/// What is wrong, as one paragraph.
pub fn check(config: RunConfig, resume: bool, observer: &mut dyn Observer) -> Result<()> {
    let ranks = config.num_ranks();
    if ranks > MAX_RANKS {
        let message = format!("--ranks is {ranks}; ranks are threads of one process here, at most {MAX_RANKS} of them");
        return Err(TrainError::Request(message));
    }
    Run::open(config, resume, observer).map(drop)
}

/// How ranks wait for each other.
fn limits(config: &RunConfig) -> Limits {
    let (ranks, threads) = (config.num_ranks() as usize, config.run.threads);
    let threads = if threads == 0 { num_cores() } else { threads };
    let all_threads = ranks * (threads / ranks).max(1);
    Limits { timeout: Duration::from_secs_f64(config.run.comm_timeout), spin: all_threads <= num_cores() }
}

fn run_rank(
    config: RunConfig,
    resume: bool,
    observer: &mut dyn Observer,
    comm: Comm,
    stop: &Stop,
) -> Result<Outcome, Ended> {
    let prepare = || -> Result<Run> {
        let opened = Run::open(config, resume, &mut Silent)?;
        let run = opened.prepare(resume, observer, Some(comm.clone()))?;
        // What one rank is about to write must not be found by another that still looks.
        comm.barrier(&cpu::queue(1, false, Isa::PORTABLE))?;
        Ok(run)
    };
    let run = prepare().map_err(Ended::Before)?;
    run.execute(observer, stop).map_err(Ended::During)
}

/// What became of the run.
fn outcome(ends: Vec<End<Outcome, Ended>>) -> Result<Outcome, Ended> {
    let mut outcome = None;
    let mut consequence = None;
    let mut cause: Option<Ended> = None;
    for (rank, end) in ends.into_iter().enumerate() {
        match end {
            End::Done(done) => outcome = outcome.or(Some(done)),
            End::Failed(error) if error.error().is_of_another_rank() => consequence = consequence.or(Some(error)),
            End::Failed(error) => cause = cause.or(Some(error)),
            End::Panicked(message) => {
                let how = format!("panicked: {message}. This is a bug; the last checkpoint is as it was");
                cause = cause.or(Some(Ended::During(TrainError::Rank { rank, how })));
            }
            End::Stalled => {}
        }
    }
    match (cause.or(consequence), outcome) {
        (Some(error), _) => Err(error),
        (None, Some(outcome)) => Ok(outcome),
        (None, None) => unreachable!("ranks::run: ranks that all stalled would not have ended"),
    }
}
