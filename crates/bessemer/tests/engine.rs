//! The example of a loop of a user's own trains, saves and loads.

#[path = "../../../examples/engine.rs"]
mod engine;

use std::path::Path;

#[test]
fn a_loop_of_ones_own_learns_more_than_the_frequencies_of_bytes_and_ends_from_its_best_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tinyshakespeare.txt");
    let (step, loss) = engine::train(&text, folder.path(), 100).expect("a run");
    assert!(step >= 20 && step.is_multiple_of(20), "step {step}");
    // The entropy of single characters of this text is 3.32 nats.
    assert!(loss < 3.0, "validation loss {loss}");
    assert!(folder.path().join("model/model.safetensors").exists());
    // The program opens what the library saved.
    let options = generate::LoadOptions::default();
    let of_tag = train::pretrained::open(&folder.path().join("checkpoints/best"), options).expect("the checkpoint");
    let of_run = train::pretrained::open(folder.path(), generate::LoadOptions::default()).expect("the model");
    assert_eq!(of_tag.model.vocab_size, of_run.model.vocab_size);
}
