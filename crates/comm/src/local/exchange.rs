//! What the ranks of one process show each other, and how they wait for it.

use super::Limits;
use crate::error::list;
use crate::{Call, CallName, CommError, Flat, Kind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tensor::DType;

/// About 50 microseconds.
const SPINS: u32 = 20_000;

/// All ranks of a run.
pub(super) struct World {
    state: Mutex<State>,
    changed: Condvar,
    /// Counts changes, for those that spin.
    epoch: AtomicU64,
    size: usize,
    limits: Limits,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) groups: Vec<Group>,
    ids: BTreeMap<(Arc<str>, Arc<[usize]>), usize>,
    ranks: Vec<Rank>,
    fault: Option<Fault>,
}

#[derive(Clone, Default)]
struct Rank {
    /// How it ended: "has panicked".
    gone: Option<String>,
    /// The last call it began.
    last: Option<CallName>,
    /// While it waits: for whom.
    waits_for: Option<usize>,
}

/// Why no further call of this world can be relied on.
#[derive(Clone)]
struct Fault {
    /// Who is lost; `None`: ranks made different calls.
    rank: Option<usize>,
    how: String,
}

/// One group.
pub(super) struct Group {
    pub(super) ranks: Arc<[usize]>,
    /// Collectives that each member has begun.
    pub(super) begun: Vec<u64>,
    /// Collectives that not everybody is done with.
    pub(super) rounds: BTreeMap<u64, Round>,
    /// Messages from one member to another.
    pub(super) channels: BTreeMap<(usize, usize), Channel>,
}

/// One collective.
pub(super) struct Round {
    pub(super) shown: Vec<Option<Shown>>,
    /// The sums of an all_reduce's second half.
    pub(super) sums: Vec<Option<Flat>>,
    /// Who will not read the others' tensors any more.
    pub(super) done: Vec<bool>,
}

/// What a rank shows of its part in a collective.
pub(super) struct Shown {
    pub(super) x: Flat,
    signature: Signature,
    /// Of an all_to_all.
    pub(super) counts: Vec<usize>,
    out_counts: Vec<usize>,
}

/// What ranks must agree on.
#[derive(PartialEq, Eq)]
struct Signature {
    kind: Kind,
    dtype: Option<DType>,
    /// Where all give or get as many.
    elements: Option<usize>,
    /// Where shares differ.
    counts: Vec<usize>,
    root: usize,
}

/// The messages from one member to another.
#[derive(Default)]
pub(super) struct Channel {
    pub(super) sent: u64,
    pub(super) asked: u64,
    /// Sent and not yet received.
    pub(super) under_way: BTreeMap<u64, Flat>,
}

impl Round {
    fn new(size: usize) -> Self {
        Self { shown: (0..size).map(|_| None).collect(), sums: vec![None; size], done: vec![false; size] }
    }
}

impl Shown {
    pub(super) fn new(call: &Call) -> Self {
        let pairwise = call.kind == Kind::AllToAll;
        let alike = matches!(call.kind, Kind::AllReduce | Kind::Broadcast | Kind::Reduce);
        let signature = Signature {
            kind: call.kind,
            dtype: call.dtype(),
            elements: alike.then(|| call.x.elements().max(call.out.elements())),
            counts: if pairwise { Vec::new() } else { call.counts.clone() },
            root: call.peer,
        };
        Self { x: call.x.clone(), signature, counts: call.counts.clone(), out_counts: call.out_counts.clone() }
    }

    /// Whether two members of a group, by number, mean the same call.
    fn agrees(&self, own: usize, other: &Self, index: usize) -> bool {
        let pairs = self.signature.kind != Kind::AllToAll
            || (self.counts[index] == other.out_counts[own] && self.out_counts[index] == other.counts[own]);
        self.signature == other.signature && pairs
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signature { kind, dtype, elements, counts, root } = &self.signature;
        write!(f, "{kind}")?;
        match (elements, kind) {
            (Some(elements), _) => write!(f, " of {elements}")?,
            (None, Kind::AllToAll) => write!(f, " of {:?} to and {:?} from the ranks", self.counts, self.out_counts)?,
            (None, Kind::Barrier) => return Ok(()),
            (None, _) => write!(f, " of shares {counts:?}")?,
        }
        dtype.map_or(Ok(()), |dtype| write!(f, " {dtype}"))?;
        if matches!(kind, Kind::Broadcast | Kind::Reduce | Kind::Gather | Kind::Scatter) {
            write!(f, " with root {root}")?;
        }
        Ok(())
    }
}

