//! Checkpoints: what is kept of a run so that it can go on bit for bit, on any mesh.
//!
//! `checkpoints/step-00000500/` holds `manifest.json` and one safetensors file per writing rank; `checkpoints/latest`
//! is a text file with the newest folder's name, and `checkpoints/best`, where a run keeps the best, with the best one's. The manifest knows global tensors by their Hugging Face names; each is
//! tiled by pieces, runs of its elements in row-major order, wherever in the files they lie. So a reader asks for
//! elements and needs not know who wrote them. A program that saves by itself names the folder as it likes.
//!
//! | module | what |
//! | --- | --- |
//! | [`manifest`] | what `manifest.json` says |
//! | [`write`](mod@write) | a checkpoint, from the ranks' tensors |
//! | [`background`] | the same while training goes on |
//! | [`read`] | one checkpoint: checked on opening, every piece checked when it is read |
//! | [`tag`] | what a checkpoint is called |
//! | [`folder`] | the checkpoints of a run: the newest one that is whole, and which to keep |
//!
//! # Invariants
//! - A folder called `step-N`, or by a tag, is complete. Everything unfinished is called `.NAME.partial` and is removed by
//!   the next write.
//! - What is read is what was written: each piece and the manifest carry a crc32c, and no byte is handed on before it is
//!   checked.
//! - Writing holds one tensor in memory and four MiB beside, writing in the background a copy of all of them; reading
//!   holds the elements asked for and one MiB.
//!
//! Plain Rust on purpose: no tensor type of ours appears here. Not here: which tensors there are ([`crate::Engine`]).

pub mod background;
mod direct;
pub mod folder;
pub mod manifest;
pub mod read;
pub mod tag;
pub mod write;

use models::hf::HfError;
use std::io;
use std::path::{Path, PathBuf};

pub use background::{Background, Job};
pub use folder::{list, mark_best, newest, open_any, prune, settle, tagged};
pub use manifest::{Counters, FreshFrom, Head, Loader, Manifest, Piece, Rng, TensorEntry};
pub use read::Checkpoint;
pub use tag::{Tag, TagValidation};
pub use write::{Staging, TensorSpec, write, write_tagged};

/// Why a checkpoint could not be written or read. Its text is one paragraph.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused to write: no space, no permission.
    #[error("{}: cannot write the checkpoint: {source}; the checkpoints before it are as they were", .path.display())]
    Write {
        /// The file or folder, by the name it would have had.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The file system refused something else.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as the end of "cannot ...".
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A file of a checkpoint is missing, truncated, corrupt or contradicts another one.
    #[error("{}: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor, what was found and what was expected.
        problem: String,
    },
    /// A checkpoint lacks a tensor that it was asked for.
    #[error("{}: the checkpoint holds no {tensor}", .folder.display())]
    NoTensor {
        /// The checkpoint.
        folder: PathBuf,
        /// Its kind and name.
        tensor: String,
    },
    /// There are checkpoints, but none is whole.
    #[error(
        "{}: no checkpoint here is whole: {}. Copy one back, or move this folder away to start anew",
        .dir.display(), .problems.join("; ")
    )]
    AllDamaged {
        /// The folder of checkpoints.
        dir: PathBuf,
        /// What is wrong with each.
        problems: Vec<String>,
    },
    /// The name of a checkpoint is none, or that of another.
    #[error("the checkpoint's tag is {tag:?}; {rule}")]
    Tag {
        /// What was given.
        tag: String,
        /// What is wrong with it.
        rule: String,
    },
    /// `latest` could not be written.
    #[error(transparent)]
    Files(#[from] HfError),
}

impl CheckpointError {
    /// For `map_err` where a checkpoint is written.
    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    /// For `map_err` elsewhere.
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }
}

/// How a tensor is called in messages and in the safetensors files: `exp_avg/transformer.wte.weight`.
fn label(kind: &str, name: &str) -> String {
    format!("{kind}/{name}")
}
