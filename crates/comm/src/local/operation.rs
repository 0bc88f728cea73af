//! Calls of one rank: whom it waits for, what it reads, and when its own tensors are free.

use super::RankEnd;
use super::exchange::{Channel, Group, Shown, State};
use crate::{Call, CallName, CommError, Flat, Kind, Link, Operation, Result};
use std::ops::Range;
use std::sync::Arc;
use tensor::{MemoryKind, Queue, Tensor, cpu};

/// One rank's end of one group.
pub(super) struct LocalLink(Arc<LinkEnd>);

struct LinkEnd {
    rank: Arc<RankEnd>,
    name: Arc<str>,
    ranks: Arc<[usize]>,
    /// Of this rank in the group.
    member: usize,
    /// Of the group in the world.
    group: usize,
}

impl LocalLink {
    pub(super) fn new(rank: Arc<RankEnd>, name: &str, ranks: &[usize]) -> Self {
        let (name, ranks): (Arc<str>, Arc<[usize]>) = (name.into(), ranks.into());
        let member = ranks.iter().position(|&other| other == rank.rank).expect("Comm::group checks it");
        let group = rank.world.group(&name, &ranks);
        Self(Arc::new(LinkEnd { rank, name, ranks, member, group }))
    }
}

impl Link for LocalLink {
    fn begin(&self, call: Call) -> Result<Box<dyn Operation>> {
        let end = Arc::clone(&self.0);
        let mut name =
            CallName { kind: call.kind, number: 0, group: Arc::clone(&end.name), ranks: Arc::clone(&end.ranks) };
        if matches!(call.kind, Kind::Send | Kind::Recv) {
            return Ok(Box::new(Message::begin(end, call, name)));
        }
        end.rank.world.show(end.group, end.member, Shown::new(&call), &mut name)?;
        Ok(Box::new(Collective { end, call, name, is_out: false }))
    }
}

impl LinkEnd {
    fn wait<R>(
        &self,
        name: &CallName,
        missing: impl Fn(&Group) -> Vec<usize>,
        then: impl FnOnce(&mut Group) -> R,
    ) -> Result<R> {
        let by_run = |state: &State| {
            let group = &state.groups[self.group];
            missing(group).into_iter().map(|member| group.ranks[member]).collect()
        };
        let mut state = self.rank.world.wait(self.rank.rank, name, by_run)?;
        Ok(then(&mut state.groups[self.group]))
    }

    fn change<R>(&self, change: impl FnOnce(&mut Group) -> R) -> R {
        let mut state = self.rank.world.lock();
        let result = change(&mut state.groups[self.group]);
        self.rank.world.notify(state);
        result
    }
}

fn check_device(queue: &Queue, name: &CallName) -> Result<()> {
    if queue.backend().name == cpu::CPU.name {
        return Ok(());
    }
    let how = format!("ranks that are threads move CPU memory; this queue is on {}", queue.backend().name);
    Err(CommError::Transport { call: name.clone(), how })
}

/// `out[at..at + range.len()] =` the sum over `terms` of their elements `range`.
fn sum(queue: &Queue, terms: &[Flat], range: Range<usize>, out: &Flat, at: usize) {
    let mut done = 0;
    while done < range.len() {
        // As far as every tensor involved reaches.
        let shortest = |len: usize, flat: &Flat, start: usize| flat.run(start, len).shape().elements();
        let mut len = shortest(range.len() - done, out, at + done);
        for term in terms {
            len = shortest(len, term, range.start + done);
        }
        let views: Vec<Tensor> = terms.iter().map(|term| term.run(range.start + done, len)).collect();
        cpu::tree_sum(queue, &views, &out.run(at + done, len));
        done += len;
    }
}

fn copy(queue: &Queue, x: &Flat, range: Range<usize>, out: &Flat, at: usize) {
    sum(queue, std::slice::from_ref(x), range, out, at);
}

/// Members by the part they play for another.
enum Members {
    All,
    Only(usize),
    Nobody,
}

impl Members {
    fn numbers(&self, size: usize) -> Range<usize> {
        match self {
            Self::All => 0..size,
            Self::Only(member) => *member..member + 1,
            Self::Nobody => 0..0,
        }
    }
}

/// A collective under way.
struct Collective {
    end: Arc<LinkEnd>,
    call: Call,
    name: CallName,
    /// What this rank gets is there.
    is_out: bool,
}

