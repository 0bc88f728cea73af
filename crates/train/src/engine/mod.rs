//! A model in training: samples in, reports out.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | the engine: what it is made of, how it is made, whole runs, its rate |
//! | `micro_batch` | forward, backward and step; [`Engine::train_batch`] and [`Engine::eval_batch`] |
//! | `checkpoint` | saving and loading |
//!
//! [`initialize`] makes one. [`Engine::train`] runs a whole run file; [`Engine::train_batch`] one optimizer step;
//! [`Engine::forward`], [`Engine::backward`] and [`Engine::step`] are its parts for loops of a user's own, and give the same
//! bits. The names are those of DeepSpeed's engine where it has the thing.

mod checkpoint;
mod micro_batch;

pub use checkpoint::{LoadOptions, Loaded};
pub use micro_batch::Loss;

use crate::breakdown::Clock;
use crate::callback::Callbacks;
use crate::checkpoint::{Counters, FreshFrom};
use crate::config::RunConfig;
use crate::error::{Result, TrainError};
use crate::evaluation::{self, Followers};
use crate::event::{Event, Observer, Silent};
use crate::loss_scale::LossScaler;
use crate::loss_spike::SpikeGuard;
use crate::plan::groups::ParamGroups;
use crate::plan::{self, RunPlan};
use crate::precision::FormatTable;
use crate::precision::adaptive::Adaptive;
use crate::precision::half::Halves;
use crate::run::{self, Outcome};
use crate::state::TrainState;
use crate::step::{StepContext, StepReport};
use crate::task::nominal_targets;
use crate::training_data::TrainingData;
use comm::{Comm, Limits, local};
use data::Dataset;
use generate::Evaluation;
use micro_batch::{Boundary, Pending};
use models::Model;
use models::weights::WeightSource;
use ops::Precision;
use optim::Optimizer;
use optim::schedule::Plateau;
use parallel::{Order, Partition, Stage, Zero};
use std::cell::RefCell;
use std::sync::Arc;
use tensor::{DType, Queue, cpu};

/// An engine with random weights (`run.seed`) on this machine's CPU: DeepSpeed's `initialize`. Memory for weights, gradients
/// and optimizer state is taken here. With weights from elsewhere: [`Engine::with_weights`]; with an update rule of the
/// caller's own: [`Engine::with_optimizer`].
///
/// # Errors
/// The configuration lacks an optimizer or does not fit together.
pub fn initialize(model: Model, config: RunConfig) -> Result<Engine> {
    let seed = config.run.seed;
    Engine::with_weights(model, config, &WeightSource::Random { seed })
}

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
    /// Early stopping and the best checkpoints.
    pub(crate) followers: Followers,
    /// The last step whose evaluation was made.
    pub(crate) evaluated: Option<u64>,
    /// Of a run whose ops differ in their formats.
    pub(crate) formats: Option<FormatTable>,
    /// Of a run with `run.adaptive_precision`.
    pub(crate) adaptive: Option<Adaptive>,
    /// The rate that [`Engine::set_lr`] set, while it holds.
    set_lr: Option<f64>,
    /// Where optimizer and schedule began, if not with the weights.
    fresh: FreshFrom,
    /// Norm of the last step's gradient, and whether its update was applied.
    last: Option<(f64, bool)>,
    /// Of a run that times its steps.
    pub(crate) clock: Option<Clock>,
    /// Micro-batches since the last update.
    pending: Pending,
    boundary: Boundary,
    /// In a cell, so that they can be told of an engine that is being read.
    pub(crate) callbacks: RefCell<Callbacks>,
}

impl Engine {
    /// A model with weights from `source`.
    ///
    /// # Errors
    /// As [`initialize`], or the weights cannot be read.
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
        config.check_recompute(&model)?;
        if let Some(ltd) = &plan.random_ltd {
            ltd.check(&config, &model)?;
        }
        let mut groups = ParamGroups::resolve(&config, &model, own)?;
        groups.settle(&config, &plan);
        let table = plan.formats.table(&config, &model)?;
        let adaptive = config.run.adaptive_precision;
        let adaptive = adaptive.map(|adaptive| Adaptive::new(adaptive, table.clone(), plan.dtype, &model));
        let formats = (!plan.formats.is_uniform()).then_some(table);
        let halves = Halves::of(&config);
        let zero = share(&config, &model, &groups, comm);
        let state = TrainState::new(&model, source, &queue, plan.dtype, &groups, config.run.ema_decay, halves, &zero)?;
        let (counters, fresh, pending, boundary, callbacks) = Default::default();
        let scaler = LossScaler::of(&config);
        let (guard, plateau) = (config.run.loss_spike.map(SpikeGuard::new), config.plateau());
        let (followers, evaluated, set_lr, last) = (Followers::new(&config), None, None, None);
        let clock = config.times_steps().then(|| Clock::new(config.flops_profiler.step()));
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
            followers,
            evaluated,
            formats,
            adaptive,
            clock,
            set_lr,
            fresh,
            last,
            pending,
            boundary,
            callbacks,
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

    /// The rate of the next step, as of `optimizer.params.lr`.
    pub(crate) fn lr(&self) -> f64 {
        let lr = self.plan.schedule.lr(self.scheduled());
        self.set_lr.unwrap_or_else(|| self.plateau.map_or(lr, |plateau| plateau.lr(lr)))
    }

    /// Updates that schedules have counted.
    fn scheduled(&self) -> u64 {
        self.counters.applied_steps - self.fresh.schedule
    }

    /// The rates of the next step: that of weights in no item of `optimizer.groups`, then that of each item, 0 where it is
    /// frozen.
    pub fn get_lr(&self) -> Vec<f64> {
        self.groups.rates(self.lr(), self.scheduled())
    }

