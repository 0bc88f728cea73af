//! One optimizer step: run the schedule of micro-batches, norm and count, update, report.
//!
//! # Invariants
//! - Every gradient is a sum: each micro-batch seeds its backward with the constant `-loss_scale / (train_batch_size x
//!   sequence_length)`. The step's mean over *counted* targets comes in at the end, as the factor nominal / counted /
//!   loss_scale, so accumulation is exact by token count whatever each micro-batch holds.
//! - The host reads the device once, after the last micro-batch.
//! - Micro-batch g of a step is round x ranks + rank. Every rank runs as many rounds, and sees the same loss, norm and
//!   decisions: numbers of micro-batches are added in the order of g, on every rank.

use crate::breakdown::Clock;
use crate::error::{Result, TrainError};
use crate::grad_norm::clip_factor;
use crate::layer_drop::Kept;
use crate::norms::{self, BlockNorms};
use crate::plan::groups::ParamGroups;
use crate::precision::half::Summed;
use crate::random_ltd::{RandomLtd, Routed, Routes};
use crate::state::{TrainState, noise_std};
use generate::to_batch;
use models::{Model, Pass, PassOutput, Recompute, Recorded, Residency};
use ops::{Batch, Cost, Env, HeadRequest, Precision, Single};
use optim::{GradientEdit, Step};
use parallel::{Order, Zero, grad_norm};
use std::time::Instant;
use tensor::{DType, LossTerms, Queue, Tensor};

/// What a step is told.
pub struct StepContext<'a> {
    /// The device.
    pub queue: &'a Queue,
    /// The model.
    pub model: &'a Model,
    /// Its weights.
    pub state: &'a TrainState,
    /// The update rules.
    pub groups: &'a ParamGroups,
    /// The ranks that train it together.
    pub zero: &'a Zero,
    /// The format of activations.
    pub dtype: DType,
    /// The format of each op; none: all run in `dtype`.
    pub precision: Option<&'a dyn Precision>,
    /// Optimizer step, from 1.
    pub step: u64,
    /// Updates applied so far, this one included.
    pub applied_step: u64,
    /// Updates that schedules have counted before this one.
    pub scheduled: u64,
    /// Seed of dropout and of moments that are rounded by chance.
    pub seed: u64,
    /// `train_batch_size x sequence_length`.
    pub nominal_targets: u64,
    /// What of the forward pass runs again in backward.
    pub recompute: Recompute,
    /// Layers that run on some tokens only.
    pub random_ltd: Option<&'a RandomLtd>,
    /// How often the last layer runs, under progressive layer drop.
    pub pld_theta: Option<f64>,
    /// What the loss is multiplied by while gradients are made; 1 unless the run is in fp16.
    pub loss_scale: f64,
    /// After the schedule.
    pub lr: f64,
    /// In place of the optimizer's own, where the schedule moves them.
    pub betas: Option<[f64; 2]>,
    /// What is added to cross-entropy.
    pub loss_terms: LossTerms,
    /// Largest norm of the gradient; 0: any.
    pub gradient_clipping: f64,
    /// Penalties and clipping by value, of the mean gradient.
    pub gradient_edit: Option<GradientEdit>,
    /// Eta of the normal noise on the clipped mean gradient; 0: none.
    pub gradient_noise: f64,
    /// Skip the update when a gradient is not finite.
    pub check_overflow: bool,
    /// A loss above it is a spike, whose update is not applied.
    pub loss_limit: Option<f64>,
    /// Report the norms of every block.
    pub norms: bool,
    /// Times the parts of the step.
    pub(crate) clock: Option<&'a Clock>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over counted targets, before the update, with label smoothing, z-loss and the losses that blocks declared.
    pub loss: f64,
    /// Norm of the mean gradient, with penalties and clipped by value, before clipping by norm.
    pub grad_norm: f64,
    /// Targets that counted.
    pub num_targets: u64,
    /// The update was not applied: a gradient was not finite.
    pub skipped: bool,
    /// What the loss was multiplied by, in an fp16 run.
    pub loss_scale: Option<f64>,
    /// The update was not applied: the loss is a spike.
    pub spiked: bool,
    /// Of the forward passes.
    pub cost: Cost,
    /// Of every block; empty unless the step was asked for them.
    pub norms: Vec<BlockNorms>,
    /// Of what ran again in the backward passes.
    pub recomputed: Cost,
}

/// What has been accumulated since the last update.
#[derive(Default)]
pub struct Accumulated {
    rounds: Vec<Round>,
    cost: Cost,
    recomputed: Cost,
}

/// This rank's micro-batch of one round.
struct Round {
    logprobs: Tensor,
    /// Losses that blocks declared.
    losses: Vec<Tensor>,
    num_targets: u64,
}

