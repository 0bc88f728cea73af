//! Failures while running, signals, kills, and going on from there bit for bit.

use crate::common::{Ended, Place, losses, metrics, put, run_file_with};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run with dropout in bf16, so that everything a checkpoint must hold is needed: 60 steps, a checkpoint every 8.
fn settings(output: &str) -> Value {
    run_file_with(&[
        ("run", json!({"output": output, "steps": 60, "checkpoint_every": 8, "eval_every": 20, "seed": 3})),
        ("model.config.resid_pdrop", json!(0.1)),
        ("data.validation", json!({"split": 0.1})),
        ("bf16", json!({"enabled": true})),
        ("scheduler", json!({"type": "WarmupCosineLR", "params": {"warmup_num_steps": 10, "total_num_steps": 60}})),
    ])
}

/// A place with an undisturbed run in `whole` and the run file `r.json` of the same run into `out`.
fn with_undisturbed_run() -> Place {
    let place = Place::new();
    place.write("whole.json", settings("whole").to_string());
    place.write("r.json", settings("out").to_string());
    place.output_of(&["train", "whole.json"]);
    place
}

fn assert_equals_undisturbed_run(place: &Place) {
    let (whole, out) = (place.path("whole"), place.path("out"));
    assert_eq!(losses(&out), losses(&whole));
    assert_eq!(metrics(&out).1, metrics(&whole).1, "evaluations");
    let weights = |output: &Path| fs::read(output.join("model/model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&whole), "the final weights differ");
}

/// Waits until the run has written so many steps, or is over.
fn wait_for_steps(place: &Place, child: &mut Child, steps: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while metrics(&place.path("out")).0.len() < steps && child.try_wait().expect("the child").is_none() {
        assert!(Instant::now() < deadline, "no step {steps} within 30 s");
        sleep(Duration::from_millis(1));
    }
}

/// Starts a run that is long enough not to end by itself, sends a signal after some steps; how it ended.
fn interrupt(place: &Place, args: &[&str], signal: &str, after_steps: usize) -> Ended {
    let mut child = place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    wait_for_steps(place, &mut child, after_steps);
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("kill").success(), "the run was over before the signal");
    Ended::from(child.wait_with_output().expect("its output"))
}

#[test]
#[cfg(unix)]
fn sigint_and_sigterm_finish_the_step_save_and_exit_with_128_and_the_signal() {
    for (signal, status, name) in [("-INT", 130, "SIGINT"), ("-TERM", 143, "SIGTERM")] {
        let place = with_undisturbed_run();
        // Steps of 64 rows take long enough for a signal to come before the end; the first interruption is of the same run.
        let ended = interrupt(&place, &["train", "r.json", "--set", "run.log_every=1"], signal, 5);
        if ended.status == 0 {
            // A machine so fast that the run was over: nothing to show.
            assert_equals_undisturbed_run(&place);
            continue;
        }
        assert_eq!(ended.status, status, "{ended:?}");
        assert!(ended.err.contains(&format!("stopped by {name}; --resume goes on from here\n")), "{}", ended.err);
        let (steps, _) = metrics(&place.path("out"));
        let latest = fs::read_to_string(place.path("out/checkpoints/latest")).unwrap();
        assert_eq!(
            latest.trim(),
            format!("step-{:08}", steps.len()),
            "the checkpoint holds the last step of the metrics"
        );
        place.output_of(&["train", "r.json", "--resume"]);
        assert_equals_undisturbed_run(&place);
    }
}

#[test]
#[cfg(unix)]
fn an_evaluation_that_a_signal_came_before_is_made_up_for_by_the_resume() {
    let place = Place::new();
    let run = json!({"output": "out", "steps": 10_000, "eval_every": 1});
    place.write("r.json", run_file_with(&[("run", run), ("data.validation", json!({"split": 0.1}))]).to_string());
    // Every step is due: the one that the signal finishes is too.
    let ended = interrupt(&place, &["train", "r.json"], "-INT", 5);
    assert_eq!(ended.status, 130, "{ended:?}");
    let done = losses(&place.path("out")).len();
    let steps = format!("run.steps={}", done + 1);
    place.output_of(&["train", "r.json", "--resume", "--set", &steps]);
    let (_, evaluations) = metrics(&place.path("out"));
    let evaluated: Vec<u64> = evaluations.iter().map(|line| line["step"].as_u64().expect("a step")).collect();
    assert_eq!(evaluated, (1..=done as u64 + 1).collect::<Vec<u64>>());
}

#[test]
fn two_runs_cannot_write_into_one_folder_at_once() {
    let place = Place::new();
    place.write("r.json", run_file_with(&[("run.steps", json!(1_000_000))]).to_string());
    let mut first = place.command(&["train", "r.json", "--quiet"]).spawn().expect("the program");
    wait_for_steps(&place, &mut first, 3);
    let second = place.run(&["train", "r.json", "--resume"]);
    first.kill().expect("kill");
    first.wait().expect("its end");
    assert_eq!(second.status, 2, "{second:?}");
    assert!(second.err.contains("error: run.output out is in use by a run that is still going"), "{}", second.err);
}

#[test]
fn killed_at_any_moment_and_resumed_a_run_gives_the_losses_and_weights_of_an_undisturbed_one() {
    let place = with_undisturbed_run();
    let mut kills = 0;
    for (kill, after_steps) in [0, 3, 14, 30, 45, 59].into_iter().enumerate() {
        let mut child =
            place.command(&["train", "r.json", "--resume"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.as_mut().expect("the program");
        wait_for_steps(&place, child, after_steps);
        sleep(Duration::from_micros(700 * kill as u64));
        child.kill().expect("kill");
        kills += usize::from(child.wait().expect("its end").code().is_none());
    }
    place.output_of(&["train", "r.json", "--resume"]);
    assert_equals_undisturbed_run(&place);
    assert!(kills >= 3, "only {kills} kills came before the end");
}

#[test]
fn killed_while_a_checkpoint_is_written_beside_training_the_one_before_it_gives_the_same_run() {
    let place = Place::new();
    // A checkpoint after every step, and some milliseconds to write it: nearly every kill finds one under way.
    let settings = |output: &str| {
        let mut settings = settings(output);
        put(&mut settings, "run.checkpoint_every", json!(1));
        put(&mut settings, "run.keep_checkpoints", json!(1));
        put(&mut settings, "run.steps", json!(40));
        put(&mut settings, "model.config.vocab_size", json!(8192));
        settings
    };
    place.write("whole.json", settings("whole").to_string());
    place.write("r.json", settings("out").to_string());
    place.output_of(&["train", "whole.json"]);
    let checkpoints = place.path("out/checkpoints");
    let is_under_way = || {
        let entries = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(".step-"))
    };
    let mut kills_under_way = 0;
    for kill in 0..12 {
        let mut child = place.command(&["train", "r.json", "--resume", "--quiet"]).spawn().expect("the program");
        wait_for_steps(&place, &mut child, 3 * kill + 1);
        sleep(Duration::from_micros(1700 * kill as u64));
        child.kill().expect("kill");
        let was_running = child.wait().expect("its end").code().is_none();
        kills_under_way += usize::from(was_running && is_under_way());
    }
    place.output_of(&["train", "r.json", "--resume"]);
    assert_equals_undisturbed_run(&place);
    assert!(kills_under_way >= 3, "only {kills_under_way} kills came while a checkpoint was written");
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_it_gives_the_same_run() {
    let place = with_undisturbed_run();
    place.output_of(&["train", "r.json", "--set", "run.steps=24"]);
    fs::remove_dir_all(place.path("out/model")).unwrap();
    let file = place.path("out/checkpoints/step-00000024/rank-00000.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    let ended = place.run(&["train", "r.json", "--resume"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let note = ended.err.lines().find(|line| line.contains("step-00000024/rank-00000.safetensors")).expect("a note");
    assert!(note.starts_with("note: ") && note.ends_with("step-00000016 is used instead"), "{note}");
    let (ours, whole) = (place.path("out"), place.path("whole"));
    assert_eq!(losses(&ours), losses(&whole));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_step_and_the_block() {
    let place = Place::new();
    let diverging = [
        ("optimizer", json!({"type": "SGD", "params": {"lr": 1e30}})),
        ("gradient_clipping", json!(0)),
        ("run.steps", json!(20)),
    ];
    place.write("r.json", run_file_with(&diverging).to_string());
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let error = ended.err.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(error.starts_with("error: step 2: the loss is "), "{error}");
    assert!(error.contains("the first block whose output is not finite is transformer."), "{error}");
    assert!(!place.path("out/model").exists());
}

#[test]
fn a_step_without_a_target_stops_the_run_as_its_mean_loss_is_not_defined() {
    let place = Place::new();
    let rows = json!({"train": [{"path": "rows.jsonl", "format": "tokenized"}], "packing": "none", "shuffle": false,
                      "sequence_length": 32});
    place.write("r.json", run_file_with(&[("data", rows), ("train_batch_size", json!(1))]).to_string());
    place.write("rows.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n");
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("error: step 2: of its 1 samples none has a target that counts"), "{}", ended.err);
}

/// A file system of its own in memory; the last user's end takes it away.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("a folder");
        let size = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    fn resize(&self, size: &str) {
        let size = format!("remount,size={size}");
        let done = Command::new("mount").args(["-o", &size]).arg(self.0).status();
        assert!(done.expect("mount").success());
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn on_a_full_disk_the_run_fails_the_last_good_checkpoint_stays_and_resume_goes_on_from_it() {
    let place = with_undisturbed_run();
    let disk_path = place.path("disk");
    // Three tensors a parameter of 4 bytes: a checkpoint has about 290 KB. Two fit, not three.
    let Some(disk) = Tmpfs::mount(&disk_path, "700k") else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    place.write("r.json", settings("disk/out").to_string());
    let ended = place.run(&["train", "r.json"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let error = ended.err.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(error.starts_with("error: disk/out/checkpoints/step-00000024"), "{error}");
    assert!(error.contains("No space left on device"), "{error}");
    let latest = fs::read_to_string(place.path("disk/out/checkpoints/latest")).unwrap();
    assert_eq!(latest, "step-00000016\n");
    disk.resize("8m");
    place.output_of(&["train", "r.json", "--resume"]);
    assert_eq!(losses(&place.path("disk/out")), losses(&place.path("whole")));
}

#[test]
fn killed_at_any_moment_a_run_that_keeps_its_best_has_them_and_ends_with_the_same_ones() {
    let place = Place::new();
    // By `max` the first evaluations stay the best, by `min` every one is better than those before.
    for mode in ["max", "min"] {
        let settings = |output: String| {
            let mut settings = settings(&output);
            put(&mut settings, "run.eval_every", json!(2));
            put(&mut settings, "run.keep_checkpoints", json!(1));
            put(&mut settings, "run.keep_best", json!({"count": 2, "mode": mode}));
            settings.to_string()
        };
        place.write("whole.json", settings(format!("whole-{mode}")));
        place.write("r.json", settings("out".to_owned()));
        place.output_of(&["train", "whole.json"]);
        let named =
            |output: &str, file: &str| fs::read_to_string(place.path(output).join("checkpoints").join(file)).ok();
        let mut kills = 0;
        for (kill, after_steps) in [2, 4, 9, 14, 23, 30, 38, 45, 52, 59].into_iter().enumerate() {
            let mut child = place.command(&["train", "r.json", "--resume", "--quiet"]).spawn().expect("the program");
            wait_for_steps(&place, &mut child, after_steps);
            sleep(Duration::from_micros(600 * kill as u64));
            child.kill().expect("kill");
            kills += usize::from(child.wait().expect("its end").code().is_none());
            for file in ["latest", "best"] {
                let Some(name) = named("out", file) else { continue };
                assert!(
                    place.path("out/checkpoints").join(name.trim_end()).is_dir(),
                    "kill {kill}: {file} names {name}"
                );
            }
        }
        place.output_of(&["train", "r.json", "--resume"]);
        assert!(kills >= 5, "only {kills} kills came before the end");
        let (whole, out) = (format!("whole-{mode}"), "out");
        let names = |output: &str| {
            let entries = fs::read_dir(place.path(output).join("checkpoints")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(out), names(&whole));
        assert_eq!(named(out, "best"), named(&whole, "best"));
        assert_eq!(metrics(&place.path(out)).1, metrics(&place.path(&whole)).1, "evaluations");
        fs::remove_dir_all(place.path("out")).unwrap();
    }
}
