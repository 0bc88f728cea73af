//! What training keeps between steps: master weights, their compute copies, gradients and optimizer state.
//!
//! In f32 the masters are the weights that products read. In bf16 products read a rounded copy, which the optimizer writes
//! in the pass that updates the masters; it is not stored in checkpoints. A frozen weight is kept in the compute format
//! alone, without gradient and state.
//!
//! Masters and gradients may be kept in 16 bits ([`crate::precision::half`]); a master is then its own compute copy.
//!
//! Where ranks share ([`parallel::zero`]), masters, states and gradients are those of this rank's share of each weight; up to
//! stage 2 the store has the weights whole beside them, in stage 3 only while their block runs.
//!
//! Where the run keeps an average of the weights (`run.ema_decay`, or a rule that averages), evaluation and export read it
//! in place of the weights: [`TrainState::show_average`], [`TrainState::results`].

use crate::error::Result;
use crate::grad_norm::norm;
use crate::plan::groups::ParamGroups;
use crate::precision::half::{Halves, narrow, round_master, widened};
use models::weights::{self, WeightSource};
use models::{Model, ParamSpec};
use ops::{ParamId, ParamStore, Params, Part};
use optim::{AVERAGE, GradientEdit, Shard, State, Step};
use parallel::{Owned, Stage, Zero};
use std::ops::Range;
use tensor::{CopyArgs, DType, MemoryKind, NoiseArgs, Queue, Shape, Tensor, rng};

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
    /// The elements that are here.
    range: Range<usize>,
    /// f32; the compute format where the weight is frozen, or masters are kept in 16 bits. In the weight's shape where it is all of it, else flat.
    master: Tensor,
    /// The copy in the compute format, where products or other ranks read one that is kept: none in f32, of frozen weights,
    /// and where the new weights are sent around.
    compute: Option<Tensor>,
    /// What the optimizer keeps, then the moving average if there is one; of a frozen weight nothing.
    states: Vec<State>,
    /// One for each state.
    tensors: Vec<Tensor>,
    is_frozen: bool,
    /// Every rank has all of it.
    is_replicated: bool,
    /// The ranks keep an average of it, each of its share.
    is_averaged: bool,
}

/// Weights, gradients and optimizer state of one model on one rank.
pub struct TrainState {
    /// What ops see.
    pub store: ParamStore,
    weights: Vec<Weight>,
    ema_decay: Option<f64>,
    dtype: DType,
}

