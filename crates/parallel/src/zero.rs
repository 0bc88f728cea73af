//! ZeRO: data-parallel ranks share optimizer state, gradients and weights instead of copying them.
//!
//! | stage | masters, optimizer state | summed gradients | weights | moved a step, times (N - 1) / N |
//! | --- | --- | --- | --- | --- |
//! | 0 | whole | whole | whole | all_reduce: 2 ψ |
//! | 1 | share | share | whole | reduce_scatter ψ, all_gather of new weights ψ |
//! | 2 | share | share, and no whole one is kept between micro-batches | whole | as 1, the first for each micro-batch |
//! | 3 | share | share | share | all_gather forward ψ and backward ψ, reduce_scatter ψ, for each micro-batch |
//!
//! Source: Rajbhandari et al. 2020, arXiv:1910.02054. We share block by block ([`crate::partition`]), pad nothing, and gather
//! one block ahead.
//!
//! # Order of events
//! 1. For each micro-batch a [`ZeroPass`] is the [`Residency`] of the pass over the blocks.
//!    - `gather(b)`, stage 3: waits for the weights of b, begun during the block before, and begins those of the next.
//!    - `before_gradients(b)`: memory for the gradients of b, where it is not there all the time.
//!    - `reduce(b)`: begins the sum of the gradients that are complete with b, and finishes the one before.
//!    - `release(b)`, stage 3: drops the weights of b.
//! 2. [`Zero::finish`] waits for the last sum and gives this rank's part of the gradient.
//! 3. The caller takes the norm and updates its shares. Stages 1 and 2: [`Zero::begin_spread`] sends the new weights around.
//!
//! # Invariants
//! - Every rank runs the same passes over the same blocks, with or without tokens of its own: the order of calls never
//!   depends on values. What is gathered ahead is what the pass before gathered in this place.
//! - In stages 0 and 1 gradients of a step are added up where they are made and summed over ranks once, with the last
//!   micro-batch; in stages 2 and 3, and in a deterministic run, each micro-batch is summed over ranks by itself.
//! - A share that others gather is written again only after the norm, which every rank enters behind its last gather.

use crate::error::{Result, in_pass};
use crate::partition::{Partition, Stage, flat};
use crate::sums::{Order, Sums};
use comm::{Comm, Flat, Pending};
use models::{Model, Residency};
use ops::{ParamId, ParamStore, Params};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tensor::{CopyArgs, DType, MemoryKind, Queue, Tensor};

/// One rank's part in sharing one model.
pub struct Zero {
    comm: Comm,
    partition: Partition,
    stage: Stage,
    order: Order,
    state: RefCell<State>,
}

struct State {
    /// Stage 3, by parameter: this rank's share in the compute format.
    shares: Vec<Option<Tensor>>,
    /// By parameter: this rank's part of the gradient.
    sums: Vec<Sums>,
    /// Memory that those sums have done with.
    spare: Vec<Vec<Tensor>>,
    /// The sum over ranks that is under way.
    reducing: Option<Reducing>,
    /// Stage 3, by parameter: blocks under way that hold it.
    holders: Vec<usize>,
    /// Stage 3: the blocks that a pass gathered, in order, by the first of them: what the next one gathers ahead.
    traces: BTreeMap<usize, Vec<usize>>,
}

/// A sum over ranks under way, and where this rank's part of it will be.
struct Reducing {
    pending: Pending,
    terms: Vec<(ParamId, Tensor)>,
}

/// This rank's part of one gradient.
pub struct Owned {
    /// Of which weight.
    pub id: ParamId,
    /// Its first element in the weight, a multiple of 4,096.
    pub first: usize,
    /// The sum over ranks and micro-batches, in f32; on one rank in the format that its store sums in. `[len]`; in the weight's shape where it is all of it.
    pub grad: Tensor,
}

impl Zero {
    /// `comm`: the ranks that share, as many as `partition` was made for.
    pub fn new(comm: Comm, partition: Partition, stage: Stage, order: Order) -> Self {
        assert!(comm.size() == partition.ranks(), "Zero::new: {} ranks, shares for {}", comm.size(), partition.ranks());
        let num_params = partition.num_params();
        let state = RefCell::new(State {
            shares: vec![None; num_params],
            sums: (0..num_params).map(|_| Sums::new(order)).collect(),
            spare: vec![Vec::new(); num_params],
            reducing: None,
            holders: vec![0; num_params],
            traces: BTreeMap::new(),
        });
        // Alone there is nobody to share with.
        let stage = if comm.size() == 1 { Stage::Nothing } else { stage };
        Self { comm, partition, stage, order, state }
    }

