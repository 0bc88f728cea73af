//! What a person, or a log, sees of a run: a progress bar on a terminal, lines elsewhere, JSON on request.

use crate::{Global, LogFormat};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use train::event::StepMetrics;
use train::plan::RunPlan;
use train::{Event, Observer};

/// Shows events on standard error; the last sample, which is a result, on standard output.
pub(crate) struct Ui {
    global: Global,
    /// Steps between log lines where there is no bar.
    log_every: u64,
    bar: ProgressBar,
    /// What the bar counts: changes when tokenising ends and training begins.
    phase: Phase,
    steps: u64,
    started: Instant,
    first_step: u64,
}

#[derive(PartialEq, Eq)]
enum Phase {
    None,
    Tokenizing,
    Training,
}

impl Ui {
    pub(crate) fn new(global: Global, log_every: u64) -> Self {
        let log_every = log_every.max(1);
        let (bar, phase, started) = (ProgressBar::hidden(), Phase::None, Instant::now());
        Self { global, log_every, bar, phase, steps: 0, started, first_step: 0 }
    }

    fn shows_bar(&self) -> bool {
        !self.global.quiet && self.global.log_format == LogFormat::Text && std::io::stderr().is_terminal()
    }

    /// A line of text above the bar, or an object in a JSON log. Nothing under `--quiet`.
    fn line(&self, text: &str, json: impl FnOnce() -> Value) {
        match self.global.log_format {
            _ if self.global.quiet => {}
            LogFormat::Text if self.bar.is_hidden() => eprintln!("{text}"),
            LogFormat::Text => self.bar.println(text),
            LogFormat::Json => eprintln!("{}", json()),
        }
    }

    fn new_bar(&mut self, phase: Phase, total: u64, template: &str) {
        self.bar.finish_and_clear();
        self.phase = phase;
        if self.shows_bar() {
            self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    fn tokenizing(&mut self, source: &str, done: u64, total: u64) {
        if self.phase != Phase::Tokenizing {
            self.new_bar(Phase::Tokenizing, total, "tokenizing {msg} [{bar:30}] {bytes}/{total_bytes} {eta} left");
            self.bar.set_message(source.to_owned());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        if done == total {
            self.bar.finish_and_clear();
            self.phase = Phase::None;
            self.line(
                &format!("tokenized {source}: {} bytes", HumanCount(total)),
                || json!({"event": "tokenized", "source": source, "bytes": total}),
            );
        }
    }

    fn started(&mut self, plan: &RunPlan, num_parameters: usize, done_steps: u64) {
        let batch = plan.batch;
        let from = if done_steps > 0 { format!(", {done_steps} of them done") } else { String::new() };
        let text = format!(
            "{} parameters, {} steps{from}, batch {} ({} x {}), rows of {} tokens, {}, {} threads, {}",
            HumanCount(num_parameters as u64),
            plan.steps,
            batch.train_batch_size,
            batch.micro_batch_size,
            batch.accumulation_steps,
            plan.sequence_length,
            plan.dtype,
            plan.threads,
            plan.isa,
        );
        self.line(&text, || {
            json!({"event": "started", "parameters": num_parameters, "steps": plan.steps, "done_steps": done_steps,
                   "train_batch_size": batch.train_batch_size, "sequence_length": plan.sequence_length})
        });
        (self.steps, self.first_step, self.started) = (plan.steps, done_steps, Instant::now());
        self.new_bar(Phase::Training, plan.steps, "[{bar:30}] {pos}/{len} {msg}");
        self.bar.set_position(done_steps);
    }

    fn step(&self, metrics: &StepMetrics) {
        let left = self.time_left(metrics.step);
        let text = format!(
            "loss {:.4}  lr {:.2e}  norm {}  {} tok/s  {left} left",
            metrics.loss,
            metrics.lr,
            metrics.grad_norm.map_or("-".to_owned(), |norm| format!("{norm:.2}")),
            HumanCount(metrics.tokens_per_second.round() as u64),
        );
        let due = metrics.step.is_multiple_of(self.log_every) || metrics.step == self.steps;
        if self.global.log_format == LogFormat::Text && !self.bar.is_hidden() {
            self.bar.set_message(text);
            self.bar.set_position(metrics.step);
        } else if due {
            self.line(&format!("step {}/{}  {text}", metrics.step, self.steps), || {
                let mut line = json!(metrics);
                line["event"] = json!("step");
                line
            });
        }
    }

    fn time_left(&self, step: u64) -> HumanDuration {
        let done = (step - self.first_step).max(1) as f64;
        let seconds = self.started.elapsed().as_secs_f64() / done * self.steps.saturating_sub(step) as f64;
        HumanDuration(Duration::from_secs_f64(seconds.min(1e9)))
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
            Event::Notice(text) => {
                self.line(&format!("note: {text}"), || json!({"event": "notice", "message": text}));
            }
            Event::Tokenizing { source, done, total } => self.tokenizing(source, done, total),
            Event::Started { plan, num_parameters, done_steps } => self.started(plan, num_parameters, done_steps),
            Event::Step(metrics) => self.step(metrics),
            Event::Evaluating { done, total } => {
                if !self.bar.is_hidden() {
                    self.bar.set_message(format!("evaluating {}/{}", HumanCount(done), HumanCount(total)));
                }
            }
            Event::Evaluated { step, loss, perplexity } => {
                self.line(
                    &format!("step {step}  validation loss {loss:.4}  perplexity {perplexity:.2}"),
                    || json!({"event": "evaluated", "step": step, "eval_loss": loss, "eval_perplexity": perplexity}),
                );
            }
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
