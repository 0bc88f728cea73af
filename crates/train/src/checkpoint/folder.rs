//! The checkpoints of a run: which there are, the newest one that is whole, and which to keep.
//!
//! The newest is the one that `latest` names, whatever its tag; without it, the one of the highest step. The others follow
//! from the highest step down; checkpoints under tags of a user's own are known by `latest` or by name, and never removed.
//!
//! `.NAME.replaced.partial` is a checkpoint that another one of the same name was about to replace. While there is no
//! `NAME` it stands for it; otherwise it is a leftover like `.NAME.partial`.

use super::manifest::MANIFEST_FILE;
use super::{Checkpoint, CheckpointError, Tag};
use models::hf::atomic::{AtomicFile, sync_folder};
use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The text file with the newest checkpoint's folder name.
pub(crate) const LATEST_FILE: &str = "latest";
/// The text file with the best checkpoint's folder name, where a run keeps the best.
const BEST_FILE: &str = "best";
/// The folder of checkpoints in the output of a run.
const CHECKPOINTS_FOLDER: &str = "checkpoints";
const STEP_PREFIX: &str = "step-";
const PARTIAL_SUFFIX: &str = ".partial";
/// What is set aside to make room for another of the same step.
pub(crate) const REPLACED: &str = "replaced";
/// What is set aside to be removed.
const OLD: &str = "old";

/// The newest checkpoint in `dir` that is whole, every byte checked, with a sentence about each newer one that was passed
/// over because it is not. `None` if there are no checkpoints.
///
/// # Errors
/// [`CheckpointError::AllDamaged`] if there are some and none is whole; [`CheckpointError::Io`].
pub fn newest(dir: &Path) -> Result<Option<(Checkpoint, Vec<String>)>, CheckpointError> {
    let Candidates { folders, latest_problem } = Candidates::find(dir)?;
    let mut problems: Vec<String> = latest_problem.into_iter().collect();
    for folder in folders {
        match Checkpoint::open(&folder).and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint)) {
            Ok(checkpoint) => {
                let used = folder.display();
                let notices = problems.into_iter().map(|problem| format!("{problem}; {used} is used instead"));
                return Ok(Some((checkpoint, notices.collect())));
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() { Ok(None) } else { Err(CheckpointError::AllDamaged { dir: dir.to_owned(), problems }) }
}

/// The folders of the checkpoints in `dir`, the newest first; none if `dir` does not exist. They are not opened.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    Ok(Candidates::find(dir)?.folders)
}

/// What is done behind a checkpoint that is on disk: `best` names the first of the `best` steps, then [`prune`].
///
/// # Errors
/// [`CheckpointError`].
pub fn settle(dir: &Path, keep: usize, best: &[u64]) -> Result<(), CheckpointError> {
    mark_best(dir, best.first().copied())?;
    prune(dir, keep, best)
}

/// Writes the file `best`, or removes it where there is no best checkpoint.
///
/// # Errors
/// [`CheckpointError`].
pub fn mark_best(dir: &Path, step: Option<u64>) -> Result<(), CheckpointError> {
    let path = dir.join(BEST_FILE);
    let wanted = step.map(|step| format!("{}\n", folder_name(step)));
    if fs::read_to_string(&path).ok() == wanted {
        return Ok(());
    }
    match wanted {
        Some(name) => {
            let mut file = AtomicFile::create(&path)?;
            file.write(name.as_bytes())?;
            file.finish()?;
            file.commit()?;
        }
        None => fs::remove_file(&path).map_err(CheckpointError::io(&path, "remove the name of the best checkpoint"))?,
    }
    Ok(sync_folder(dir)?)
}

/// Removes all but the newest `keep` checkpoints in `dir` and those of the steps `best`; 0 keeps all.
///
/// Each is renamed before it is removed, so that a half-removed one is never taken for complete.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn prune(dir: &Path, keep: usize, best: &[u64]) -> Result<(), CheckpointError> {
    if keep == 0 {
        return Ok(());
    }
    clear_leftovers(dir, None)?;
    let is_best = |folder: &&PathBuf| best.iter().any(|&step| **folder == path_of(dir, step));
    for folder in list(dir)?.iter().skip(keep).filter(|folder| !is_best(folder)) {
        if let Some(aside) = set_aside(folder, OLD)? {
            fs::remove_dir_all(&aside).map_err(CheckpointError::io(folder, "remove the old checkpoint"))?;
        }
    }
    Ok(())
}

/// Opens the checkpoint that `path` means: the folder of one, or the newest in a `checkpoints` folder or in a run's
/// output. `None` if `path` is none of these.
///
/// Its values are checked as they are read. A damaged newest one is an error, as somebody who names a run means its last
/// state: another one can be named by its folder.
///
/// # Errors
/// [`CheckpointError::Damaged`], [`CheckpointError::Io`].
pub fn open_any(path: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    let is_step = path.file_name().and_then(|name| name.to_str()).and_then(step_of).is_some();
    if path.join(MANIFEST_FILE).is_file() || (is_step && path.is_dir()) {
        return Checkpoint::open(path).map(Some);
    }
    let inside = path.join(CHECKPOINTS_FOLDER);
    let dir = if inside.is_dir() { &inside } else { path };
    if !dir.is_dir() {
        return Ok(None);
    }
    let Candidates { folders, latest_problem } = Candidates::find(dir)?;
    if let Some(problem) = latest_problem {
        let problem = format!("{problem}; name the folder of a checkpoint itself");
        return Err(CheckpointError::damaged(dir, problem));
    }
    folders.first().map(|folder| Checkpoint::open(folder)).transpose()
}

