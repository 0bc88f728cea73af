//! A model in training: samples in, reports out.
//!
//! [`Engine::train`] runs a whole run file; [`Engine::train_batch`] one optimizer step; [`Engine::micro_batch`] and
//! [`Engine::step`] are the two halves of it for loops of a user's own, and give the same bits.

use crate::checkpoint::{Checkpoint, Counters};
use crate::config::RunConfig;
use crate::curriculum::cut;
use crate::error::{Result, TrainError};
use crate::event::{Observer, Silent};
use crate::loss_scale::{LossScaler, ScaleChange};
use crate::loss_spike::SpikeGuard;
use crate::plan::groups::ParamGroups;
use crate::plan::{self, RunPlan};
use crate::run::{self, Outcome};
use crate::state::{StateTensor, TrainState};
use crate::step::{Accumulated, StepContext, StepReport};
use crate::training_data::TrainingData;
use comm::{Comm, Limits, local};
use data::{Dataset, Sample};
use generate::Evaluation;
use models::Model;
use models::weights::WeightSource;
use optim::Optimizer;
use optim::schedule::Plateau;
use parallel::{Order, Partition, Stage, Zero};
use std::sync::Arc;
use tensor::{Queue, cpu};

/// A model with its weights, optimizer state and counters.
pub struct Engine {
    pub(crate) config: RunConfig,
    pub(crate) plan: RunPlan,
    pub(crate) queue: Queue,
    pub(crate) model: Model,
    pub(crate) state: TrainState,
    pub(crate) groups: ParamGroups,
    /// This rank among those that train the model together; alone unless [`crate::ranks`] runs it.
    pub(crate) zero: Zero,
    pub(crate) counters: Counters,
    /// Of an fp16 run.
    pub(crate) scaler: Option<LossScaler>,
    /// Of a run with `run.loss_spike`.
    pub(crate) guard: Option<SpikeGuard>,
    /// Of a run whose rate depends on evaluations.
    pub(crate) plateau: Option<Plateau>,
    /// The last step whose evaluation was made.
    pub(crate) evaluated: Option<u64>,
    /// Micro-batches since the last update.
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    accumulated: Accumulated,
    /// Of this rank.
    samples: Vec<Sample>,
    /// Of all ranks.
    count: u64,
}

impl Engine {
    /// A model with random weights (`run.seed`). Memory for weights, gradients and optimizer state is taken here.
    ///
    /// # Errors
    /// The configuration lacks an optimizer or does not fit together.
    pub fn new(model: Model, config: RunConfig) -> Result<Self> {
        let seed = config.run.seed;
        Self::with_weights(model, config, &WeightSource::Random { seed })
    }

    /// A model with weights from `source`.
    ///
    /// # Errors
    /// As [`Engine::new`], or the weights cannot be read.
    pub fn with_weights(model: Model, config: RunConfig, source: &WeightSource) -> Result<Self> {
        Self::on_cpu(model, config, source, None, None)
    }

    /// A model with weights from `source` and an update rule of the caller's own. The configuration's type is `custom`; its
    /// rate, decay, groups and schedule are as for any other rule.
    ///
    /// # Errors
    /// As [`Engine::with_weights`].
    pub fn with_optimizer(
        model: Model,
        config: RunConfig,
        source: &WeightSource,
        optimizer: Arc<dyn Optimizer>,
    ) -> Result<Self> {
        Self::on_cpu(model, config, source, Some(optimizer), None)
    }

    /// One of the ranks that train a model together.
    pub(crate) fn on_rank(model: Model, config: RunConfig, source: &WeightSource, comm: Comm) -> Result<Self> {
        Self::on_cpu(model, config, source, None, Some(comm))
    }

