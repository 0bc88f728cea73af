//! What the files of a run say at this moment.

use crate::failure::Failure;
use crate::ui::duration;
use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How a run goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A process holds the folder, and the run has not said that it is over.
    Running,
    /// All its steps are done.
    Finished,
    /// A signal ended it.
    Interrupted,
    /// An error did.
    Failed,
    /// Nobody works on it, and it did not say why: killed, or the machine went down.
    Gone,
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "stopped by a signal; train --resume goes on",
            Self::Failed => "stopped by an error",
            Self::Gone => "ended without a word; train --resume goes on",
        }
    }
}

/// A line of `metrics.jsonl` that is a step's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) loss: f64,
    pub(super) lr: f64,
    /// None where it was not finite.
    pub(super) grad_norm: Option<f64>,
    pub(super) tokens_per_second: f64,
    pub(super) step_seconds: f64,
    pub(super) peak_memory_bytes: u64,
}

impl Step {
    fn of(line: &Value) -> Option<Self> {
        let number = |name: &str| line[name].as_f64();
        Some(Self {
            step: line["step"].as_u64()?,
            loss: number("loss")?,
            lr: number("lr").unwrap_or(0.0),
            grad_norm: number("grad_norm"),
            tokens_per_second: number("tokens_per_second").unwrap_or(0.0),
            step_seconds: number("step_seconds").unwrap_or(0.0),
            peak_memory_bytes: line["peak_memory_bytes"].as_u64().unwrap_or(0),
        })
    }
}

/// Everything the dashboard shows.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) folder: PathBuf,
    pub(super) state: State,
    /// Of the whole run; 0: not known yet.
    pub(super) num_steps: u64,
    pub(super) steps: Vec<Step>,
    /// Step and validation loss; of several sets those of the first.
    pub(super) evaluations: Vec<(u64, f64)>,
    /// A line each, oldest first.
    pub(super) log: Vec<String>,
}

/// Steps whose mean time tells how long the rest will take.
const RECENT: usize = 50;

impl Figures {
    /// Steps done.
    pub(super) fn done(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.step)
    }

    /// Seconds until the last step, by the speed of the latest ones; none unless the run goes on.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let recent = &self.steps[self.steps.len().saturating_sub(RECENT)..];
        let left = self.num_steps.saturating_sub(self.done());
        if self.state != State::Running || recent.is_empty() || left == 0 {
            return None;
        }
        Some(recent.iter().map(|step| step.step_seconds).sum::<f64>() / recent.len() as f64 * left as f64)
    }

    /// Step and loss of the best evaluation; of equals the first.
    pub(super) fn best(&self) -> Option<(u64, f64)> {
        self.evaluations.iter().copied().min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// `120 of 2,000 (6 %)`.
    pub(super) fn progress(&self) -> String {
        let done = HumanCount(self.done());
        match self.num_steps {
            0 => done.to_string(),
            all => format!("{done} of {} ({} %)", HumanCount(all), 100 * self.done() / all),
        }
    }

    /// The figures of the moment, a line each.
    pub(super) fn summary(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.folder.display(), self.state.name())];
        let mut line = |name: &str, value: String| lines.push(format!("{name:<18} {value}"));
        line("step", self.progress());
        if let Some(last) = self.steps.last() {
            line("loss", format!("{:.4}", last.loss));
            if let (Some((step, loss)), Some((best_step, best))) = (self.evaluations.last(), self.best()) {
                let best = format!("best {best:.4} at step {}", HumanCount(best_step));
                line("validation loss", format!("{loss:.4} at step {} ({best})", HumanCount(*step)));
            }
            line("learning rate", format!("{:.2e}", last.lr));
            line("gradient norm", last.grad_norm.map_or("not finite".to_owned(), |norm| format!("{norm:.3}")));
            let speed = HumanCount(last.tokens_per_second.round() as u64);
            line("speed", format!("{speed} tokens/s, {:.1} ms a step", 1e3 * last.step_seconds));
            line("peak memory", HumanBytes(last.peak_memory_bytes).to_string());
        }
        if let Some(seconds) = self.seconds_left() {
            line("left", duration(seconds));
        }
        if let Some(last) = self.log.last() {
            line("log", last.clone());
        }
        lines.join("\n") + "\n"
    }
}

