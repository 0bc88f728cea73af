//! The checkpoints of a run: when they are taken, and what the run hears of those that are written beside it.
//!
//! On the way a checkpoint is written in the background, if the run wants it ([`crate::checkpoint::background`]); before
//! the next one, at the end and after an error the run waits for it. The last one is written from the tensors themselves:
//! nothing goes on beside it.
//!
//! What stops the writer (a full disk) stops the run: after the next step, and no later than at the next checkpoint or at
//! the end. The checkpoints before are as they were.

use crate::checkpoint::{self, Background, Head, Job, Staging, Tag, TensorEntry, TensorSpec};
use crate::engine::Engine;
use crate::error::Result;
use crate::evaluation::best_steps;
use crate::event::{Event, Observer};
use crate::metrics::MetricsFile;
use crate::state::StateTensor;
use crate::system::{peak_resident_bytes, total_memory_bytes};
use std::ops::Range;
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
        // Several ranks write their files together, and go on when all are there.
        let is_async = is_async && engine.zero.comm().size() == 1;
        let mut background = Background::default();
        let next = engine.config.checkpoint_interval().map(|interval| engine.counters.step + interval);
        if is_async && next.is_some_and(|next| next < engine.plan.steps) {
            background.reserve(&folder, elements)?;
        }
        if saved.is_some() && engine.zero.comm().index() == 0 {
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
        metrics: Option<&MetricsFile>,
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
        metrics.map_or(Ok(()), MetricsFile::sync)?;
        if engine.zero.comm().size() > 1 {
            let path = self.write_together(engine, &head)?;
            saved(&path, engine, observer);
        } else if self.is_async && !is_last {
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

    /// Every rank writes its file; the first one makes the folder, and the checkpoint appear when all files are there.
    fn write_together(&self, engine: &Engine, head: &Head) -> Result<PathBuf> {
        let (comm, queue, tag) = (engine.zero.comm(), &engine.queue, Tag::of_step(head.counters.step));
        let is_first = comm.index() == 0;
        let mut tensors = Vec::new();
        for tensor in engine.state.tensors(&engine.model) {
            let run = own_run(engine, &tensor);
            tensors.extend((!run.is_empty()).then_some((tensor, run)));
        }
        let spec =
            |(tensor, run): &(StateTensor<'_>, Range<usize>)| TensorSpec { runs: vec![run.clone()], ..tensor.spec() };
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let staging = if is_first { Some(Staging::tagged(&self.folder, &tag)?) } else { None };
        comm.barrier(queue)?;
        let staging = staging.unwrap_or_else(|| Staging::join(&self.folder, &tag));
        let entries = staging.write_rank(comm.index(), &specs, &mut |index| -> Result<Vec<f32>> {
            let (StateTensor { state, tensor, run: held, .. }, run) = &tensors[index];
            let mut values = state.read(queue, tensor)?;
            values.truncate(run.end - held.start);
            Ok(values.split_off(run.start - held.start))
        })?;
        let text = serde_json::to_vec(&entries).expect("entries are plain JSON");
        let mut all = Vec::new();
        for text in exchange_bytes(engine, &text)? {
            let entries: Vec<TensorEntry> = serde_json::from_slice(&text).expect("what another rank wrote");
            all.extend(entries);
        }
        // As one rank writes it: in the order of the model.
        all.sort_by_key(|entry| engine.model.find(&entry.name));
        let path = if is_first {
            let path = staging.commit(head, all)?;
            checkpoint::settle(&self.folder, self.keep, &best_steps(head))?;
            path
        } else {
            self.folder.clone()
        };
        comm.barrier(queue)?;
        Ok(path)
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

/// The elements of a tensor that this rank writes. Of what every rank has whole each writes the share it would own, so that
/// all are done at about the same time.
fn own_run(engine: &Engine, tensor: &StateTensor<'_>) -> Range<usize> {
    let (zero, run) = (&engine.zero, tensor.run.clone());
    if !tensor.is_replicated {
        return run;
    }
    let id = engine.model.find(tensor.name).expect("a tensor of the model");
    match zero.partition().elements_of(id) == run.len() {
        true => zero.partition().share(id, zero.comm().index()),
        false if zero.comm().index() == 0 => run,
        false => 0..0,
    }
}

/// What every rank gives, in the order of ranks.
fn exchange_bytes(engine: &Engine, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (comm, queue) = (engine.zero.comm(), &engine.queue);
    let lens = comm.exchange(queue, &[bytes.len() as u64])?;
    let longest = lens.iter().map(|len| len[0]).max().unwrap_or(0) as usize;
    let mut words = vec![0u32; longest.div_ceil(size_of::<u32>())];
    bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    let all = comm.exchange(queue, &words)?;
    let cut = |(words, len): (Vec<u32>, Vec<u64>)| bytemuck::cast_slice::<u32, u8>(&words)[..len[0] as usize].to_vec();
    Ok(all.into_iter().zip(lens).map(cut).collect())
}

/// The text of the first rank that has one: the same on all.
pub(crate) fn first_of_all(engine: &Engine, text: Option<String>) -> Result<Option<String>> {
    if engine.zero.comm().size() == 1 {
        return Ok(text);
    }
    let all = exchange_bytes(engine, text.unwrap_or_default().as_bytes())?;
    Ok(all.into_iter().find(|text| !text.is_empty()).map(|text| String::from_utf8_lossy(&text).into_owned()))
}

fn saved(path: &Path, engine: &Engine, observer: &mut dyn Observer) {
    observer.on(Event::Saved { path });
    engine.tell(|callback, control| callback.on_save(engine, path, control));
}