    /// Sets the rate of `optimizer.params.lr` from the next step on; groups with rates of their own keep
    /// their ratio to it, those with a schedule of their own keep that. A
    /// schedule sets the rate again when it moves, which is after the next update; without one it stays. Checkpoints keep it.
    ///
    /// # Errors
    /// It is negative or not finite.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(TrainError::Request(format!(
                "Engine::set_lr: the rate is {lr}; it must be a number of at least 0"
            )));
        }
        self.set_lr = Some(lr);
        Ok(())
    }

    /// The norm of the last step's mean gradient before clipping by norm; none before the first step. Not finite where a
    /// gradient overflowed.
    pub fn get_global_grad_norm(&self) -> Option<f64> {
        self.last.map(|(grad_norm, _)| grad_norm)
    }

    /// Whether the last step changed the weights: it did not where a gradient overflowed or the loss was a spike. False
    /// before the first.
    pub fn was_step_applied(&self) -> bool {
        self.last.is_some_and(|(_, is_applied)| is_applied)
    }

    /// Optimizer steps so far, the skipped ones too.
    pub fn global_steps(&self) -> u64 {
        self.counters.step
    }

    /// Optimizer steps whose update was not applied.
    pub fn skipped_steps(&self) -> u64 {
        self.counters.step - self.counters.applied_steps
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

    /// Tokens of a row that layers which drop some keep in the next step.
    pub fn random_ltd_tokens(&self) -> Option<u64> {
        self.plan.random_ltd.as_ref().map(|ltd| ltd.kept(self.counters.step + 1))
    }

    /// What the loss of the next step is multiplied by; none unless the run is in fp16.
    pub fn loss_scale(&self) -> Option<f64> {
        self.scaler.as_ref().map(LossScaler::scale)
    }

    /// The format of each op; none: all run in that of the plan.
    pub(crate) fn precision(&self) -> Option<&dyn Precision> {
        let adaptive = self.adaptive.as_ref().map(|adaptive| adaptive as &dyn Precision);
        adaptive.or(self.formats.as_ref().map(|formats| formats as &dyn Precision))
    }

    /// Every key with its final value under `dump_state`, and a word on a profile that will not be.
    pub(crate) fn report_state(&self, observer: &mut dyn Observer) {
        if self.config.dump_state {
            let settings = self.config.settings(&self.plan.derived(&self.config));
            let lines: Vec<String> = settings.iter().map(ToString::to_string).collect();
            observer.on(Event::Report { name: "state", text: &lines.join("\n") });
        }
        let (done, steps) = (self.counters.step, self.plan.steps);
        if let Some(step) = self.config.flops_profiler.step().filter(|step| *step <= done || *step > steps) {
            let notice =
                format!("flops_profiler.profile_step is {step}, and this run makes steps {} to {steps}", done + 1);
            observer.on(Event::Notice(&notice));
        }
    }

    /// Whether the next step reports the norms of every block.
    fn norms_due(&self) -> bool {
        let every = self.config.run.norms_every;
        every > 0 && (self.counters.step + 1).is_multiple_of(every)
    }

    pub(crate) fn context(&self) -> StepContext<'_> {
        StepContext {
            queue: &self.queue,
            model: &self.model,
            state: &self.state,
            groups: &self.groups,
            zero: &self.zero,
            dtype: self.plan.dtype,
            precision: self.precision(),
            step: self.counters.step + 1,
            applied_step: self.counters.applied_steps - self.fresh.optimizer + 1,
            scheduled: self.scheduled(),
            seed: self.config.run.seed,
            nominal_targets: nominal_targets(&self.plan, &self.model),
            recompute: self.config.recompute(),
            random_ltd: self.plan.random_ltd.as_ref(),
            pld_theta: self.config.progressive_layer_drop.theta(self.counters.step),
            loss_scale: self.loss_scale().unwrap_or(1.0),
            lr: self.lr(),
            betas: self.plan.schedule.betas(self.scheduled()),
            loss_terms: self.config.run.loss_terms(),
            gradient_clipping: self.config.gradient_clipping,
            gradient_edit: self.config.run.gradient_edit(),
            gradient_noise: self.config.run.gradient_noise,
            check_overflow: self.plan.dtype == DType::F16 || self.config.bf16.check_grad_overflow,
            loss_limit: self.guard.as_ref().and_then(SpikeGuard::limit),
            norms: self.norms_due(),
            clock: self.clock.as_ref(),
        }
    }

    /// The mean loss over a whole dataset, in micro-batches, without dropout.
    ///
    /// # Errors
    /// The device failed.
    pub fn evaluate(&self, dataset: &Dataset, observer: &mut dyn Observer) -> Result<Evaluation> {
        evaluation::evaluate(self, dataset, observer)
    }
}

/// Who owns what of a model among the ranks of a run; alone without a communicator.
fn share(config: &RunConfig, model: &Model, groups: &ParamGroups, comm: Option<Comm>) -> Zero {
    let comm = comm.unwrap_or_else(|| local::world(1, Limits::default()).remove(0));
    let stage = Stage::numbered(config.zero_optimization.stage.into()).expect("the table of keys allows 0 to 3");
    // Sums in 16 bits are kept on one rank alone, whose bits have no other rank to agree with.
    let along_tree = config.run.deterministic && Halves::of(config).gradients.is_none();
    let order = if along_tree { Order::Tree } else { Order::AsTheyCome };
    let partition = Partition::new(model, &|id| groups.of(id).map(|group| group.rule.granularity()), comm.size());
    Zero::new(comm, partition, stage, order)
}
