//! What can go wrong with a Hugging Face folder, each error one paragraph that names the file and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a Hugging Face folder could not be read or written. All but [`HfError::Io`] are faults of the input.
#[derive(Debug, Error)]
pub enum HfError {
    /// The file system refused.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as the end of "cannot ...".
        action: &'static str,
        /// The file system's words.
        source: io::Error,
    },
    /// The folder holds no weights that we read.
    #[error("{}: {problem}", .folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was found instead and what to do.
        problem: String,
    },
    /// A file is truncated, corrupt or contradicts another one.
    #[error("{}: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The tensors in the files are not those that the model has.
    #[error("{}: {problem}", .path.display())]
    Mismatch {
        /// The file, or the folder where no single file is at fault.
        path: PathBuf,
        /// The tensor, what was found and what was wanted.
        problem: String,
    },
    /// A key of a configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl HfError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn mismatch(path: &Path, problem: impl Into<String>) -> Self {
        Self::Mismatch { path: path.to_owned(), problem: problem.into() }
    }
}

/// A key of a model configuration that is wrong, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the configuration stands: `model.config` of a run file, or the path of a `config.json`.
    pub place: String,
    /// The key, the value found and what it must be.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}
