//! The folder a run leaves behind.

use crate::checkpoint::{self, Checkpoint};
use crate::error::{Result, TrainError};
use std::path::{Path, PathBuf};

/// The paths of a run's output.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    folder: PathBuf,
}

impl Output {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
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

    /// Refuses a folder that holds another run, or is no folder. Writes nothing.
    pub(crate) fn check_free(&self) -> Result<()> {
        let folder = self.folder.display();
        if self.folder.exists() && !self.folder.is_dir() {
            return Err(TrainError::Request(format!("run.output is {folder}, which is a file; it must be a folder")));
        }
        if self.holds_run() {
            return Err(TrainError::Request(format!(
                "run.output {folder} already holds a run; go on with it by --resume, or choose another folder \
                 (--set run.output=...)"
            )));
        }
        Ok(())
    }

    /// Makes the folder and shows that files can be written there.
    pub(crate) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(|error| {
            TrainError::Request(format!("run.output {}: cannot create the folder: {error}", self.folder.display()))
        })
    }

    /// The newest checkpoint that is whole, with what there is to say about damaged ones.
    pub(crate) fn newest_checkpoint(&self) -> Result<Option<(Checkpoint, Vec<String>)>> {
        let folder = self.checkpoints();
        if folder.is_dir() { Ok(checkpoint::newest(&folder)?) } else { Ok(None) }
    }
}
