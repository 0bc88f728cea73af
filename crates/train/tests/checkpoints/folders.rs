//! The checkpoints of a run: the newest, those to keep, and what a user's path means.

use super::{assert_holds, flip, head, names, specs, write_step};
use std::fs;
use std::path::Path;
use tempfile::tempdir;
use train::checkpoint::{Checkpoint, CheckpointError, Tag, list, newest, open_any, prune, tagged, write, write_tagged};

fn latest(dir: &Path) -> String {
    fs::read_to_string(dir.join("latest")).unwrap()
}

fn newest_step(dir: &Path) -> u64 {
    let (checkpoint, notices) = newest(dir).unwrap().expect("a checkpoint");
    assert_eq!(notices, Vec::<String>::new());
    checkpoint.head().counters.step
}

#[test]
fn latest_names_the_newest_and_nothing_unfinished_stays() {
    let dir = tempdir().unwrap();
    for step in [10, 20] {
        write_step(dir.path(), step).unwrap();
    }
    assert_eq!(latest(dir.path()), "step-00000020\n");
    assert_eq!(names(dir.path()), ["latest", "step-00000010", "step-00000020"]);
    assert_eq!(newest_step(dir.path()), 20);
}

#[test]
fn a_folder_that_is_empty_or_missing_has_no_newest_checkpoint() {
    let dir = tempdir().unwrap();
    assert!(newest(dir.path()).unwrap().is_none());
    assert!(newest(&dir.path().join("missing")).unwrap().is_none());
    assert!(list(&dir.path().join("missing")).unwrap().is_empty());
}

#[test]
fn without_latest_the_highest_step_is_the_newest() {
    let dir = tempdir().unwrap();
    // As numbers: as text, the second would come first.
    for step in [99_999_999, 100_000_000, 5] {
        write_step(dir.path(), step).unwrap();
    }
    assert_eq!(newest_step(dir.path()), 5);
    fs::remove_file(dir.path().join("latest")).unwrap();
    assert_eq!(newest_step(dir.path()), 100_000_000);
}

#[test]
fn checkpoints_above_latest_are_of_a_future_given_up_and_go_first() {
    let dir = tempdir().unwrap();
    for step in [300, 200, 250] {
        write_step(dir.path(), step).unwrap();
    }
    prune(dir.path(), 2, &[]).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000200", "step-00000250"]);
}

#[test]
fn latest_of_a_missing_folder_is_named_and_passed_over() {
    let dir = tempdir().unwrap();
    for step in [10, 20] {
        write_step(dir.path(), step).unwrap();
    }
    fs::remove_dir_all(dir.path().join("step-00000020")).unwrap();
    let (checkpoint, notices) = newest(dir.path()).unwrap().unwrap();
    assert_holds(&checkpoint, 10);
    let dir = dir.path().display();
    let want = format!(
        "{dir}/latest: it names \"step-00000020\", and there is no such checkpoint; {dir}/step-00000010 is used instead"
    );
    assert_eq!(notices, [want]);
}

#[test]
fn what_killed_processes_left_is_never_listed_and_goes_with_the_next_write() {
    let dir = tempdir().unwrap();
    let whole = write_step(dir.path(), 10).unwrap();
    // Killed while a rank's file was written; while an old checkpoint was removed; while latest was written.
    for name in [".step-00000020.partial", ".step-00000005.old.partial"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::copy(whole.join("manifest.json"), dir.path().join(name).join("manifest.json")).unwrap();
    }
    fs::write(dir.path().join(".latest.partial"), "step-0").unwrap();
    fs::write(dir.path().join("notes.txt"), "the user's own").unwrap();
    fs::create_dir(dir.path().join("step-20")).unwrap();
    assert_eq!(list(dir.path()).unwrap(), [whole]);
    assert_eq!(newest_step(dir.path()), 10);
    write_step(dir.path(), 20).unwrap();
    assert_eq!(names(dir.path()), ["latest", "notes.txt", "step-00000010", "step-00000020", "step-20"]);
}

#[test]
fn a_checkpoint_of_the_same_step_is_replaced() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 10).unwrap();
    flip(&folder.join("rank-00000.safetensors"), -1);
    fs::write(folder.join("rank-00001.safetensors"), "of an earlier mesh").unwrap();
    write_step(dir.path(), 10).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000010"]);
    assert_eq!(names(&folder), ["manifest.json", "rank-00000.safetensors"]);
    assert_eq!(newest_step(dir.path()), 10);
}

