//! `log.jsonl`: what a run said, one JSON object a line, for those who come later: `bessemer watch` shows its end.
//!
//! `{"time": seconds since 1970, "step", "event", ...}`; the events are those of `--log-format json` but for the steps, which
//! stand in `metrics.jsonl`, and how the run ended: `finished`, `interrupted` or `error`. A resumed run goes on behind the
//! lines of the one before: a log is a history, and nothing in it is cut.

use crate::error::{Result, TrainError};
use crate::event::{Event, Observer};
use crate::run::Outcome;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes events to the log and hands them on.
pub(crate) struct Logged<'a> {
    path: PathBuf,
    /// None once it could not be written: not worth a run.
    file: Option<File>,
    step: u64,
    inner: &'a mut dyn Observer,
}

impl<'a> Logged<'a> {
    /// A new log, or the end of an older one for a run that has done `step` steps.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub(crate) fn new(path: &Path, step: u64, inner: &'a mut dyn Observer) -> Result<Self> {
        let mut options = OpenOptions::new();
        let options = if step > 0 { options.append(true) } else { options.write(true).truncate(true) };
        let file = options.create(true).open(path).map_err(TrainError::io(path, "create the file"))?;
        Ok(Self { path: path.to_owned(), file: Some(file), step, inner })
    }

    /// The last line: how it ended.
    pub(crate) fn ended(&mut self, outcome: &Result<Outcome>) {
        self.write(match outcome {
            Ok(Outcome::Finished) => json!({"event": "finished"}),
            Ok(Outcome::Interrupted { signal }) => json!({"event": "interrupted", "signal": signal}),
            Err(error) => json!({"event": "error", "message": error.to_string()}),
        });
    }

    fn write(&mut self, event: Value) {
        let Some(file) = &mut self.file else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut line = json!({"time": time, "step": self.step});
        if let (Value::Object(line), Value::Object(event)) = (&mut line, event) {
            line.extend(event);
        }
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            self.file = None;
            let message = TrainError::io(&self.path, "write")(error).to_string();
            self.inner.on(Event::Notice(&format!("{message}; the run goes on without its log")));
        }
    }
}

impl Observer for Logged<'_> {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Notice(message) => self.write(json!({"event": "notice", "message": message})),
            Event::Report { name, text } => self.write(json!({"event": "report", "name": name, "text": text})),
            Event::Started { plan, done_steps, .. } => {
                self.write(json!({"event": "started", "steps": plan.steps, "done_steps": done_steps}));
            }
            Event::Step(metrics) => self.step = metrics.step,
            Event::Evaluated { set, loss, perplexity, .. } => {
                let line =
                    json!({"event": "evaluated", "eval_set": set, "eval_loss": loss, "eval_perplexity": perplexity});
                self.write(line);
            }
            Event::Sample { text, .. } => self.write(json!({"event": "sample", "text": text})),
            Event::Saved { path } => self.write(json!({"event": "saved", "path": path.display().to_string()})),
            Event::Exported { path } => self.write(json!({"event": "exported", "path": path.display().to_string()})),
            Event::Tokenizing { .. } | Event::Evaluating { .. } | Event::Tuning { .. } => {}
        }
        self.inner.on(event);
    }
}
