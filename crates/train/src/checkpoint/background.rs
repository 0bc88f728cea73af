//! Checkpoints that are written while training goes on.
//!
//! # Order of events
//! 1. [`Background::start`], between two steps, copies all values into a snapshot and hands it to a thread of its own.
//! 2. The thread writes the checkpoint with the very code of a synchronous one ([`write`](fn@super::write)) and removes
//!    the oldest ones; training changes its tensors meanwhile.
//! 3. [`Background::finish`] waits for the thread and takes back the memory of the snapshot for the next one.
//!
//! # Invariants
//! - At most one checkpoint is being written, so the memory is that of one snapshot, whatever the speed of the disk.
//! - Dropped, it waits: a process that ends by itself leaves no checkpoint half written.

use super::{CheckpointError, Head, TensorSpec, settle, write};
use crate::evaluation::best_steps;
use bytemuck::{cast_slice, cast_slice_mut};
use memmap2::MmapMut;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

/// No system has smaller pages.
const PAGE_BYTES: usize = 4096;

/// What becomes one checkpoint.
#[derive(Clone, Debug)]
pub struct Job {
    /// The folder of checkpoints.
    pub dir: PathBuf,
    /// The state beside the tensors.
    pub head: Head,
    /// What this rank has of each tensor.
    pub tensors: Vec<TensorSpec>,
    /// The newest checkpoints that are kept beside the best ones of the head; 0: all.
    pub keep: usize,
}

/// One writer beside the training thread, and the snapshot it writes from.
#[derive(Debug, Default)]
pub struct Background {
    /// With the writer while it writes.
    snapshot: Option<MmapMut>,
    writer: Option<JoinHandle<Written>>,
}

/// What the writer gives back.
struct Written {
    snapshot: MmapMut,
    result: Result<PathBuf, CheckpointError>,
}

impl Background {
    /// Takes the memory of a snapshot of `elements` values now rather than at the first checkpoint: the system hands out
    /// gigabytes more slowly than they are copied. `dir`: the folder of checkpoints, for messages.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if there is no memory.
    pub fn reserve(&mut self, dir: &Path, elements: usize) -> Result<(), CheckpointError> {
        let bytes = elements * size_of::<f32>();
        if self.snapshot.as_ref().is_none_or(|snapshot| snapshot.len() != bytes) {
            self.snapshot = None;
            let memory = memory(bytes).map_err(CheckpointError::io(dir, "set memory aside for a checkpoint"))?;
            self.snapshot = Some(memory);
        }
        Ok(())
    }

    /// Takes the snapshot, of the memory reserved, and begins to write it. `copy` puts the values of a tensor, by its place
    /// in the job, into the slice it is given: those of all its runs, one after the other. It is called once for each, in
    /// order.
    ///
    /// # Errors
    /// What `copy` returns; [`CheckpointError::Io`] if there is no memory or no thread.
    ///
    /// # Panics
    /// If the checkpoint before was not waited for.
    pub fn start<E: From<CheckpointError>>(
        &mut self,
        job: Job,
        mut copy: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(self.writer.is_none(), "Background::start: the checkpoint before is still being written");
        let places = places(&job.tensors);
        self.reserve(&job.dir, places.last().map_or(0, |place| place.end))?;
        let mut snapshot = self.snapshot.take().expect("Background::start: reserved above");
        let values: &mut [f32] = cast_slice_mut(&mut snapshot);
        for (index, place) in places.iter().enumerate() {
            copy(index, &mut values[place.clone()])?;
        }
        let dir = job.dir.clone();
        let writer = Builder::new().name("checkpoint".to_owned()).spawn(move || {
            let result = write_snapshot(&job, cast_slice(&snapshot), &places);
            Written { snapshot, result }
        });
        self.writer = Some(writer.map_err(CheckpointError::io(&dir, "start a thread for a checkpoint"))?);
        Ok(())
    }

    /// Whether [`finish`](Self::finish) has something to tell and need not wait for it.
    pub fn is_done(&self) -> bool {
        self.writer.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits for the checkpoint being written and returns its folder; `None` if there is none.
    ///
    /// # Errors
    /// What stopped the writing; the checkpoints before it are as they were.
    pub fn finish(&mut self) -> Result<Option<PathBuf>, CheckpointError> {
        let Some(writer) = self.writer.take() else { return Ok(None) };
        let Written { snapshot, result } = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.snapshot = Some(snapshot);
        result.map(Some)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Whoever wants to know how it ended calls `finish`.
            let _ = writer.join();
        }
    }
}

fn write_snapshot(job: &Job, values: &[f32], places: &[Range<usize>]) -> Result<PathBuf, CheckpointError> {
    let Job { dir, head, tensors, keep } = job;
    let path = write(dir, head, tensors, &mut |index| Ok::<_, CheckpointError>(&values[places[index].clone()]))?;
    settle(dir, *keep, &best_steps(head))?;
    Ok(path)
}

/// Where each tensor lies in the snapshot.
fn places(tensors: &[TensorSpec]) -> Vec<Range<usize>> {
    let mut end = 0;
    let place = |spec: &TensorSpec| {
        let start = end;
        end += spec.num_owned();
        start..end
    };
    tensors.iter().map(place).collect()
}

/// Pages of its own, so that they go back to the system, and huge ones, so that they come quickly.
fn memory(bytes: usize) -> std::io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(bytes)?;
    // A system without huge pages says no, and small ones do.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    // Only what is touched becomes memory.
    memory.chunks_mut(PAGE_BYTES).for_each(|page| page[0] = 0);
    Ok(memory)
}
