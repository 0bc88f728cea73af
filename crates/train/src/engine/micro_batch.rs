//! Loops of a user's own: forward, backward and step, micro-batch by micro-batch.
//!
//! ```text
//! for samples in micro_batches {
//!     let loss = engine.forward(&samples)?;
//!     engine.backward(&loss)?;
//!     engine.step()?; // updates at the boundary of accumulation, counts the micro-batch elsewhere
//! }
//! ```
//! The shape is that of DeepSpeed's engine; [`Engine::train_batch`] makes the same passes and gives the same bits.
//!
//! # Invariants
//! - One micro-batch is between forward and backward at a time: the head's gradients are made in forward, while its logits
//!   are at hand, so that no logits are kept or made twice.
//! - A call in a wrong order is an error that says what to call first, and changes nothing. Any other error gives up the
//!   micro-batches since the last update; the weights stay.
//!
//! # Where we differ from DeepSpeed
//! - The mean is over the counted targets of the whole step, not of each micro-batch: nothing is divided by the number of
//!   micro-batches, and [`Loss::item`] is the micro-batch's own mean.
//! - A second forward before the backward, a backward without one, a step without a backward, and a micro-batch that nobody
//!   stepped are errors; there some of them go wrong in silence.
//! - Micro-batches are counted from the last update, whatever boundary it was at.

use super::Engine;
use crate::curriculum::cut;
use crate::error::{Result, TrainError};
use crate::loss_scale::ScaleChange;
use crate::precision::adaptive::Adaptive;
use crate::run;
use crate::step::{Accumulated, Forwarded, StepReport};
use data::Sample;
use generate::{Evaluation, TOKENS_PER_PASS, check_task};
use std::sync::Arc;
use tensor::Tensor;

/// The loss of a micro-batch whose forward pass has run: for [`Engine::backward`], and to look at.
pub struct Loss {
    /// Shared with the pass that it is the loss of.
    pass: Arc<()>,
    /// Log-probabilities, blocks' own losses, targets that count; none where the micro-batch has no token.
    parts: Option<(Tensor, Vec<Tensor>, usize)>,
}

impl Loss {
    /// The mean over the counted targets of the micro-batch, with the losses that blocks declared; NaN where none counts.
    /// Waits for the device. `engine`: the one that made it.
    ///
    /// # Errors
    /// The device failed.
    pub fn item(&self, engine: &Engine) -> Result<f64> {
        let Some((logprobs, losses, num_targets)) = &self.parts else { return Ok(f64::NAN) };
        let sum: f64 = engine.queue.read::<f32>(logprobs)?.into_iter().map(f64::from).sum();
        let mut loss = -sum / *num_targets as f64;
        for own in losses {
            loss += f64::from(engine.queue.read_f32(own)?[0]);
        }
        Ok(loss)
    }
}

/// What has been done since the last update.
#[derive(Default)]
pub(super) struct Pending {
    accumulated: Accumulated,
    /// Of this rank.
    samples: Vec<Sample>,
    /// Of all ranks.
    num_samples: u64,
    /// Samples of each micro-batch of this rank.
    sizes: Vec<usize>,
    /// The micro-batch between forward and backward; its pass is none where it has no token.
    open: Option<(Arc<()>, Option<Forwarded>)>,
    /// Micro-batches that were stepped.
    micro_steps: u64,
    /// Whether a backward has not been stepped yet.
    unstepped: bool,
}

impl Pending {
    fn is_begun(&self) -> bool {
        self.open.is_some() || self.unstepped || self.micro_steps > 0 || !self.samples.is_empty()
    }
}

/// Who says where a step ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Boundary {
    /// What [`Engine::set_gradient_accumulation_boundary`] said.
    set: Option<bool>,
    /// Within [`Engine::no_sync`].
    no_sync: bool,
}

fn wrong_order(message: &str) -> TrainError {
    TrainError::Request(message.to_owned())
}

impl Engine {
    /// One optimizer step over `samples`, `train_batch_size` of them in a usual step, in micro-batches. Of several ranks each
    /// is given all of them, and takes its own.
    ///
    /// # Errors
    /// Micro-batches of a loop of one's own wait for their update; the loss is not finite, or the device failed.
    pub fn train_batch(&mut self, samples: &[Sample]) -> Result<StepReport> {
        self.check_no_sync("train_batch")?;
        if self.pending.is_begun() {
            return Err(wrong_order(
                "Engine::train_batch: micro-batches have been accumulated and not applied; call \
                 set_gradient_accumulation_boundary(true) and step() first, or zero_grad() to give them up",
            ));
        }
        let micro = self.plan.batch.micro_batch_size as usize;
        let (rank, ranks) = (self.zero.comm().index(), self.zero.comm().size());
        let rounds = samples.len().div_ceil(micro * ranks);
        for round in 0..rounds {
            if round > 0 {
                self.tell(|callback, control| callback.on_substep_end(self, control));
            }
            let first = ((round * ranks + rank) * micro).min(samples.len());
            let own = &samples[first..(first + micro).min(samples.len())];
            let loss = self.begin_pass(own, first as u32)?;
            self.finish_pass(&loss, round + 1 == rounds)?;
        }
        self.pending.num_samples = samples.len() as u64;
        self.update()
    }