impl World {
    pub(super) fn new(size: usize, limits: Limits) -> Self {
        let state = Mutex::new(State { ranks: vec![Rank::default(); size], ..State::default() });
        Self { state, changed: Condvar::new(), epoch: AtomicU64::new(0), size, limits }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others may now find what they wait for.
    pub(super) fn notify(&self, state: MutexGuard<'_, State>) {
        self.epoch.fetch_add(1, Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// The number of a group, new or known.
    pub(super) fn group(&self, name: &Arc<str>, ranks: &Arc<[usize]>) -> usize {
        let mut state = self.lock();
        let next = state.groups.len();
        let id = *state.ids.entry((Arc::clone(name), Arc::clone(ranks))).or_insert(next);
        if id == next {
            let (begun, ranks) = (vec![0; ranks.len()], Arc::clone(ranks));
            state.groups.push(Group { ranks, begun, rounds: BTreeMap::new(), channels: BTreeMap::new() });
        }
        id
    }

    /// A rank ends: the first account of it stands.
    pub(super) fn leave(&self, rank: usize, how: &str) {
        let mut state = self.lock();
        state.ranks[rank].gone.get_or_insert_with(|| how.to_owned());
        self.notify(state);
    }

    /// A rank has let go of a call that others count on.
    pub(super) fn abandon(&self, rank: usize, call: &CallName) {
        let mut state = self.lock();
        if state.fault.is_none() && state.ranks[rank].gone.is_none() {
            state.fault = Some(Fault { rank: Some(rank), how: format!("rank {rank} gave up its {call}") });
            self.notify(state);
        }
    }

    /// Shows a rank's part in the next collective of a group; returns its number.
    pub(super) fn show(&self, group: usize, member: usize, shown: Shown, name: &mut CallName) -> Result<()> {
        let mut state = self.lock();
        let Group { begun, rounds, ranks, .. } = &mut state.groups[group];
        (name.number, begun[member]) = (begun[member], begun[member] + 1);
        let (ranks, size) = (Arc::clone(ranks), ranks.len());
        let round = rounds.entry(name.number).or_insert_with(|| Round::new(size));
        let others = round.shown.iter().enumerate().filter_map(|(index, other)| Some((index, other.as_ref()?)));
        let odd = others.into_iter().find(|(index, other)| !shown.agrees(member, other, *index));
        let odd = odd.map(|(index, other)| {
            format!(
                "rank {} calls {other}, rank {} calls {shown}; all ranks of a group must make the same calls in the same \
                 order",
                ranks[index], ranks[member]
            )
        });
        if let Some(how) = odd {
            // It stays unseen: whoever waits for this rank finds the fault instead.
            state.fault.get_or_insert(Fault { rank: None, how });
        } else {
            round.shown[member] = Some(shown);
        }
        state.ranks[ranks[member]].last = Some(name.clone());
        let result = state.fault.as_ref().map_or(Ok(()), |fault| Err(fault.error(name)));
        self.notify(state);
        result
    }

    /// Notes a message that a rank begins to send or to receive.
    pub(super) fn note_message(&self, rank: usize, name: &CallName) {
        self.lock().ranks[rank].last = Some(name.clone());
    }

    /// Ranks disagree on a message.
    pub(super) fn mismatch(&self, name: &CallName, how: String) -> CommError {
        let mut state = self.lock();
        let error = state.fault.get_or_insert(Fault { rank: None, how }).error(name);
        self.notify(state);
        error
    }

    /// Waits until nobody is missing any more. `missing`: the ranks that are, as the whole run counts them.
    pub(super) fn wait(
        &self,
        rank: usize,
        name: &CallName,
        missing: impl Fn(&State) -> Vec<usize>,
    ) -> Result<MutexGuard<'_, State>> {
        let deadline = Instant::now() + self.limits.timeout;
        let mut state = self.lock();
        let result = loop {
            let absent = missing(&state);
            if absent.is_empty() {
                break None;
            }
            state.ranks[rank].waits_for = Some(absent[0]);
            if state.fault.is_none() {
                let now = Instant::now();
                state.fault = state.fault_of(&absent, (now >= deadline).then_some(self.limits.timeout));
            }
            if let Some(fault) = &state.fault {
                break Some(fault.error(name));
            }
            state = self.sleep(state, deadline);
        };
        state.ranks[rank].waits_for = None;
        match result {
            None => Ok(state),
            Some(error) => {
                self.notify(state);
                Err(error)
            }
        }
    }

    /// Until something changes or the deadline comes.
    fn sleep<'a>(&'a self, state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
        let state = if self.limits.spin {
            let epoch = self.epoch.load(Ordering::Acquire);
            drop(state);
            for _ in 0..SPINS {
                if self.epoch.load(Ordering::Acquire) != epoch {
                    return self.lock();
                }
                std::hint::spin_loop();
            }
            let state = self.lock();
            if self.epoch.load(Ordering::Acquire) != epoch {
                return state;
            }
            state
        } else {
            state
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    /// What is wrong with those that are missing; `None`: they may still come. `waited`: time is up.
    fn fault_of(&self, absent: &[usize], waited: Option<Duration>) -> Option<Fault> {
        let last = |rank: usize| match &self.ranks[rank].last {
            Some(call) => format!("; the last call it began was {call}"),
            None => "; it has begun no call".to_owned(),
        };
        if let Some((rank, how)) = absent.iter().find_map(|&rank| Some((rank, self.ranks[rank].gone.as_ref()?))) {
            return Some(Fault { rank: Some(rank), how: format!("rank {rank} {how}{}", last(rank)) });
        }
        let seconds = waited?.as_secs_f64();
        // Who is missing may itself wait for somebody: the one to name is at the end of the chain.
        let (mut rank, mut chain) = (absent[0], Vec::new());
        while let Some(next) = self.ranks[rank].waits_for {
            if chain.contains(&rank) {
                let how = format!("{} wait for each other, for {seconds} s{}", list(&chain), last(rank));
                return Some(Fault { rank: Some(rank), how });
            }
            chain.push(rank);
            rank = next;
        }
        let who = if chain.is_empty() { list(absent) } else { list(&[rank]) };
        Some(Fault { rank: Some(rank), how: format!("{who} did not answer within {seconds} s{}", last(rank)) })
    }
}

impl Fault {
    fn error(&self, call: &CallName) -> CommError {
        let (call, how) = (call.clone(), self.how.clone());
        match self.rank {
            Some(rank) => CommError::Lost { call, rank, how },
            None => CommError::Mismatch { call, how },
        }
    }
}
