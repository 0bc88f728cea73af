//! The folder a run leaves behind.

use crate::checkpoint::{self, Checkpoint};
use crate::error::{Result, TrainError};
use crate::export::remove_folder;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The paths of a run's output.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    folder: PathBuf,
    /// The newest checkpoint that was there when this run looked first.
    newest: Option<PathBuf>,
}

impl Output {
    pub(crate) fn new(folder: &Path) -> Self {
        let mut output = Self { folder: folder.to_owned(), newest: None };
        output.newest = output.newest_listed();
        output
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn run_json(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log.jsonl")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// Whether a run has left anything here.
    pub(crate) fn holds_run(&self) -> bool {
        [self.run_json(), self.metrics(), self.checkpoints(), self.model()].iter().any(|path| path.exists())
    }

    /// Refuses a path that is no folder and cannot become one. Writes nothing.
    pub(crate) fn check_folder(&self) -> Result<()> {
        let folder = self.folder.display();
        if self.folder.as_os_str().is_empty() {
            return Err(TrainError::Request("run.output is empty; it must be the path of a folder".to_owned()));
        }
        match self.folder.ancestors().find(|path| path.exists()) {
            Some(file) if !file.is_dir() => {
                let problem = if file == self.folder { "which".to_owned() } else { format!("and {}", file.display()) };
                Err(TrainError::Request(format!("run.output is {folder}, {problem} is a file; it must be a folder")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a folder that holds another run, or is no folder. Writes nothing.
    pub(crate) fn check_free(&self) -> Result<()> {
        self.check_folder()?;
        let folder = self.folder.display();
        if self.holds_run() {
            return Err(TrainError::Request(format!(
                "run.output {folder} already holds a run; go on with it by --resume, or choose another folder \
                 (--set run.output=...)"
            )));
        }
        Ok(())
    }

    /// Makes the folder and takes it for this process until the file is dropped: two runs in one folder would lose each
    /// other's work. That no file can be written there is a wrong request: nothing has been written yet.
    pub(crate) fn take(&self) -> Result<File> {
        let folder = self.folder.display();
        let refused = |what: &str, error: std::io::Error| {
            let rule = "it must be a folder where files can be written";
            TrainError::Request(format!("run.output is {folder}, and {what}: {error}; {rule}"))
        };
        std::fs::create_dir_all(&self.folder).map_err(|error| refused("it cannot be made", error))?;
        let path = self.folder.join(".lock");
        let lock = File::create(&path).map_err(|error| refused("no file can be written there", error))?;
        // `bessemer watch` looks at the lock by taking it for a moment.
        match lock.try_lock().or_else(|_| {
            std::thread::sleep(Duration::from_millis(50));
            lock.try_lock()
        }) {
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::Request(format!(
                    "run.output {folder} is in use by a run that is still going; wait for it, or choose another folder"
                )));
            }
            // A file system without locks: nothing to hold, and no reason to refuse.
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                return Err(TrainError::io(&path, "lock")(error));
            }
            _ => {}
        }
        if self.newest_listed() != self.newest {
            return Err(TrainError::Request(format!(
                "another run has written to run.output {folder} since this one began to read; go on from there by \
                 --resume, or choose another folder"
            )));
        }
        let probe = self.folder.join(".bessemer-probe");
        std::fs::write(&probe, [])
            .and_then(|()| std::fs::remove_file(&probe))
            .map_err(|error| refused("no file can be written there", error))?;
        Ok(lock)
    }

    /// The newest folder that may be a checkpoint; what is wrong with it is told by whoever opens it.
    fn newest_listed(&self) -> Option<PathBuf> {
        checkpoint::list(&self.checkpoints()).ok()?.into_iter().next()
    }

    /// Removes the model of an earlier, shorter run.
    pub(crate) fn remove_model(&self) -> Result<()> {
        remove_folder(&self.model())
    }

    /// The newest checkpoint that is whole, with what there is to say about damaged ones.
    pub(crate) fn newest_checkpoint(&self) -> Result<Option<(Checkpoint, Vec<String>)>> {
        let folder = self.checkpoints();
        if folder.is_dir() { Ok(checkpoint::newest(&folder)?) } else { Ok(None) }
    }
}
