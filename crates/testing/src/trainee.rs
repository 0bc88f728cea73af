//! A model that trains, on any device and with any regions: what the tests of the seams run.
//!
//! One step is forward, backward and one AdamW update of every trained weight by the mean cross-entropy of one batch.
//! Weights are f32 and are their own masters. Nothing is read from the device but by the caller: the losses of a whole
//! run may be read at its end.

use models::weights::{WeightSource, declare, load_one};
use models::{Model, Pass, PassOutput, Recompute, Residency};
use ops::{Batch, Cost, Document, Env, HeadRequest, ParamId, ParamStore, Params, Regions, Result};
use optim::{Optimizer, Shard, Step};
use tensor::{DType, LossTerms, MemoryKind, Queue, Tensor};

use crate::oracle::{AdamW, Row};

/// A model in memory with its optimizer state.
pub struct Trainee<'a> {
    /// The device.
    pub queue: Queue,
    /// What is trained.
    pub model: &'a Model,
    /// Where layers are split.
    pub regions: &'a dyn Regions,
    /// Weights and gradients of this rank's share.
    pub store: ParamStore,
    /// What runs again in backward.
    pub recompute: Recompute,
    /// The seed of dropout, if it is on.
    pub dropout_seed: Option<u64>,
    /// Settings of every step.
    pub adamw: AdamW,
    /// Steps made.
    pub step: u64,
    moments: Vec<(ParamId, [Tensor; 2])>,
}

impl<'a> Trainee<'a> {
    /// This rank's share of a model. Without a `source` the weights are of unspecified content: for dry devices.
    pub fn new(
        queue: Queue,
        model: &'a Model,
        regions: &'a dyn Regions,
        source: Option<&WeightSource>,
        adamw: AdamW,
    ) -> Self {
        let part_of = |axis: &str| regions.part(axis);
        let store = declare(model, &part_of);
        let mut moments = Vec::new();
        for (id, spec) in model.iter() {
            let shape = store.shape(id);
            let weight = match source {
                Some(source) => load_one(source, &queue, (id, spec), &part_of).expect("weights that load"),
                None => queue.alloc(MemoryKind::Weights, DType::F32, shape).expect("memory for weights"),
            };
            store.set_weight(id, Some(weight));
            if store.is_trained(id) {
                let zeros = || queue.zeros(MemoryKind::Optimizer, DType::F32, shape).expect("memory for moments");
                moments.push((id, [zeros(), zeros()]));
            }
        }
        store.allocate_gradients(&queue).expect("memory for gradients");
        Self {
            queue,
            model,
            regions,
            store,
            recompute: Recompute::Nothing,
            dropout_seed: None,
            adamw,
            step: 0,
            moments,
        }
    }

    /// Forward and backward: the log-probability of every target, f32 `[N]`, and the cost of the forward pass.
    /// Gradients of the mean cross-entropy are in the store.
    pub fn forward_backward(&self, batch: &Batch, residency: &dyn Residency) -> Result<(Tensor, Cost)> {
        let env = Env {
            queue: &self.queue,
            params: &self.store,
            regions: self.regions,
            batch,
            dtype: DType::F32,
            precision: None,
            head: HeadRequest::TokenLogprobs {
                seed: Some(-1.0 / batch.num_targets as f32),
                terms: LossTerms::default(),
            },
            dropout: self.dropout_seed.map(|seed| (seed, self.step)),
            cache: None,
            probe: None,
        };
        self.store.clear_gradients();
        let PassOutput { logprobs, cost, .. } =
            Pass { model: self.model, residency }.forward_backward(&env, 0.0, &self.recompute)?;
        Ok((logprobs, cost))
    }

    /// One AdamW update by the gradients in the store.
    pub fn update(&mut self) -> Result<()> {
        self.step += 1;
        let AdamW { lr, beta1, beta2, eps, weight_decay } = self.adamw;
        let rule = optim::AdamW { betas: [beta1, beta2], eps, decoupled: true, bias_correction: true, amsgrad: false };
        let at = Step { step: self.step, lr, weight_decay, grad_scale: 1.0, betas: None };
        for ((id, grad), (moment_id, states)) in self.store.gradients(&self.queue)?.iter().zip(&self.moments) {
            assert_eq!(id, moment_id, "Trainee::update: moments are in the order of gradients");
            let param = &self.store.weight(*id)?;
            rule.step(&self.queue, &Shard { param, grad, states, compute: None, first: 0, key: [0; 2] }, &at)?;
        }
        Ok(())
    }

    /// The mean cross-entropy of [`Trainee::forward_backward`]'s log-probabilities; waits for them.
    pub fn loss(&self, batch: &Batch, logprobs: &Tensor) -> f64 {
        let logprobs: Vec<f32> = self.queue.read(logprobs).expect("log-probabilities");
        -logprobs.iter().map(|&x| f64::from(x)).sum::<f64>() / batch.num_targets as f64
    }

    /// Gradients of trained weights, in order; waits for them.
    pub fn gradients(&self) -> Vec<(ParamId, Vec<f32>)> {
        let gradients = self.store.gradients(&self.queue).expect("gradients").into_iter();
        gradients.map(|(id, grad)| (id, self.queue.read(&grad).expect("a gradient"))).collect()
    }
}

/// Rows as one packed batch; targets are labels moved by one.
pub fn pack(queue: &Queue, rows: &[Row]) -> Batch {
    let (mut ids, mut targets, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for (sample, row) in rows.iter().enumerate() {
        ids.extend(&row.ids);
        let mut start = 0;
        for end in (1..=row.ids.len()).filter(|&t| t == row.ids.len() || row.documents[t] != row.documents[t - 1]) {
            let len = end - start;
            targets.extend((start + 1..end).map(|t| row.labels[t] as i32).chain([-100]));
            documents.push(Document { len, sample: sample as u32, row_position: start as u32, position: 0 });
            start = end;
        }
    }
    Batch::new(queue, &ids, Some(&targets), &documents).expect("a batch")
}
