//! What a person, or a log, sees of the work: a progress bar on a terminal, lines elsewhere, JSON on request.
//!
//! Everything but the last sample goes to standard error. Nobody need read it: a closed pipe does not stop a run.

use crate::{Global, LogFormat};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use std::io::{IsTerminal, Write};
use std::time::Instant;
use train::event::StepMetrics;
use train::plan::RunPlan;
use train::{Breakdown, Event, Observer};

/// Shows events on standard error; the last sample, which is a result, on standard output.
pub(crate) struct Ui {
    global: Global,
    /// Steps between log lines where there is no bar.
    log_every: u64,
    bar: ProgressBar,
    /// What the bar counts: changes when tokenising ends and training begins.
    phase: Phase,
    /// Sources whose tokens have been announced: each part of one is tokenised by itself.
    tokenized: Vec<String>,
    steps: u64,
    started: Instant,
    first_step: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    None,
    Tokenizing,
    Training,
    Evaluating,
    Tuning,
}

impl Ui {
    pub(crate) fn new(global: Global) -> Self {
        let (bar, phase, started) = (ProgressBar::hidden(), Phase::None, Instant::now());
        Self { global, log_every: 1, bar, phase, tokenized: Vec::new(), steps: 0, started, first_step: 0 }
    }

    /// Where there is no bar, only every so many steps are a line.
    pub(crate) fn log_every(mut self, steps: u64) -> Self {
        self.log_every = steps.max(1);
        self
    }

    fn shows_bar(&self) -> bool {
        !self.global.quiet && self.global.log_format == LogFormat::Text && std::io::stderr().is_terminal()
    }

    /// A line of text above the bar, or an object in a JSON log. Nothing under `--quiet`.
    pub(crate) fn line(&self, text: &str, json: impl FnOnce() -> Value) {
        match self.global.log_format {
            _ if self.global.quiet => {}
            LogFormat::Text if self.bar.is_hidden() => to_stderr(text),
            LogFormat::Text => self.bar.println(text),
            LogFormat::Json => to_stderr(&json().to_string()),
        }
    }

    /// Something worth knowing that is no error.
    pub(crate) fn note(&self, text: &str) {
        self.line(&format!("note: {text}"), || json!({"event": "notice", "message": text}));
    }

    /// A signal ended the run, and a checkpoint holds everything.
    pub(crate) fn interrupted(&mut self, signal: usize) {
        self.stopped(signal, "--resume goes on from here");
    }

    /// A signal ended a trial, which leaves nothing.
    pub(crate) fn trial_interrupted(&mut self, signal: usize) {
        self.stopped(signal, "nothing was written");
    }

    fn stopped(&mut self, signal: usize, what_is_left: &str) {
        self.bar.finish_and_clear();
        let name = if signal == SIGINT as usize { "SIGINT" } else { "SIGTERM" };
        self.line(&format!("stopped by {name}; {what_is_left}"), || json!({"event": "interrupted", "signal": signal}));
    }

