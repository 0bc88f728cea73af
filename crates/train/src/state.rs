//! What training keeps between steps: master weights, their compute copies, gradients and optimizer state.
//!
//! In f32 the masters are the weights that products read. In bf16 products read a rounded copy, which the optimizer writes
//! in the pass that updates the masters; it is not stored in checkpoints. A frozen weight is kept in the compute format
//! alone, without gradient and state.
//!
//! Where the run keeps an average of the weights (`run.ema_decay`, or a rule that averages), evaluation and export read it
//! in place of the weights: [`TrainState::show_average`], [`TrainState::results`].

use crate::error::Result;
use crate::grad_norm::norm;
use crate::plan::groups::ParamGroups;
use models::weights::{self, WeightSource};
use models::{Model, ParamSpec};
use ops::{ParamId, ParamStore, Part};
use optim::{AVERAGE, GradientEdit, Shard, State, Step};
use tensor::{CopyArgs, DType, MemoryKind, NoiseArgs, Queue, Tensor, rng};

/// What checkpoints call a weight itself.
pub(crate) const WEIGHT: &str = "weight";

/// Told apart from the sites of dropout, which draw from the same seed.
const ROUNDING_SITES: u64 = 1 << 32;

/// Told apart from those of rounding.
const NOISE_SITES: u64 = 1 << 33;

/// The standard deviation of the noise on the clipped mean gradient at the update with this index, from 0:
/// `sqrt(eta / (1 + t)^0.55)`. Source: Neelakantan et al. 2015, arXiv:1511.06807, eq. 1.
pub(crate) fn noise_std(eta: f64, update: u64) -> f64 {
    (eta / (1.0 + update as f64).powf(0.55)).sqrt()
}

/// A weight on this rank.
struct Weight {
    id: ParamId,
    /// f32; the compute format where the weight is frozen.
    master: Tensor,
    /// The copy in the compute format, unless that is f32 or the weight is frozen.
    compute: Option<Tensor>,
    /// What the optimizer keeps, then the moving average if there is one; of a frozen weight nothing.
    states: Vec<State>,
    /// One for each state.
    tensors: Vec<Tensor>,
    is_frozen: bool,
}

/// Weights, gradients and optimizer state of one model on one rank.
pub struct TrainState {
    /// What ops see.
    pub store: ParamStore,
    weights: Vec<Weight>,
    ema_decay: Option<f64>,
}

/// One tensor of a checkpoint.
pub struct StateTensor<'a> {
    /// The Hugging Face name of the parameter.
    pub name: &'a str,
    /// What it is, called [`WEIGHT`] or as the optimizer does; reads and writes the tensor.
    pub state: State,
    /// In whatever format it is kept.
    pub tensor: &'a Tensor,
}

impl StateTensor<'_> {
    /// Puts the values, in f32, into `out`.
    ///
    /// # Panics
    /// If that has another number of elements.
    pub fn copy_to(&self, queue: &Queue, out: &mut [f32]) -> Result<()> {
        match self.tensor.dtype() {
            DType::F32 => (queue.backend().read)(queue, self.tensor, bytemuck::cast_slice_mut(out))?,
            _ => out.copy_from_slice(&self.state.read(queue, self.tensor)?),
        }
        Ok(())
    }
}

impl TrainState {
    /// Weights from `source`, optimizer state at zero, all memory set aside.
    pub fn new(
        model: &Model,
        source: &WeightSource,
        queue: &Queue,
        dtype: DType,
        groups: &ParamGroups,
        ema_decay: Option<f64>,
    ) -> Result<Self> {
        let whole = |_: &str| Part::WHOLE;
        let store = weights::declare_frozen(model, &whole, &|id| groups.of(id).is_none());
        let mut kept = Vec::new();
        for (id, spec) in model.iter() {
            let master = weights::load_one(source, queue, (id, spec), &whole)?;
            if spec.is_table() {
                store.set_weight(id, Some(master));
                continue;
            }
            let weight = Weight::new(queue, (id, spec), master, dtype, groups, ema_decay.is_some())?;
            store.set_weight(id, Some(weight.seen().clone()));
            kept.push(weight);
        }
        store.allocate_gradients(queue)?;
        Ok(Self { store, weights: kept, ema_decay })
    }

    /// One update of every trained parameter, by its group's rule, rate and decay. `at.lr` is the scheduled rate of
    /// `optimizer.params.lr`; `seed` is the run's.
    pub fn update(&self, queue: &Queue, groups: &ParamGroups, seed: u64, at: &Step) -> Result<()> {
        let gradients = self.store.gradients(queue)?;
        let trained = self.weights.iter().filter(|weight| !weight.is_frozen);
        for (weight, (id, grad)) in trained.zip(&gradients) {
            assert!(weight.id == *id, "TrainState::update: gradients come in the order of parameters");
            let group = groups.of(*id).expect("TrainState::update: what is trained has a group");
            let num_states = weight.tensors.len() - usize::from(self.ema_decay.is_some());
            let shard = Shard {
                param: &weight.master,
                grad,
                states: &weight.tensors[..num_states],
                compute: weight.compute.as_ref(),
                first: 0,
                key: rng::site_key(seed, at.step, ROUNDING_SITES + u64::from(id.0)),
            };
            group.rule.step(queue, &shard, &group.step(at))?;
            if let (Some(decay), Some(average)) = (self.ema_decay, weight.average()) {
                optim::average(queue, average, &weight.master, decay)?;
            }
        }
        Ok(())
    }

