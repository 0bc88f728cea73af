//! A run that is stopped and resumed is the undisturbed one, bit for bit; so is one on another number of threads.

mod common;

use common::{run, set, small, try_run, weights};
use serde_json::json;
use std::fs;
use train::Outcome;

#[test]
fn a_run_stopped_by_a_signal_goes_on_bit_for_bit_in_f32_and_bf16() {
    for bf16 in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
        let mut whole = small(&whole_output);
        set(&mut whole, "bf16", json!({"enabled": bf16}));
        let mut cut = whole.clone();
        set(&mut cut, "run.output", json!(cut_output));
        let undisturbed = run(&whole, false, None);
        assert_eq!(undisturbed.outcome, Outcome::Finished);
        let mut losses = Vec::new();
        for (resume, stop_after) in [(false, Some(3)), (true, Some(4)), (true, Some(9)), (true, None)] {
            let part = run(&cut, resume, stop_after);
            assert_eq!(part.outcome == Outcome::Finished, stop_after.is_none());
            losses.extend(part.losses());
        }
        assert_eq!(losses, undisturbed.losses());
        assert!(weights(&whole_output) == weights(&cut_output), "final weights differ");
        let lines = train::metrics::MetricsFile::read_all(&cut_output.join("metrics.jsonl")).expect("metrics");
        assert_eq!(
            lines.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(),
            (1..=12).map(Some).collect::<Vec<_>>()
        );
    }
}

#[test]
fn checkpoints_written_while_training_goes_on_are_those_written_between_two_steps() {
    let folder = tempfile::tempdir().expect("a folder");
    for (number, (dtype, moments)) in [("f32", "f32"), ("bf16", "bf16"), ("bf16", "int8")].into_iter().enumerate() {
        let outputs = [true, false].map(|is_async| {
            let output = folder.path().join(format!("{number}-{is_async}"));
            let mut config = small(&output);
            set(&mut config, "bf16", json!({"enabled": dtype == "bf16"}));
            set(&mut config, "optimizer.moments", json!(moments));
            set(&mut config, "run.ema_decay", json!(0.9));
            set(&mut config, "run.checkpoint_every", json!(1));
            set(&mut config, "run.keep_checkpoints", json!(0));
            set(&mut config, "run.checkpoint_async", json!(is_async));
            let saved = run(&config, false, None).saved;
            let want = (1..=12).map(|step| output.join(format!("checkpoints/step-{step:08}")));
            assert_eq!(saved, want.collect::<Vec<_>>(), "each is told once, when it is on disk");
            output
        });
        for step in 1..=12 {
            let [ours, theirs] = outputs.each_ref().map(|output| {
                let folder = output.join(format!("checkpoints/step-{step:08}"));
                let manifest = fs::read_to_string(folder.join("manifest.json")).expect("a manifest");
                let tensors = manifest.split_once("\"tensors\"").expect("tensors").1.rsplit_once("crc32c");
                let tensors = tensors.expect("its checksum").0.to_owned();
                (fs::read(folder.join("rank-00000.safetensors")).expect("a file"), tensors)
            });
            assert!(ours == theirs, "{dtype}, moments in {moments}, step {step}");
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
    let whole = run(&small(&whole_output), false, None);
    let cut = small(&cut_output);
    run(&cut, false, Some(11));
    let newest = cut_output.join("checkpoints/step-00000011/rank-00000.safetensors");
    let mut bytes = fs::read(&newest).expect("a checkpoint");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&newest, bytes).expect("a damaged checkpoint");
    let resumed = run(&cut, true, None);
    assert!(resumed.notices.iter().any(|notice| notice.contains("step-00000011")), "{:?}", resumed.notices);
    assert_eq!(resumed.losses(), whole.losses()[10..]);
    assert!(weights(&whole_output) == weights(&cut_output), "final weights differ");
}

#[test]
fn one_two_and_three_threads_and_recompute_give_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs: Vec<_> = (0..4).map(|i| folder.path().join(format!("{i}"))).collect();
    let mut losses = Vec::new();
    for (output, (threads, recompute)) in outputs.iter().zip([(1, false), (2, false), (3, false), (2, true)]) {
        let mut config = small(output);
        set(&mut config, "run.threads", json!(threads));
        set(&mut config, "run.recompute", json!(recompute));
        losses.push(run(&config, false, None).losses());
    }
    assert!(losses.iter().all(|other| *other == losses[0]), "losses differ");
    assert!(outputs.iter().all(|output| weights(output) == weights(&outputs[0])), "weights differ");
}