/// One tensor of a checkpoint, or this rank's part of one.
pub struct StateTensor<'a> {
    /// The Hugging Face name of the parameter.
    pub name: &'a str,
    /// The shape of the whole.
    pub shape: Shape,
    /// The elements that are here.
    pub run: Range<usize>,
    /// Every rank has it whole.
    pub is_replicated: bool,
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
    #[allow(clippy::too_many_arguments, reason = "what a state is made of, and the ranks that share it")]
    pub(crate) fn new(
        model: &Model,
        source: &WeightSource,
        queue: &Queue,
        dtype: DType,
        groups: &ParamGroups,
        ema_decay: Option<f64>,
        halves: Halves,
        zero: &Zero,
    ) -> Result<Self> {
        let whole = |_: &str| Part::WHOLE;
        let mut store = weights::declare_frozen(model, &whole, &|id| groups.of(id).is_none());
        if let Some(dtype) = halves.gradients {
            store.sum_gradients_in(dtype);
        }
        let mut kept = Vec::new();
        for (id, spec) in model.iter() {
            if spec.is_table() {
                store.set_weight(id, Some(weights::load_one(source, queue, (id, spec), &whole)?));
                continue;
            }
            let weight = if zero.stage() == Stage::Nothing {
                let master = weights::load_one(source, queue, (id, spec), &whole)?;
                let weight = Weight::new(
                    queue,
                    (id, spec),
                    0..spec.elements(),
                    master,
                    dtype,
                    groups,
                    ema_decay.is_some(),
                    halves,
                )?;
                store.set_weight(id, Some(weight.seen().clone()));
                store.set_exact(id, weight.exact().cloned());
                weight
            } else {
                Weight::share(queue, (id, spec), source, dtype, groups, ema_decay.is_some(), zero, &store)?
            };
            kept.push(weight);
        }
        if zero.keeps_gradients() {
            store.allocate_gradients(queue)?;
        }
        Ok(Self { store, weights: kept, ema_decay, dtype })
    }

    /// One update of every trained parameter, by its group's rule, rate and decay. `gradients`: what is here of them, in the
    /// order of parameters; `at.lr` is the scheduled rate of `optimizer.params.lr`, `scheduled` counts the updates that schedules have
    /// seen; `seed` is the run's.
    pub fn update(
        &self,
        queue: &Queue,
        groups: &ParamGroups,
        seed: u64,
        (at, scheduled): (&Step, u64),
        zero: &Zero,
        gradients: &[Owned],
    ) -> Result<()> {
        // Where new weights are sent around they are rounded into memory that others read until they have them.
        let mut rounded = Vec::new();
        let spreads = matches!(zero.stage(), Stage::Optimizer | Stage::Gradients);
        for (weight, gradient) in self.with_gradients(gradients) {
            let group = groups.of(weight.id).expect("TrainState::update: what is trained has a group");
            let (master, grad) = (&widened(queue, &weight.master)?, &widened(queue, &gradient.grad)?);
            let num_states = weight.tensors.len() - usize::from(self.ema_decay.is_some());
            let sent = if spreads && self.dtype != DType::F32 {
                Some(queue.alloc(MemoryKind::Workspace, self.dtype, weight.master.shape())?)
            } else {
                None
            };
            let shard = Shard {
                param: master,
                grad,
                states: &weight.tensors[..num_states],
                compute: sent.as_ref().or(weight.compute.as_ref()),
                first: weight.range.start as u64,
                key: rng::site_key(seed, at.step, ROUNDING_SITES + u64::from(weight.id.0)),
            };
            group.rule.step(queue, &shard, &group.step(at, scheduled))?;
            if let (Some(decay), Some(average)) = (self.ema_decay, weight.average()) {
                optim::average(queue, average, master, decay)?;
            }
            if weight.master.dtype() != DType::F32 {
                round_master(queue, master, grad, &weight.master, (seed, at.step, weight.id.0))?;
            }
            rounded.extend(sent.map(|sent| (weight.id, sent)));
        }
        self.spread(queue, zero, &|id| {
            let sent = rounded.iter().find(|(other, _)| *other == id);
            sent.map_or_else(|| self.weight(id).master.clone(), |(_, sent)| sent.clone())
        })
    }

    /// Sends new weights around where every rank has them whole and keeps a share of the masters.
    fn spread(&self, queue: &Queue, zero: &Zero, share: &dyn Fn(ParamId) -> Tensor) -> Result<()> {
        let mut before: Option<comm::Pending> = None;
        for block in 0..zero.partition().num_blocks() {
            let pending = zero.begin_spread(&self.store, block, share)?;
            if let Some(before) = std::mem::replace(&mut before, pending) {
                before.wait(queue)?;
            }
        }
        before.map_or(Ok(()), |before| before.wait(queue))?;
        Ok(())
    }

    /// The trained weights that are here, each with its gradient.
    fn with_gradients<'a>(&'a self, gradients: &'a [Owned]) -> impl Iterator<Item = (&'a Weight, &'a Owned)> {
        let trained = self.weights.iter().filter(|weight| !weight.is_frozen && !weight.range.is_empty());
        trained.zip(gradients).map(|(weight, gradient)| {
            let fits = weight.id == gradient.id && weight.range.start == gradient.first;
            assert!(fits, "TrainState: gradients come in the order of parameters");
            (weight, gradient)
        })
    }

    fn weight(&self, id: ParamId) -> &Weight {
        self.weights.iter().find(|weight| weight.id == id).expect("TrainState: a weight of the model")
    }

    /// Penalties, on weights that may decay, and clipping by value of every gradient.
    pub fn edit_gradients(
        &self,
        queue: &Queue,
        groups: &ParamGroups,
        edit: GradientEdit,
        gradients: &[Owned],
    ) -> Result<()> {
        for (weight, gradient) in self.with_gradients(gradients) {
            let decays = groups.of(weight.id).is_some_and(|group| group.decays);
            let edit = if decays { edit } else { GradientEdit { l1: 0.0, l2: 0.0, ..edit } };
            let wide = widened(queue, &gradient.grad)?;
            edit.apply(queue, &wide, &widened(queue, &weight.master)?)?;
            narrow(queue, &wide, &gradient.grad)?;
        }
        Ok(())
    }

    /// Normal noise on every gradient, a function of seed, step, parameter and element.
    pub fn add_noise(&self, queue: &Queue, std: f64, seed: u64, step: u64, gradients: &[Owned]) -> Result<()> {
        for Owned { id, first, grad } in gradients {
            let x = &widened(queue, grad)?;
            let key = rng::site_key(seed, step, NOISE_SITES + u64::from(id.0));
            (queue.backend().noise)(queue, NoiseArgs { x, std: std as f32, key, first: *first as u64 })?;
            narrow(queue, x, grad)?;
        }
        Ok(())
    }

    /// Everything a checkpoint holds, parameter by parameter: what of it is here.
    pub fn tensors<'a>(&'a self, model: &'a Model) -> Vec<StateTensor<'a>> {
        let mut tensors = Vec::new();
        for weight in self.weights.iter().filter(|weight| !weight.range.is_empty()) {
            let spec = &model.params[weight.id.index()];
            let is_whole = weight.range.len() == spec.elements();
            let state = State::exact(WEIGHT, weight.master.shape());
            let states = weight.states.iter().zip(&weight.tensors).map(|(state, tensor)| (*state, tensor));
            for (state, tensor) in std::iter::once((state, &weight.master)).chain(states) {
                // A state of another shape than its weight belongs to a rule that sees whole weights.
                let shape = if is_whole { state.shape } else { spec.shape() };
                let run = if is_whole { 0..shape.elements() } else { weight.range.clone() };
                let is_replicated = weight.is_replicated;
                tensors.push(StateTensor { name: &spec.name, shape, run, is_replicated, state, tensor });
            }
        }
        tensors
    }

    /// The number of values of a checkpoint that are here, each an f32.
    pub fn checkpoint_elements(&self, model: &Model) -> usize {
        self.tensors(model).iter().map(|tensor| tensor.run.len()).sum()
    }

    /// After masters were written from outside: makes the compute copies again.
    pub fn refresh_compute(&self, queue: &Queue, zero: &Zero) -> Result<()> {
        for weight in &self.weights {
            if let Some(compute) = &weight.compute {
                (queue.backend().copy)(queue, CopyArgs { x: &weight.master, out: compute })?;
            }
        }
        self.spread_rounded(queue, zero, |weight| &weight.master)
    }

    /// Rounds and sends around what `chosen` says of every weight.
    fn spread_rounded(&self, queue: &Queue, zero: &Zero, chosen: impl Fn(&Weight) -> &Tensor) -> Result<()> {
        if !matches!(zero.stage(), Stage::Optimizer | Stage::Gradients) {
            return Ok(());
        }
        let mut rounded = Vec::with_capacity(self.weights.len());
        for weight in &self.weights {
            rounded.push((weight.id, weights::cast(queue, chosen(weight), self.dtype)?));
        }
        let find = |id: ParamId| rounded.iter().find(|(other, _)| *other == id).expect("every weight").1.clone();
        self.spread(queue, zero, &find)
    }

    /// The name of the first trained parameter with a value here that is not finite.
    pub fn first_non_finite(&self, queue: &Queue, model: &Model) -> Result<Option<String>> {
        for weight in self.weights.iter().filter(|weight| !weight.is_frozen && !weight.range.is_empty()) {
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
    pub fn show_average<'a>(&'a self, queue: &'a Queue, zero: &'a Zero) -> Result<ShownAverage<'a>> {
        let mut shown = ShownAverage { state: self, zero, hidden: Vec::new() };
        for weight in self.weights.iter().filter(|weight| weight.is_averaged) {
            // A rank that has nothing of a weight has no average of it either.
            let average = weight.average().unwrap_or(&weight.master);
            if zero.stage() == Stage::Parameters {
                zero.set_share(weight.id, weights::cast(queue, average, self.dtype)?);
                continue;
            }
            shown.hidden.push((weight.id, self.store.weight(weight.id)?));
            let seen = if zero.stage() == Stage::Nothing {
                weights::cast(queue, average, weight.seen().dtype())?
            } else {
                queue.alloc(MemoryKind::Weights, self.dtype, self.store.shape(weight.id))?
            };
            self.store.set_weight(weight.id, Some(seen));
            self.store.set_exact(weight.id, weight.exact().map(|_| average.clone()));
        }
        if !shown.hidden.is_empty() {
            self.spread_rounded(queue, zero, |weight| weight.average().unwrap_or(&weight.master))?;
        }
        Ok(shown)
    }
}