    fn new_bar(&mut self, phase: Phase, total: u64, template: &str) {
        self.bar.finish_and_clear();
        (self.phase, self.started) = (phase, Instant::now());
        if self.shows_bar() {
            self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    fn tokenizing(&mut self, source: &str, done: u64, total: u64) {
        if done >= total {
            self.bar.finish_and_clear();
            self.phase = Phase::None;
            if !self.tokenized.iter().any(|told| told == source) {
                self.tokenized.push(source.to_owned());
                self.line(
                    &format!("tokenized {source}: {} bytes", HumanCount(total)),
                    || json!({"event": "tokenized", "source": source, "bytes": total}),
                );
            }
            return;
        }
        if self.phase != Phase::Tokenizing {
            self.new_bar(Phase::Tokenizing, total, "tokenizing [{bar:20}] {bytes}/{total_bytes}  {wide_msg}");
        }
        self.bar.set_message(format!("{}  {source}", self.time_left(done, total)));
        self.bar.set_position(done);
    }

    fn started(&mut self, plan: &RunPlan, num_parameters: usize, done_steps: u64) {
        let batch = plan.batch;
        let micro_batches = match batch.accumulation_steps {
            1 => String::new(),
            count => format!(" in {count} micro-batches"),
        };
        let text = format!(
            "{} parameters, {}, {}, {} kernels\n{} of {} x {} tokens{micro_batches}",
            HumanCount(num_parameters as u64),
            plan.precision(),
            counted(plan.threads as u64, "thread"),
            plan.isa,
            counted(plan.steps, "step"),
            batch.train_batch_size,
            plan.sequence_length,
        );
        let text = if done_steps > 0 { format!("{text}, going on after step {done_steps}") } else { text };
        self.line(&text, || {
            json!({"event": "started", "parameters": num_parameters, "steps": plan.steps, "done_steps": done_steps,
                   "train_batch_size": batch.train_batch_size, "sequence_length": plan.sequence_length,
                   "precision": plan.precision(), "threads": plan.threads, "isa": plan.isa.to_string()})
        });
        (self.steps, self.first_step) = (plan.steps, done_steps);
        if done_steps < plan.steps {
            self.new_bar(Phase::Training, plan.steps, "{pos}/{len} [{bar:16}] {msg}");
            self.bar.set_position(done_steps);
        }
    }

    fn step(&self, metrics: &StepMetrics) {
        let speed = HumanCount(metrics.tokens_per_second.round() as u64);
        let left = self.time_left(metrics.step - self.first_step, self.steps - self.first_step);
        let due = metrics.step.is_multiple_of(self.log_every) || metrics.step == self.steps;
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("loss {:.4}  {speed} tok/s  {left}", metrics.loss));
            self.bar.set_position(metrics.step);
        } else if due {
            let norm = metrics.grad_norm.map_or("-".to_owned(), |norm| format!("{norm:.2}"));
            let (step, loss, lr) = (metrics.step, metrics.loss, metrics.lr);
            let text =
                format!("step {step}/{}  loss {loss:.4}  lr {lr:.2e}  norm {norm}  {speed} tok/s  {left}", self.steps);
            self.line(text.trim_end(), || with_event("step", json!(metrics)));
        }
        // Beside a bar there are no lines of steps; in JSON the line above has these too.
        if due && self.global.log_format == LogFormat::Text {
            breakdown_lines(metrics).iter().for_each(|line| self.line(line, || Value::Null));
        }
    }

    /// `3m20s left`; nothing at the end.
    fn time_left(&self, done: u64, total: u64) -> String {
        if done >= total || done == 0 {
            return String::new();
        }
        let seconds = self.started.elapsed().as_secs_f64() / done as f64 * (total - done) as f64;
        format!("{} left", duration(seconds))
    }

    fn evaluating(&mut self, done: u64, total: u64) {
        if self.phase == Phase::Training {
            self.bar.set_message(format!("evaluating {}/{}", HumanCount(done), HumanCount(total)));
            return;
        }
        if self.phase != Phase::Evaluating {
            self.new_bar(Phase::Evaluating, total, "evaluating [{bar:20}] {human_pos}/{human_len} samples  {msg}");
        }
        self.bar.set_message(self.time_left(done, total));
        self.bar.set_position(done);
    }

    /// A bar; where there is none, a line every so many steps.
    fn tuning(&mut self, done: u64, total: u64, note: &str) {
        if self.phase != Phase::Tuning {
            self.new_bar(Phase::Tuning, total, "{pos}/{len} [{bar:16}] {msg}");
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{note}  {}", self.time_left(done, total)));
            self.bar.set_position(done);
        } else if done.is_multiple_of(self.log_every) || done == total {
            let json = || json!({"event": "tuning", "done": done, "total": total, "note": note});
            self.line(&format!("{done}/{total}  {note}"), json);
        }
    }

    fn sample(&self, step: u64, text: &str, last: bool) {
        if last {
            self.bar.finish_and_clear();
            // Nobody reads standard output any more: the run itself is done and saved.
            let _ = writeln!(std::io::stdout(), "{text}");
        } else {
            self.line(
                &format!("--- sample after step {step}\n{text}\n---"),
                || json!({"event": "sample", "step": step, "text": text}),
            );
        }
    }
}