    /// Forward of one micro-batch, its rows cut to the length of the curriculum if there is one. Keeps what
    /// [`Engine::backward`] needs.
    ///
    /// # Errors
    /// The micro-batch before waits for its backward or its step; a row is longer than the model's positions, or the device
    /// failed.
    pub fn forward(&mut self, samples: &[Sample]) -> Result<Loss> {
        if self.pending.open.is_some() {
            return Err(wrong_order(
                "Engine::forward: the micro-batch before has had no backward; call backward(&loss) first, or zero_grad() to \
                 give up the micro-batches since the last update",
            ));
        }
        let is_managed = self.config.managed_gradient_accumulation && self.boundary.set.is_none();
        if self.pending.unstepped && is_managed && !self.boundary.no_sync {
            return Err(wrong_order(
                "Engine::forward: the micro-batch before has not been stepped; call step() after each backward, which \
                 updates at the boundary of accumulation and counts elsewhere, or accumulate under no_sync",
            ));
        }
        self.begin_pass(samples, self.pending.samples.len() as u32)
    }

    /// Backward of the micro-batch whose forward gave `loss`: its gradients are added to those since the last update.
    ///
    /// # Errors
    /// `loss` is not that of the last forward, or had its backward; the device failed.
    pub fn backward(&mut self, loss: &Loss) -> Result<()> {
        match &self.pending.open {
            None => Err(wrong_order(
                "Engine::backward: no forward waits for its backward; call forward(samples) first, and backward once for each",
            )),
            Some((pass, _)) if !Arc::ptr_eq(pass, &loss.pass) => Err(wrong_order(
                "Engine::backward: this loss is not that of the last forward of this engine; call backward with the loss that \
                 forward(samples) gave last",
            )),
            Some(_) => {
                self.finish_pass(loss, true)?;
                // Without synchronisation nothing is counted.
                self.pending.unstepped |= !self.boundary.no_sync;
                Ok(())
            }
        }
    }

    /// At the boundary of gradient accumulation: norm, clipping and update from what was accumulated, then the loss scale of
    /// the next step. Elsewhere it counts the micro-batch and gives none.
    ///
    /// # Errors
    /// There was no backward to step; the loss is not finite or a spike that stops the run, the loss scale cannot fall any
    /// further, or the device failed.
    pub fn step(&mut self) -> Result<Option<StepReport>> {
        self.check_no_sync("step")?;
        if self.pending.open.is_some() {
            return Err(wrong_order("Engine::step: the forward has had no backward; call backward(&loss) first"));
        }
        if !self.pending.unstepped {
            return Err(wrong_order(
                "Engine::step: there is no gradient since the last step; call forward(samples) and backward(&loss) first",
            ));
        }
        if self.is_gradient_accumulation_boundary() {
            return self.update().map(Some);
        }
        (self.pending.unstepped, self.pending.micro_steps) = (false, self.pending.micro_steps + 1);
        self.tell(|callback, control| callback.on_substep_end(self, control));
        Ok(None)
    }

    /// Gives up the micro-batches since the last update, the one between forward and backward too.
    pub fn zero_grad(&mut self) {
        self.pending = Pending::default();
    }

    /// Whether the next [`Engine::step`] updates: the micro-batch is the last of its step, the caller owns the boundary
    /// (`managed_gradient_accumulation` false), or [`Engine::set_gradient_accumulation_boundary`] said so.
    pub fn is_gradient_accumulation_boundary(&self) -> bool {
        let size = self.plan.ramp.size(self.counters.step);
        let num_micro_batches = size.div_ceil(self.plan.batch.train_batch_size / self.plan.batch.accumulation_steps);
        let is_last = self.pending.micro_steps + 1 >= num_micro_batches;
        self.boundary.set.unwrap_or(!self.config.managed_gradient_accumulation || is_last)
    }

    /// Says whether the next steps update, until it is said otherwise; none: the engine counts again.
    pub fn set_gradient_accumulation_boundary(&mut self, is_boundary: impl Into<Option<bool>>) {
        self.boundary.set = is_boundary.into();
    }

