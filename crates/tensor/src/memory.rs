//! The memory of one queue: who holds how much, and buffers kept for the next step.
//!
//! Large buffers that go back to the system at every step are faulted in again at the next one, which costs more than
//! the arithmetic of a small model. Activations and workspace are therefore kept in free lists by size class (eight
//! classes to a power of two, so that the number of classes is bounded whatever the lengths of rows); weights,
//! gradients and optimizer state live as long as the run and are allocated to the byte.

use crate::buffer::Storage;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// What a buffer is for: the rows of `plan`'s memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Weights: masters and compute copies.
    Weights,
    /// Gradients of weights.
    Gradients,
    /// Optimizer state.
    Optimizer,
    /// Values saved for backward and in flight.
    Activations,
    /// Scratch of one op.
    Workspace,
}

impl MemoryKind {
    /// All of them, in the order of the table.
    pub const ALL: [MemoryKind; 5] =
        [Self::Weights, Self::Gradients, Self::Optimizer, Self::Activations, Self::Workspace];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
        }
    }

    fn is_recycled(self) -> bool {
        matches!(self, Self::Activations | Self::Workspace)
    }
}

/// Bytes in use now and at the highest point, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// In use, indexed by `MemoryKind as usize`.
    pub current: [usize; 5],
    /// The most that was ever in use of each kind.
    pub peak: [usize; 5],
    /// The most that was ever taken from the system in all, free lists included.
    pub reserved_peak: usize,
    reserved: usize,
}

/// Free lists and ledger of one queue.
#[derive(Default)]
pub(crate) struct Allocator {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: BTreeMap<usize, Vec<Storage>>,
    ledger: Ledger,
}

/// Bytes to take for a request: the size itself, or its class where buffers are recycled.
pub(crate) fn capacity(kind: MemoryKind, bytes: usize) -> usize {
    if !kind.is_recycled() || bytes <= 1024 {
        return bytes.max(1).next_multiple_of(64);
    }
    let step = bytes.next_power_of_two() / 16; // an eighth of the power of two below
    bytes.next_multiple_of(step)
}

impl Allocator {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.lock().ledger
    }

    /// A kept buffer of this capacity, if there is one, and the entry in the ledger.
    pub(crate) fn take(&self, kind: MemoryKind, capacity: usize) -> Option<Storage> {
        let mut state = self.lock();
        let found = if kind.is_recycled() { state.free.get_mut(&capacity).and_then(Vec::pop) } else { None };
        let ledger = &mut state.ledger;
        ledger.current[kind as usize] += capacity;
        ledger.peak[kind as usize] = ledger.peak[kind as usize].max(ledger.current[kind as usize]);
        if found.is_none() {
            ledger.reserved += capacity;
            ledger.reserved_peak = ledger.reserved_peak.max(ledger.reserved);
        }
        found
    }

    /// The last handle of a buffer is gone.
    pub(crate) fn give_back(&self, kind: MemoryKind, capacity: usize, storage: Storage) {
        let mut state = self.lock();
        state.ledger.current[kind as usize] -= capacity;
        if kind.is_recycled() {
            state.free.entry(capacity).or_default().push(storage);
        } else {
            state.ledger.reserved -= capacity;
        }
    }

    /// Gives every kept buffer back to the system.
    pub(crate) fn trim(&self) {
        let mut state = self.lock();
        let free = std::mem::take(&mut state.free);
        let bytes: usize = free.iter().map(|(capacity, list)| capacity * list.len()).sum();
        state.ledger.reserved -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_wastes_at_most_an_eighth_and_there_are_eight_to_a_power_of_two() {
        let mut classes = std::collections::BTreeSet::new();
        for bytes in (4097..=8192).chain([1 << 20, 3 << 20, 154_389_504]) {
            let capacity = capacity(MemoryKind::Activations, bytes);
            assert!(capacity >= bytes && capacity <= bytes + bytes / 8 + 64, "{bytes} -> {capacity}");
            if bytes <= 8192 {
                classes.insert(capacity);
            }
        }
        assert_eq!(classes.len(), 8);
    }

    #[test]
    fn weights_are_allocated_to_the_cache_line() {
        assert_eq!(capacity(MemoryKind::Weights, 154_389_505), 154_389_568);
    }
}