/// The files of a run, read as far as they go.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) figures: Figures,
    metrics: Tail,
    log: Tail,
    /// The last event of the log that is no notice.
    last_event: Option<String>,
    /// The validation set whose figures are shown: that of the first evaluation, null if it has no name.
    set: Option<Value>,
}

impl Watched {
    /// Reads what there is.
    ///
    /// # Errors
    /// The folder is not that of a run, or a file cannot be read.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let shown = folder.display();
        let what_to_do = "give the folder that run.output names, once `bessemer train` has begun to train there";
        if !folder.exists() {
            return Err(Failure::request(format!("{shown}: there is no such folder; {what_to_do}")));
        }
        if !folder.is_dir() {
            return Err(Failure::request(format!("{shown} is a file; {what_to_do}")));
        }
        if !folder.join("run.json").exists() && !folder.join("metrics.jsonl").exists() {
            let lacks = "holds no run: neither run.json nor metrics.jsonl is there";
            return Err(Failure::request(format!("{shown} {lacks}; {what_to_do}")));
        }
        let mut watched = Self {
            figures: Figures {
                folder: folder.to_owned(),
                state: State::Running,
                num_steps: 0,
                steps: Vec::new(),
                evaluations: Vec::new(),
                log: Vec::new(),
            },
            metrics: Tail::new(folder.join("metrics.jsonl")),
            log: Tail::new(folder.join("log.jsonl")),
            last_event: None,
            set: None,
        };
        watched.refresh()?;
        Ok(watched)
    }

    /// Reads what has come since.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn refresh(&mut self) -> Result<(), Failure> {
        let figures = &mut self.figures;
        let (is_new, lines) = self.metrics.read()?;
        if is_new {
            figures.steps.clear();
            figures.evaluations.clear();
        }
        for line in &lines {
            figures.steps.extend(Step::of(line));
            if let Some(evaluation) = line["step"].as_u64().zip(line["eval_loss"].as_f64()) {
                let set = self.set.get_or_insert_with(|| line["eval_set"].clone());
                figures.evaluations.extend(Some(evaluation).filter(|_| *set == line["eval_set"]));
            }
        }
        let (is_new, lines) = self.log.read()?;
        if is_new {
            figures.log.clear();
        }
        for line in &lines {
            figures.log.push(log_line(line));
            if line["event"] != "notice" {
                self.last_event = line["event"].as_str().map(str::to_owned);
            }
        }
        // A resumed run may be longer than the one before.
        figures.num_steps = num_steps(&figures.folder).unwrap_or(figures.num_steps);
        self.figures.state = self.state();
        Ok(())
    }

    fn state(&self) -> State {
        let is_done = self.figures.num_steps > 0 && self.figures.done() >= self.figures.num_steps;
        match self.last_event.as_deref() {
            Some("finished") => State::Finished,
            Some("interrupted") => State::Interrupted,
            Some("error") => State::Failed,
            _ if is_locked(&self.figures.folder) => State::Running,
            // A run of a version that kept no log.
            None if is_done => State::Finished,
            _ => State::Gone,
        }
    }
}

/// The number of steps that `run.json` has, if it is there and whole.
fn num_steps(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("run.json")).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["run"]["steps"].as_u64()
}

/// Whether a run holds the folder. Where files have no locks nobody can tell, and it may.
fn is_locked(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(".lock")) else { return false };
    match lock.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => error.kind() == ErrorKind::Unsupported,
    }
}