#[test]
fn killed_between_the_two_renames_of_a_replacement_the_checkpoint_is_found_and_gets_its_name_back() {
    for only_one in [true, false] {
        let dir = tempdir().unwrap();
        if !only_one {
            write_step(dir.path(), 10).unwrap();
        }
        let folder = write_step(dir.path(), 20).unwrap();
        // The new one is whole and has not got the name; the old one has lost it.
        let (old, new) =
            (dir.path().join(".step-00000020.replaced.partial"), dir.path().join(".step-00000020.partial"));
        fs::rename(&folder, &old).unwrap();
        fs::create_dir(&new).unwrap();
        fs::copy(old.join("manifest.json"), new.join("manifest.json")).unwrap();
        let (checkpoint, notices) = newest(dir.path()).unwrap().expect("step 20");
        assert_eq!(notices, Vec::<String>::new());
        assert_holds(&checkpoint, 20);
        assert_eq!(list(dir.path()).unwrap()[0], old);
        // The next write, of a later step, finds it under its name again.
        write_step(dir.path(), 30).unwrap();
        assert_holds(&Checkpoint::open(&folder).unwrap(), 20);
        assert_eq!(names(dir.path()).len(), if only_one { 3 } else { 4 });
    }
}

#[test]
fn killed_after_a_replacement_got_its_name_the_one_it_replaced_goes_with_the_next_write() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 20).unwrap();
    let old = dir.path().join(".step-00000020.replaced.partial");
    fs::create_dir(&old).unwrap();
    fs::copy(folder.join("manifest.json"), old.join("manifest.json")).unwrap();
    assert_eq!(list(dir.path()).unwrap(), [folder]);
    write_step(dir.path(), 30).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000020", "step-00000030"]);
}

#[test]
fn an_error_of_the_caller_comes_back_as_it_is_and_leaves_everything_as_it_was() {
    #[derive(Debug)]
    enum Mine {
        Stopped,
        Checkpoint,
    }
    impl From<CheckpointError> for Mine {
        fn from(_: CheckpointError) -> Self {
            Self::Checkpoint
        }
    }
    let dir = tempdir().unwrap();
    write_step(dir.path(), 10).unwrap();
    let specs = specs();
    let mut read = |index: usize| if index < 2 { Ok(vec![0.0; 35]) } else { Err(Mine::Stopped) };
    let error = write(dir.path(), &head(20), &specs, &mut read).unwrap_err();
    assert!(matches!(error, Mine::Stopped));
    assert_eq!(names(dir.path()), ["latest", "step-00000010"]);
    assert_eq!(newest_step(dir.path()), 10);
    let file = dir.path().join("latest");
    assert!(matches!(write(&file, &head(20), &specs, &mut read).unwrap_err(), Mine::Checkpoint));
}

#[test]
fn a_place_that_cannot_be_written_is_named_with_the_words_of_the_system() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let checkpoints = file.join("checkpoints");
    let error = write_step(&checkpoints, 10).unwrap_err();
    let want = format!(
        "{}: cannot write the checkpoint: Not a directory (os error 20); the checkpoints before it are as they were",
        checkpoints.display()
    );
    assert_eq!(error.to_string(), want);
}

#[test]
fn prune_keeps_the_newest_n_and_0_keeps_all() {
    let dir = tempdir().unwrap();
    for step in [10, 20, 30, 40] {
        write_step(dir.path(), step).unwrap();
    }
    prune(dir.path(), 0, &[]).unwrap();
    assert_eq!(names(dir.path()).len(), 5);
    prune(dir.path(), 3, &[]).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000020", "step-00000030", "step-00000040"]);
    prune(dir.path(), 1, &[]).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000040"]);
    assert_eq!(newest_step(dir.path()), 40);
}

/// A checkpoint under a tag of a user's own.
fn write_tag(dir: &Path, tag: &str, step: u64) -> Result<std::path::PathBuf, CheckpointError> {
    let (specs, tag) = (specs(), Tag::new(tag.to_owned(), step)?);
    write_tagged(dir, &tag, &head(step), &specs, &mut |index| Ok(super::owned(step, &specs[index], index)))
}

