//! Written while the caller goes on, a checkpoint is the one that a synchronous write gives.

use super::no_space::Tmpfs;
use super::{assert_holds, head, names, owned, specs, write_step};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::tempdir;
use train::checkpoint::{Background, Checkpoint, CheckpointError, Job, mark_best, newest};

/// Begins to write what [`write_step`] writes.
fn start(background: &mut Background, dir: &Path, step: u64, keep: usize) -> Result<(), CheckpointError> {
    let tensors = specs();
    let job = Job { dir: dir.to_owned(), head: head(step), tensors: tensors.clone(), keep };
    background.start(job, |index, out| {
        out.copy_from_slice(&owned(step, &tensors[index], index));
        Ok(())
    })
}

#[test]
fn every_byte_is_that_of_a_synchronous_write_whatever_was_in_the_memory_before() {
    let (background_dir, dir) = (tempdir().unwrap(), tempdir().unwrap());
    let mut background = Background::default();
    for step in [10, 20, 30] {
        start(&mut background, background_dir.path(), step, 0).unwrap();
        let ours = background.finish().unwrap().expect("a checkpoint");
        let theirs = write_step(dir.path(), step).unwrap();
        assert_eq!(ours.file_name(), theirs.file_name());
        assert_eq!(names(&ours), names(&theirs));
        for name in names(&ours) {
            assert!(
                fs::read(ours.join(&name)).unwrap() == fs::read(theirs.join(&name)).unwrap(),
                "{name}, step {step}"
            );
        }
    }
    mark_best(dir.path(), Some(30)).unwrap();
    assert_eq!(names(background_dir.path()), names(dir.path()));
    assert!(background.finish().unwrap().is_none() && !background.is_done());
}

#[test]
fn what_changes_after_the_snapshot_is_not_in_the_checkpoint() {
    let dir = tempdir().unwrap();
    let (mut background, tensors) = (Background::default(), specs());
    let mut state: Vec<Vec<f32>> = tensors.iter().enumerate().map(|(index, spec)| owned(5, spec, index)).collect();
    let job = Job { dir: dir.path().to_owned(), head: head(5), tensors, keep: 3 };
    let copied = background.start(job, |index, out| {
        out.copy_from_slice(&state[index]);
        Ok::<_, CheckpointError>(())
    });
    copied.unwrap();
    state.iter_mut().flatten().for_each(|value| *value = 0.0);
    assert_holds(&Checkpoint::open(&background.finish().unwrap().expect("a checkpoint")).unwrap(), 5);
}

#[test]
fn the_newest_are_kept_as_asked_and_a_dropped_writer_is_waited_for() {
    let dir = tempdir().unwrap();
    let mut background = Background::default();
    for step in [10, 20, 30] {
        start(&mut background, dir.path(), step, 2).unwrap();
        background.finish().unwrap();
    }
    start(&mut background, dir.path(), 40, 2).unwrap();
    drop(background);
    assert_eq!(names(dir.path()), ["best", "latest", "step-00000030", "step-00000040"]);
    assert_holds(&newest(dir.path()).unwrap().unwrap().0, 40);
}

#[test]
#[should_panic(expected = "Background::start: the checkpoint before is still being written")]
fn two_at_once_are_a_bug_of_ours() {
    let dir = tempdir().unwrap();
    let mut background = Background::default();
    start(&mut background, dir.path(), 10, 0).unwrap();
    let _ = start(&mut background, dir.path(), 20, 0);
}

#[test]
fn a_full_disk_is_told_with_the_file_by_whoever_waits_and_the_next_one_is_written_once_there_is_room() {
    // One checkpoint has 1.2 MB.
    let Some(disk) = Tmpfs::mount(2048) else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let dir: PathBuf = disk.path().join("checkpoints");
    write_step(&dir, 10).unwrap();
    let mut background = Background::default();
    start(&mut background, &dir, 20, 1).unwrap();
    let want = format!(
        "{}/step-00000020/rank-00000.safetensors: cannot write the checkpoint: No space left on device (os error 28); the \
         checkpoints before it are as they were",
        dir.display()
    );
    assert_eq!(background.finish().unwrap_err().to_string(), want);
    assert_eq!(names(&dir), ["latest", "step-00000010"]);
    assert_holds(&newest(&dir).unwrap().unwrap().0, 10);
    fs::remove_dir_all(dir.join("step-00000010")).unwrap();
    start(&mut background, &dir, 30, 1).unwrap();
    background.finish().unwrap();
    assert_holds(&newest(&dir).unwrap().unwrap().0, 30);
}

#[test]
fn an_error_of_the_copy_comes_back_as_it_is_and_nothing_is_written() {
    let dir = tempdir().unwrap();
    let mut background = Background::default();
    let job = Job { dir: dir.path().join("checkpoints"), head: head(10), tensors: specs(), keep: 1 };
    let failed = background.start(job, |index, _| match index {
        0 => Ok(()),
        _ => Err(CheckpointError::Io {
            path: PathBuf::from("device"),
            action: "read",
            source: std::io::ErrorKind::Other.into(),
        }),
    });
    assert!(failed.unwrap_err().to_string().starts_with("device: cannot read"));
    assert!(background.finish().unwrap().is_none());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
