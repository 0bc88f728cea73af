//! Keys and values of tokens that have been seen, for generation: one sequence.

use crate::{Env, OpError, Result};
use std::cell::{Cell, RefCell};
use tensor::{CopyArgs, MemoryKind, Tensor};

/// Keys and values [capacity, K hd] of every block, and how many tokens they hold.
pub struct KvCache {
    capacity: usize,
    len: Cell<usize>,
    /// Indexed by block; made when a block first asks.
    layers: RefCell<Vec<Option<(Tensor, Tensor)>>>,
}

impl KvCache {
    /// Room for `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, len: Cell::new(0), layers: RefCell::default() }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// After a forward pass over `tokens` new tokens.
    pub fn advance(&self, tokens: usize) {
        self.len.set(self.len() + tokens);
    }

    /// Forgets everything but the first `len` tokens.
    pub fn truncate(&self, len: usize) {
        self.len.set(len.min(self.len()));
    }

    /// Appends new keys and values of a block and returns all, [len + new, K hd] each.
    pub(crate) fn append(&self, env: &Env<'_>, block: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (start, new) = (self.len(), k.shape().rows());
        let end = start + new;
        if end > self.capacity {
            let message = format!("{start} tokens and {new} new ones do not fit a cache of {}", self.capacity);
            return Err(OpError::TooLong(message));
        }
        let mut layers = self.layers.borrow_mut();
        if layers.len() <= block {
            layers.resize(block + 1, None);
        }
        if layers[block].is_none() {
            let shape = [self.capacity, k.shape().width()];
            let make = || env.queue.alloc(MemoryKind::Activations, env.dtype, shape);
            layers[block] = Some((make()?, make()?));
        }
        let (keys, values) = layers[block].as_ref().expect("KvCache::append: made on the lines above");
        for (new, all) in [(k, keys), (v, values)] {
            (env.queue.backend().copy)(env.queue, CopyArgs { x: new, out: &all.rows(start..end) })?;
        }
        Ok((keys.rows(0..end), values.rows(0..end)))
    }
}