impl Collective {
    /// Whose tensors this rank needs.
    fn sources(&self) -> Members {
        let (root, is_root) = (self.call.peer, self.call.peer == self.end.member);
        match self.call.kind {
            Kind::Scatter => Members::Only(root),
            Kind::Broadcast if !is_root => Members::Only(root),
            Kind::Broadcast => Members::Nobody,
            Kind::Reduce | Kind::Gather if !is_root => Members::Nobody,
            _ => Members::All,
        }
    }

    /// Who reads this rank's tensor after this rank's own output is there.
    fn readers(&self) -> Members {
        let (root, is_root) = (self.call.peer, self.call.peer == self.end.member);
        match self.call.kind {
            Kind::AllReduce | Kind::Barrier => Members::Nobody,
            Kind::Broadcast | Kind::Scatter if !is_root => Members::Nobody,
            Kind::Reduce | Kind::Gather => Members::Only(root),
            _ => Members::All,
        }
    }

    /// Waits for the tensors that this rank needs.
    fn take(&self) -> Result<Vec<Flat>> {
        let (number, sources) = (self.name.number, self.sources().numbers(self.end.ranks.len()));
        self.end.wait(
            &self.name,
            |group| {
                let shown = &group.rounds[&number].shown;
                sources.clone().filter(|&member| shown[member].is_none()).collect()
            },
            |group| {
                let shown = &group.rounds[&number].shown;
                sources.clone().map(|member| shown[member].as_ref().expect("waited for").x.clone()).collect()
            },
        )
    }

    /// What the members before this one send to it and what all others send before that, of an all_to_all.
    fn sent_to_me(&self) -> Vec<Range<usize>> {
        let (number, member) = (self.name.number, self.end.member);
        let state = self.end.rank.world.lock();
        let shown = &state.groups[self.end.group].rounds[&number].shown;
        shown.iter().map(|shown| Call::share(&shown.as_ref().expect("waited for").counts, member)).collect()
    }

    fn read(&self, queue: &Queue, xs: &[Flat]) -> Result<()> {
        let (member, Call { kind, out, counts, .. }) = (self.end.member, &self.call);
        match kind {
            Kind::AllReduce => self.all_reduce(queue, xs)?,
            Kind::ReduceScatter => sum(queue, xs, Call::share(counts, member), out, 0),
            Kind::Reduce if !xs.is_empty() => sum(queue, xs, 0..out.elements(), out, 0),
            Kind::Scatter => copy(queue, &xs[0], Call::share(counts, member), out, 0),
            Kind::AllToAll => {
                let mut at = 0;
                for (x, range) in xs.iter().zip(self.sent_to_me()) {
                    copy(queue, x, range.clone(), out, at);
                    at += range.len();
                }
            }
            // all_gather, broadcast and gather: whole tensors, one behind the other.
            _ => {
                let mut at = 0;
                for x in xs.iter().filter(|_| *kind != Kind::Barrier) {
                    copy(queue, x, 0..x.elements(), out, at);
                    at += x.elements();
                }
            }
        }
        Ok(())
    }

    /// Sums this rank's share, and copies all shares over its tensor when they are there: then nobody reads it any more.
    fn all_reduce(&self, queue: &Queue, xs: &[Flat]) -> Result<()> {
        let (member, x, Some(dtype)) = (self.end.member, &self.call.x, self.call.dtype()) else { return Ok(()) };
        if xs.len() == 1 {
            return Ok(());
        }
        let shares = self.call.all_reduce_shares(xs.len());
        let own = Flat::from(queue.alloc(MemoryKind::Workspace, dtype, [shares[member]])?);
        sum(queue, xs, Call::share(&shares, member), &own, 0);
        let number = self.name.number;
        self.end.change(|group| group.rounds.get_mut(&number).expect("nobody is done").sums[member] = Some(own));
        let sums: Vec<Flat> = self.end.wait(
            &self.name,
            |group| {
                let sums = &group.rounds[&number].sums;
                (0..sums.len()).filter(|&member| sums[member].is_none()).collect()
            },
            |group| group.rounds[&number].sums.iter().flatten().cloned().collect(),
        )?;
        for (member, sum) in sums.iter().enumerate() {
            copy(queue, sum, 0..sum.elements(), x, Call::share(&shares, member).start);
        }
        Ok(())
    }
}

impl Operation for Collective {
    fn name(&self) -> CallName {
        self.name.clone()
    }

