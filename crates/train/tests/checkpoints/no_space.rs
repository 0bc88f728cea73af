//! No space, no permission: the last good checkpoint stays, and the message says what the system said.

use super::{assert_holds, names, write_step};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{TempDir, tempdir};
use train::checkpoint::{newest, write};

/// A file system of its own in memory; `None` where mounting is not allowed.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn mount(num_kib: usize) -> Option<Self> {
        let folder = tempdir().expect("a folder");
        let size = format!("size={num_kib}k");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What an administrator, or a file system with errors, does.
    fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "who may mount may remount");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Busy or not, the mount goes with its last user.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Writes step 10 and asserts that step 20 fails with `reason` and changes nothing.
fn assert_second_write_fails(dir: &Path, write_second: impl FnOnce() -> String, reason: &str) {
    let before = names(dir);
    assert_eq!(before, ["latest", "step-00000010"]);
    let want = format!(
        "{}/step-00000020/rank-00000.safetensors: cannot write the checkpoint: {reason}; the checkpoints before it are \
         as they were",
        dir.display()
    );
    assert_eq!(write_second(), want);
    assert_eq!(names(dir), before);
    assert_eq!(fs::read_to_string(dir.join("latest")).unwrap(), "step-00000010\n");
    let (checkpoint, notices) = newest(dir).unwrap().expect("step 10");
    assert_eq!(notices, Vec::<String>::new());
    assert_holds(&checkpoint, 10);
}

#[test]
fn on_a_full_disk_the_last_good_checkpoint_stays() {
    // One checkpoint has 1.2 MB.
    let Some(disk) = Tmpfs::mount(2048) else {
        eprintln!("skipped: this user may not mount a tmpfs; the test with a file size limit stands in for it");
        return;
    };
    let dir: PathBuf = disk.path().join("checkpoints");
    write_step(&dir, 10).unwrap();
    let second = || write_step(&dir, 20).unwrap_err().to_string();
    assert_second_write_fails(&dir, second, "No space left on device (os error 28)");
    // Once there is room, the next one is written.
    fs::remove_dir_all(dir.join("step-00000010")).unwrap();
    write_step(&dir, 20).unwrap();
    assert_holds(&newest(&dir).unwrap().unwrap().0, 20);
}

#[test]
fn where_nothing_may_be_written_any_more_the_last_good_checkpoint_stays() {
    let Some(disk) = Tmpfs::mount(4096) else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let dir = disk.path().join("checkpoints");
    write_step(&dir, 10).unwrap();
    disk.make_read_only();
    let error = write_step(&dir, 20).unwrap_err().to_string();
    let want = format!(
        "{}/step-00000020: cannot write the checkpoint: Read-only file system (os error 30); the checkpoints before it are as \
         they were",
        dir.display()
    );
    assert_eq!(error, want);
    assert_eq!(names(&dir), ["latest", "step-00000010"]);
    assert_holds(&newest(&dir).unwrap().expect("step 10").0, 10);
}

#[test]
#[cfg(unix)]
fn without_permission_the_last_good_checkpoint_stays() {
    use std::os::unix::fs::PermissionsExt;
    let output = tempdir().unwrap();
    let dir = output.path().join("checkpoints");
    write_step(&dir, 10).unwrap();
    let permit = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    permit(0o555);
    if fs::write(dir.join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write anywhere; the test with a read-only file system stands in for it");
        return;
    }
    let error = write_step(&dir, 20).unwrap_err().to_string();
    assert!(error.contains("step-00000020: cannot write the checkpoint: Permission denied (os error 13)"), "{error}");
    permit(0o755);
    assert_eq!(names(&dir), ["latest", "step-00000010"]);
    assert_holds(&newest(&dir).unwrap().expect("step 10").0, 10);
}

const DIR_OF_CHILD: &str = "BESSEMER_TEST_CHECKPOINTS";

#[test]
#[cfg(unix)]
fn at_a_file_size_limit_the_last_good_checkpoint_stays() {
    if let Some(dir) = std::env::var_os(DIR_OF_CHILD) {
        // The child, whose files may have 100 blocks.
        println!("error: {}", write_step(Path::new(&dir), 20).unwrap_err());
        return;
    }
    let dir = tempdir().unwrap();
    write_step(dir.path(), 10).unwrap();
    let second = || {
        // Ignored, the signal becomes an error of the write.
        let mut child = Command::new("sh");
        child.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
        child.args(["--exact", "no_space::at_a_file_size_limit_the_last_good_checkpoint_stays", "--nocapture"]);
        let output = child.env(DIR_OF_CHILD, dir.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = text.split_once("error: ").unwrap_or_else(|| panic!("the child said: {text}")).1;
        error.lines().next().unwrap().to_owned()
    };
    assert_second_write_fails(dir.path(), second, "File too large (os error 27)");
}

#[test]
fn when_the_first_checkpoint_of_a_run_fails_nothing_is_left_but_its_empty_folder() {
    let output = tempdir().unwrap();
    let dir = output.path().join("checkpoints");
    let out_of_space = || train::checkpoint::CheckpointError::Write {
        path: dir.clone(),
        source: std::io::Error::from(std::io::ErrorKind::StorageFull),
    };
    let result = write(&dir, &super::head(10), &super::specs(), &mut |_| Err::<Vec<f32>, _>(out_of_space()));
    assert!(result.is_err());
    assert_eq!(names(&dir), Vec::<String>::new());
    assert!(newest(&dir).unwrap().is_none());
}
