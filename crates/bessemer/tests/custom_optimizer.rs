//! The example of an optimizer of a user's own trains.

#[path = "../../../examples/custom_optimizer.rs"]
mod custom_optimizer;

use std::path::Path;

#[test]
fn an_optimizer_of_ones_own_learns_more_than_the_frequencies_of_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tinyshakespeare.txt");
    let (steps, loss) = custom_optimizer::train(&text, &folder.path().join("run"), 100).expect("a run");
    assert_eq!(steps, 100);
    // The entropy of single characters of this text is 3.32 nats.
    assert!(loss < 3.0, "validation loss {loss}");
}