    /// The ranks that share.
    pub fn comm(&self) -> &Comm {
        &self.comm
    }

    /// Who owns what.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What is shared; nothing on one rank.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// In which order terms of a gradient are added.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The elements of a weight whose masters and optimizer state this rank keeps.
    pub fn kept(&self, id: ParamId) -> std::ops::Range<usize> {
        if self.stage == Stage::Nothing {
            return 0..self.partition.elements_of(id);
        }
        self.partition.share(id, self.comm.index())
    }

    /// Whether the store needs memory for all gradients all the time.
    pub fn keeps_gradients(&self) -> bool {
        self.stage < Stage::Gradients && self.order == Order::AsTheyCome
    }

    /// Stage 3: what this rank gives of a weight, in the compute format, `[len]`; updates write into it.
    pub fn set_share(&self, id: ParamId, share: Tensor) {
        assert!(self.stage == Stage::Parameters, "Zero::set_share: weights are whole");
        self.state.borrow_mut().shares[id.index()] = Some(flat(&share));
    }

    /// The residency of one pass forward, or forward and backward. `is_last`: the last micro-batch of a step.
    pub fn pass<'a>(&'a self, queue: &'a Queue, store: &'a ParamStore, is_last: bool) -> ZeroPass<'a> {
        ZeroPass { zero: self, queue, store, is_last, gathering: RefCell::default(), seen: RefCell::default() }
    }

    /// Waits for what is under way and gives this rank's part of every gradient, in the order of the model. What was added
    /// up is taken: the next step begins anew.
    ///
    /// # Errors
    /// A rank is lost, or the device failed.
    pub fn finish(&self, queue: &Queue, store: &ParamStore) -> Result<Vec<Owned>> {
        self.finish_reducing(queue, store)?;
        let mut owned = Vec::new();
        for id in self.partition.ids().filter(|id| self.partition.is_trained(*id)) {
            let range = self.kept(id);
            if range.is_empty() {
                continue;
            }
            let whole = range.len() == self.partition.elements_of(id);
            let grad = if self.keeps_gradients() {
                flat(&store.gradient_of(queue, id)?).rows(range.clone())
            } else {
                let sum = self.state.borrow_mut().sums[id.index()].take(queue)?;
                sum.map_or_else(|| queue.zeros(MemoryKind::Gradients, DType::F32, [range.len()]), Ok)?
            };
            let grad = if whole { grad.reshape(store.shape(id)) } else { flat(&grad) };
            owned.push(Owned { id, first: range.start, grad });
        }
        Ok(owned)
    }

    /// Memory that [`Zero::finish`] gave, for the next step.
    pub fn give_back(&self, owned: Vec<Owned>) {
        let mut state = self.state.borrow_mut();
        if !self.keeps_gradients() {
            owned.into_iter().for_each(|Owned { id, grad, .. }| state.spare[id.index()].push(grad));
        }
    }

    /// Drops what was added up since the last [`Zero::finish`].
    pub fn clear(&self) {
        self.state.borrow_mut().sums.iter_mut().for_each(Sums::clear);
    }

    /// Begins to send around the new weights that a block is home to, where every rank has them whole. `share`: this rank's
    /// part in the compute format; others read it until [`Pending::wait`] returns.
    ///
    /// # Errors
    /// A rank is lost or made another call.
    pub fn begin_spread(
        &self,
        store: &ParamStore,
        block: usize,
        share: impl Fn(ParamId) -> Tensor,
    ) -> Result<Option<Pending>> {
        let ids = self.partition.trained_at_home(block);
        if ids.is_empty() || !matches!(self.stage, Stage::Optimizer | Stage::Gradients) {
            return Ok(None);
        }
        let mut whole = Vec::with_capacity(ids.len());
        for id in &ids {
            whole.push((*id, store.weight(*id)?));
        }
        let out = self.partition.by_owner(&ids, |id| find(&whole, id));
        let own = ids.iter().filter(|id| !self.kept(**id).is_empty());
        let x = Flat::new(own.map(|id| flat(&share(*id))));
        Ok(Some(self.comm.begin_all_gather(x, &self.partition.counts(&ids), out)?))
    }

    /// Finishes the sum that is under way, if there is one, and adds this rank's part of it.
    fn finish_reducing(&self, queue: &Queue, store: &ParamStore) -> Result<()> {
        let Some(Reducing { pending, terms }) = self.state.borrow_mut().reducing.take() else { return Ok(()) };
        if !self.keeps_gradients() {
            pending.output(queue)?;
            return terms.into_iter().try_for_each(|(id, term)| self.add(queue, id, term));
        }
        // The sum takes the place of this rank's own term, which nobody reads any more.
        pending.wait(queue)?;
        for (id, x) in terms.iter().filter(|_| self.stage == Stage::Optimizer) {
            let out = &flat(&store.gradient_of(queue, *id)?).rows(self.kept(*id));
            (queue.backend().copy)(queue, CopyArgs { x, out })?;
        }
        Ok(())
    }

    /// Adds a term to this rank's part of a gradient.
    fn add(&self, queue: &Queue, id: ParamId, term: Tensor) -> Result<()> {
        let State { sums, spare, .. } = &mut *self.state.borrow_mut();
        let done = sums[id.index()].add(queue, term)?;
        if self.order == Order::Tree {
            spare[id.index()].extend(done);
        }
        Ok(())
    }

    /// Memory for a term of this rank's part of a gradient.
    fn room(&self, queue: &Queue, id: ParamId, len: usize) -> Result<Tensor> {
        let mut state = self.state.borrow_mut();
        // Added one after the other, only the first term stays; where the store keeps gradients, none.
        let stays = !self.keeps_gradients() && (self.order == Order::Tree || state.sums[id.index()].is_empty());
        let kind = if stays { MemoryKind::Gradients } else { MemoryKind::Workspace };
        let spare = state.spare[id.index()].pop().filter(|_| stays);
        Ok(flat(&spare.map_or_else(|| queue.alloc(kind, DType::F32, [len]), Ok)?))
    }

    fn begin_reduce(
        &self,
        queue: &Queue,
        store: &ParamStore,
        ids: &[ParamId],
        grads: &[(ParamId, Tensor)],
    ) -> Result<()> {
        let reducing = if self.stage == Stage::Nothing {
            let x = Flat::new(grads.iter().map(|(_, grad)| grad.clone()));
            Reducing { pending: self.comm.begin_all_reduce(x)?, terms: grads.to_vec() }
        } else {
            let mut terms = Vec::with_capacity(ids.len());
            for &id in ids.iter().filter(|id| !self.kept(**id).is_empty()) {
                terms.push((id, self.room(queue, id, self.kept(id).len())?));
            }
            let x = self.partition.by_owner(ids, |id| find(grads, id));
            let out = Flat::new(terms.iter().map(|(_, term)| term.clone()));
            let pending = self.comm.begin_reduce_scatter(x, &self.partition.counts(ids), out)?;
            Reducing { pending, terms }
        };
        let before = self.state.borrow_mut().reducing.replace(reducing);
        // The one before is finished with the new one begun: nobody waits for a rank that is merely at its next block.
        let Some(before) = before else { return Ok(()) };
        let new = self.state.borrow_mut().reducing.replace(before);
        self.finish_reducing(queue, store)?;
        self.state.borrow_mut().reducing = new;
        Ok(())
    }
}

