//! Saving and loading an engine, as a run does and as a program does by itself.
//!
//! A program's checkpoint is `DIR/TAG/`, and `DIR/latest` names the newest tag: DeepSpeed's layout, its default tag too. The
//! files inside are ours ([`crate::checkpoint`]), so that every command that takes a checkpoint takes it.
//!
//! # Invariants
//! - A checkpoint is complete or absent; whatever stops the writing leaves the ones before it and `latest` as they were.
//! - Loading changes nothing before every byte of the checkpoint was read and checked and every shape held against the model.
//! - Gradients are not saved. The samples of micro-batches that wait for their update come again: the counters are those of
//!   the last update.

use super::{Engine, Pending};
use crate::checkpoint::{self, Checkpoint, FreshFrom, Head, Loader, Rng, Tag, TensorSpec};
use crate::error::{Result, TrainError};
use crate::precision::adaptive::Adaptive;
use crate::resume::model_json;
use crate::saving::first_of_all;
use crate::state::{StateTensor, WEIGHT};
use optim::AVERAGE;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::DType;

/// What of a checkpoint is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// The optimizer's state; without it the optimizer begins anew, with its first step the next one.
    pub optimizer_states: bool,
    /// Where the schedule stands; without it the schedule begins anew, at its first step.
    pub lr_scheduler_states: bool,
    /// The weights and nothing else: counters, optimizer and schedule stay as they are. The checkpoint may be of another
    /// optimizer.
    pub module_only: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { optimizer_states: true, lr_scheduler_states: true, module_only: false }
    }
}

/// What a checkpoint that was loaded says beside the engine's own state.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Its folder.
    pub path: PathBuf,
    /// What [`Engine::save_checkpoint`] was given; null if that was nothing.
    pub client_state: Value,
}

impl Engine {
    /// Saves everything that training goes on from to `dir/tag` and names it in `dir/latest`. `tag`: by default
    /// `global_step{N}`. `client_state`: whatever the caller needs to go on; [`Engine::load_checkpoint`] gives it back.
    ///
    /// # Errors
    /// A weight is not finite, the tag is no name of a folder, or the file system refuses.
    pub fn save_checkpoint(&self, dir: &Path, tag: Option<&str>, client_state: Value) -> Result<PathBuf> {
        let step = self.counters.step;
        let tag = Tag::new(tag.map_or_else(|| format!("global_step{step}"), str::to_owned), step)?;
        // One rank has no other tag to differ from: nothing comes of it.
        self.config.checkpoint.tag_validation.check(&[tag.as_str()])?;
        self.check_finite()?;
        // Of no run: its data are the caller's.
        let head = Head { client_state, ..self.head(String::new()) };
        self.write_checkpoint(dir, &tag, &head)
    }

    /// Loads `dir/tag`; without a tag the checkpoint that `dir/latest` names, or the newest of a run whose output or
    /// `checkpoints` folder `dir` is. None if there is none to be loaded, which under `checkpoint.load_universal` is an error.
    ///
    /// # Errors
    /// The tag is not there, the checkpoint is damaged, or of another model or optimizer. The engine is as it was.
    pub fn load_checkpoint(&mut self, dir: &Path, tag: Option<&str>, options: LoadOptions) -> Result<Option<Loaded>> {
        let checkpoint = match tag {
            Some(tag) => Some(checkpoint::tagged(dir, tag)?),
            None => checkpoint::open_any(dir)?,
        };
        let Some(checkpoint) = checkpoint else {
            if self.config.checkpoint.load_universal {
                return Err(TrainError::Request(format!(
                    "{}: there is no checkpoint here, and checkpoint.load_universal asks for one; give the folder that \
                     save_checkpoint was given",
                    dir.display()
                )));
            }
            return Ok(None);
        };
        checkpoint.verify()?;
        self.restore(&checkpoint, options)?;
        let client_state = checkpoint.head().client_state.clone();
        Ok(Some(Loaded { path: checkpoint.folder().to_owned(), client_state }))
    }

