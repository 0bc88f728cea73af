//! What training keeps between steps: master weights, their compute copies, gradients and optimizer state.
//!
//! In f32 the masters are the weights that products read. In bf16 products read a rounded copy, which the optimizer writes
//! in the pass that updates the masters; it is not stored in checkpoints.

use crate::error::Result;
use crate::grad_norm::norm;
use models::weights::{self, WeightSource};
use models::{Model, ParamSpec};
use ops::{ParamId, ParamStore, Part};
use optim::{Optimizer, Shard, Step};
use tensor::{DType, MemoryKind, Queue, Tensor};

/// A trained parameter on this rank.
struct Trained {
    id: ParamId,
    /// f32.
    master: Tensor,
    /// The copy in the compute format, unless that is f32.
    compute: Option<Tensor>,
    /// f32, as the optimizer names them.
    states: Vec<Tensor>,
    /// Whether the optimizer's weight decay falls on it.
    decays: bool,
}

/// Weights, gradients and optimizer state of one model on one rank.
pub struct TrainState {
    /// What ops see.
    pub store: ParamStore,
    trained: Vec<Trained>,
}

/// One tensor of a checkpoint.
pub struct StateTensor<'a> {
    /// The Hugging Face name of the parameter.
    pub name: &'a str,
    /// `weight`, or the optimizer's name for the state.
    pub kind: &'static str,
    /// f32.
    pub tensor: &'a Tensor,
}

impl TrainState {
    /// Weights from `source`, optimizer state at zero, all memory set aside.
    pub fn new(
        model: &Model,
        source: &WeightSource,
        queue: &Queue,
        dtype: DType,
        optimizer: &dyn Optimizer,
        decays: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let whole = |_: &str| Part::WHOLE;
        let store = weights::declare(model, &whole);
        let mut trained = Vec::new();
        for (id, spec) in model.iter() {
            let master = weights::load_one(source, queue, (id, spec), &whole)?;
            if spec.is_table() {
                store.set_weight(id, Some(master));
                continue;
            }
            let compute = (dtype != DType::F32).then(|| weights::cast(queue, &master, dtype)).transpose()?;
            store.set_weight(id, Some(compute.as_ref().unwrap_or(&master).clone()));
            let zeros = |_| queue.zeros(MemoryKind::Optimizer, DType::F32, spec.shape());
            let states = optimizer.states().iter().map(zeros).collect::<Result<_, _>>()?;
            trained.push(Trained { id, master, compute, states, decays: decays(&spec.name) });
        }
        store.allocate_gradients(queue)?;
        Ok(Self { store, trained })
    }

    /// One update of every parameter. `at.weight_decay` falls on those that decay.
    pub fn update(&self, queue: &Queue, optimizer: &dyn Optimizer, at: &Step) -> Result<()> {
        let gradients = self.store.gradients(queue)?;
        for (trained, (id, grad)) in self.trained.iter().zip(&gradients) {
            assert!(trained.id == *id, "TrainState::update: gradients come in the order of parameters");
            let compute = trained.compute.as_ref();
            let shard = Shard { param: &trained.master, grad, states: &trained.states, compute };
            let weight_decay = if trained.decays { at.weight_decay } else { 0.0 };
            optimizer.step(queue, &shard, &Step { weight_decay, ..*at })?;
        }
        Ok(())
    }

    /// Everything a checkpoint holds, parameter by parameter.
    pub fn tensors<'a>(&'a self, model: &'a Model, optimizer: &'a dyn Optimizer) -> Vec<StateTensor<'a>> {
        let mut tensors = Vec::new();
        for trained in &self.trained {
            let name = model.params[trained.id.index()].name.as_str();
            tensors.push(StateTensor { name, kind: "weight", tensor: &trained.master });
            let states = optimizer.states().iter().zip(&trained.states);
            tensors.extend(states.map(|(kind, tensor)| StateTensor { name, kind, tensor }));
        }
        tensors
    }

    /// After masters were written from outside: makes the compute copies again.
    pub fn refresh_compute(&self, queue: &Queue) -> Result<()> {
        for trained in &self.trained {
            if let Some(compute) = &trained.compute {
                (queue.backend().copy)(queue, tensor::CopyArgs { x: &trained.master, out: compute })?;
            }
        }
        Ok(())
    }

    /// The name of the first parameter with a value that is not finite.
    pub fn first_non_finite(&self, queue: &Queue, model: &Model) -> Result<Option<String>> {
        for (spec, master) in self.masters(model) {
            if !norm(queue, std::iter::once(master))?.is_finite() {
                return Ok(Some(spec.name.clone()));
            }
        }
        Ok(None)
    }

    /// The master weights with their specifications, in the order of the model.
    pub fn masters<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (&'a ParamSpec, &'a Tensor)> {
        self.trained.iter().map(|trained| (&model.params[trained.id.index()], &trained.master))
    }
}