#[test]
fn micro_batches_give_the_losses_of_the_whole_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut losses = Vec::new();
    for micro_batch in [8, 4, 1] {
        let mut config = small(&folder.path().join(format!("{micro_batch}")));
        set(&mut config, "train_micro_batch_size_per_gpu", json!(micro_batch));
        losses.push(run(&config, false, None).steps.iter().map(|step| step.loss).collect::<Vec<_>>());
    }
    for other in &losses[1..] {
        for (a, b) in losses[0].iter().zip(other) {
            // Sums over the batch are cut differently; dropout draws by the sample's number in the batch.
            assert!((a - b).abs() < 2e-5, "{a} and {b}");
        }
    }
}

#[test]
fn another_model_or_other_data_are_refused_and_a_longer_run_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = small(&output);
    run(&config, false, Some(6));
    for (key, value, word) in [
        ("model.config.n_layer", json!(3), "model"),
        ("data.sequence_length", json!(16), "data"),
        ("data.shuffle", json!(false), "data"),
        ("run.seed", json!(4), "seed"),
        ("optimizer", json!({"type": "SGD", "params": {"lr": 0.1}}), "optimizer"),
    ] {
        let mut other = config.clone();
        set(&mut other, key, value);
        let error = try_run(&other, true, None).err().expect("a refusal").to_string();
        assert!(error.contains(word) && error.contains("step-00000006"), "{key}: {error}");
    }
    set(&mut config, "run.steps", json!(14));
    set(&mut config, "optimizer.params.lr", json!(1e-3));
    let longer = run(&config, true, None);
    assert_eq!(longer.steps.len(), 8);
    let changes = longer.notices.iter().find(|notice| notice.starts_with("changed")).expect("what changed is listed");
    assert!(changes.contains("run.steps: 12 -> 14") && changes.contains("lr: 0.01 -> 0.001"), "{changes}");
}

#[test]
fn a_text_of_the_same_length_with_seven_characters_turned_around_is_other_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    let mut bytes = fs::read(common::shakespeare()).expect("the text");
    bytes.truncate(20_000);
    fs::write(&text, &bytes).expect("a text");
    let mut config = small(&folder.path().join("run"));
    set(&mut config, "data.train", json!(text));
    run(&config, false, Some(6));
    bytes[12_345..12_352].reverse();
    fs::write(&text, &bytes).expect("a changed text");
    let error = try_run(&config, true, None).err().expect("a refusal").to_string();
    assert!(error.contains("the checkpoint has data") && error.contains("digest"), "{error}");
}

#[test]
fn a_last_step_that_diverges_leaves_no_checkpoint_and_no_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = small(&output);
    set(&mut config, "run.steps", json!(1));
    set(&mut config, "optimizer.params.lr", json!(1e38));
    let error = try_run(&config, false, None).err().expect("an error").to_string();
    assert!(error.starts_with("step 1: weight transformer."), "{error}");
    assert!(!output.join("model").exists() && !output.join("checkpoints").exists());
}

#[test]
fn an_output_that_holds_a_run_is_refused_and_an_empty_one_resumes_from_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = small(&folder.path().join("run"));
    let fresh = run(&config, true, None);
    assert!(fresh.notices.iter().any(|notice| notice.contains("starts from the beginning")), "{:?}", fresh.notices);
    let error = try_run(&config, false, None).err().expect("a refusal").to_string();
    assert!(error.contains("already holds a run") && error.contains("--resume"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_step_and_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = small(&folder.path().join("run"));
    set(&mut config, "optimizer.params.lr", json!(1e30));
    set(&mut config, "gradient_clipping", json!(0.0));
    let error = try_run(&config, false, None).err().expect("an error").to_string();
    assert!(
        error.starts_with("step 2: the loss is NaN; the first block whose output is not finite is transformer."),
        "{error}"
    );
}

#[test]
fn checkpoints_are_kept_as_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut config = small(&output);
    set(&mut config, "run.checkpoint_every", json!(2));
    set(&mut config, "run.keep_checkpoints", json!(2));
    run(&config, false, None);
    let mut names: Vec<_> = fs::read_dir(output.join("checkpoints"))
        .expect("checkpoints")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["latest", "step-00000010", "step-00000012"]);
}