    /// Writes the model as a Hugging Face folder in 16 bits: fp16 in an fp16 run, else bf16.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save_16bit_model(&self, folder: &Path) -> Result<()> {
        let dtype = if self.plan.dtype == DType::F16 { DType::F16 } else { DType::BF16 };
        self.export(folder, None, dtype)
    }

    /// The state beside the tensors. `fingerprint`: of the data, if they are those of a run.
    pub(crate) fn head(&self, fingerprint: String) -> Head {
        Head {
            counters: self.counters,
            loader: Loader { samples: self.counters.samples, fingerprint },
            rng: Rng { seed: self.config.run.seed },
            mesh: BTreeMap::from([("data".to_owned(), self.zero.comm().size())]),
            config: self.plan.resolved(&self.config),
            model: model_json(self),
            optimizer: self.groups.name().to_owned(),
            loss_scale: self.scaler.map(|scaler| scaler.state()),
            loss_spike: self.guard.as_ref().map(|guard| guard.state().clone()),
            plateau: self.plateau.map(|plateau| plateau.state),
            early_stop: self.followers.early_stop(),
            best: self.followers.best_state(),
            adaptive_precision: self.adaptive.as_ref().map(Adaptive::state),
            evaluated: self.evaluated,
            set_lr: self.set_lr,
            fresh_from: self.fresh,
            evaluation_asked: false,
            callbacks: self.callbacks.borrow().states(),
            client_state: Value::Null,
        }
    }

    /// Refuses to go on from weights that are not finite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let own = self.state.first_non_finite(&self.queue, &self.model)?;
        match first_of_all(self, own)? {
            Some(name) => Err(TrainError::Diverged { step: self.counters.step, what: format!("weight {name}") }),
            None => Ok(()),
        }
    }

    /// Writes a checkpoint from the tensors themselves and returns its folder when it is on disk.
    pub(crate) fn write_checkpoint(&self, dir: &Path, tag: &Tag, head: &Head) -> Result<PathBuf> {
        let tensors = self.state.tensors(&self.model);
        let specs: Vec<TensorSpec> = tensors.iter().map(StateTensor::spec).collect();
        checkpoint::write_tagged(dir, tag, head, &specs, &mut |index| -> Result<Vec<f32>> {
            let StateTensor { state, tensor, .. } = &tensors[index];
            Ok(state.read(&self.queue, tensor)?)
        })
    }

    /// Takes the state of a checkpoint whose bytes have been checked.
    pub(crate) fn restore(&mut self, checkpoint: &Checkpoint, options: LoadOptions) -> Result<()> {
        let wants_optimizer = options.optimizer_states && !options.module_only;
        self.check_holds(checkpoint, wants_optimizer)?;
        for StateTensor { name, run, state, tensor, .. } in self.state.tensors(&self.model) {
            let read = |kind: &str| checkpoint.read_range(kind, name, run.clone());
            match state.name {
                WEIGHT => state.write(&self.queue, tensor, &read(WEIGHT)?)?,
                // Without an average in the checkpoint it begins with the weights.
                AVERAGE if !wants_optimizer => {
                    let kind = if checkpoint.tensor(AVERAGE, name).is_some() { AVERAGE } else { WEIGHT };
                    state.write(&self.queue, tensor, &read(kind)?)?;
                }
                kind if wants_optimizer => state.write(&self.queue, tensor, &read(kind)?)?,
                _ if options.module_only => {}
                _ => state.write(&self.queue, tensor, &vec![0.0; state.shape.elements()])?,
            }
        }
        self.state.refresh_compute(&self.queue, &self.zero)?;
        self.pending = Pending::default();
        if !options.module_only {
            self.restore_head(checkpoint.head(), options);
        }
        Ok(())
    }

    fn restore_head(&mut self, head: &Head, options: LoadOptions) {
        (self.counters, self.evaluated, self.fresh, self.last) = (head.counters, head.evaluated, head.fresh_from, None);
        if let (Some(guard), Some(state)) = (&mut self.guard, &head.loss_spike) {
            guard.restore(state.clone());
        }
        if let (Some(adaptive), Some(state)) = (&mut self.adaptive, &head.adaptive_precision) {
            adaptive.restore(state);
        }
        self.callbacks.get_mut().restore(head.callbacks.clone(), head.evaluation_asked);
        if options.optimizer_states {
            if let (Some(scaler), Some(state)) = (&mut self.scaler, head.loss_scale) {
                scaler.restore(state);
            }
        } else {
            self.fresh.optimizer = head.counters.applied_steps;
        }
        if options.lr_scheduler_states {
            self.set_lr = head.set_lr;
            if let (Some(plateau), Some(state)) = (&mut self.plateau, head.plateau) {
                plateau.state = state;
            }
            self.followers.restore(head);
        } else {
            (self.set_lr, self.fresh.schedule) = (None, head.counters.applied_steps);
        }
    }

    /// Whether the checkpoint has what would be taken of it, in this model's shapes.
    fn check_holds(&self, checkpoint: &Checkpoint, wants_optimizer: bool) -> Result<()> {
        let (held, own) = (&checkpoint.head().optimizer, self.groups.name());
        if wants_optimizer && held != own {
            return Err(TrainError::Request(format!(
                "{}: the checkpoint was written with optimizer {held}; this run has {own}, and the optimizer may not change",
                checkpoint.folder().display()
            )));
        }
        let tensors = self.state.tensors(&self.model);
        for StateTensor { name, shape: own, state, .. } in
            tensors.iter().filter(|tensor| wants_optimizer || tensor.state.name == WEIGHT)
        {
            let shape = &checkpoint.expect(state.name, name)?.shape;
            if shape.iter().product::<usize>() != own.elements() {
                return Err(TrainError::Request(format!(
                    "{}: {} of {name} has {} elements; the model has {}",
                    checkpoint.folder().display(),
                    state.name,
                    shape.iter().product::<usize>(),
                    own
                )));
            }
        }
        Ok(())
    }
}

impl StateTensor<'_> {
    /// What a checkpoint is told of it.
    pub(crate) fn spec(&self) -> TensorSpec {
        let whole = TensorSpec::whole(self.name, self.state.name, self.shape.dims());
        TensorSpec { runs: vec![self.run.clone()], ..whole }
    }
}

impl FreshFrom {
    /// Whether both began with the weights.
    pub(crate) fn is_start(&self) -> bool {
        *self == Self::default()
    }
}
