//! What the ranks of a run decide together, and what one of them does for all.

use super::{Loop, Stop};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::folder::path_of;
use crate::error::Result;
use parallel::Stage;
use std::path::Path;

impl Loop<'_> {
    /// The signal that has come, as all ranks see it: one may be told a step earlier than another.
    pub(super) fn agree_on(&self, stop: &Stop) -> Result<Option<usize>> {
        let (comm, own) = (self.engine.zero.comm(), stop.signal());
        if comm.size() == 1 {
            return Ok(own);
        }
        let all = comm.exchange(&self.engine.queue, &[own.unwrap_or(0) as u64])?;
        Ok(all.into_iter().map(|signal| signal[0] as usize).max().filter(|&signal| signal != 0))
    }

    /// Writes the model, on the first rank. Where ranks share it, it is taken from the checkpoint that holds it.
    pub(super) fn export(&self, path: &Path) -> Result<()> {
        let (engine, tokenizer) = (&*self.engine, self.data.tokenizer.as_ref());
        if engine.zero.comm().index() > 0 {
            return Ok(());
        }
        if engine.zero.stage() == Stage::Nothing {
            return engine.save_pretrained(path, tokenizer);
        }
        let best = engine.followers.best().first().filter(|_| engine.config.run.load_best_at_end);
        let step = best.map_or(engine.counters.step, |best| best.step);
        let checkpoint = Checkpoint::open(&path_of(&self.output.checkpoints(), step))?;
        engine.export_from(&checkpoint, path, tokenizer)
    }
}
