//! Weights and gradients of one model on one rank, whole and resident.

use crate::{GradSlot, OpError, ParamId, Params, Result};
use std::cell::{Cell, RefCell};
use tensor::{AddArgs, CopyArgs, DType, FillArgs, MemoryKind, Queue, Shape, Tensor};

/// What a weight is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has a gradient and optimizer state.
    Trained,
    /// It is read only, in the format it was stored in.
    Frozen,
}

struct Entry {
    name: String,
    shape: Shape,
    role: Role,
    weight: RefCell<Option<Tensor>>,
    /// The same in f32, where `weight` is rounded and ops may ask for it.
    exact: RefCell<Option<Tensor>>,
    gradient: RefCell<Option<Tensor>>,
    /// Whether this step has put something into `gradient`.
    written: Cell<bool>,
    /// Where gradients are summed in 16 bits: the sum, and whether this step has put something into it.
    sum: RefCell<Option<Tensor>>,
    summed: Cell<bool>,
}

/// The weights of a model. A process may hold several (a reference model, an average): there is no global state.
#[derive(Default)]
pub struct ParamStore {
    entries: Vec<Entry>,
    /// The format of sums of gradients, if it is not f32.
    sums_in: Option<DType>,
}

impl ParamStore {
    /// Adds a weight without memory; ids count from 0 in this order.
    pub fn declare(&mut self, name: impl Into<String>, shape: Shape, role: Role) -> ParamId {
        let id = ParamId(self.entries.len() as u32);
        let (weight, exact, gradient, written, sum, summed) = Default::default();
        self.entries.push(Entry { name: name.into(), shape, role, weight, exact, gradient, written, sum, summed });
        id
    }