fn find(tensors: &[(ParamId, Tensor)], id: ParamId) -> Tensor {
    tensors.iter().find(|(other, _)| *other == id).expect("the ids are those of the tensors").1.clone()
}

/// The residency of one pass.
pub struct ZeroPass<'a> {
    zero: &'a Zero,
    queue: &'a Queue,
    store: &'a ParamStore,
    is_last: bool,
    gathering: RefCell<Option<Gathering>>,
    /// The blocks gathered so far.
    seen: RefCell<Vec<usize>>,
}

impl Drop for ZeroPass<'_> {
    fn drop(&mut self) {
        if let Some(gathering) = self.gathering.take().filter(|_| !std::thread::panicking()) {
            // Begun in vain by every rank; whoever is lost is found by the next call.
            let _ = gathering.pending.output(self.queue);
        }
        let seen = self.seen.take();
        if let Some(&first) = seen.first() {
            self.zero.state.borrow_mut().traces.insert(first, seen);
        }
    }
}

/// Weights on their way here.
struct Gathering {
    block: usize,
    pending: Pending,
    weights: Vec<(ParamId, Tensor)>,
}

impl ZeroPass<'_> {
    /// The block that was gathered after this one in the pass before that began with the same block, if it is the same pass so
    /// far: recompute gathers blocks in an order of its own. Notes the block.
    fn next(&self, block: usize) -> Option<usize> {
        let mut seen = self.seen.borrow_mut();
        if block == 0 && seen.len() == self.zero.partition.num_blocks() {
            // Forward once more: evaluations run many passes.
            seen.clear();
        }
        seen.push(block);
        let traces = &self.zero.state.borrow().traces;
        let trace = traces.get(&seen[0])?;
        let next = trace.get(seen.len()).copied();
        next.filter(|_| trace[..seen.len()] == seen[..])
    }

    fn begin_gather(&self, model: &Model, block: usize) -> Result<Gathering> {
        let (partition, state) = (&self.zero.partition, self.zero.state.borrow());
        let ids = shared(partition, model, block);
        let share = |id: ParamId| state.shares[id.index()].as_ref().expect("Zero::set_share: of every weight");
        let mut weights = Vec::with_capacity(ids.len());
        for &id in &ids {
            let whole = self.queue.alloc(MemoryKind::Workspace, share(id).dtype(), self.store.shape(id))?;
            weights.push((id, whole));
        }
        let x = Flat::new(ids.iter().map(|id| share(*id)).filter(|share| share.shape().elements() > 0).cloned());
        let out = partition.by_owner(&ids, |id| find(&weights, id));
        let pending = self.zero.comm.begin_all_gather(x, &partition.counts(&ids), out)?;
        Ok(Gathering { block, pending, weights })
    }

    fn gather_now(&self, model: &Model, block: usize) -> Result<()> {
        let mut under_way = self.gathering.take();
        if let Some(other) = under_way.take_if(|gathering| gathering.block != block) {
            // Not what the trace said: the others have begun it too.
            other.pending.output(self.queue)?;
        }
        let Gathering { pending, weights, .. } = under_way.map_or_else(|| self.begin_gather(model, block), Ok)?;
        if let Some(next) = self.next(block) {
            let next = self.begin_gather(model, next)?;
            self.gathering.replace(Some(next));
        }
        pending.output(self.queue)?;
        let holders = &mut self.zero.state.borrow_mut().holders;
        for (id, weight) in weights {
            if holders[id.index()] == 0 {
                self.store.set_weight(id, Some(weight));
            }
            holders[id.index()] += 1;
        }
        Ok(())
    }

    fn reduce_now(&self, model: &Model, block: usize) -> Result<()> {
        let ids = self.zero.partition.trained_at_home(block);
        debug_assert!(ids.iter().all(|id| model.blocks[block].params.contains(id)));
        let keeps = self.zero.keeps_gradients();
        if ids.is_empty() || (keeps && (!self.is_last || self.zero.comm.size() == 1)) {
            return Ok(());
        }
        let mut grads = Vec::with_capacity(ids.len());
        for &id in &ids {
            let grad =
                if keeps { self.store.gradient_of(self.queue, id) } else { self.store.take_gradient(self.queue, id) };
            grads.push((id, flat(&grad?)));
        }
        if self.zero.comm.size() == 1 {
            return grads.into_iter().try_for_each(|(id, grad)| self.zero.add(self.queue, id, grad));
        }
        self.zero.begin_reduce(self.queue, self.store, &ids, &grads)
    }
}