/// Opens the checkpoint `tag` in `dir`.
///
/// # Errors
/// [`CheckpointError::Tag`] if there is none; [`CheckpointError::Damaged`], [`CheckpointError::Io`].
pub fn tagged(dir: &Path, tag: &str) -> Result<Checkpoint, CheckpointError> {
    match standing(dir, tag) {
        Some(folder) => Checkpoint::open(&folder),
        None => {
            let rule = format!("there is no such checkpoint in {}; give one that was saved there", dir.display());
            Err(CheckpointError::Tag { tag: tag.to_owned(), rule })
        }
    }
}

/// What may be a checkpoint in a folder.
struct Candidates {
    /// The newest first.
    folders: Vec<PathBuf>,
    /// Why `latest` is of no use, if it is there.
    latest_problem: Option<String>,
}

impl Candidates {
    fn find(dir: &Path) -> Result<Self, CheckpointError> {
        let names = names(dir)?;
        let of = |name: &String| step_of(replaced_name(name).unwrap_or(name));
        let mut steps: Vec<u64> = names.iter().filter_map(of).collect();
        steps.retain(|&step| standing(dir, &folder_name(step)).is_some());
        steps.sort_by_key(|&step| Reverse(step));
        steps.dedup();
        let mut tagged = None;
        let path = dir.join(LATEST_FILE);
        let latest_problem = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(CheckpointError::io(&path, "read")(e)),
            Ok(bytes) => {
                let name = String::from_utf8_lossy(bytes.trim_ascii());
                match (step_of(&name), standing(dir, &name)) {
                    (Some(latest), _) if steps.contains(&latest) => {
                        // What lies above it is of a future that was given up.
                        steps.sort_by_key(|&step| (step > latest, Reverse(step)));
                        None
                    }
                    (None, Some(folder)) => {
                        tagged = Some(folder);
                        None
                    }
                    _ => Some(format!("{}: it names {name:?}, and there is no such checkpoint", path.display())),
                }
            }
        };
        let of_steps = steps.into_iter().filter_map(|step| standing(dir, &folder_name(step)));
        Ok(Self { folders: tagged.into_iter().chain(of_steps).collect(), latest_problem })
    }
}

/// The folder of the checkpoint of `step` in `dir`, whether or not it is there.
pub fn path_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(folder_name(step))
}

/// `step-00000500`.
pub(crate) fn folder_name(step: u64) -> String {
    format!("{STEP_PREFIX}{step:08}")
}

/// The step of a folder with this name; `None` if it is not that of a checkpoint.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(STEP_PREFIX)?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// The name of a checkpoint that was about to be replaced, from the name it has then.
fn replaced_name(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(PARTIAL_SUFFIX)?.strip_suffix(REPLACED)?.strip_suffix('.')
}

/// The folder that stands for the checkpoint `name`, if that is a name and there is one.
fn standing(dir: &Path, name: &str) -> Option<PathBuf> {
    Tag::check(name).ok()?;
    let folder = dir.join(name);
    let replaced = || aside(&folder, REPLACED);
    if folder.is_dir() { Some(folder) } else { Some(replaced()).filter(|folder| folder.is_dir()) }
}

/// What `path` is called while it is not complete.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().expect("partial_path: the path ends in a name");
    path.with_file_name(format!(".{}{PARTIAL_SUFFIX}", name.to_string_lossy()))
}

/// What `folder` is called once it is set aside.
fn aside(folder: &Path, why: &str) -> PathBuf {
    let name = folder.file_name().expect("aside: the path ends in a name");
    partial_path(&folder.with_file_name(format!("{}.{why}", name.to_string_lossy())))
}

/// Takes the name of a complete checkpoint from `folder`; returns where it is now, if it was there.
pub(crate) fn set_aside(folder: &Path, why: &str) -> Result<Option<PathBuf>, CheckpointError> {
    let aside = aside(folder, why);
    match fs::rename(folder, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CheckpointError::io(folder, "set the old checkpoint aside")(e)),
    }
}

/// Removes what processes that were killed left unfinished in `dir`, and gives a checkpoint its name back that was set
/// aside for one that never came. Of names that are not a run's it looks at those of `tag` alone: a program may save to a
/// folder that holds other things.
pub(crate) fn clear_leftovers(dir: &Path, tag: Option<&Tag>) -> Result<(), CheckpointError> {
    let is_ours =
        |name: &str| name == LATEST_FILE || step_of(name).is_some() || tag.is_some_and(|tag| tag.as_str() == name);
    let all = names(dir)?;
    for name in all.iter().filter_map(|name| replaced_name(name)).filter(|name| is_ours(name)) {
        let folder = dir.join(name);
        if !folder.is_dir() {
            fs::rename(aside(&folder, REPLACED), &folder)
                .map_err(CheckpointError::io(&folder, "restore the checkpoint"))?;
        }
    }
    for name in names(dir)? {
        let Some(of) = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL_SUFFIX)) else { continue };
        let without = |why: &str| of.strip_suffix(why).and_then(|of| of.strip_suffix('.'));
        if is_ours(without(REPLACED).or_else(|| without(OLD)).unwrap_or(of)) {
            let path = dir.join(&name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(CheckpointError::io(&path, "remove what an earlier process left"))?;
        }
    }
    Ok(())
}

/// The names in `dir`, leaving out those that are not UTF-8: none of ours. None if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    match entries {
        Ok(entries) => Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(CheckpointError::io(dir, "list the folder")(e)),
    }
}
