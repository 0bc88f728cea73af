//! The checkpoints of a run: when they are taken, and what the run hears of those that are written beside it.
//!
//! On the way a checkpoint is written in the background, if the run wants it ([`crate::checkpoint::background`]); before
//! the next one, at the end and after an error the run waits for it. The last one is written from the tensors themselves:
//! nothing goes on beside it.
//!
//! What stops the writer (a full disk) stops the run: after the next step, and no later than at the next checkpoint or at
//! the end. The checkpoints before are as they were.

use crate::checkpoint::{self, Background, Head, Job, Tag};
use crate::engine::Engine;
use crate::error::Result;
use crate::evaluation::best_steps;
use crate::event::{Event, Observer};
use crate::metrics::MetricsFile;
use crate::state::StateTensor;
use crate::system::{peak_resident_bytes, total_memory_bytes};
use std::path::{Path, PathBuf};

/// Saves the states of one run.
pub(crate) struct Saver {
    folder: PathBuf,
    keep: usize,
    /// Write while training goes on.
    is_async: bool,
    /// The newest checkpoint, the one being written too: its step, and the last evaluation it knows of.
    saved: Option<(u64, Option<u64>)>,
    background: Background,
}

impl Saver {
    /// Of the run that `engine` begins or, from the checkpoint of step `saved`, goes on with. Takes the memory that saving
    /// needs, if a checkpoint is due before the last step.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(folder: PathBuf, engine: &Engine, saved: Option<u64>) -> Result<Self> {
        let (run, elements) = (&engine.config.run, engine.state.checkpoint_elements(&engine.model));
        let fits = || {
            let needed = peak_resident_bytes() + (elements * size_of::<f32>()) as u64;
            total_memory_bytes().is_none_or(|available| needed <= available)
        };
        let is_async = engine.config.checkpoint_async() && (engine.config.asked_async().is_some() || fits());
        let mut background = Background::default();
        let next = engine.config.checkpoint_interval().map(|interval| engine.counters.step + interval);
        if is_async && next.is_some_and(|next| next < engine.plan.steps) {
            background.reserve(&folder, elements)?;
        }
        if saved.is_some() {
            // A process killed behind its last checkpoint has not named the best one.
            checkpoint::mark_best(&folder, engine.followers.best().first().map(|best| best.step))?;
        }
        let saved = saved.map(|step| (step, engine.evaluated));
        Ok(Self { folder, keep: run.keep_checkpoints, is_async, saved, background })
    }

    /// Saves the state of `engine`, unless that was done at this very step. Returns when it is copied; the last one, when it
    /// is on disk.
    ///
    /// # Errors
    /// A weight is not finite; this or the checkpoint before could not be written.
    pub(crate) fn save(
        &mut self,
        engine: &Engine,
        head: Head,
        metrics: &MetricsFile,
        is_last: bool,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.finish(engine, observer)?;
        let state = (head.counters.step, head.evaluated);
        if self.saved == Some(state) {
            return Ok(());
        }
        engine.check_finite()?;
        // The lines up to this step must be as safe as the checkpoint behind them.
        metrics.sync()?;
        if self.is_async && !is_last {
            let tensors = engine.state.tensors(&engine.model);
            let specs = tensors.iter().map(StateTensor::spec).collect();
            let job = Job { dir: self.folder.clone(), head, tensors: specs, keep: self.keep };
            self.background.start(job, |index, out| tensors[index].copy_to(&engine.queue, out))?;
        } else {
            let path = engine.write_checkpoint(&self.folder, &Tag::of_step(head.counters.step), &head)?;
            checkpoint::settle(&self.folder, self.keep, &best_steps(&head))?;
            saved(&path, engine, observer);
        }
        self.saved = Some(state);
        Ok(())
    }

    /// Tells of a checkpoint that the background has done, if there is one.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn report(&mut self, engine: &Engine, observer: &mut dyn Observer) -> Result<()> {
        if self.background.is_done() { self.finish(engine, observer) } else { Ok(()) }
    }

    /// Waits for the checkpoint being written, if there is one.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn finish(&mut self, engine: &Engine, observer: &mut dyn Observer) -> Result<()> {
        if let Some(path) = self.background.finish()? {
            saved(&path, engine, observer);
        }
        Ok(())
    }
}

fn saved(path: &Path, engine: &Engine, observer: &mut dyn Observer) {
    observer.on(Event::Saved { path });
    engine.tell(|callback, control| callback.on_save(engine, path, control));
}
