//! A folder to run the program in, and what came of it.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::{TempDir, tempdir};

/// A working directory with a corpus, a run file `r.json` for it, and a token cache of its own.
pub(crate) struct Place(TempDir);

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A run file for [`Place`]: two steps of a model with 23,008 parameters over bytes.
pub(crate) fn run_file() -> Value {
    json!({
        "model": {"config": {"model_type": "gpt2", "vocab_size": 256, "n_positions": 64, "n_embd": 32, "n_layer": 1,
                             "n_head": 4}},
        "data": {"train": "corpus.txt", "tokenizer": "byte", "sequence_length": 32},
        "run": {"output": "out", "steps": 2},
        "train_batch_size": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}
    })
}

/// Writes `value` at `path` ("run.steps"); null takes the key out. Sections on the way are made.
pub(crate) fn put(root: &mut Value, path: &str, value: Value) {
    let (sections, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut section = root;
    for name in sections.split('.').filter(|name| !name.is_empty()) {
        section = &mut section[name];
    }
    match value {
        Value::Null => drop(section.as_object_mut().expect("a section").remove(key)),
        value => section[key] = value,
    }
}

/// The run file with some keys changed.
pub(crate) fn run_file_with(changes: &[(&str, Value)]) -> Value {
    let mut root = run_file();
    for (path, value) in changes {
        put(&mut root, path, value.clone());
    }
    root
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempdir().expect("a temporary folder"));
        place.write("corpus.txt", "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n".repeat(150));
        place.write("r.json", run_file().to_string());
        place
    }

    /// One with a finished run of `r.json` in `out`.
    pub(crate) fn trained() -> Self {
        let place = Self::new();
        let ended = place.run(&["train", "r.json", "--quiet"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file in the folder")).expect("the folder");
        fs::write(path, content).expect("a file");
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bessemer"));
        command.args(args).current_dir(self.0.path()).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().expect("the program runs"))
    }

    /// Runs what must succeed; its standard output.
    pub(crate) fn output_of(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.status, 0, "{args:?}: {ended:?}");
        ended.out
    }

    pub(crate) fn json_of(&self, args: &[&str]) -> Value {
        let text = self.output_of(args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Runs what must be refused: exit 2, one paragraph on standard error, nothing on standard output, and no file outside
    /// the token cache made or changed. Returns the paragraph without "error: ".
    pub(crate) fn refusal(&self, args: &[&str]) -> String {
        let before = self.files();
        let ended = self.run(args);
        let Ended { status, out, err } = &ended;
        assert_eq!(*status, 2, "{args:?}: {err}");
        assert_eq!(out, "", "{args:?}");
        assert!(!err.contains("panicked") && !err.contains("stack backtrace"), "{args:?}: {err}");
        assert!(self.files() == before, "{args:?}: files were written or changed");
        // Lines before the error tell what was done until then, such as tokenising.
        let at = err.find("error: ").unwrap_or_else(|| panic!("{args:?}: no error in {err:?}"));
        assert!(at == 0 || err.as_bytes()[at - 1] == b'\n', "{err}");
        err[at + "error: ".len()..].trim_end().to_owned()
    }

    /// The refusal of a run file with some keys changed: one line.
    pub(crate) fn refusal_of(&self, changes: &[(&str, Value)]) -> String {
        self.write("r.json", run_file_with(changes).to_string());
        let refusal = self.refusal(&["train", "r.json"]);
        assert!(!refusal.contains('\n'), "{changes:?}: more than one paragraph: {refusal}");
        refusal
    }

    /// Every file but those of the token cache, with its content.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect(self.0.path(), &mut files);
        files.retain(|(path, _)| !path.starts_with(self.path("cache")));
        files
    }
}

/// Files below `folder`, and empty folders too, in the order of their names.
fn collect(folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    if paths.is_empty() {
        files.push((folder.to_owned(), Vec::new()));
    }
    for path in paths {
        if path.is_dir() {
            collect(&path, files);
        } else {
            let content = fs::read(&path).expect("a file");
            files.push((path, content));
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The keys of an object, in their order.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

/// The lines of `metrics.jsonl` that are steps, and those that are evaluations.
pub(crate) fn metrics(output: &Path) -> (Vec<Value>, Vec<Value>) {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    lines.partition(|line| line.get("loss").is_some())
}

/// The losses of a run, step by step; fails unless steps count from 1.
pub(crate) fn losses(output: &Path) -> Vec<f64> {
    let (steps, _) = metrics(output);
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], index as u64 + 1);
    }
    steps.iter().map(|step| step["loss"].as_f64().expect("a loss")).collect()
}
