//! A model on the CPU with its weights and one batch: what the tests of whole models run.

#![allow(dead_code, reason = "each test file uses its part")]

use models::weights::{self, WeightSource};
use models::{Model, ModelConfig, Pass, Resident, registry};
use ops::{Batch, Env, HeadRequest, ParamStore, Single};
use std::path::Path;
use tensor::{DType, Isa, LossTerms, Queue, Tensor, cpu};
use testing::oracle::Row;
use testing::trainee::pack;

/// A model in memory.
pub(crate) struct Loaded {
    pub(crate) queue: Queue,
    pub(crate) model: Model,
    pub(crate) store: ParamStore,
    pub(crate) dtype: DType,
}

impl Loaded {
    /// From a Hugging Face folder.
    pub(crate) fn from_folder(folder: &Path, dtype: DType, isa: Isa) -> Self {
        let config = ModelConfig::from_folder(folder).expect("a readable config.json");
        let model = registry::build(&config, config.max_positions());
        let source = WeightSource::folder(folder, &model).expect("weights that fit");
        Self::new(model, &source, dtype, isa)
    }

    pub(crate) fn new(model: Model, source: &WeightSource, dtype: DType, isa: Isa) -> Self {
        let queue = cpu::queue(2, false, isa);
        let store = weights::load(&model, source, &queue, dtype).expect("weights that load");
        store.allocate_gradients(&queue).expect("memory for gradients");
        Self { queue, model, store, dtype }
    }

    pub(crate) fn env<'a>(&'a self, batch: &'a Batch, head: HeadRequest) -> Env<'a> {
        Env {
            queue: &self.queue,
            params: &self.store,
            regions: &Single,
            batch,
            dtype: self.dtype,
            precision: None,
            head,
            dropout: None,
            cache: None,
            probe: None,
        }
    }

    pub(crate) fn pass(&self) -> Pass<'_> {
        Pass { model: &self.model, residency: &Resident }
    }

    /// Rows of the oracle as one packed batch; targets are labels moved by one.
    pub(crate) fn batch(&self, rows: &[Row]) -> Batch {
        pack(&self.queue, rows)
    }

    /// Loss as Transformers defines it, and gradients in the store.
    pub(crate) fn loss_and_gradients(&self, rows: &[Row], recompute: bool) -> (f64, Vec<(String, Vec<f32>)>) {
        let batch = self.batch(rows);
        let count = batch.num_targets;
        let env = self
            .env(&batch, HeadRequest::TokenLogprobs { seed: Some(-1.0 / count as f32), terms: LossTerms::default() });
        self.store.clear_gradients();
        let pass = self.pass().forward_backward(&env, 0.0, &recompute.into()).expect("forward and backward");
        let loss = -sum(&self.queue, &pass.logprobs) / count as f64;
        let gradients = self.store.gradients(&self.queue).expect("gradients").into_iter();
        let read = |(id, g): (_, Tensor)| (self.store.name(id).to_owned(), self.queue.read(&g).expect("a gradient"));
        (loss, gradients.map(read).collect())
    }
}

pub(crate) fn sum(queue: &Queue, x: &Tensor) -> f64 {
    queue.read::<f32>(x).expect("numbers").iter().map(|x| f64::from(*x)).sum()
}