/// An event of the log for a person, on one line.
fn log_line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let number = |name: &str| event[name].as_f64().unwrap_or(f64::NAN);
    let what = match event["event"].as_str().unwrap_or_default() {
        "notice" => text("message"),
        "error" => format!("error: {}", text("message")),
        "started" if event["done_steps"] == 0 => format!("started, {} steps", event["steps"]),
        "started" => format!("going on, {} steps", event["steps"]),
        "evaluated" => {
            format!("validation loss {:.4}, perplexity {:.2}", number("eval_loss"), number("eval_perplexity"))
        }
        "saved" => format!("saved {}", text("path")),
        "exported" => format!("the trained model is in {}", text("path")),
        "sample" => format!("sample: {}", text("text")),
        "report" => format!("report: {}", text("name")),
        "interrupted" => format!("stopped by signal {}", event["signal"]),
        other => other.to_owned(),
    };
    format!("step {:>6}  {what}", event["step"].as_u64().unwrap_or(0))
}

/// A file of JSON lines that grows, or is replaced.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: Option<FileId>,
    /// Bytes read: whole lines only.
    offset: u64,
}

type FileId = (u64, u64);

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, offset: 0 }
    }

    /// The lines that are new, and whether the file is: what was read before is then void. Lines that are not JSON are torn
    /// ones of a process that was killed. A file that is not there has no lines.
    fn read(&mut self) -> Result<(bool, Vec<Value>), Failure> {
        self.read_new().map_err(|error| Failure::running(format!("{}: cannot read: {error}", self.path.display())))
    }

    fn read_new(&mut self) -> io::Result<(bool, Vec<Value>)> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.offset = 0;
                return Ok((self.file.take().is_some(), Vec::new()));
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let id = Some(file_id(&metadata));
        let is_new = self.file != id || metadata.len() < self.offset;
        if is_new {
            (self.file, self.offset) = (id, 0);
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.offset))?;
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.offset += whole as u64;
        let lines = bytes[..whole].split(|byte| *byte == b'\n');
        Ok((is_new, lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()))
    }
}