/// See [`TrainState::show_average`].
pub struct ShownAverage<'a> {
    state: &'a TrainState,
    zero: &'a Zero,
    /// What ops saw before.
    hidden: Vec<(ParamId, Tensor)>,
}

impl Drop for ShownAverage<'_> {
    fn drop(&mut self) {
        for (id, weight) in self.hidden.drain(..) {
            self.state.store.set_weight(id, Some(weight));
            self.state.store.set_exact(id, self.state.weight(id).exact().cloned());
        }
        if self.zero.stage() == Stage::Parameters {
            for weight in self.state.weights.iter().filter(|weight| weight.is_averaged) {
                self.zero.set_share(weight.id, weight.seen().clone());
            }
        }
    }
}

impl Weight {
    #[allow(clippy::too_many_arguments, reason = "what a weight is made of")]
    fn new(
        queue: &Queue,
        (id, spec): (ParamId, &ParamSpec),
        range: Range<usize>,
        master: Tensor,
        dtype: DType,
        groups: &ParamGroups,
        has_ema: bool,
        halves: Halves,
    ) -> Result<Self> {
        let is_replicated = range.len() == spec.elements();
        let Some(group) = groups.of(id) else {
            let (states, tensors, master) = (Vec::new(), Vec::new(), weights::cast(queue, &master, dtype)?);
            let (compute, is_frozen, is_averaged) = (None, true, false);
            return Ok(Self { id, range, master, compute, states, tensors, is_frozen, is_replicated, is_averaged });
        };
        let rule_averages = || group.rule.states(spec.shape()).iter().any(|state| state.name == AVERAGE);
        let is_averaged = has_ema || rule_averages();
        let rounds = dtype != DType::F32 && halves.masters.is_none();
        let compute = rounds.then(|| weights::cast(queue, &master, dtype)).transpose()?;
        let mut states = if range.is_empty() { Vec::new() } else { group.rule.states(master.shape()) };
        states.extend((has_ema && !range.is_empty()).then(|| State::exact(AVERAGE, master.shape())));
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
        let master = halves.masters.map_or(Ok(master.clone()), |dtype| weights::cast(queue, &master, dtype))?;
        Ok(Self { id, range, master, compute, states, tensors, is_frozen: false, is_replicated, is_averaged })
    }

