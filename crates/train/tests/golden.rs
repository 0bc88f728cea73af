//! Loss curves that must not move. `golden/` holds them as text; a change that moves one has to say why.

mod common;

use common::{run, set, small};
use serde_json::json;
use testing::close::Bound;
use testing::golden::check;

/// The first twelve losses of a small GPT on bytes, with dropout, on every instruction set. Products differ in the last
/// bits between instruction sets, and twelve steps of Adam multiply that.
#[test]
fn the_first_losses_of_a_small_gpt_with_dropout_stay_what_they_were() {
    for isa in tensor::Isa::all() {
        for (file, bf16, bound) in [("small_gpt_f32.txt", false, 1e-4), ("small_gpt_bf16.txt", true, 5e-3)] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut config = small(&folder.path().join("run"));
            set(&mut config, "bf16", json!({"enabled": bf16}));
            set(&mut config, "run.isa", json!(isa.to_string()));
            let steps = run(&config, false, None).steps;
            let losses: Vec<(String, f64)> =
                steps.iter().map(|step| (format!("loss_of_step_{}", step.step), step.loss)).collect();
            check(file, &losses, Bound::Absolute(bound));
        }
    }
}
