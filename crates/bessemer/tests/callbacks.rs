//! The example of callbacks logs, saves the best and stops by itself.

#[path = "../../../examples/callbacks.rs"]
mod callbacks;

use std::path::Path;
use train::metrics::MetricsFile;

#[test]
fn callbacks_log_save_the_best_and_end_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tinyshakespeare.txt");
    let steps = callbacks::train(&text, &output, 1000).expect("a run");
    assert!(steps < 1000, "{steps} steps");
    let lines = MetricsFile::read_all(&output.join("metrics.jsonl")).expect("the metrics");
    let shares = lines.iter().filter_map(|line| line["clip_share"].as_f64()).collect::<Vec<_>>();
    assert!(!shares.is_empty() && shares.iter().all(|share| (0.0..1.0).contains(share)), "{shares:?}");
    let losses: Vec<(u64, f64)> =
        (lines.iter()).filter_map(|line| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?))).collect();
    let (best, _) = *losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("an evaluation");
    assert_eq!(steps, best + 20, "two evaluations after the best: {losses:?}");
    assert!(output.join(format!("checkpoints/step-{best:08}")).is_dir());
}
