//! One rank's place in one group.
//!
//! # Order of events of a call
//! 1. A `begin_...` method hands `x` over: other ranks may read it from now on, at any time.
//! 2. [`Pending::output`] waits until what this rank gets is in place.
//! 3. [`Pending::wait`] waits, beyond that, until nobody reads `x` any more. Methods without `begin_` do all three.
//!
//! Between 1 and 3 nobody may write to `x`, nor touch `out` between 1 and 2; a kernel that does is stopped by the lock on its
//! memory. A caller that leaves out 3 must know from elsewhere when `x` is free: every call that all ranks of a group take
//! part in and that completes later says so of those that each of them has waited for before it.

use crate::traffic::note;
use crate::{Call, CallName, Flat, Kind, Link, Operation, Result, TrafficByKind, Transport};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tensor::{DType, MemoryKind, Queue, Tensor};

/// One rank's place in one group. Cloning shares it; groups of one rank share what they count.
#[derive(Clone)]
pub struct Comm {
    transport: Arc<dyn Transport>,
    link: Arc<dyn Link>,
    name: Arc<str>,
    ranks: Arc<[usize]>,
    /// Of this rank in `ranks`.
    index: usize,
    traffic: Arc<Mutex<TrafficByKind>>,
}

impl Comm {
    /// The group of all ranks, called `world`.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn world(transport: Arc<dyn Transport>) -> Result<Self> {
        let (name, ranks): (Arc<str>, Arc<[usize]>) = ("world".into(), (0..transport.size()).collect());
        let (link, index) = (transport.link(&name, &ranks)?, transport.rank());
        Ok(Self { transport, link, name, ranks, index, traffic: Arc::default() })
    }

    /// The group of some ranks of the whole run, this one among them, in the order that is given. All of them must ask for it.
    ///
    /// # Errors
    /// A rank is lost.
    ///
    /// # Panics
    /// If this rank is not among them.
    pub fn group(&self, name: &str, ranks: &[usize]) -> Result<Self> {
        let own = self.transport.rank();
        let index = ranks.iter().position(|&rank| rank == own);
        let index = index.unwrap_or_else(|| panic!("Comm::group: rank {own} is not in group {name} of {ranks:?}"));
        let link = self.transport.link(name, ranks)?;
        Ok(Self { link, name: name.into(), ranks: ranks.into(), index, ..self.clone() })
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This rank's number in the group.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The ranks of the group, as the whole run counts them.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// This rank, as the whole run counts them.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// The same group for numbers about the model and not of it: what goes through it is not counted with the rest.
    pub fn control(&self) -> Self {
        Self { traffic: Arc::default(), ..self.clone() }
    }

    /// What this rank has moved so far, in all its groups.
    pub fn traffic(&self) -> TrafficByKind {
        self.counted().clone()
    }

    /// Tells all other ranks of the run that this one ends here, and why: none waits for it.
    pub fn abort(&self, why: &str) {
        self.transport.abort(why);
    }

    /// Begins any call.
    ///
    /// # Errors
    /// A rank of the group has begun another call in this place.
    ///
    /// # Panics
    /// If the call does not fit the table of [`Call`].
    pub fn begin(&self, call: Call) -> Result<Pending> {
        call.check(self.index, self.size());
        note(&mut self.counted(), &call, self.index, self.size());
        let kind = call.kind;
        Ok(Pending { operation: self.link.begin(call)?, kind, traffic: Arc::clone(&self.traffic) })
    }

    /// `x` becomes the sum over the ranks, in place.
    ///
    /// # Errors
    /// This and all other calls: a rank is lost or made another call, or the device failed.
    pub fn all_reduce(&self, queue: &Queue, x: impl Into<Flat>) -> Result<()> {
        self.begin_all_reduce(x)?.wait(queue)
    }

    /// Begins [`Comm::all_reduce`].
    pub fn begin_all_reduce(&self, x: impl Into<Flat>) -> Result<Pending> {
        self.begin(call(Kind::AllReduce, x.into(), Flat::default()))
    }

    /// `out` becomes this rank's share of the sum of `x` over the ranks; `counts`: the elements of each share.
    pub fn reduce_scatter(
        &self,
        queue: &Queue,
        x: impl Into<Flat>,
        counts: &[usize],
        out: impl Into<Flat>,
    ) -> Result<()> {
        self.begin_reduce_scatter(x, counts, out)?.wait(queue)
    }

    /// Begins [`Comm::reduce_scatter`].
    pub fn begin_reduce_scatter(&self, x: impl Into<Flat>, counts: &[usize], out: impl Into<Flat>) -> Result<Pending> {
        self.begin(Call { counts: counts.to_vec(), ..call(Kind::ReduceScatter, x.into(), out.into()) })
    }

    /// `out` becomes the shares `x` of all ranks, one behind the other; `counts`: the elements of each.
    pub fn all_gather(&self, queue: &Queue, x: impl Into<Flat>, counts: &[usize], out: impl Into<Flat>) -> Result<()> {
        self.begin_all_gather(x, counts, out)?.wait(queue)
    }

    /// Begins [`Comm::all_gather`].
    pub fn begin_all_gather(&self, x: impl Into<Flat>, counts: &[usize], out: impl Into<Flat>) -> Result<Pending> {
        self.begin(Call { counts: counts.to_vec(), ..call(Kind::AllGather, x.into(), out.into()) })
    }

    /// `x` of every rank becomes that of `root`.
    pub fn broadcast(&self, queue: &Queue, x: impl Into<Flat>, root: usize) -> Result<()> {
        self.begin_broadcast(x, root)?.wait(queue)
    }

    /// Begins [`Comm::broadcast`].
    pub fn begin_broadcast(&self, x: impl Into<Flat>, root: usize) -> Result<Pending> {
        let (x, none) = (x.into(), Flat::default());
        let (x, out) = if self.index == root { (x, none) } else { (none, x) };
        self.begin(Call { peer: root, ..call(Kind::Broadcast, x, out) })
    }

    /// `out` of `root` becomes the sum of `x` over the ranks; the others give none.
    pub fn reduce(&self, queue: &Queue, x: impl Into<Flat>, out: Option<&Tensor>, root: usize) -> Result<()> {
        self.begin(Call { peer: root, ..call(Kind::Reduce, x.into(), optional(out)) })?.wait(queue)
    }

    /// `out` of `root` becomes the shares `x` of all ranks, one behind the other; the others give none.
    pub fn gather(
        &self,
        queue: &Queue,
        x: impl Into<Flat>,
        counts: &[usize],
        out: Option<&Tensor>,
        root: usize,
    ) -> Result<()> {
        let call = call(Kind::Gather, x.into(), optional(out));
        self.begin(Call { counts: counts.to_vec(), peer: root, ..call })?.wait(queue)
    }

    /// `out` becomes this rank's share of the `x` of `root`; the others give none.
    pub fn scatter(
        &self,
        queue: &Queue,
        x: Option<&Tensor>,
        counts: &[usize],
        out: impl Into<Flat>,
        root: usize,
    ) -> Result<()> {
        let call = call(Kind::Scatter, optional(x), out.into());
        self.begin(Call { counts: counts.to_vec(), peer: root, ..call })?.wait(queue)
    }

    /// Elements to every rank and from every rank: `counts[i]` of `x` to rank i, `out_counts[i]` of `out` from it.
    pub fn all_to_all(
        &self,
        queue: &Queue,
        x: impl Into<Flat>,
        counts: &[usize],
        out: impl Into<Flat>,
        out_counts: &[usize],
    ) -> Result<()> {
        self.begin_all_to_all(x, counts, out, out_counts)?.wait(queue)
    }

    /// Begins [`Comm::all_to_all`].
    pub fn begin_all_to_all(
        &self,
        x: impl Into<Flat>,
        counts: &[usize],
        out: impl Into<Flat>,
        out_counts: &[usize],
    ) -> Result<Pending> {
        let call = call(Kind::AllToAll, x.into(), out.into());
        self.begin(Call { counts: counts.to_vec(), out_counts: out_counts.to_vec(), ..call })
    }

    /// Sends to rank `to` of the group; returns when it has it. Messages between two ranks keep their order.
    pub fn send(&self, queue: &Queue, x: impl Into<Flat>, to: usize) -> Result<()> {
        self.begin_send(x, to)?.wait(queue)
    }

    /// Begins [`Comm::send`].
    pub fn begin_send(&self, x: impl Into<Flat>, to: usize) -> Result<Pending> {
        self.begin(Call { peer: to, ..call(Kind::Send, x.into(), Flat::default()) })
    }

    /// Receives from rank `from` of the group as many elements as `out` has.
    pub fn recv(&self, queue: &Queue, out: impl Into<Flat>, from: usize) -> Result<()> {
        self.begin_recv(out, from)?.wait(queue)
    }

    /// Begins [`Comm::recv`].
    pub fn begin_recv(&self, out: impl Into<Flat>, from: usize) -> Result<Pending> {
        self.begin(Call { peer: from, ..call(Kind::Recv, Flat::default(), out.into()) })
    }

    /// Returns when every rank of the group is here.
    pub fn barrier(&self, queue: &Queue) -> Result<()> {
        self.begin(call(Kind::Barrier, Flat::default(), Flat::default()))?.wait(queue)
    }

    /// A few host numbers of every rank, in the order of ranks; each gives as many. They are not counted ([`Comm::control`]).
    ///
    /// # Panics
    /// If a `T` is not made of 32-bit words.
    pub fn exchange<T: bytemuck::Pod>(&self, queue: &Queue, values: &[T]) -> Result<Vec<Vec<T>>> {
        assert!(size_of::<T>().is_multiple_of(4), "Comm::exchange: values of {} bytes", size_of::<T>());
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(values);
        let x = queue.upload(MemoryKind::Workspace, [words.len()], &words)?;
        let out = queue.alloc(MemoryKind::Workspace, DType::U32, [words.len() * self.size()])?;
        self.control().all_gather(queue, &x, &vec![words.len(); self.size()], &out)?;
        let all: Vec<u32> = queue.read(&out)?;
        Ok((0..self.size()).map(|i| bytemuck::pod_collect_to_vec(&all[i * words.len()..][..words.len()])).collect())
    }

    fn counted(&self) -> MutexGuard<'_, TrafficByKind> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn call(kind: Kind, x: Flat, out: Flat) -> Call {
    Call { kind, x, out, counts: Vec::new(), out_counts: Vec::new(), peer: 0 }
}

fn optional(tensor: Option<&Tensor>) -> Flat {
    tensor.map(Flat::from).unwrap_or_default()
}

/// A call under way.
#[must_use = "a call that is not waited for leaves the others without this rank"]
pub struct Pending {
    operation: Box<dyn Operation>,
    kind: Kind,
    traffic: Arc<Mutex<TrafficByKind>>,
}

impl Pending {
    /// How messages name it.
    pub fn name(&self) -> CallName {
        self.operation.name()
    }

    /// Waits until what this rank gets is there. Others may still read what it gave.
    ///
    /// # Errors
    /// A rank is lost or made another call, or the device failed.
    pub fn output(mut self, queue: &Queue) -> Result<()> {
        self.timed(|operation| operation.output(queue))
    }

    /// Waits until what this rank gets is there and what it gave may be written again.
    ///
    /// # Errors
    /// As [`Pending::output`].
    pub fn wait(mut self, queue: &Queue) -> Result<()> {
        self.timed(|operation| operation.output(queue).and_then(|()| operation.inputs_free()))
    }

    fn timed(&mut self, run: impl FnOnce(&mut dyn Operation) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = run(&mut *self.operation);
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.entry(self.kind).or_default().seconds += start.elapsed().as_secs_f64();
        result
    }
}
