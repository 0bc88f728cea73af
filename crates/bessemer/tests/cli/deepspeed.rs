//! Files as DeepSpeed's tutorials have them, unchanged.

use crate::common::{Place, losses};
use serde_json::{Value, json};

const BF16: &str = include_str!("deepspeed/ds_config_bf16.json");
const FP16: &str = include_str!("deepspeed/ds_config_fp16.json");

/// The final value of a key of a plan, where it came from, and what becomes of it.
fn setting<'a>(plan: &'a Value, key: &str) -> [&'a Value; 3] {
    let settings = plan["settings"].as_array().expect("a list");
    let found = settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("{key} is not listed"));
    ["value", "origin", "fate"].map(|field| &found[field])
}

#[test]
fn a_bf16_config_of_deepspeed_s_is_planned_and_trains_unchanged_on_one_rank() {
    let place = Place::trained();
    place.write("ds_config_bf16.json", BF16);
    let words = ["ds_config_bf16.json", "--model", "out/model", "--data", "corpus.txt"];
    let plan = place.json_of(&[&["plan"][..], &words[..], &["--ranks", "2", "--json"][..]].concat());
    assert_eq!(setting(&plan, "gradient_accumulation_steps"), [&json!(1), &json!("derived"), &json!("heeded")]);
    assert_eq!(setting(&plan, "optimizer.params.lr"), [&json!(0.001), &json!("file"), &json!("heeded")]);
    assert_eq!(setting(&plan, "zero_optimization.overlap_comm"), [&json!(true), &json!("file"), &json!("no_effect")]);
    assert_eq!(setting(&plan, "model.path"), [&json!("out/model"), &json!("argument"), &json!("heeded")]);
    assert_eq!(setting(&plan, "fp16.enabled"), [&json!(false), &json!("default"), &json!("heeded")]);
    place.output_of(&[&["train"][..], &words[..]].concat());
    let losses = losses(&place.path("runs/ds_config_bf16"));
    // One epoch of rows of 64 tokens, the model's positions, in batches of 8.
    let bytes = std::fs::metadata(place.path("corpus.txt")).unwrap().len();
    assert_eq!(losses.len() as u64, ((bytes - 1) / 64).div_ceil(8));
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}

#[test]
fn an_fp16_config_of_deepspeed_s_with_offload_is_planned_for_any_number_of_ranks_and_trains_unchanged_on_one() {
    let place = Place::trained();
    place.write("ds_config_fp16.json", FP16);
    let words = ["plan", "ds_config_fp16.json", "--model", "out/model", "--data", "corpus.txt", "--ranks"];
    for ranks in [1, 4] {
        let count = ranks.to_string();
        let plan = place.json_of(&[&words[..], &[count.as_str(), "--json"][..]].concat());
        let micro = setting(&plan, "train_micro_batch_size_per_gpu");
        assert_eq!(micro[..2], [&json!(8 / ranks), &json!("derived")]);
        assert_eq!(plan["config"]["fp16"]["loss_scale_window"], 500);
        assert_eq!(plan["mesh"], json!({"data": ranks}));
    }
    let lines = place.output_of(&[&words[..], &["1"][..]].concat());
    assert!(lines.contains("\nfp16.initial_scale_power = 15 (file"), "{lines}");
    assert!(lines.contains("\ngradient_clipping = 1.0 (file)\n"), "{lines}");
    place.output_of(&[&["train"][..], &words[1..6]].concat());
    let losses = losses(&place.path("runs/ds_config_fp16"));
    assert!(losses.last() < losses.first(), "{losses:?}");
}

#[test]
fn keys_of_several_ranks_are_planned_and_refused_by_name_for_training() {
    let place = Place::new();
    let file = json!({
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3, "optimizer": {"type": "OneBitAdam"},
        "sequence_parallel_size": 2, "tensor_parallel": {"autotp_size": 2}, "pipeline": {"stages": 2},
        "expert_parallel": {"enabled": true, "autoep_size": 2}
    });
    place.write("ds.json", file.to_string());
    let plan = place.json_of(&["plan", "ds.json", "--ranks", "16", "--json"]);
    assert_eq!(plan["mesh"], json!({"data": 2, "pipeline": 2, "sequence": 2, "tensor": 2}));
    assert_eq!(plan["config"]["train_batch_size"], 2 * 3 * 2);
    assert_eq!(plan["config"]["optimizer"]["params"]["freeze_step"], 100_000);
    assert_eq!(setting(&plan, "expert_parallel.autoep_size"), [&json!(2), &json!("file"), &json!("not_yet")]);
    assert_eq!(setting(&plan, "optimizer.type"), [&json!("OneBitAdam"), &json!("file"), &json!("not_yet")]);
    let refusal = place.refusal(&["train", "ds.json", "--model", "gpt2-124m", "--data", "corpus.txt"]);
    assert!(
        refusal.starts_with("ds.json: optimizer.type is \"OneBitAdam\", which is not supported yet; "),
        "{refusal}"
    );
    let refusal = place.refusal(&["plan", "ds.json", "--ranks", "6"]);
    assert!(refusal.ends_with("--ranks must be a multiple of 8"), "{refusal}");
}

#[test]
fn elasticity_chooses_the_batch_of_any_number_of_ranks() {
    let place = Place::new();
    place.write(
        "ds.json",
        r#"{ elasticity: { enabled: true, max_train_batch_size: 100, micro_batch_sizes: [8], max_gpus: 12, version: 0.1 } }"#,
    );
    for (ranks, steps) in [("1", 12), ("3", 4), ("12", 1)] {
        let plan = place.json_of(&["plan", "ds.json", "--ranks", ranks, "--json"]);
        assert_eq!(setting(&plan, "train_batch_size")[..2], [&json!(96), &json!("derived")]);
        assert_eq!(setting(&plan, "gradient_accumulation_steps")[..2], [&json!(steps), &json!("derived")]);
    }
    let refusal = place.refusal(&["plan", "ds.json", "--ranks", "5"]);
    assert!(refusal.contains("which 5 data-parallel ranks cannot share"), "{refusal}");
}