    fn on_cpu(
        model: Model,
        config: RunConfig,
        source: &WeightSource,
        own: Option<Arc<dyn Optimizer>>,
        comm: Option<Comm>,
    ) -> Result<Self> {
        let sequence_length = plan::sequence_length(&config, model.max_positions)?;
        let plan = RunPlan::resolve(&config, sequence_length, 0)?;
        let all_threads = plan.threads * comm.as_ref().map_or(1, Comm::size);
        let queue = cpu::queue(plan.threads, all_threads <= crate::system::num_cores(), plan.isa);
        Self::with_ranks(model, config, source, plan, queue, own, comm)
    }

    /// The same on a device of the caller's choice.
    pub(crate) fn on_queue(
        model: Model,
        config: RunConfig,
        source: &WeightSource,
        plan: RunPlan,
        queue: Queue,
        own: Option<Arc<dyn Optimizer>>,
    ) -> Result<Self> {
        Self::with_ranks(model, config, source, plan, queue, own, None)
    }

    /// The same among other ranks.
    pub(crate) fn with_ranks(
        model: Model,
        config: RunConfig,
        source: &WeightSource,
        plan: RunPlan,
        queue: Queue,
        own: Option<Arc<dyn Optimizer>>,
        comm: Option<Comm>,
    ) -> Result<Self> {
        let mut groups = ParamGroups::resolve(&config, &model, own)?;
        groups.settle(&config, &plan);
        let zero = share(&config, &model, &groups, comm);
        let state = TrainState::new(&model, source, &queue, plan.dtype, &groups, config.run.ema_decay, &zero)?;
        let (counters, pending) = Default::default();
        let scaler = config.fp16.enabled.then(|| LossScaler::new(config.fp16));
        let (guard, plateau) = (config.run.loss_spike.map(SpikeGuard::new), config.plateau());
        let evaluated = None;
        Ok(Self {
            config,
            plan,
            queue,
            model,
            state,
            groups,
            zero,
            counters,
            scaler,
            guard,
            plateau,
            evaluated,
            pending,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Every number of the run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// What has been done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Trains as the run file says: to its last step, with evaluations, samples and checkpoints on the way.
    ///
    /// # Errors
    /// Whatever stops a run; the last checkpoint stays.
    pub fn train(&mut self, data: &TrainingData) -> Result<Outcome> {
        self.train_watched(data, &mut Silent, &run::Stop::default())
    }

    /// Goes on from the newest checkpoint in `run.output` that is whole; starts fresh if there is none.
    ///
    /// # Errors
    /// The checkpoint holds another model, other data, another seed or optimizer; then as [`Engine::train`].
    pub fn resume(&mut self, data: &TrainingData) -> Result<Outcome> {
        run::resume(self, data, &mut Silent, &run::Stop::default())
    }

    /// The same with somebody watching, and a way to stop it.
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn train_watched(
        &mut self,
        data: &TrainingData,
        observer: &mut dyn Observer,
        stop: &run::Stop,
    ) -> Result<Outcome> {
        run::train(self, data, observer, stop)
    }

    /// Settles the length of the run against the data.
    pub(crate) fn resolve_steps(&mut self, epoch_samples: u64) -> Result<()> {
        self.plan = RunPlan::resolve(&self.config, self.plan.sequence_length, epoch_samples)?;
        self.groups.settle(&self.config, &self.plan);
        Ok(())
    }

    /// One optimizer step over `train_batch_size` samples. Of several ranks each is given all of them, and takes its own.
    ///
    /// # Errors
    /// The loss is not finite, or the device failed.
    pub fn train_batch(&mut self, samples: &[Sample]) -> Result<StepReport> {
        let micro = self.plan.batch.micro_batch_size as usize;
        let (rank, ranks) = (self.zero.comm().index(), self.zero.comm().size());
        let rounds = samples.len().div_ceil(micro * ranks);
        for round in 0..rounds {
            let first = ((round * ranks + rank) * micro).min(samples.len());
            let own = &samples[first..(first + micro).min(samples.len())];
            self.run_micro_batch(own, first as u32, round + 1 == rounds)?;
        }
        self.pending.count = samples.len() as u64;
        self.step()
    }

    /// Forward and backward of one micro-batch, its rows cut to the length of the curriculum if there is one; its gradients
    /// are added to those since the last [`Engine::step`].
    ///
    /// # Errors
    /// A row is longer than the model's positions, or the device failed.
    pub fn micro_batch(&mut self, samples: &[Sample]) -> Result<()> {
        let first_sample = self.pending.count as u32;
        self.run_micro_batch(samples, first_sample, true)?;
        self.pending.count += samples.len() as u64;
        Ok(())
    }

    fn run_micro_batch(&mut self, samples: &[Sample], first_sample: u32, is_last: bool) -> Result<()> {
        let shortened: Vec<Sample>;
        let samples = match self.curriculum_length() {
            None => samples,
            Some(length) => {
                shortened = samples.iter().map(|sample| cut(sample, length as usize)).collect();
                &shortened
            }
        };
        for sample in samples {
            self.model.check_length(sample.input_ids.len())?;
        }
        let mut pending = std::mem::take(&mut self.pending);
        self.context().micro_batch(samples, first_sample, is_last, &mut pending.accumulated)?;
        pending.samples.extend_from_slice(samples);
        self.pending = pending;
        Ok(())
    }

    /// Norm, clipping and update from what [`Engine::micro_batch`] has added; then the loss scale of the next step.
    ///
    /// # Errors
    /// The loss is not finite or a spike that stops the run, the loss scale cannot fall any further, or the device failed.
    pub fn step(&mut self) -> Result<StepReport> {
        let Pending { accumulated, samples, count } = std::mem::take(&mut self.pending);
        let report = self.context().update(accumulated, &samples)?;
        // A step that ends the run has not been: nothing moves, so that the state before it can still be saved.
        let mut scaler = self.scaler;
        if let Some(scaler) = &mut scaler
            && scaler.update(report.skipped) == ScaleChange::AtMinimum
        {
            return Err(TrainError::LossScale { step: self.counters.step + 1, scale: scaler.scale() });
        }
        self.guard_loss(&report, count)?;
        self.scaler = scaler;
        self.counters.step += 1;
        self.counters.applied_steps += u64::from(!report.skipped && !report.spiked);
        self.counters.samples += count;
        self.counters.tokens += report.num_targets;
        Ok(report)
    }

    /// Tells the guard what the loss was. `count`: samples of the step, whose counters have not moved yet.
    fn guard_loss(&mut self, report: &StepReport, count: u64) -> Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        let mean = guard.mean().filter(|_| report.spiked);
        let Some(mean) = mean else {
            guard.accept(report.loss);
            return Ok(());
        };
        let Some(spikes) = guard.spike() else { return Ok(()) };
        let row = if spikes > 1 { format!(", {spikes} spikes in a row") } else { String::new() };
        let (step, first, factor) = (self.counters.step + 1, self.counters.samples, guard.factor());
        Err(TrainError::LossSpike { step, loss: report.loss, mean, factor, first, last: first + count - 1, row })
    }

    /// The rate of the next step.
    pub fn lr(&self) -> f64 {
        let lr = self.plan.schedule.lr(self.counters.applied_steps);
        self.plateau.map_or(lr, |plateau| plateau.lr(lr))
    }

    /// Tells a schedule that depends on evaluations of one, made after the last step; whether it has reduced the rate.
    pub fn evaluated(&mut self, loss: f64) -> bool {
        self.evaluated = Some(self.counters.step);
        self.plateau.as_mut().is_some_and(|plateau| plateau.evaluated(loss))
    }

    /// The longest row of the next step under a curriculum.
    pub fn curriculum_length(&self) -> Option<u64> {
        self.plan.curriculum.as_ref().map(|curriculum| curriculum.length(self.counters.step + 1))
    }

    /// What the loss of the next step is multiplied by; none unless the run is in fp16.
    pub fn loss_scale(&self) -> Option<f64> {
        self.scaler.as_ref().map(LossScaler::scale)
    }

    fn context(&self) -> StepContext<'_> {
        StepContext {
            queue: &self.queue,
            model: &self.model,
            state: &self.state,
            groups: &self.groups,
            zero: &self.zero,
            dtype: self.plan.dtype,
            step: self.counters.step + 1,
            applied_step: self.counters.applied_steps + 1,
            seed: self.config.run.seed,
            nominal_targets: self.plan.nominal_targets(),
            recompute: self.config.run.recompute,
            pld_theta: self.config.progressive_layer_drop.theta(self.counters.step),
            loss_scale: self.loss_scale().unwrap_or(1.0),
            lr: self.lr(),
            betas: self.plan.schedule.betas(self.counters.applied_steps),
            gradient_clipping: self.config.gradient_clipping,
            gradient_edit: self.config.run.gradient_edit(),
            gradient_noise: self.config.run.gradient_noise,
            check_overflow: self.config.fp16.enabled || self.config.bf16.check_grad_overflow,
            loss_limit: self.guard.as_ref().and_then(SpikeGuard::limit),
        }
    }

    /// The mean loss over a whole dataset, in micro-batches, without dropout.
    ///
    /// # Errors
    /// The device failed.
    pub fn evaluate(&self, dataset: &Dataset, observer: &mut dyn Observer) -> Result<Evaluation> {
        run::evaluate(self, dataset, observer)
    }

    /// Takes weights, optimizer state and counters from a checkpoint.
    ///
    /// # Errors
    /// The checkpoint holds another model or optimizer, or is damaged.
    pub fn load_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let (held, own) = (&checkpoint.manifest().head.optimizer, self.groups.name());
        if held != own {
            return Err(TrainError::Request(format!(
                "{}: the checkpoint was written with optimizer {held}; this run has {own}, and the optimizer may not change",
                checkpoint.folder().display()
            )));
        }
        for StateTensor { name, shape, run, state, tensor, .. } in self.state.tensors(&self.model) {
            let held = checkpoint.expect(state.name, name)?.num_elements();
            if held != Some(shape.elements()) {
                return Err(TrainError::Request(format!(
                    "{}: {} of {name} has {} elements; the model has {shape}",
                    checkpoint.folder().display(),
                    state.name,
                    held.unwrap_or(0),
                )));
            }
            state.write(&self.queue, tensor, &checkpoint.read_range(state.name, name, run)?)?;
        }
        self.state.refresh_compute(&self.queue, &self.zero)?;
        let head = &checkpoint.manifest().head;
        (self.counters, self.evaluated, self.pending) = (head.counters, head.evaluated, Pending::default());
        if let (Some(scaler), Some(state)) = (&mut self.scaler, head.loss_scale) {
            scaler.restore(state);
        }
        if let (Some(guard), Some(state)) = (&mut self.guard, &head.loss_spike) {
            guard.restore(state.clone());
        }
        if let (Some(plateau), Some(state)) = (&mut self.plateau, head.plateau) {
            plateau.state = state;
        }
        Ok(())
    }
}

/// Who owns what of a model among the ranks of a run; alone without a communicator.
fn share(config: &RunConfig, model: &Model, groups: &ParamGroups, comm: Option<Comm>) -> Zero {
    let comm = comm.unwrap_or_else(|| local::world(1, Limits::default()).remove(0));
    let stage = Stage::numbered(config.zero_optimization.stage.into()).expect("the table of keys allows 0 to 3");
    let order = if config.run.deterministic { Order::Tree } else { Order::AsTheyCome };
    let partition = Partition::new(model, &|id| groups.of(id).map(|group| group.rule.granularity()), comm.size());
    Zero::new(comm, partition, stage, order)
}