    /// Penalties, on weights that may decay, and clipping by value of every gradient.
    pub fn edit_gradients(&self, queue: &Queue, groups: &ParamGroups, edit: GradientEdit) -> Result<()> {
        let gradients = self.store.gradients(queue)?;
        let trained = self.weights.iter().filter(|weight| !weight.is_frozen);
        for (weight, (id, grad)) in trained.zip(&gradients) {
            assert!(weight.id == *id, "TrainState::edit_gradients: gradients come in the order of parameters");
            let decays = groups.of(*id).is_some_and(|group| group.decays);
            let edit = if decays { edit } else { GradientEdit { l1: 0.0, l2: 0.0, ..edit } };
            edit.apply(queue, grad, &weight.master)?;
        }
        Ok(())
    }

    /// Normal noise on every gradient, a function of seed, step, parameter and element.
    pub fn add_noise(&self, queue: &Queue, std: f64, seed: u64, step: u64) -> Result<()> {
        for (id, x) in &self.store.gradients(queue)? {
            let key = rng::site_key(seed, step, NOISE_SITES + u64::from(id.0));
            (queue.backend().noise)(queue, NoiseArgs { x, std: std as f32, key, first: 0 })?;
        }
        Ok(())
    }

    /// Everything a checkpoint holds, parameter by parameter.
    pub fn tensors<'a>(&'a self, model: &'a Model) -> Vec<StateTensor<'a>> {
        let mut tensors = Vec::new();
        for weight in &self.weights {
            let name = model.params[weight.id.index()].name.as_str();
            let state = State::exact(WEIGHT, weight.master.shape());
            tensors.push(StateTensor { name, state, tensor: &weight.master });
            let states = weight.states.iter().zip(&weight.tensors);
            tensors.extend(states.map(|(state, tensor)| StateTensor { name, state: *state, tensor }));
        }
        tensors
    }

    /// The number of values of a checkpoint, each an f32.
    pub fn checkpoint_elements(&self, model: &Model) -> usize {
        self.tensors(model).iter().map(|tensor| tensor.state.shape.elements()).sum()
    }

    /// After masters were written from outside: makes the compute copies again.
    pub fn refresh_compute(&self, queue: &Queue) -> Result<()> {
        for weight in &self.weights {
            if let Some(compute) = &weight.compute {
                (queue.backend().copy)(queue, CopyArgs { x: &weight.master, out: compute })?;
            }
        }
        Ok(())
    }

    /// The name of the first trained parameter with a value that is not finite.
    pub fn first_non_finite(&self, queue: &Queue, model: &Model) -> Result<Option<String>> {
        for weight in self.weights.iter().filter(|weight| !weight.is_frozen) {
            if !norm(queue, std::iter::once(&weight.master))?.is_finite() {
                return Ok(Some(model.params[weight.id.index()].name.clone()));
            }
        }
        Ok(None)
    }

    /// The f32 weights that are trained, in the order of parameters.
    pub fn trained(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.weights.iter().filter(|weight| !weight.is_frozen).map(|weight| (weight.id, &weight.master))
    }

    /// What training has made of every weight, with its specification, in the order of the model: the average where there is
    /// one. In f32; frozen weights in the compute format.
    pub fn results<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (&'a ParamSpec, &'a Tensor)> {
        let result = |weight: &'a Weight| weight.average().unwrap_or(&weight.master);
        self.weights.iter().map(move |weight| (&model.params[weight.id.index()], result(weight)))
    }

    /// Lets ops see the averaged weights, if there are any, until the value that is returned is dropped.
    pub fn show_average(&self, queue: &Queue) -> Result<ShownAverage<'_>> {
        let shown = ShownAverage(self);
        for weight in &self.weights {
            if let Some(average) = weight.average() {
                let average = weights::cast(queue, average, weight.seen().dtype())?;
                self.store.set_weight(weight.id, Some(average));
            }
        }
        Ok(shown)
    }
}

/// See [`TrainState::show_average`].
pub struct ShownAverage<'a>(&'a TrainState);

impl Drop for ShownAverage<'_> {
    fn drop(&mut self) {
        for weight in self.0.weights.iter().filter(|weight| weight.average().is_some()) {
            self.0.store.set_weight(weight.id, Some(weight.seen().clone()));
        }
    }
}

impl Weight {
    fn new(
        queue: &Queue,
        (id, spec): (ParamId, &ParamSpec),
        master: Tensor,
        dtype: DType,
        groups: &ParamGroups,
        has_ema: bool,
    ) -> Result<Self> {
        let Some(group) = groups.of(id) else {
            let (states, tensors, master) = (Vec::new(), Vec::new(), weights::cast(queue, &master, dtype)?);
            return Ok(Self { id, master, compute: None, states, tensors, is_frozen: true });
        };
        let compute = (dtype != DType::F32).then(|| weights::cast(queue, &master, dtype)).transpose()?;
        let mut states = group.rule.states(spec.shape());
        states.extend(has_ema.then(|| State::exact(AVERAGE, spec.shape())));
        let mut tensors = Vec::with_capacity(states.len());
        for state in &states {
            tensors.push(if state.name == AVERAGE {
                let average = queue.alloc(MemoryKind::Optimizer, DType::F32, state.shape)?;
                (queue.backend().copy)(queue, CopyArgs { x: &master, out: &average })?;
                average
            } else {
                state.allocate(queue, groups.moments)?
            });
        }
        Ok(Self { id, master, compute, states, tensors, is_frozen: false })
    }

    /// What ops read.
    fn seen(&self) -> &Tensor {
        self.compute.as_ref().unwrap_or(&self.master)
    }

    fn average(&self) -> Option<&Tensor> {
        self.states.iter().position(|state| state.name == AVERAGE).map(|place| &self.tensors[place])
    }
}