/// The weights of a block that ranks share, each once.
fn shared(partition: &Partition, model: &Model, block: usize) -> Vec<ParamId> {
    let mut ids: Vec<ParamId> = Vec::new();
    for &id in &model.blocks[block].params {
        if !partition.is_table(id) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

impl Residency for ZeroPass<'_> {
    fn gather(&self, model: &Model, block: usize) -> ops::Result<()> {
        if self.zero.stage != Stage::Parameters {
            return Ok(());
        }
        self.gather_now(model, block).map_err(in_pass)
    }

    fn before_gradients(&self, model: &Model, block: usize) -> ops::Result<()> {
        for &id in &model.blocks[block].params {
            if !self.store.is_trained(id) || self.store.has_gradient(id) {
                continue;
            }
            let shape = self.store.shape(id);
            // What ranks share is handed over and comes back with the workspace; a whole term is kept as it is.
            let memory = if self.zero.stage == Stage::Nothing {
                self.zero.room(self.queue, id, shape.elements()).map_err(in_pass)?.reshape(shape)
            } else {
                self.queue.alloc(MemoryKind::Workspace, DType::F32, shape)?
            };
            self.store.lend_gradient(id, memory);
        }
        Ok(())
    }

    fn reduce(&self, model: &Model, block: usize) -> ops::Result<()> {
        self.reduce_now(model, block).map_err(in_pass)
    }

    fn release(&self, model: &Model, block: usize) -> ops::Result<()> {
        if self.zero.stage != Stage::Parameters {
            return Ok(());
        }
        let holders = &mut self.zero.state.borrow_mut().holders;
        for id in shared(&self.zero.partition, model, block) {
            let left = holders[id.index()].checked_sub(1);
            holders[id.index()] = left.expect("ZeroPass::release: a block that was not gathered");
            if left == Some(0) {
                self.store.set_weight(id, None);
            }
        }
        Ok(())
    }
}