    /// This rank's share; the store gets the whole weight where ranks do not share weights too.
    #[allow(clippy::too_many_arguments, reason = "what a weight is made of, and where it goes")]
    fn share(
        queue: &Queue,
        (id, spec): (ParamId, &ParamSpec),
        source: &WeightSource,
        dtype: DType,
        groups: &ParamGroups,
        has_ema: bool,
        zero: &Zero,
        store: &ParamStore,
    ) -> Result<Self> {
        let (range, is_frozen) = (zero.kept(id), groups.of(id).is_none());
        let whole = range.len() == spec.elements();
        let load = |range: Range<usize>, shape: Shape| -> Result<Tensor> {
            Ok(queue.upload(MemoryKind::Weights, shape, &source.elements(id, spec, range)?)?)
        };
        let shares_weights = zero.stage() == Stage::Parameters;
        if !shares_weights {
            let all = load(0..spec.elements(), spec.shape())?;
            store.set_weight(id, Some(weights::cast(queue, &all, dtype)?));
        }
        if is_frozen && !shares_weights {
            // As on one rank: every rank has it, in the compute format alone.
            let (states, tensors, master) = (Vec::new(), Vec::new(), store.weight(id)?);
            let (range, compute, is_replicated, is_averaged) = (0..spec.elements(), None, true, false);
            return Ok(Self { id, range, master, compute, states, tensors, is_frozen, is_replicated, is_averaged });
        }
        let shape = if whole { spec.shape() } else { Shape::from([range.len()]) };
        let master = load(range.clone(), shape)?;
        // Halves are kept on one rank alone.
        let mut weight = Self::new(queue, (id, spec), range, master, dtype, groups, has_ema, Halves::default())?;
        weight.is_replicated = false;
        if shares_weights {
            zero.set_share(id, weight.seen().clone());
        } else {
            weight.compute = None;
        }
        Ok(weight)
    }

    /// What ops read.
    fn seen(&self) -> &Tensor {
        self.compute.as_ref().unwrap_or(&self.master)
    }

    /// What f32 ops read in its place.
    fn exact(&self) -> Option<&Tensor> {
        self.compute.as_ref().map(|_| &self.master)
    }

    fn average(&self) -> Option<&Tensor> {
        self.states.iter().position(|state| state.name == AVERAGE).map(|place| &self.tensors[place])
    }
}
