//! Where the time of a step goes: data, forward, backward, update; and, for the profiler, which op takes it.
//!
//! A [`Clock`] stands between a pass and its residency: what happens between gather and release of a block is its forward,
//! or its backward if the gradients of the block were reduced meanwhile. Recompute is thus backward. The head's gradient
//! is made in its forward, where the logits are, and counts there. Of several layers that run again at a time only the last
//! counts as backward.
//!
//! Times are those of calls: a device that defers work shows it under whatever waits for it. What is left of a step is
//! bookkeeping between the parts.

use models::{Model, Residency};
use ops::{KeptTokens, ParamId, Probe, RanForward};
use serde::Serialize;
use serde_json::{Map, Value};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tensor::{MemoryKind, Queue};

/// Seconds of one step, micro-batches added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Breakdown {
    /// Making the batch.
    pub data: f64,
    /// Blocks forward; the head's gradient too.
    pub forward: f64,
    /// Blocks backward, recompute included.
    pub backward: f64,
    /// Norm, clipping and update.
    pub step: f64,
}

/// The most that was ever in use of each kind of memory, in bytes.
pub(crate) fn memory_bytes(queue: &Queue) -> Map<String, Value> {
    let peak = queue.ledger().peak;
    MemoryKind::ALL.iter().map(|kind| (kind.name().to_owned(), peak[*kind as usize].into())).collect()
}

/// One op of a profiled step, micro-batches added up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OpTimes {
    /// Number of its block in the model.
    pub(crate) block: usize,
    pub(crate) op: &'static str,
    /// The weights it reads, in the order of reading.
    pub(crate) weights: Vec<ParamId>,
    /// Forward.
    pub(crate) flops: u64,
    /// Whether its cost is counted at all: crossings of ranks are free on one.
    pub(crate) is_free: bool,
    pub(crate) forward: f64,
    pub(crate) backward: f64,
}

/// Measures the steps of an engine.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// The step whose ops are watched.
    profile_step: Option<u64>,
    times: Cell<Breakdown>,
    block: Cell<BlockRun>,
    ops: RefCell<Ops>,
}

/// The block between gather and release.
#[derive(Clone, Copy, Debug, Default)]
struct BlockRun {
    start: Option<Instant>,
    is_backward: bool,
}

/// The ops of a profiled step.
#[derive(Debug, Default)]
struct Ops {
    /// In the order they first ran.
    times: Vec<OpTimes>,
    /// Those of the block that runs: number, forward time, FLOPs.
    running: Vec<(usize, Duration, u64)>,
}

impl Clock {
    /// `profile_step`: the step whose ops are watched, from 1.
    pub(crate) fn new(profile_step: Option<u64>) -> Self {
        Self { profile_step, ..Self::default() }
    }

    /// What hears of the ops of this step, if they are watched.
    pub(crate) fn probe(&self, step: u64) -> Option<&dyn Probe> {
        (self.profile_step == Some(step)).then_some(self as &dyn Probe)
    }

    /// The residency of a pass, timed.
    pub(crate) fn over<'a>(&'a self, inner: &'a dyn Residency) -> Timed<'a> {
        Timed { clock: self, inner }
    }

    /// Adds what has passed since `start` to the time of the update.
    pub(crate) fn updated(&self, start: Instant) {
        let step = self.times.get().step + start.elapsed().as_secs_f64();
        self.times.set(Breakdown { step, ..self.times.get() });
    }

    /// The times since the last call of this; those of data are the caller's.
    pub(crate) fn take(&self) -> Breakdown {
        self.times.take()
    }

    /// The ops of the profiled step, in the order they ran.
    pub(crate) fn take_ops(&self) -> Vec<OpTimes> {
        self.ops.take().times
    }

    fn release(&self) {
        let BlockRun { start, is_backward } = self.block.take();
        let seconds = start.map_or(0.0, |start| start.elapsed().as_secs_f64());
        let mut times = self.times.get();
        *(if is_backward { &mut times.backward } else { &mut times.forward }) += seconds;
        self.times.set(times);
        let Ops { times, running } = &mut *self.ops.borrow_mut();
        for (number, time, flops) in running.drain(..) {
            let op = &mut times[number];
            if is_backward {
                op.backward += time.as_secs_f64();
            } else {
                op.forward += time.as_secs_f64();
                op.flops += flops;
            }
        }
    }
}

impl Probe for Clock {
    fn forward(&self, ran: RanForward) -> usize {
        let RanForward { block, op, weights, cost, time } = ran;
        let Ops { times, running } = &mut *self.ops.borrow_mut();
        // A block runs the same ops each time: what is the n-th here was the n-th before.
        let known = times.iter().enumerate().filter(|(_, op)| op.block == block).nth(running.len());
        let number = known.map_or(times.len(), |(number, _)| number);
        if number == times.len() {
            let is_free = cost.flops == 0 && cost.bytes == 0;
            times.push(OpTimes { block, op, weights, flops: 0, is_free, forward: 0.0, backward: 0.0 });
        }
        running.push((number, time, cost.flops));
        number
    }

    fn backward(&self, number: usize, time: Duration) {
        self.ops.borrow_mut().times[number].backward += time.as_secs_f64();
    }
}

/// A residency that a [`Clock`] looks at.
pub(crate) struct Timed<'a> {
    clock: &'a Clock,
    inner: &'a dyn Residency,
}

impl Residency for Timed<'_> {
    fn gather(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.clock.block.set(BlockRun { start: Some(Instant::now()), is_backward: false });
        self.inner.gather(model, block)
    }

    fn before_gradients(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.before_gradients(model, block)
    }

    fn reduce(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.reduce(model, block)?;
        self.clock.block.set(BlockRun { is_backward: true, ..self.clock.block.get() });
        Ok(())
    }

    fn leaves_out(&self, model: &Model, block: usize) -> bool {
        self.inner.leaves_out(model, block)
    }

    fn tokens(&self, model: &Model, block: usize) -> Option<&KeptTokens> {
        self.inner.tokens(model, block)
    }

    fn release(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.inner.release(model, block)?;
        self.clock.release();
        Ok(())
    }
}
