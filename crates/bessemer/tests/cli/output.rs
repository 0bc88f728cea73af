//! Where a run may write.

use crate::common::{Place, losses};
use std::fs;

#[test]
fn an_output_folder_that_holds_another_run_is_left_as_it_is() {
    let place = Place::trained();
    let refusal = place.refusal(&["train", "r.json"]);
    assert_eq!(
        refusal,
        "run.output out already holds a run; go on with it by --resume, or choose another folder (--set run.output=...)"
    );
}

#[test]
fn an_output_that_is_a_file_or_lies_under_one_or_cannot_be_written_is_refused() {
    let place = Place::new();
    for (output, begins) in [
        ("corpus.txt", "run.output is corpus.txt, which is a file; it must be a folder"),
        ("corpus.txt/a/b", "run.output is corpus.txt/a/b, and corpus.txt is a file; it must be a folder"),
        ("\"\"", "run.output is empty; it must be the path of a folder"),
        #[cfg(target_os = "linux")]
        ("/proc/self/out", "run.output is /proc/self/out, and it cannot be made: "),
        #[cfg(target_os = "linux")]
        ("/proc/self", "run.output is /proc/self, and no file can be written there: "),
    ] {
        let refusal = place.refusal(&["train", "r.json", "--set", &format!("run.output={output}")]);
        assert!(refusal.starts_with(begins), "{output}: {refusal}");
    }
}

#[test]
fn a_folder_with_files_of_other_kinds_may_become_the_output() {
    let place = Place::new();
    place.write("out/notes.txt", "mine");
    place.output_of(&["train", "r.json"]);
    assert_eq!(fs::read_to_string(place.path("out/notes.txt")).unwrap(), "mine");
    assert_eq!(losses(&place.path("out")).len(), 2);
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let place = Place::new();
    let before = fs::read_dir(place.path(".")).unwrap().count();
    let plan = place.output_of(&["train", "r.json", "--dry-run"]);
    for line in ["train_batch_size                 4\n", "steps                            2\n", "memory: total"] {
        assert!(plan.contains(line), "{plan}");
    }
    assert!(!place.path("out").exists());
    // The token cache alone is there.
    assert_eq!(fs::read_dir(place.path(".")).unwrap().count(), before + 1);
    // What training would refuse, a dry run refuses too.
    let refusal = place.refusal(&["train", "r.json", "--dry-run", "--data", "missing.txt"]);
    assert!(refusal.starts_with("--data: missing.txt"), "{refusal}");
}

#[test]
fn resume_with_nothing_there_starts_fresh_and_says_so() {
    let place = Place::new();
    let ended = place.run(&["train", "r.json", "--resume"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.err.contains("note: there is no checkpoint to resume from; the run starts from the beginning"));
    assert_eq!(losses(&place.path("out")).len(), 2);
}

#[test]
fn a_resume_with_another_model_data_seed_or_optimizer_is_refused_and_one_with_another_length_is_listed() {
    let place = Place::trained();
    place.write("other.txt", "To be, or not to be, that is the question. ".repeat(50));
    for set in ["run.seed=7", "data.train=other.txt", "model.config.n_layer=2", "optimizer={\"type\": \"SGD\"}"] {
        let refusal = place.refusal(&["train", "r.json", "--resume", "--set", set]);
        assert!(refusal.starts_with("out/checkpoints/step-00000002: the checkpoint "), "{set}: {refusal}");
        assert!(refusal.contains("may not change"), "{set}: {refusal}");
    }
    let ended = place.run(&["train", "r.json", "--resume", "--set", "run.steps=4"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.err.contains("note: changed since the checkpoint: run.steps: 2 -> 4"), "{}", ended.err);
    assert_eq!(losses(&place.path("out")).len(), 4);
}
