//! Which op family of which block runs in which format, and when that changes.
//!
//! | file | what |
//! | --- | --- |
//! | `formats` | the table that the run file asks for: a mode, `torch_autocast`, `run.precision` |
//! | [`adaptive`] | statistics while training, and ops that run in f32 for a while because of them |
//! | `half` | gradients and masters in 16 bits |
//!
//! Here masters are f32 and products read a rounded copy that the optimizer writes; PyTorch's autocast has f32 weights alone
//! and casts them op by op. The numbers are the same, the copy is made once a step.

pub mod adaptive;
mod formats;
pub(crate) mod half;

pub(crate) use formats::shown;
pub use formats::{FormatTable, Formats};

#[cfg(test)]
mod tests {
    use crate::model_source::ModelOrigin;
    use crate::plan::report::PlanReport;
    use crate::{Engine, RunConfig};
    use data::Sample;
    use models::weights::WeightSource;
    use serde_json::{Value, json};
    use tensor::MemoryKind;

    /// The plan's bytes of each kind and what three steps have taken, for a two-layer GPT.
    fn planned_and_taken(settings: &Value) -> Vec<(&'static str, u64, u64)> {
        let mut file = json!({
            "model": { "config": { "model_type": "gpt2", "vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2,
                                   "n_head": 4 } },
            "train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "optimizer": { "type": "AdamW" },
        });
        file.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let config = RunConfig::from_value(file, "r.json").unwrap();
        let source = config.model.as_ref().and_then(|model| model.source()).unwrap();
        let model = ModelOrigin::open(&config, source).unwrap().build(None, 64).unwrap();
        let report = PlanReport::of(&config, 1).unwrap();
        let mut engine = Engine::with_weights(model, config, &WeightSource::Random { seed: 1 }).unwrap();
        let sample = Sample {
            input_ids: (0..64).collect(),
            targets: (1..65).collect(),
            positions: (0..64).collect(),
            document_starts: vec![0],
            class: None,
            soft: None,
        };
        for _ in 0..3 {
            engine.train_batch(&vec![sample.clone(); 8]).unwrap();
        }
        let ledger = engine.queue.ledger();
        let taken =
            |kind: MemoryKind| (kind.name(), report.memory_per_rank[kind.name()], ledger.peak[kind as usize] as u64);
        MemoryKind::ALL.map(taken).to_vec()
    }

    #[test]
    fn the_plan_of_mixed_adapting_and_halved_formats_is_what_a_run_takes_within_two_percent() {
        let offload = json!({ "stage": 1, "offload_optimizer": { "device": "cpu" } });
        for settings in [
            json!({ "torch_autocast": { "enabled": true } }),
            json!({ "bf16": { "enabled": true }, "run": { "precision": { "linear": "f32", "transformer.h.0/norm": "f32" } } }),
            json!({ "bf16": { "enabled": true }, "run": { "adaptive_precision": { "every": 1 } } }),
            json!({ "bf16": { "enabled": true }, "data_types": { "grad_accum_dtype": "bf16" } }),
            json!({ "bf16": { "enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true },
                    "zero_optimization": offload, "run": { "clip_value": 1.0, "gradient_noise": 1e-6 } }),
        ] {
            for (kind, planned, taken) in planned_and_taken(&settings) {
                let bound = taken as f64 * 0.02 + 4096.0;
                assert!((planned as f64 - taken as f64).abs() < bound, "{settings}: {kind} {planned}, taken {taken}");
            }
        }
    }
}
