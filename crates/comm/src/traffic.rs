//! What a rank has moved.

use crate::{Call, Kind};
use std::collections::BTreeMap;

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Calls begun.
    pub calls: u64,
    /// Elements that crossed between this rank and others, see [`Call::volume`].
    pub elements: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Time spent in waits, the work of sums and copies included.
    pub seconds: f64,
}

/// What a rank has moved in all its groups, by kind of call.
pub type TrafficByKind = BTreeMap<Kind, Traffic>;

/// Notes a call that begins.
pub(crate) fn note(traffic: &mut TrafficByKind, call: &Call, index: usize, size: usize) {
    let (elements, width) = (call.volume(index, size) as u64, call.dtype().map_or(0, |dtype| dtype.size() as u64));
    let entry = traffic.entry(call.kind).or_default();
    entry.calls += 1;
    entry.elements += elements;
    entry.bytes += elements * width;
}