/// What the host knows of one micro-batch.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Numbers {
    /// Sum of log-probabilities.
    logprobs: f64,
    /// Sum of the losses that blocks declared, times targets.
    losses: f64,
    num_targets: u64,
}

/// A row of one token without a target.
fn uncounted() -> data::Sample {
    data::Sample {
        input_ids: vec![0],
        targets: vec![data::IGNORE],
        positions: vec![0],
        document_starts: vec![0],
        class: None,
        soft: None,
    }
}

/// A micro-batch between its forward and its backward.
pub(crate) struct Forwarded {
    batch: Batch,
    routes: Routes,
    output: PassOutput,
    recorded: Recorded,
}

impl Forwarded {
    /// What its loss is made of: log-probabilities, blocks' own losses, targets that count.
    pub(crate) fn parts(&self) -> (Tensor, Vec<Tensor>, usize) {
        let PassOutput { logprobs, losses, .. } = &self.output;
        (logprobs.clone(), losses.iter().map(|(_, loss)| loss.clone()).collect(), self.batch.num_targets)
    }
}

impl StepContext<'_> {
    /// Forward of one micro-batch, at the start of a step after forgetting the gradients of the step before. `first_sample`:
    /// the number of its first sample in the global batch. None where there is no token to run.
    pub(crate) fn forward(
        &self,
        samples: &[data::Sample],
        first_sample: u32,
        so_far: &Accumulated,
    ) -> Result<Option<Forwarded>> {
        let mut batch = to_batch(self.queue, samples, first_sample)?;
        let stand_in = [uncounted()];
        let mut samples = samples;
        if so_far.rounds.is_empty() {
            self.state.store.clear_gradients();
            self.zero.clear();
        }
        if batch.num_tokens == 0 {
            if self.zero.comm().size() == 1 && self.zero.order() == Order::AsTheyCome {
                return Ok(None);
            }
            // Other ranks count on this one, and every micro-batch is a term: this one's is zero.
            samples = &stand_in;
            batch = to_batch(self.queue, samples, first_sample)?;
            if self.model.labels().is_some() {
                batch = batch.with_classes(self.queue, &[data::IGNORE])?;
            }
        }
        let (env, routes) =
            (self.env(&batch, Some(self.seed_of_backward())), self.routes(&batch, samples, first_sample)?);
        let (output, recorded) = self.pass_over(&routes, false, |pass| pass.forward_recorded(&env, &self.recompute))?;
        Ok(Some(Forwarded { batch, routes, output, recorded }))
    }

    /// Backward of what [`StepContext::forward`] ran: its gradients are added to those of the step. `is_last`: no micro-batch of
    /// the step follows.
    pub(crate) fn backward(&self, forwarded: Forwarded, is_last: bool, so_far: &mut Accumulated) -> Result<()> {
        let Forwarded { batch, routes, output, recorded } = forwarded;
        // The factor nominal / counted of the update makes this the micro-batch's share of the step's targets.
        let loss_weight = batch.num_targets as f32 / self.nominal_targets as f32 * self.loss_scale as f32;
        let env = self.env(&batch, Some(self.seed_of_backward()));
        so_far.recomputed += self.pass_over(&routes, is_last, |pass| pass.backward(&env, recorded, loss_weight))?;
        so_far.rounds.push(Round {
            logprobs: output.logprobs,
            losses: output.losses.into_iter().map(|(_, loss)| loss).collect(),
            num_targets: batch.num_targets as u64,
        });
        so_far.cost += output.cost;
        Ok(())
    }

    /// The gradient of the step's loss, before the factor of the update, with respect to each counted log-probability.
    fn seed_of_backward(&self) -> f32 {
        -self.loss_scale as f32 / self.nominal_targets as f32
    }

    /// What each block of a micro-batch runs on.
    fn routes(&self, batch: &Batch, samples: &[data::Sample], first_sample: u32) -> Result<Routes> {
        let num_blocks = self.model.blocks.len();
        let layers = self.pld_theta.map(|theta| Kept::draw(num_blocks, theta, self.seed, self.step, first_sample));
        let at = (self.seed, self.step, first_sample);
        let tokens = self.random_ltd.map(|ltd| ltd.draw(self.queue, batch, samples, num_blocks, at)).transpose()?;
        Ok(Routes { layers, tokens: tokens.unwrap_or_default() })
    }

    /// Half a pass over a micro-batch, timed if the step is. `is_last`: the backward half of the step's last one.
    fn pass_over<T>(
        &self,
        routes: &Routes,
        is_last: bool,
        half: impl FnOnce(Pass<'_>) -> ops::Result<T>,
    ) -> ops::Result<T> {
        let shared = self.zero.pass(self.queue, &self.state.store, is_last);
        let routed = Routed { inner: &shared, routes };
        let summed = Summed { inner: &routed, store: &self.state.store, queue: self.queue };
        let residency = if self.state.store.sums_gradients() { &summed as &dyn Residency } else { &routed };
        let timed = self.clock.map(|clock| clock.over(residency));
        let residency = timed.as_ref().map_or(residency, |timed| timed);
        half(Pass { model: self.model, residency })
    }

    /// The numbers of all micro-batches of all ranks, in the order of g.
    fn numbers(&self, rounds: &[Round]) -> Result<Vec<Numbers>> {
        let mut own = Vec::with_capacity(rounds.len());
        for Round { logprobs, losses, num_targets } in rounds {
            let logprobs = self.queue.read::<f32>(logprobs)?.into_iter().map(f64::from).sum();
            let mut numbers = Numbers { logprobs, losses: 0.0, num_targets: *num_targets };
            for loss in losses {
                numbers.losses += *num_targets as f64 * f64::from(self.queue.read_f32(loss)?[0]);
            }
            own.push(numbers);
        }
        if self.zero.comm().size() == 1 {
            return Ok(own);
        }
        let mut by_rank = self.zero.comm().exchange(self.queue, &own)?;
        // They are there already, but where nothing is exchanged: in a dry run.
        by_rank[self.zero.comm().index()].clone_from(&own);
        Ok((0..own.len()).flat_map(|round| by_rank.iter().map(move |rank| rank[round])).collect())
    }

    /// Norm, clipping and update. `samples`: the micro-batches again, to find where a loss stopped being finite. `ready` is
    /// told the norm when the gradient is complete, before the weights change.
    pub fn update(
        &self,
        so_far: Accumulated,
        samples: &[data::Sample],
        ready: &mut dyn FnMut(f64),
    ) -> Result<StepReport> {
        let start = Instant::now();
        let Accumulated { rounds, cost, recomputed } = so_far;
        let numbers = self.numbers(&rounds)?;
        let gradients = self.zero.finish(self.queue, &self.state.store)?;
        let mut sum = numbers.iter().fold(0.0, |sum, numbers| sum + numbers.logprobs);
        sum = numbers.iter().fold(sum, |sum, numbers| sum - numbers.losses);
        let num_targets: u64 = numbers.iter().map(|numbers| numbers.num_targets).sum();
        if num_targets == 0 {
            return Err(TrainError::NoTarget { step: self.step, samples: samples.len() });
        }
        let loss = -sum / num_targets as f64;
        if !loss.is_finite() {
            let block = self.first_non_finite(samples)?;
            return Err(TrainError::NonFinite { step: self.step, loss, block });
        }
        let to_mean = self.nominal_targets as f64 / num_targets as f64 / self.loss_scale;
        if let Some(edit) = self.gradient_edit {
            self.state.edit_gradients(self.queue, self.groups, edit.over(to_mean), &gradients)?;
        }
        let norm = to_mean * grad_norm(self.queue, self.zero, &gradients)?;
        ready(norm);
        let norms = match self.norms {
            true => norms::of_blocks(self.queue, self.model, self.state, &gradients, to_mean)?,
            false => Vec::new(),
        };
        let skipped = self.check_overflow && !norm.is_finite();
        let spiked = self.loss_limit.is_some_and(|limit| loss > limit);
        if !skipped && !spiked {
            let grad_scale = (to_mean * clip_factor(norm, self.gradient_clipping)) as f32;
            let (step, lr, betas) = (self.applied_step, self.lr, self.betas);
            if self.gradient_noise > 0.0 {
                let std = noise_std(self.gradient_noise, step - 1) / f64::from(grad_scale);
                self.state.add_noise(self.queue, std, self.seed, step, &gradients)?;
            }
            let at = Step { step, lr, weight_decay: 0.0, grad_scale, betas };
            self.state.update(self.queue, self.groups, self.seed, (&at, self.scheduled), self.zero, &gradients)?;
        }
        self.zero.give_back(gradients);
        let loss_scale = (self.dtype == DType::F16).then_some(self.loss_scale);
        if let Some(clock) = self.clock {
            clock.updated(start);
        }
        Ok(StepReport { loss, grad_norm: norm, num_targets, skipped, loss_scale, spiked, cost, recomputed, norms })
    }

    pub(crate) fn env<'a>(&'a self, batch: &'a Batch, seed: Option<f32>) -> Env<'a> {
        Env {
            queue: self.queue,
            params: &self.state.store,
            regions: &Single,
            batch,
            dtype: self.dtype,
            precision: self.precision,
            head: HeadRequest::TokenLogprobs { seed, terms: self.loss_terms },
            dropout: Some((self.seed, self.step)),
            cache: None,
            probe: self.clock.and_then(|clock| clock.probe(self.step)),
        }
    }
}