    fn output(&mut self, queue: &Queue) -> Result<()> {
        if self.call.kind != Kind::Barrier {
            check_device(queue, &self.name)?;
        }
        let xs = self.take()?;
        self.read(queue, &xs)?;
        drop(xs);
        self.is_out = true;
        let (number, member) = (self.name.number, self.end.member);
        let finished = self.end.change(|group| {
            let round = group.rounds.get_mut(&number).expect("this rank was not done");
            round.done[member] = true;
            if round.done.iter().all(|done| *done) { group.rounds.remove(&number) } else { None }
        });
        // Tensors of all ranks may go back to their queues here, outside the lock.
        drop(finished);
        Ok(())
    }

    fn inputs_free(&mut self) -> Result<()> {
        assert!(self.is_out, "Operation::inputs_free: before the output of {}", self.name);
        let (number, readers) = (self.name.number, self.readers().numbers(self.end.ranks.len()));
        let unread = |group: &Group| match group.rounds.get(&number) {
            Some(round) => readers.clone().filter(|&member| !round.done[member]).collect(),
            None => Vec::new(),
        };
        self.end.wait(&self.name, unread, |_| ())
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        if !self.is_out && !std::thread::panicking() {
            self.end.rank.world.abandon(self.end.rank.rank, &self.name);
        }
    }
}

/// A message under way, at one of its ends.
struct Message {
    end: Arc<LinkEnd>,
    call: Call,
    name: CallName,
    is_out: bool,
}

impl Message {
    fn begin(end: Arc<LinkEnd>, call: Call, name: CallName) -> Self {
        let mut this = Self { end, call, name, is_out: false };
        this.name.number = this.with_channel(|channel| {
            let next = if this.call.kind == Kind::Send { &mut channel.sent } else { &mut channel.asked };
            let number = *next;
            *next += 1;
            if this.call.kind == Kind::Send {
                channel.under_way.insert(number, this.call.x.clone());
            }
            number
        });
        this.end.rank.world.note_message(this.end.rank.rank, &this.name);
        this
    }

    /// (from, to)
    fn direction(&self) -> (usize, usize) {
        let (own, other) = (self.end.member, self.call.peer);
        if self.call.kind == Kind::Send { (own, other) } else { (other, own) }
    }

    fn with_channel<R>(&self, change: impl FnOnce(&mut Channel) -> R) -> R {
        let direction = self.direction();
        self.end.change(|group| change(group.channels.entry(direction).or_default()))
    }

    /// Waits until the message is under way, or is not any more.
    fn wait(&self, until_under_way: bool) -> Result<Option<Flat>> {
        let (direction, number, peer) = (self.direction(), self.name.number, self.call.peer);
        let message = |group: &Group| group.channels.get(&direction).and_then(|c| c.under_way.get(&number)).cloned();
        let missing = |group: &Group| {
            let is_missing = message(group).is_some() != until_under_way;
            is_missing.then_some(peer).into_iter().collect()
        };
        self.end.wait(&self.name, missing, |group| message(group))
    }
}

impl Operation for Message {
    fn name(&self) -> CallName {
        self.name.clone()
    }

    fn output(&mut self, queue: &Queue) -> Result<()> {
        check_device(queue, &self.name)?;
        if self.call.kind == Kind::Send {
            self.is_out = true;
            return Ok(());
        }
        let (x, out) = (self.wait(true)?.expect("waited for"), &self.call.out);
        if x.elements() != out.elements() || x.dtype() != out.dtype() {
            let text = |flat: &Flat| match flat.dtype() {
                Some(dtype) => format!("{} {dtype}", flat.elements()),
                None => "nothing".to_owned(),
            };
            let ranks = &self.end.ranks;
            let (from, to) = (ranks[self.call.peer], ranks[self.end.member]);
            let how = format!("rank {from} sends {}, rank {to} expects {}", text(&x), text(out));
            return Err(self.end.rank.world.mismatch(&self.name, how));
        }
        copy(queue, &x, 0..x.elements(), out, 0);
        drop(x);
        self.is_out = true;
        let number = self.name.number;
        let received = self.with_channel(|channel| channel.under_way.remove(&number));
        drop(received);
        Ok(())
    }

    fn inputs_free(&mut self) -> Result<()> {
        if self.call.kind == Kind::Send { self.wait(false).map(|_| ()) } else { Ok(()) }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.is_out && !std::thread::panicking() {
            self.end.rank.world.abandon(self.end.rank.rank, &self.name);
        }
    }
}
