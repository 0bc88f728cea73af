//! The figures of a run for those who look at curves: TensorBoard event files and CSV, beside `metrics.jsonl`.
//!
//! Every line of `metrics.jsonl` passes through a `Recorder`, which hands its numbers to the monitors that are on. They are
//! in their files when the step is over: nothing is kept back.
//!
//! # Tags
//! As DeepSpeed 0.19: `Train/Samples/train_loss`, `.../lr`, `.../loss_scale` (fp16) and, under `wall_clock_breakdown`,
//! `.../elapsed_time_ms_{forward,backward,backward_inner,backward_allreduce,step}`. Ours beside them: the other numbers of a
//! step under `Train/Samples/`, of an evaluation under `Validation/Samples/` (of a set with a name under
//! `Validation/Samples/<name>/`), `Memory/Samples/<kind>`, and norms as `Norms/gradient/<block>` and `Norms/weight/<block>`. The x axis is samples consumed, those of the step included; in
//! DeepSpeed the loss stands one batch to the left of the rate. `lr` is the rate of the step, as in `metrics.jsonl`.
//!
//! # Resuming
//! What lies at or after the checkpoint's samples is forgotten (each monitor's own way), and the lines that
//! `metrics.jsonl` kept of the checkpoint's step are written again: nothing stands twice, nothing is lost.
//!
//! Not here: what the numbers mean ([`StepMetrics`](crate::event::StepMetrics)).

mod csv;
mod tensorboard;

use crate::config::RunConfig;
use crate::error::Result;
use crate::metrics::MetricsFile;
use csv::CsvFiles;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use tensorboard::EventFile;

/// The `tensorboard` or the `csv_monitor` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MonitorConfig {
    /// Whether files are written.
    pub enabled: bool,
    /// Folder around that of the job; empty: the working directory.
    pub output_path: PathBuf,
    /// Folder of the files.
    pub job_name: String,
}

impl MonitorConfig {
    /// Where the files lie.
    pub fn folder(&self) -> PathBuf {
        self.output_path.join(&self.job_name)
    }
}

/// One point of a curve; its x is told beside it.
#[derive(Clone, Debug, PartialEq)]
struct Scalar {
    tag: String,
    value: f64,
}

/// Refuses folders of monitors that are no folders or, unless the run goes on, hold the files of another run. Writes
/// nothing.
pub(crate) fn check(config: &RunConfig, resume: bool) -> Result<()> {
    let sections = [("tensorboard", &config.tensorboard), ("csv_monitor", &config.csv_monitor)];
    for (section, monitor) in sections.into_iter().filter(|(_, monitor)| monitor.enabled) {
        let (folder, shown) = (monitor.folder(), monitor.folder().display().to_string());
        if let Some(file) = folder.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
            let message = format!("its folder is {shown}, and {} is a file; it must be a folder", file.display());
            return Err(config.error_at(&format!("{section}.output_path"), message).into());
        }
        let is_taken = if section == "tensorboard" { tensorboard::holds_run(&folder) } else { csv::holds_run(&folder) };
        if is_taken && !resume {
            let message = format!(
                "its folder {shown} holds the curves of another run, and both would be drawn as one; choose another \
                 name (--set {section}.job_name=...), remove the folder, or go on with that run by --resume"
            );
            return Err(config.error_at(&format!("{section}.job_name"), message).into());
        }
    }
    Ok(())
}

/// `metrics.jsonl` and the monitors that are on.
pub(crate) struct Recorder {
    pub(crate) metrics: MetricsFile,
    tensorboard: Option<EventFile>,
    csv: Option<CsvFiles>,
    /// The x of what comes next.
    samples: u64,
}

impl Recorder {
    /// Begins the files of a run; of one that is resumed, goes on behind the step and the samples of its checkpoint.
    ///
    /// # Errors
    /// A file cannot be written or read.
    pub(crate) fn new(config: &RunConfig, metrics: MetricsFile, resumed: Option<(u64, u64)>) -> Result<Self> {
        // A fresh run finds nothing but what an attempt left that came to no checkpoint.
        let from = resumed.map_or(0, |(_, samples)| samples);
        let on = |monitor: &MonitorConfig| monitor.enabled.then(|| monitor.folder());
        let tensorboard = on(&config.tensorboard).map(|folder| EventFile::begin(&folder, from)).transpose()?;
        let csv = on(&config.csv_monitor).map(|folder| CsvFiles::begin(&folder, from)).transpose()?;
        let mut recorder = Self { metrics, tensorboard, csv, samples: from };
        if let Some((step, _)) = resumed.filter(|_| recorder.is_watched()) {
            for line in MetricsFile::read_all(recorder.metrics.path())?.iter().filter(|line| line["step"] == step) {
                recorder.show(line)?;
            }
        }
        Ok(recorder)
    }

