//! What does the work of a key that is refused: the end of its refusal.

/// Sections and keys with what to use in their place. The longest that is the key, or a section around it, counts.
const INSTEAD: &[(&str, &str)] = &[
    ("aio.use_gds", "files are read by the CPU here: leave it out"),
    ("amp", "mixed precision is fp16.enabled, bf16.enabled or torch_autocast"),
    ("autotuning", "measure with `bessemer bench`, foresee memory with `bessemer plan`, and set what is best"),
    ("checkpoint.use_node_local_storage", "run.output must be a folder that every rank sees"),
    ("comet", "the numbers are in metrics.jsonl in the run's folder, and nothing is sent"),
    ("comms_logger", "what ranks send in a step is shown by `bessemer plan --ranks N`"),
    (
        "compile",
        "kernels are compiled beforehand: leave the section out; memory for activations is saved by run.recompute",
    ),
    ("compression_training", "train in full precision and size, and compress the folder of the final model"),
    ("compression_training.layer_reduction", "a smaller student is a model.config with fewer layers"),
    ("csv_monitor", "the numbers are in metrics.jsonl in the run's folder"),
    ("data_efficiency", "rows that grow with the steps are the section curriculum_learning"),
    (
        "data_efficiency.data_sampling.dynamic_batching",
        "full rows whatever the documents' lengths are data.packing \"concat\"",
    ),
    ("data_parallel_size", "ranks are given by --ranks"),
    ("datastates_ckpt", "run.checkpoint_async writes checkpoints while training goes on"),
    ("expert_parallel", "experts are trained on one rank for now: leave the section out"),
    ("flops_profiler", "FLOPs per token are shown by `bessemer plan`, time by `bessemer bench`"),
    (
        "hybrid_engine",
        "samples while training are run.sample_prompt and run.sample_every, after it `bessemer generate`",
    ),
    (
        "managed_gradient_accumulation",
        "a program of yours says where a step ends by Engine::micro_batch and Engine::step",
    ),
    ("nebula", "run.checkpoint_async writes checkpoints while training goes on"),
    ("optimizer.params", "leave it out"),
    ("optimizer.params.maximize", "losses are made small here, never large: leave it out"),
    ("optimizer.type.OneBitAdam", "Adam is what it computes before freeze_step, and on one rank nothing is sent"),
    ("optimizer.type.OneBitLamb", "Lamb is what it computes before freeze_step, and on one rank nothing is sent"),
    ("optimizer.type.ZeroOneAdam", "Adam is what it computes before it freezes, and on one rank nothing is sent"),
    ("pipeline", "layers are trained on one rank for now: leave the section out"),
    ("quantize_training", "train in full precision and compress the folder of the final model"),
    (
        "scheduler.type",
        "PyTorch's have their like among these: LinearLR in linear, CosineAnnealingLR in cosine, OneCycleLR in OneCycle",
    ),
    ("sequence_parallel_size", "a row is trained on one rank for now: leave it out"),
    ("sparse_attention", "attention is dense, or in windows where the model's config says so: leave the section out"),
    ("tensor_parallel", "matrices are trained on one rank for now: leave the section out"),
    ("tensorboard", "the numbers are in metrics.jsonl in the run's folder"),
    ("wandb", "the numbers are in metrics.jsonl in the run's folder, and nothing is sent"),
    ("weight_quantization", "models are read and trained in f32, bf16 or fp16"),
    ("zero_optimization", "leave it out"),
    ("zero_optimization.load_from_fp32_weights", "masters are always those that were saved"),
    ("zero_optimization.offload_optimizer", "with device \"cpu\" it lies in the CPU's memory, where it is anyway"),
    ("zero_optimization.offload_param", "with device \"cpu\" they lie in the CPU's memory, where they are anyway"),
    ("zero_optimization.zenflow", "there is no device to move gradients from: leave the section out"),
    ("zero_optimization.zero_hpz_partition_size", "weights are gathered from all ranks: leave it out"),
    ("zero_optimization.zero_quantized_gradients", "gradients are sent whole: leave it out"),
    ("zero_optimization.zero_quantized_nontrainable_weights", "weights are kept whole: leave it out"),
    ("zero_optimization.zero_quantized_weights", "weights are sent whole: leave it out"),
];

/// What to use in place of the key at `pattern`, as the table writes it; of a type that is not built, `section.type.Name`.
pub(super) fn instead(pattern: &str) -> Option<&'static str> {
    let holds =
        |section: &str| pattern.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let found = INSTEAD.iter().filter(|(section, _)| holds(section));
    found.max_by_key(|(section, _)| section.len()).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{Status, all_keys};

    #[test]
    fn whatever_does_not_work_yet_says_what_to_use_in_its_place() {
        for (_, key) in all_keys() {
            let is_refused = matches!(key.status, Status::NotYet { .. });
            assert!(!is_refused || instead(key.path).is_some(), "{}", key.path);
        }
    }

    #[test]
    fn the_words_of_a_key_stand_before_those_of_its_section() {
        assert!(
            instead("compression_training.layer_reduction.enabled").is_some_and(|text| text.contains("fewer layers"))
        );
        assert!(instead("compression_training.row_pruning").is_some_and(|text| text.contains("compress the folder")));
        assert_eq!((instead("amplitude"), instead("train_batch_size")), (None, None));
    }
}