#[test]
fn a_tag_is_the_newest_while_latest_names_it_and_is_never_pruned() {
    let dir = tempdir().unwrap();
    for step in [10, 20] {
        write_step(dir.path(), step).unwrap();
    }
    let folder = write_tag(dir.path(), "best.v1", 15).unwrap();
    assert_eq!(latest(dir.path()), "best.v1\n");
    assert_eq!(newest_step(dir.path()), 15);
    assert_eq!(open_any(dir.path()).unwrap().expect("best.v1").folder(), folder);
    prune(dir.path(), 1, &[]).unwrap();
    assert_eq!(names(dir.path()), ["best.v1", "latest"]);
    write_step(dir.path(), 30).unwrap();
    assert_eq!(newest_step(dir.path()), 30);
    prune(dir.path(), 1, &[]).unwrap();
    assert_eq!(names(dir.path()), ["best.v1", "latest", "step-00000030"]);
    assert_holds(&tagged(dir.path(), "best.v1").unwrap(), 15);
    for tag in ["best", "..", ".", "latest", ""] {
        let want = format!(
            "the checkpoint's tag is {tag:?}; there is no such checkpoint in {}; give one that was saved there",
            dir.path().display()
        );
        assert_eq!(tagged(dir.path(), tag).unwrap_err().to_string(), want);
    }
}

#[test]
fn a_tag_is_replaced_like_a_step_and_other_hidden_files_of_its_folder_stay() {
    let dir = tempdir().unwrap();
    let folder = write_tag(dir.path(), "best", 10).unwrap();
    // Killed between the two renames of a replacement, beside hidden files of a user's own.
    fs::rename(&folder, dir.path().join(".best.replaced.partial")).unwrap();
    fs::create_dir(dir.path().join(".best.partial")).unwrap();
    fs::write(dir.path().join(".mine.partial"), "a download").unwrap();
    assert_holds(&tagged(dir.path(), "best").unwrap(), 10);
    assert_eq!(newest_step(dir.path()), 10);
    write_tag(dir.path(), "last", 20).unwrap();
    assert_holds(&tagged(dir.path(), "best").unwrap(), 10);
    write_tag(dir.path(), "best", 30).unwrap();
    assert_eq!(names(dir.path()), [".mine.partial", "best", "last", "latest"]);
    assert_holds(&tagged(dir.path(), "best").unwrap(), 30);
}

#[test]
fn prune_never_removes_what_latest_names() {
    let dir = tempdir().unwrap();
    for step in [30, 40, 10] {
        write_step(dir.path(), step).unwrap();
    }
    prune(dir.path(), 2, &[]).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000010", "step-00000040"]);
    prune(dir.path(), 1, &[]).unwrap();
    assert_eq!(names(dir.path()), ["latest", "step-00000010"]);
}

#[test]
fn a_checkpoint_its_parent_and_the_output_of_a_run_all_mean_a_checkpoint() {
    let output = tempdir().unwrap();
    let dir = output.path().join("checkpoints");
    for step in [10, 20] {
        write_step(&dir, step).unwrap();
    }
    let step = |path: &Path| open_any(path).unwrap().map(|checkpoint| checkpoint.head().counters.step);
    assert_eq!(step(&dir.join("step-00000010")), Some(10));
    assert_eq!(step(&dir), Some(20));
    assert_eq!(step(output.path()), Some(20));
    fs::rename(dir.join("step-00000010"), output.path().join("best")).unwrap();
    assert_eq!(step(&output.path().join("best")), Some(10));
}

#[test]
fn other_paths_mean_no_checkpoint() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::create_dir(dir.path().join("checkpoints")).unwrap();
    for path in ["", "config.json", "missing", "checkpoints"] {
        assert!(open_any(&dir.path().join(path)).unwrap().is_none());
    }
}

#[test]
fn a_run_whose_newest_checkpoint_is_damaged_is_not_taken_for_an_older_one() {
    let dir = tempdir().unwrap();
    write_step(dir.path(), 10).unwrap();
    let folder = write_step(dir.path(), 20).unwrap();
    fs::remove_file(folder.join("manifest.json")).unwrap();
    for path in [dir.path(), &folder] {
        let error = open_any(path).unwrap_err().to_string();
        let want = format!(
            "{}: the file is missing; a checkpoint is whole only with it",
            folder.join("manifest.json").display()
        );
        assert_eq!(error, want);
    }
    fs::remove_dir_all(&folder).unwrap();
    let error = open_any(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("and there is no such checkpoint; name the folder of a checkpoint itself"), "{error}");
    assert!(Checkpoint::open(&dir.path().join("step-00000010")).is_ok());
}