/// What tells a file from another of the same name.
#[cfg(unix)]
fn file_id(metadata: &fs::Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn file_id(_: &fs::Metadata) -> FileId {
    (0, 0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;
    use tempfile::TempDir;

    pub(in super::super) fn step_line(step: u64, loss: f64) -> Value {
        json!({"step": step, "loss": loss, "lr": 2e-4, "grad_norm": 1.5, "tokens": 512 * step,
               "tokens_per_second": 17359.4, "step_seconds": 0.25, "peak_memory_bytes": 3u64 << 20})
    }

    pub(in super::super) fn append(folder: &Path, file: &str, lines: &[Value]) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(folder.join(file)).unwrap();
        lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    }

    /// A folder of a run of so many steps of which nothing is done; the lock is held by what is returned.
    pub(in super::super) fn begun(num_steps: u64) -> (TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), json!({"run": {"steps": num_steps}}).to_string()).unwrap();
        let lock = File::create(dir.path().join(".lock")).unwrap();
        lock.try_lock().unwrap();
        (dir, lock)
    }

    fn open(folder: &Path) -> Watched {
        Watched::open(folder).unwrap_or_else(|_| panic!("{} is a run", folder.display()))
    }

    fn refresh(watched: &mut Watched) {
        watched.refresh().unwrap_or_else(|_| panic!("files that can be read"));
    }

    #[test]
    fn lines_are_read_as_they_come_and_half_ones_when_they_are_whole() {
        let (dir, _lock) = begun(40);
        let mut watched = open(dir.path());
        assert_eq!(
            (watched.figures.done(), watched.figures.num_steps, &watched.figures.state),
            (0, 40, &State::Running)
        );
        append(dir.path(), "metrics.jsonl", &[step_line(1, 4.0), step_line(2, 3.5)]);
        append(dir.path(), "metrics.jsonl", &[json!({"step": 2, "eval_loss": 3.75, "eval_perplexity": 42.5})]);
        refresh(&mut watched);
        assert_eq!((watched.figures.done(), &watched.figures.evaluations[..]), (2, &[(2, 3.75)][..]));
        let (line, mut file) = (step_line(3, 3.25).to_string(), fs::OpenOptions::new());
        let mut file = file.append(true).open(dir.path().join("metrics.jsonl")).unwrap();
        file.write_all(&line.as_bytes()[..20]).unwrap();
        refresh(&mut watched);
        assert_eq!(watched.figures.done(), 2);
        file.write_all(format!("{}\n", &line[20..]).as_bytes()).unwrap();
        refresh(&mut watched);
        assert_eq!(watched.figures.steps.iter().map(|step| step.loss).collect::<Vec<_>>(), [4.0, 3.5, 3.25]);
        // Of several sets the first is followed.
        append(dir.path(), "metrics.jsonl", &[json!({"step": 3, "eval_set": "other", "eval_loss": 9.0})]);
        refresh(&mut watched);
        assert_eq!(watched.figures.evaluations.len(), 1);
        // 37 steps of a quarter of a second.
        assert_eq!(watched.figures.seconds_left(), Some(9.25));
    }

    #[test]
    fn a_file_that_a_resumed_run_has_cut_is_read_anew() {
        let (dir, _lock) = begun(40);
        append(dir.path(), "metrics.jsonl", &[step_line(1, 4.0), step_line(2, 3.5), step_line(3, 3.0)]);
        let mut watched = open(dir.path());
        // By a file beside it that takes its name, and longer than what was read.
        append(dir.path(), "beside", &[1, 2, 3, 4].map(|step| step_line(step, 5.0)));
        fs::rename(dir.path().join("beside"), dir.path().join("metrics.jsonl")).unwrap();
        refresh(&mut watched);
        assert_eq!(watched.figures.steps.iter().map(|step| step.loss).collect::<Vec<_>>(), [5.0; 4]);
    }

    #[test]
    fn a_run_is_running_while_it_holds_its_folder_and_then_what_its_log_says() {
        let state = |event: Option<Value>, holds: bool| {
            let (dir, lock) = begun(1);
            append(dir.path(), "metrics.jsonl", &[step_line(1, 4.0)]);
            append(dir.path(), "log.jsonl", &event.into_iter().collect::<Vec<_>>());
            if !holds {
                drop(lock);
            }
            open(dir.path()).figures.state
        };
        let event = |name: &str| Some(json!({"step": 1, "event": name}));
        assert_eq!(state(event("started"), true), State::Running);
        assert_eq!(state(event("started"), false), State::Gone);
        assert_eq!(state(event("interrupted"), false), State::Interrupted);
        assert_eq!(state(event("error"), false), State::Failed);
        assert_eq!(state(event("finished"), false), State::Finished);
        assert_eq!(state(None, false), State::Finished);
    }

    #[test]
    fn a_summary_has_the_figures_of_the_last_step_and_of_the_evaluations() {
        let (dir, _lock) = begun(2000);
        let lines: Vec<Value> = (1..=120).map(|step| step_line(step, 4.0 - step as f64 / 100.0)).collect();
        append(dir.path(), "metrics.jsonl", &lines);
        append(
            dir.path(),
            "metrics.jsonl",
            &[json!({"step": 60, "eval_loss": 3.4}), json!({"step": 120, "eval_loss": 3.5})],
        );
        append(
            dir.path(),
            "log.jsonl",
            &[json!({"step": 100, "event": "saved", "path": "out/checkpoints/step-00000100"})],
        );
        let want = format!(
            "{}: running\n\
             step               120 of 2,000 (6 %)\n\
             loss               2.8000\n\
             validation loss    3.5000 at step 120 (best 3.4000 at step 60)\n\
             learning rate      2.00e-4\n\
             gradient norm      1.500\n\
             speed              17,359 tokens/s, 250.0 ms a step\n\
             peak memory        3.00 MiB\n\
             left               7m50s\n\
             log                step    100  saved out/checkpoints/step-00000100\n",
            dir.path().display()
        );
        assert_eq!(open(dir.path()).figures.summary(), want);
    }
}
