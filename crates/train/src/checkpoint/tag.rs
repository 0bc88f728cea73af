//! What a checkpoint's folder is called: `step-00000500` in a run, whatever a program says otherwise.
//!
//! Ranks must save under one tag, as each writes its part of one folder. `checkpoint.tag_validation` says what happens when
//! they do not: `Ignore` nothing, `Warn` a notice, `Fail` an error. One rank has no other tag to differ from.
//! Source: DeepSpeed `runtime/engine.py`, `_checkpoint_tag_validation`.

use super::CheckpointError;
use super::folder::{LATEST_FILE, folder_name, step_of};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The name of a checkpoint's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// A tag of a caller's own, for a checkpoint of `step`.
    ///
    /// # Errors
    /// It is not the name of a folder, is hidden or `latest`, or is a run's name for another step.
    pub fn new(tag: String, step: u64) -> Result<Self, CheckpointError> {
        let refuse = |rule: String| Err(CheckpointError::Tag { tag: tag.clone(), rule });
        if let Err(rule) = Self::check(&tag) {
            return refuse(rule.to_owned());
        }
        if step_of(&tag).is_some_and(|of| of != step) {
            let own = folder_name(step);
            return refuse(format!("a run calls the checkpoint of another step so; this one would be {own}"));
        }
        Ok(Self(tag))
    }

    /// Whether a checkpoint may have this name. The error is what it must be.
    pub(crate) fn check(name: &str) -> Result<(), &'static str> {
        let is_name = Path::new(name).file_name().is_some_and(|last| last == name);
        if !is_name || name.contains(['/', '\\', '\n']) || name.trim() != name {
            return Err("it must be the name of a folder, without slashes and without space around it");
        }
        if name.starts_with('.') || name == LATEST_FILE {
            return Err("names that begin with a dot, and \"latest\", are taken");
        }
        Ok(())
    }

    /// What a run calls the checkpoint of a step.
    pub fn of_step(step: u64) -> Self {
        Self(folder_name(step))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What happens when ranks give different tags for one checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum TagValidation {
    /// Nothing.
    Ignore,
    /// A notice.
    #[default]
    Warn,
    /// An error.
    Fail,
}

impl TagValidation {
    /// Compares the tags of all ranks, in their order. The notice is for the log.
    ///
    /// # Errors
    /// They differ, under [`TagValidation::Fail`].
    pub fn check(self, tags: &[&str]) -> Result<Option<String>, CheckpointError> {
        let first = tags.first().copied().unwrap_or_default();
        let Some(rank) = tags.iter().position(|tag| *tag != first) else { return Ok(None) };
        let rule =
            format!("rank 0 saves under it and rank {rank} under {:?}; every rank must give the same tag", tags[rank]);
        let error = CheckpointError::Tag { tag: first.to_owned(), rule };
        match self {
            Self::Ignore => Ok(None),
            Self::Warn => Ok(Some(error.to_string())),
            Self::Fail => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_ranks_that_differ_are_ignored_told_or_refused() {
        let said = "the checkpoint's tag is \"best\"; rank 0 saves under it and rank 2 under \"last\"; every rank must give \
                    the same tag";
        let tags = ["best", "best", "last"];
        assert_eq!(TagValidation::Ignore.check(&tags).unwrap(), None);
        assert_eq!(TagValidation::Warn.check(&tags).unwrap().as_deref(), Some(said));
        assert_eq!(TagValidation::Fail.check(&tags).unwrap_err().to_string(), said);
        for validation in [TagValidation::Ignore, TagValidation::Warn, TagValidation::Fail] {
            assert_eq!(validation.check(&["best"; 3]).unwrap(), None);
            assert_eq!(validation.check(&["best"]).unwrap(), None);
        }
    }

    #[test]
    fn a_tag_is_the_name_of_a_folder_that_nothing_else_has() {
        for good in ["global_step10", "best", "v1.2", "step-00000010", "step-11", "lr=0.1, run 2"] {
            assert_eq!(Tag::new(good.to_owned(), 10).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "/a", "a/", "a\\b", " a", "a\n", ".hidden", "latest", "step-00000011"] {
            assert!(Tag::new(bad.to_owned(), 10).is_err(), "{bad:?}");
        }
    }
}