    /// All ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.entries.len() as u32).map(ParamId)
    }

    /// The Hugging Face name.
    pub fn name(&self, id: ParamId) -> &str {
        &self.entries[id.index()].name
    }

    /// Puts a weight in place; `None` takes it away (it is not gathered).
    pub fn set_weight(&self, id: ParamId, weight: Option<Tensor>) {
        let entry = &self.entries[id.index()];
        if let Some(weight) = &weight {
            let got = weight.shape();
            assert!(got == entry.shape, "ParamStore::set_weight: {} is {}, got {got}", entry.name, entry.shape);
        }
        *entry.weight.borrow_mut() = weight;
    }

    /// What f32 ops read in place of a rounded weight; `None`: they cast that.
    pub fn set_exact(&self, id: ParamId, exact: Option<Tensor>) {
        *self.entries[id.index()].exact.borrow_mut() = exact;
    }

    /// Forgets all gradients: the next one to come is written, not added.
    pub fn clear_gradients(&self) {
        for entry in &self.entries {
            entry.written.set(false);
            entry.summed.set(false);
        }
    }

    /// Keeps sums of gradients in a 16-bit format. Whoever runs a pass then opens a block's gradients before it runs, and
    /// adds them to the sums once they are complete.
    pub fn sum_gradients_in(&mut self, dtype: DType) {
        self.sums_in = Some(dtype);
    }

    /// Whether sums of gradients are kept in a 16-bit format.
    pub fn sums_gradients(&self) -> bool {
        self.sums_in.is_some()
    }

    /// Sets aside f32 scratch for a gradient, if there is none and the weight is trained.
    pub fn open_gradient(&self, id: ParamId, queue: &Queue) -> Result<()> {
        let entry = &self.entries[id.index()];
        let mut gradient = entry.gradient.borrow_mut();
        if entry.role == Role::Trained && gradient.is_none() {
            *gradient = Some(queue.alloc(MemoryKind::Workspace, DType::F32, entry.shape)?);
        }
        Ok(())
    }

    /// Adds an open gradient to its sum, in f32 and rounded to nearest, and closes it.
    pub fn add_to_sum(&self, id: ParamId, queue: &Queue) -> Result<()> {
        let entry = &self.entries[id.index()];
        let gradient = entry.gradient.borrow_mut().take().filter(|_| entry.written.replace(false));
        let Some(gradient) = gradient else { return Ok(()) };
        let sum = entry.sum.borrow();
        let sum = sum.as_ref().unwrap_or_else(|| panic!("ParamStore: {} has no memory for a sum", entry.name));
        if entry.summed.replace(true) {
            let wide = queue.alloc(MemoryKind::Workspace, DType::F32, entry.shape)?;
            (queue.backend().copy)(queue, CopyArgs { x: sum, out: &wide })?;
            (queue.backend().add)(queue, AddArgs { x: &wide, out: &gradient })?;
        }
        (queue.backend().copy)(queue, CopyArgs { x: &gradient, out: sum })?;
        Ok(())
    }

    /// Gives back the scratch of a gradient that nothing was put into.
    pub fn close_gradient(&self, id: ParamId) {
        let entry = &self.entries[id.index()];
        if !entry.written.get() {
            entry.gradient.borrow_mut().take();
        }
    }

    /// The gradients of trained weights, in the format of their sums; those that nothing was added to are zero.
    pub fn gradients(&self, queue: &Queue) -> Result<Vec<(ParamId, Tensor)>> {
        let mut gradients = Vec::with_capacity(self.entries.len());
        for id in self.ids().filter(|id| self.is_trained(*id)) {
            gradients.push((id, self.gradient_of(queue, id)?));
        }
        Ok(gradients)
    }

    /// Whether a trained weight has memory for its gradient.
    pub fn has_gradient(&self, id: ParamId) -> bool {
        self.entries[id.index()].gradient.borrow().is_some()
    }

    /// Puts memory for a gradient in place, of any content: the first to come is written.
    ///
    /// # Panics
    /// If the weight is not trained, or `memory` has another shape.
    pub fn lend_gradient(&self, id: ParamId, memory: Tensor) {
        let entry = &self.entries[id.index()];
        let fits = entry.role == Role::Trained && memory.shape() == entry.shape && memory.dtype() == DType::F32;
        assert!(fits, "ParamStore::lend_gradient: {} {} for {}", memory.shape(), memory.dtype(), entry.name);
        entry.written.set(false);
        *entry.gradient.borrow_mut() = Some(memory);
    }

    /// Takes a gradient away with its memory; zero if nothing was added to it.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If it has no memory.
    pub fn take_gradient(&self, queue: &Queue, id: ParamId) -> Result<Tensor> {
        let entry = &self.entries[id.index()];
        let gradient = entry.gradient.take();
        let gradient = gradient.unwrap_or_else(|| panic!("ParamStore::take_gradient: {} has none", entry.name));
        if !entry.written.replace(false) {
            (queue.backend().fill)(queue, FillArgs { out: &gradient, value: 0.0 })?;
        }
        Ok(gradient)
    }

    /// The gradient of a trained weight, in the format of its sum; zero if nothing was added to it.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradient_of(&self, queue: &Queue, id: ParamId) -> Result<Tensor> {
        let entry = &self.entries[id.index()];
        let slot = match self.sums_in {
            None => entry.slot(queue)?,
            Some(_) => entry.sum_slot(),
        };
        if !slot.accumulate {
            (queue.backend().fill)(queue, FillArgs { out: &slot.tensor, value: 0.0 })?;
        }
        Ok(slot.tensor)
    }

    /// Sets aside the memory of all gradients.
    pub fn allocate_gradients(&self, queue: &Queue) -> Result<()> {
        for entry in self.entries.iter().filter(|entry| entry.role == Role::Trained) {
            match self.sums_in {
                None => entry.allocate_gradient(queue)?,
                Some(dtype) => {
                    let sum = queue.alloc(MemoryKind::Gradients, dtype, entry.shape)?;
                    *entry.sum.borrow_mut() = Some(sum);
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn allocate_gradient(&self, queue: &Queue) -> Result<()> {
        let mut gradient = self.gradient.borrow_mut();
        if gradient.is_none() {
            *gradient = Some(queue.alloc(MemoryKind::Gradients, DType::F32, self.shape)?);
        }
        Ok(())
    }

    fn sum_slot(&self) -> GradSlot {
        let sum = self.sum.borrow().clone();
        let tensor = sum.unwrap_or_else(|| panic!("ParamStore: {} has no memory for a sum", self.name));
        GradSlot { tensor, accumulate: self.summed.replace(true) }
    }

    fn slot(&self, queue: &Queue) -> Result<GradSlot> {
        self.allocate_gradient(queue)?;
        let tensor = self.gradient.borrow().clone().expect("Entry::slot: allocated on the line above");
        Ok(GradSlot { tensor, accumulate: self.written.replace(true) })
    }
}

impl Params for ParamStore {
    fn weight(&self, id: ParamId) -> Result<Tensor> {
        let entry = &self.entries[id.index()];
        entry.weight.borrow().clone().ok_or_else(|| OpError::NotGathered { name: entry.name.clone() })
    }

    fn weight_in(&self, id: ParamId, dtype: DType) -> Result<Tensor> {
        let exact = self.entries[id.index()].exact.borrow();
        match &*exact {
            Some(exact) if exact.dtype() == dtype => Ok(exact.clone()),
            _ => self.weight(id),
        }
    }

    fn shape(&self, id: ParamId) -> Shape {
        self.entries[id.index()].shape
    }

    fn gradient(&self, id: ParamId) -> Result<Option<GradSlot>> {
        let entry = &self.entries[id.index()];
        if entry.role == Role::Frozen {
            return Ok(None);
        }
        let gradient = entry.gradient.borrow().clone();
        let tensor = gradient.unwrap_or_else(|| panic!("ParamStore: {} has no memory for a gradient", entry.name));
        Ok(Some(GradSlot { tensor, accumulate: entry.written.replace(true) }))
    }

    fn is_trained(&self, id: ParamId) -> bool {
        self.entries[id.index()].role == Role::Trained
    }
}