    /// Runs forward and backward passes whose gradients stay on this rank and are not counted towards the boundary; the next
    /// [`Engine::step`] after it, with a micro-batch of its own, has them in its gradient. On one rank there is nothing to
    /// synchronise, and every ZeRO stage may do it.
    ///
    /// # Errors
    /// What `passes` returns; a call within another.
    pub fn no_sync<T>(&mut self, passes: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.boundary.no_sync {
            return Err(wrong_order("Engine::no_sync: it is on already; leave the outer no_sync first"));
        }
        self.boundary.no_sync = true;
        let result = passes(self);
        self.boundary.no_sync = false;
        result
    }

    /// The mean loss over `samples`, without dropout; nothing is recorded and gradients stay as they are. Where the run
    /// averages its weights, it is the loss of the average.
    ///
    /// # Errors
    /// No target counts, a row is longer than the model's positions, or the device failed.
    pub fn eval_batch(&self, samples: &[Sample]) -> Result<Evaluation> {
        let _averaged = self.state.show_average(&self.queue, &self.zero)?;
        let pass = self.zero.pass(&self.queue, &self.state.store, false);
        let sum = generate::evaluate(&run::forward(self, &pass), samples.iter().cloned(), TOKENS_PER_PASS)?;
        sum.evaluation(None).ok_or_else(|| wrong_order("Engine::eval_batch: the samples have no target that counts"))
    }

    fn check_no_sync(&self, call: &str) -> Result<()> {
        if self.boundary.no_sync {
            return Err(TrainError::Request(format!(
                "Engine::{call}: it is called within no_sync, where nothing is updated; leave no_sync first"
            )));
        }
        Ok(())
    }

    /// `first_sample`: the number of the first one in the step's batch.
    fn begin_pass(&mut self, samples: &[Sample], first_sample: u32) -> Result<Loss> {
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
            check_task(&self.model, sample)?;
        }
        if !self.pending.is_begun() {
            self.tell(|callback, control| callback.on_step_begin(self, control));
        }
        let mut pending = std::mem::take(&mut self.pending);
        if let Some(adaptive) = self.adaptive.as_ref().filter(|_| pending.sizes.is_empty()) {
            adaptive.begin_step(self.counters.step + 1);
        }
        let forwarded = self.context().forward(samples, first_sample, &pending.accumulated);
        self.adaptive.iter().for_each(Adaptive::pause);
        let forwarded = forwarded?;
        pending.samples.extend_from_slice(samples);
        pending.num_samples += samples.len() as u64;
        pending.sizes.push(samples.len());
        let loss = Loss { pass: Arc::new(()), parts: forwarded.as_ref().map(Forwarded::parts) };
        pending.open = Some((loss.pass.clone(), forwarded));
        self.pending = pending;
        Ok(loss)
    }

    /// `is_last`: no micro-batch of the step follows.
    fn finish_pass(&mut self, loss: &Loss, is_last: bool) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let (pass, forwarded) = pending.open.take().expect("Engine::finish_pass: a forward went before");
        assert!(Arc::ptr_eq(&pass, &loss.pass), "Engine::finish_pass: another forward came between");
        if let Some(forwarded) = forwarded {
            if let Some(adaptive) = self.adaptive.as_ref().filter(|_| pending.sizes.len() == 1) {
                adaptive.go_on(self.counters.step + 1);
            }
            let done = self.context().backward(forwarded, is_last, &mut pending.accumulated);
            self.adaptive.iter().for_each(Adaptive::pause);
            done?;
        }
        self.pending = pending;
        Ok(())
    }

    /// Norm, clipping and update from what was accumulated; then the loss scale of the next step.
    fn update(&mut self) -> Result<StepReport> {
        let Pending { accumulated, samples, num_samples, sizes, .. } = std::mem::take(&mut self.pending);
        let report = self.update_adapting(accumulated, &samples, &sizes)?;
        // A step that ends the run has not been: nothing moves, so that the state before it can still be saved.
        let mut scaler = self.scaler;
        if let Some(scaler) = &mut scaler
            && scaler.update(report.skipped) == ScaleChange::AtMinimum
        {
            return Err(TrainError::LossScale { step: self.counters.step + 1, scale: scaler.scale() });
        }
        self.guard_loss(&report, num_samples)?;
        let is_applied = !report.skipped && !report.spiked;
        self.last = Some((report.grad_norm, is_applied));
        self.tell(|callback, control| callback.on_optimizer_step(self, control));
        self.scaler = scaler;
        if is_applied && self.config.scheduler.is_some() {
            // The schedule moves now, and sets the rate again.
            self.set_lr = None;
        }
        self.counters.step += 1;
        self.counters.applied_steps += u64::from(is_applied);
        self.counters.samples += num_samples;
        self.counters.tokens += report.num_targets;
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.settle(&self.queue, self.counters.step)?;
        }
        self.tell(|callback, control| callback.on_step_end(self, &report, control));
        Ok(report)
    }
}
