//! The example of a model of a user's own trains.

#[path = "../../../examples/custom_model.rs"]
mod custom_model;

use std::path::Path;

#[test]
fn a_model_of_ones_own_blocks_learns_more_than_the_frequencies_of_characters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tinyshakespeare.txt");
    let (steps, loss) = custom_model::train(&text, &folder.path().join("run"), 100).expect("a run");
    assert_eq!(steps, 100);
    // The entropy of single characters of this text is 3.32 nats.
    assert!(loss < 3.0, "validation loss {loss}");
}