    fn is_watched(&self) -> bool {
        self.tensorboard.is_some() || self.csv.is_some()
    }

    /// Moves on the x axis: samples consumed by all steps so far.
    pub(crate) fn advance(&mut self, samples: u64) {
        self.samples = samples;
    }

    /// Writes one line of `metrics.jsonl`, and its numbers to the monitors.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn append(&mut self, line: &Value) -> Result<()> {
        self.metrics.append(line)?;
        if self.is_watched() { self.show(line) } else { Ok(()) }
    }

    fn show(&mut self, line: &Value) -> Result<()> {
        let scalars = scalars(line);
        if let Some(tensorboard) = &mut self.tensorboard {
            tensorboard.write(self.samples, &scalars)?;
        }
        if let Some(csv) = &mut self.csv {
            csv.write(self.samples, &scalars)?;
        }
        Ok(())
    }
}

/// The numbers of a line of `metrics.jsonl` under their tags. What is null was not finite, and no curve has a point there.
fn scalars(line: &Value) -> Vec<Scalar> {
    let mut scalars = Vec::new();
    let set = line["eval_set"].as_str().map_or(String::new(), |set| format!("{set}/"));
    for (name, value) in line.as_object().into_iter().flatten() {
        let mut push = |tag: String, value: &Value| {
            scalars.extend(value.as_f64().map(|value| Scalar { tag, value }));
        };
        match (name.as_str(), value) {
            ("step", _) => {}
            ("loss", _) => push("Train/Samples/train_loss".to_owned(), value),
            ("breakdown_seconds", Value::Object(parts)) => {
                for (part, seconds) in parts {
                    let ms = Value::from(seconds.as_f64().map(|seconds| 1e3 * seconds));
                    push(format!("Train/Samples/elapsed_time_ms_{part}"), &ms);
                    if part == "backward" {
                        // One rank: backward is all computation and sends nothing.
                        push("Train/Samples/elapsed_time_ms_backward_inner".to_owned(), &ms);
                        push("Train/Samples/elapsed_time_ms_backward_allreduce".to_owned(), &0.0.into());
                    }
                }
            }
            ("memory_bytes", Value::Object(kinds)) => {
                kinds.iter().for_each(|(kind, bytes)| push(format!("Memory/Samples/{kind}"), bytes));
            }
            ("norms", Value::Object(blocks)) => {
                for (block, norms) in blocks {
                    push(format!("Norms/gradient/{block}"), &norms[0]);
                    push(format!("Norms/weight/{block}"), &norms[1]);
                }
            }
            (name, _) => match name.strip_prefix("eval_") {
                Some(name) => push(format!("Validation/Samples/{set}{name}"), value),
                None => push(format!("Train/Samples/{name}"), value),
            },
        }
    }
    scalars
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_numbers_of_a_step_stand_under_deepspeeds_tags_and_what_is_no_number_nowhere() {
        let line = json!({"step": 7, "loss": 2.5, "lr": 1e-3, "grad_norm": null, "skipped": false, "loss_scale": 1024.0,
                          "breakdown_seconds": {"forward": 0.25, "backward": 0.5}, "memory_bytes": {"weights": 64},
                          "norms": {"lm_head": [0.5, null]}});
        let found: Vec<(String, f64)> = scalars(&line).into_iter().map(|scalar| (scalar.tag, scalar.value)).collect();
        let want = [
            ("Train/Samples/train_loss", 2.5),
            ("Train/Samples/lr", 1e-3),
            ("Train/Samples/loss_scale", 1024.0),
            ("Train/Samples/elapsed_time_ms_forward", 250.0),
            ("Train/Samples/elapsed_time_ms_backward", 500.0),
            ("Train/Samples/elapsed_time_ms_backward_inner", 500.0),
            ("Train/Samples/elapsed_time_ms_backward_allreduce", 0.0),
            ("Memory/Samples/weights", 64.0),
            ("Norms/gradient/lm_head", 0.5),
        ];
        assert_eq!(found, want.map(|(tag, value)| (tag.to_owned(), value)));
    }

    #[test]
    fn the_numbers_of_an_evaluation_stand_apart() {
        let line = json!({"step": 7, "eval_loss": 2.0, "eval_perplexity": 7.4});
        let tags: Vec<String> = scalars(&line).into_iter().map(|scalar| scalar.tag).collect();
        assert_eq!(tags, ["Validation/Samples/loss", "Validation/Samples/perplexity"]);
        let of_set = scalars(&json!({"step": 7, "eval_set": "wiki", "eval_loss": 2.0}));
        assert_eq!(of_set, [Scalar { tag: "Validation/Samples/wiki/loss".to_owned(), value: 2.0 }]);
    }
}
