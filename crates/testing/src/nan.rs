//! Weights that exist only while their block runs: NaN everywhere else.
//!
//! It stands in for ZeRO-3 in tests. An op that reads a weight of another block, or keeps a weight's buffer from forward
//! to backward instead of its id, computes NaN.
//!
//! # Order of events
//! 1. [`NanOutside::new`] takes the weights out of the store.
//! 2. `gather` puts copies in fresh buffers into the store; a weight that a block in flight has already is counted.
//! 3. `release` of the last block that holds a weight fills its buffer with NaN. It is never filled again with numbers:
//!    the next gather takes another one.

use std::cell::{Cell, RefCell};

use models::{Model, Residency};
use ops::{ParamId, ParamStore, Params, Result};
use tensor::{CopyArgs, FillArgs, MemoryKind, Queue, Tensor};

/// What the store holds of a weight that is not gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// NaN: a use outside gather..release shows in the numbers.
    Nan,
    /// Nothing: a use outside is [`ops::OpError::NotGathered`].
    Absent,
}

/// A [`Residency`] over a store whose weights are all in place when it is made.
pub struct NanOutside<'a> {
    queue: &'a Queue,
    store: &'a ParamStore,
    outside: Outside,
    clean: Vec<Tensor>,
    /// Per weight: blocks in flight that hold it.
    holders: RefCell<Vec<usize>>,
    num_gathers: Cell<usize>,
}

impl<'a> NanOutside<'a> {
    /// Takes every weight out of `store`.
    pub fn new(queue: &'a Queue, store: &'a ParamStore, outside: Outside) -> Result<Self> {
        let clean: Vec<Tensor> = store.ids().map(|id| store.weight(id)).collect::<Result<_>>()?;
        let holders = RefCell::new(vec![0; clean.len()]);
        let this = Self { queue, store, outside, clean, holders, num_gathers: Cell::new(0) };
        store.ids().try_for_each(|id| {
            let gathered = this.copy(id)?;
            this.poison(id, &gathered)
        })?;
        Ok(this)
    }

    /// How many weights were put into the store so far, one buffer each.
    pub fn num_gathers(&self) -> usize {
        self.num_gathers.get()
    }

    /// The clean values in a buffer of their own.
    fn copy(&self, id: ParamId) -> Result<Tensor> {
        let clean = &self.clean[id.index()];
        let copy = self.queue.alloc(MemoryKind::Weights, clean.dtype(), clean.shape())?;
        (self.queue.backend().copy)(self.queue, CopyArgs { x: clean, out: &copy })?;
        Ok(copy)
    }

    fn poison(&self, id: ParamId, gathered: &Tensor) -> Result<()> {
        (self.queue.backend().fill)(self.queue, FillArgs { out: gathered, value: f32::NAN })?;
        self.store.set_weight(id, (self.outside == Outside::Nan).then(|| gathered.clone()));
        Ok(())
    }
}

impl Residency for NanOutside<'_> {
    fn gather(&self, model: &Model, block: usize) -> Result<()> {
        for &id in &model.blocks[block].params {
            let mut holders = self.holders.borrow_mut();
            if holders[id.index()] == 0 {
                self.store.set_weight(id, Some(self.copy(id)?));
                self.num_gathers.set(self.num_gathers.get() + 1);
            }
            holders[id.index()] += 1;
        }
        Ok(())
    }

    fn release(&self, model: &Model, block: usize) -> Result<()> {
        for &id in &model.blocks[block].params {
            let mut holders = self.holders.borrow_mut();
            let left = holders[id.index()].checked_sub(1);
            holders[id.index()] = left.expect("NanOutside::release: a block that was not gathered");
            if left == Some(0) {
                self.poison(id, &self.store.weight(id)?)?;
            }
        }
        Ok(())
    }
}
