//! What callbacks are told of a run beyond its steps, and what they ask of it; see [`crate::callback`].

use super::Loop;
use crate::error::Result;
use serde_json::{Map, Value};

impl Loop<'_> {
    /// Writes a line of metrics, on the first rank.
    pub(super) fn log(&mut self, line: &Value) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.append(line)?;
        }
        self.engine.tell(|callback, control| callback.on_log(self.engine, line, control));
        Ok(())
    }

    /// Takes in what callbacks have asked for since the last time, and writes their lines.
    pub(super) fn hear(&mut self) -> Result<()> {
        self.asked.merge(self.engine.take_requests());
        for figures in self.asked.take_logged() {
            let mut line = Map::from_iter([("step".to_owned(), self.engine.counters.step.into())]);
            line.extend(figures.into_iter().filter(|(key, _)| key != "step"));
            self.log(&line.into())?;
        }
        Ok(())
    }

    pub(super) fn begin_callbacks(&mut self) -> Result<()> {
        let engine = &*self.engine;
        engine.tell(|callback, control| callback.on_train_begin(engine, control));
        let epoch = engine.counters.samples / self.data.loader.epoch_samples();
        engine.tell(|callback, control| callback.on_epoch_begin(engine, epoch, control));
        self.hear()
    }

    /// After a step: tells of the epochs that it ended, and of the next ones unless it is the last step. `first`: the number
    /// of its first sample.
    pub(super) fn tell_epochs(&self, first: u64) {
        let (engine, samples) = (&*self.engine, self.data.loader.epoch_samples());
        for epoch in first / samples..engine.counters.samples / samples {
            engine.tell(|callback, control| callback.on_epoch_end(engine, epoch, control));
            if engine.counters.step < engine.plan.steps {
                engine.tell(|callback, control| callback.on_epoch_begin(engine, epoch + 1, control));
            }
        }
    }

    /// At the end of the run: tells of the end of an epoch that is not whole.
    pub(super) fn end_epochs(&self) {
        let (engine, samples) = (&*self.engine, self.data.loader.epoch_samples());
        let (epoch, into) = (engine.counters.samples / samples, engine.counters.samples % samples);
        if into > 0 {
            engine.tell(|callback, control| callback.on_epoch_end(engine, epoch, control));
        }
    }
}