impl Observer for Ui {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Notice(text) => self.note(text),
            Event::Report { name, text } => {
                self.line(text, || json!({"event": "report", "name": name, "text": text}));
            }
            Event::Tokenizing { source, done, total } => self.tokenizing(source, done, total),
            Event::Started { plan, num_parameters, done_steps } => self.started(plan, num_parameters, done_steps),
            Event::Step(metrics) => self.step(metrics),
            Event::Evaluating { done, total } => self.evaluating(done, total),
            Event::Evaluated { step, set, loss, perplexity, bits_per_byte, accuracy, f1 } => {
                let of = set.map_or(String::new(), |set| format!("{set}: "));
                let figure = |name: &str, figure: Option<f64>| {
                    figure.map_or(String::new(), |figure| format!("  {name} {figure:.4}"))
                };
                let figures = match accuracy {
                    Some(_) => [figure("accuracy", accuracy), figure("F1", f1)].concat(),
                    None => format!("  perplexity {perplexity:.2}{}", figure("bits per byte", bits_per_byte)),
                };
                self.line(&format!("step {step}  {of}validation loss {loss:.4}{figures}"), || {
                    let mut line = json!({"event": "evaluated", "step": step, "eval_loss": loss,
                                              "eval_perplexity": perplexity});
                    for (key, value) in [
                        ("eval_set", json!(set)),
                        ("eval_bits_per_byte", json!(bits_per_byte)),
                        ("eval_accuracy", json!(accuracy)),
                        ("eval_f1", json!(f1)),
                    ] {
                        if !value.is_null() {
                            line[key] = value;
                        }
                    }
                    line
                });
            }
            Event::Tuning { done, total, note } => self.tuning(done, total, note),
            Event::Sample { step, text, last } => self.sample(step, text, last),
            Event::Saved { path } => self.line(
                &format!("saved {}", path.display()),
                || json!({"event": "saved", "path": path.display().to_string()}),
            ),
            Event::Exported { path } => self.line(
                &format!("the trained model is in {}", path.display()),
                || json!({"event": "exported", "path": path.display().to_string()}),
            ),
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a line and does not mind if nobody reads it.
pub(crate) fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Times and memory of a step, where they were asked for.
fn breakdown_lines(metrics: &StepMetrics) -> Vec<String> {
    let (step, mut lines) = (metrics.step, Vec::new());
    if let Some(times) = metrics.breakdown_seconds {
        let Breakdown { data, forward, backward, step: update } = times;
        let parts = [("data", data), ("forward", forward), ("backward", backward), ("step", update)];
        let parts = parts.map(|(name, seconds)| format!("{name} {:.3}", 1e3 * seconds)).join(" | ");
        lines.push(format!("step {step}  time (ms) | {parts} | in all {:.3}", 1e3 * metrics.step_seconds));
    }
    if let Some(memory) = &metrics.memory_bytes {
        let bytes = |bytes: &Value| HumanBytes(bytes.as_u64().unwrap_or(0));
        let kinds = memory.iter().map(|(kind, held)| format!("{kind} {}", bytes(held)));
        let kinds: Vec<String> = kinds.chain([format!("process {}", HumanBytes(metrics.peak_memory_bytes))]).collect();
        lines.push(format!("step {step}  peak memory | {}", kinds.join(" | ")));
    }
    lines
}

/// `value` with `"event"` as its first key.
fn with_event(event: &str, value: Value) -> Value {
    let mut line = serde_json::Map::from_iter([("event".to_owned(), event.into())]);
    if let Value::Object(fields) = value {
        line.extend(fields);
    }
    line.into()
}

/// `1 step`, `2 steps`.
fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// `45s`, `3m20s`, `2h05m`, `3d04h`.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shown_in_its_two_largest_units() {
        let shown = [0.2, 59.4, 59.6, 200.0, 3599.0, 3600.0, 7500.0, 86400.0, 273600.0].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m00s", "3m20s", "59m59s", "1h00m", "2h05m", "1d00h", "3d04h"]);
    }

    #[test]
    fn a_step_says_where_its_time_and_memory_went_if_that_was_asked_for() {
        let mut metrics = StepMetrics {
            step: 10,
            loss: 2.5,
            lr: 1e-3,
            grad_norm: None,
            tokens: 640,
            tokens_per_second: 1600.0,
            step_seconds: 0.04,
            peak_memory_bytes: 3 << 20,
            curriculum_seqlen: None,
            precision: None,
            random_ltd_tokens: None,
            loss_scale: None,
            skipped: None,
            breakdown_seconds: None,
            memory_bytes: None,
            norms: None,
            communication: None,
        };
        assert_eq!(breakdown_lines(&metrics), Vec::<String>::new());
        metrics.breakdown_seconds = Some(Breakdown { data: 0.0001, forward: 0.012, backward: 0.0245, step: 0.003 });
        metrics.memory_bytes = json!({"weights": 1 << 20, "workspace": 512}).as_object().cloned();
        let want = [
            "step 10  time (ms) | data 0.100 | forward 12.000 | backward 24.500 | step 3.000 | in all 40.000",
            "step 10  peak memory | weights 1.00 MiB | workspace 512 B | process 3.00 MiB",
        ];
        assert_eq!(breakdown_lines(&metrics), want);
    }

    #[test]
    fn one_is_singular_and_the_rest_plural() {
        assert_eq!([1, 2, 1234].map(|count| counted(count, "step")), ["1 step", "2 steps", "1,234 steps"]);
    }
}
