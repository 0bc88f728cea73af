//! What a user reads when a run file is wrong: every message to the letter.

use serde_json::{Value, json};
use train::config::{Overrides, RunConfig};

/// Every optimizer, as a refusal lists them.
const OPTIMIZERS: &str = "\"Adam\", \"AdamW\", \"SGD\", \"Adagrad\", \"RMSprop\", \"Adadelta\", \"Adamax\", \"NAdam\", \"RAdam\", \
     \"Lion\", \"Lamb\", \"Muon\", \"Adafactor\", \"AdamWScheduleFree\" or \"custom\"";

/// A run file that is right, with `value` at `path`.
fn file_with(path: &str, value: Value) -> Value {
    let mut root = json!({
        "model": { "config": { "model_type": "gpt2", "n_layer": 1 } },
        "data": { "train": "corpus.txt" },
        "run": { "steps": 2 },
        "train_batch_size": 4,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-3 } },
        "scheduler": { "type": "WarmupLR", "params": {} }
    });
    root.pointer_mut(path.rsplit_once('/').unwrap().0).unwrap()[path.rsplit_once('/').unwrap().1] = value;
    root
}

fn refusal(path: &str, value: Value) -> String {
    match RunConfig::from_value(file_with(path, value.clone()), "run.json") {
        Ok(_) => panic!("{path} = {value} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_unknown_key_at_any_depth_is_named_with_the_nearest_known_one() {
    let cases = [
        ("/gradient_cliping", json!(1.0), "gradient_cliping is not a known key; the nearest one is gradient_clipping"),
        (
            "/data/sequence_lenght",
            json!(8),
            "data.sequence_lenght is not a known key; the nearest one is data.sequence_length",
        ),
        (
            "/zero_optimization",
            json!({ "stge": 1 }),
            "zero_optimization.stge is not a known key; the nearest one is zero_optimization.stage",
        ),
        ("/stage", json!(1), "stage is not a known key; the nearest one is zero_optimization.stage"),
        (
            "/optimizer/params/beta",
            json!(1),
            "optimizer.params.beta is not a known key; the nearest one is optimizer.params.betas",
        ),
        ("/optimizer/lr", json!(1), "optimizer.lr is not a known key; the nearest one is optimizer.params.lr"),
        (
            "/scheduler/params/warmup_steps",
            json!(1),
            "scheduler.params.warmup_steps is not a known key; the nearest one is scheduler.params.warmup_num_steps",
        ),
        (
            "/data/train",
            json!([{ "pth": "a.txt" }]),
            "data.train[0].pth is not a known key; the nearest one is data.train[].path",
        ),
        (
            "/zero_optimization.stage",
            json!(1),
            "zero_optimization.stage has dots in one key; write each name before a dot as a section {...}",
        ),
    ];
    for (path, value, want) in cases {
        assert_eq!(refusal(path, value), format!("run.json: {want}"));
    }
}

#[test]
fn names_of_other_programs_lead_to_ours() {
    let cases = [
        ("{lr: 1}", "lr", "optimizer.params.lr"),
        ("{learning_rate: 1}", "learning_rate", "optimizer.params.lr"),
        ("{seed: 1}", "seed", "run.seed"),
        ("{batch_size: 1}", "batch_size", "train_batch_size"),
        ("{run: {max_steps: 1}}", "run.max_steps", "run.steps"),
        ("{run: {output_dir: 1}}", "run.output_dir", "run.output"),
        ("{data: {path: 1}}", "data.path", "data.train[].path"),
    ];
    for (text, path, nearest) in cases {
        let message = RunConfig::parse(text, "run.json").unwrap_err().to_string();
        assert_eq!(message, format!("run.json: {path} is not a known key; the nearest one is {nearest}"));
    }
}

#[test]
fn a_wrong_type_or_range_says_the_value_found_and_what_it_must_be() {
    let cases = [
        ("/zero_optimization", json!({ "stage": 4 }), "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        ("/train_batch_size", json!("32"), "train_batch_size is \"32\"; it must be a whole number of at least 1"),
        ("/train_batch_size", json!(2.5), "train_batch_size is 2.5; it must be a whole number of at least 1"),
        ("/train_batch_size", json!(0), "train_batch_size is 0; it must be a whole number of at least 1"),
        ("/gradient_clipping", json!(-1), "gradient_clipping is -1; it must be a number of at least 0"),
        ("/bf16", json!({ "enabled": 1 }), "bf16.enabled is 1; it must be true or false"),
        ("/bf16", json!(true), "bf16 is true; it must be a section {...}"),
        ("/run/device", json!("cuda"), "run.device is \"cuda\"; it must be \"auto\" or \"cpu\""),
        ("/data/packing", json!("dense"), "data.packing is \"dense\"; it must be \"concat\" or \"none\""),
        (
            "/data/train",
            json!(3),
            "data.train is 3; it must be text in quotes or a list [...] whose items are text in quotes or a section {...}",
        ),
        (
            "/data/validation",
            json!({ "split": 1.0 }),
            "data.validation.split is 1.0; it must be a number above 0 and below 1",
        ),
        (
            "/optimizer/params/betas",
            json!([0.9, 1.0]),
            "optimizer.params.betas[1] is 1.0; it must be a number of at least 0 and below 1",
        ),
        (
            "/optimizer/params/betas",
            json!([0.9]),
            "optimizer.params.betas is [0.9]; it must be a list of two, each a number of at least 0 and below 1",
        ),
        ("/optimizer/params/lr", json!("fast"), "optimizer.params.lr is \"fast\"; it must be a number of at least 0"),
        (
            "/scheduler/params/warmup_num_steps",
            json!(0),
            "scheduler.params.warmup_num_steps is 0; it must be a whole number of at least 1",
        ),
        ("/scheduler/params/warmup_type", json!(2), "scheduler.params.warmup_type is 2; it must be text in quotes"),
        ("/optimizer/no_decay", json!(["*bias", 1]), "optimizer.no_decay[1] is 1; it must be text in quotes"),
        (
            "/zero_optimization",
            json!({ "allgather_bucket_size": 5 }),
            "zero_optimization.allgather_bucket_size is 5; it must be a multiple of 2",
        ),
    ];
    for (path, value, want) in cases {
        assert_eq!(refusal(path, value), format!("run.json: {want}"));
    }
}

#[test]
fn what_is_not_supported_yet_can_be_planned_and_is_refused_for_training_by_name_with_what_would_do() {
    let optimizers = format!("it must be {OPTIMIZERS}");
    let cases = [
        ("/sparse_attention", json!({ "mode": "fixed" }), "sparse_attention is {\"mode\":\"fixed\"}, which is not supported yet; remove it (attention is dense, or in windows where the model's config says so: leave the section out)".into()),
        ("/pipeline", json!({ "stages": 2 }), "pipeline.stages is 2, which is not supported yet; it must be \"auto\" or 1 (layers are trained on one rank for now: leave the section out)".into()),
        ("/amp", json!({ "enabled": true }), "amp.enabled is true, which is not supported yet; it must be false (mixed precision is fp16.enabled, bf16.enabled or torch_autocast)".into()),
        ("/zero_optimization", json!({ "stage": 3, "offload_optimizer": { "device": "nvme" } }), "zero_optimization.offload_optimizer.device is \"nvme\", which is not supported yet; it must be \"none\" or \"cpu\" (with device \"cpu\" it lies in the CPU's memory, where it is anyway)".into()),
        ("/wandb", json!({ "enabled": true, "project": "x" }), "wandb.enabled is true, and this key reports to a network service, which training does not talk to; switch its section off and write the same numbers for TensorBoard (tensorboard.enabled true) or as CSV (csv_monitor.enabled true), or read metrics.jsonl in run.output".into()),
        ("/comet", json!({ "enabled": true, "api_key": "x" }), "comet.enabled is true, and this key reports to a network service, which training does not talk to; switch its section off and write the same numbers for TensorBoard (tensorboard.enabled true) or as CSV (csv_monitor.enabled true), or read metrics.jsonl in run.output".into()),
        ("/compression_training", json!({ "weight_quantization": { "shared_parameters": { "enabled": true } } }), "compression_training.weight_quantization.shared_parameters.enabled is true, which is not supported yet; it must be false (train in full precision and size, and compress the folder of the final model)".into()),
        ("/optimizer/type", json!("OneBitAdam"), format!("optimizer.type is \"OneBitAdam\", which is not supported yet; {optimizers} (Adam is what it computes before freeze_step, and on one rank nothing is sent)")),
    ];
    for (path, value, want) in cases {
        let config = RunConfig::from_value(file_with(path, value), "run.json").unwrap();
        assert_eq!(config.for_training().unwrap_err().to_string(), format!("run.json: {want}"));
        assert_eq!(config.supported().unwrap_err().to_string(), format!("run.json: {want}"));
    }
    let unknown = format!("run.json: optimizer.type is \"AdmW\"; {optimizers}");
    assert_eq!(refusal("/optimizer/type", json!("AdmW")), unknown);
}

#[test]
fn values_that_contradict_each_other_are_both_named() {
    let no_type = format!("optimizer.type is missing; it must be {OPTIMIZERS}");
    let cases = [
        (
            "/run/epochs",
            json!(3),
            "run.steps is 2 and run.epochs is 3; keep one of run.steps, run.epochs and run.tokens",
        ),
        (
            "/model/path",
            json!("gpt2"),
            "model.path is \"gpt2\" and model.config is {\"model_type\":\"gpt2\",\"n_layer\":1}; keep one of model.path, model.preset and model.config",
        ),
        ("/model", json!({}), "model is empty; it must hold one of path, preset and config"),
        ("/data", json!({ "shuffle": true }), "data.train is missing; it must be a path, a glob or a list of sources"),
        ("/data/train", json!([]), "data.train is []; it must name at least one source"),
        (
            "/data/train",
            json!(["a.txt", { "weight": 1 }]),
            "data.train[1].path is missing; it must be a path or a glob",
        ),
        (
            "/data/validation",
            json!({}),
            "data.validation.split is missing; write { \"split\": 0.1 }, a path or a list of sources",
        ),
        ("/optimizer", json!({ "params": {} }), no_type.as_str()),
        (
            "/optimizer/params/max_grad_norm",
            json!(1.0),
            "optimizer.params.max_grad_norm is not a setting of the optimizer; the global norm is clipped by gradient_clipping",
        ),
        (
            "/optimizer",
            json!({ "type": "SGD", "params": { "nesterov": true } }),
            "optimizer.params.nesterov is true, but optimizer.params.momentum is 0; it must be above 0",
        ),
        (
            "/optimizer",
            json!({ "type": "SGD", "params": { "nesterov": true, "momentum": 0.9, "dampening": 0.5 } }),
            "optimizer.params.nesterov is true, but optimizer.params.dampening is 0.5; it must be 0",
        ),
        (
            "/optimizer",
            json!({ "type": "SGD", "params": { "momentum": 0.9 },
                    "groups": [{ "match": ["*bias"], "momentum": 0, "nesterov": true }] }),
            "optimizer.groups[0].nesterov is true, but optimizer.groups[0].momentum is 0; it must be above 0",
        ),
        (
            "/optimizer/groups",
            json!([{ "match": ["*"], "fp32_optimizer_states": false }]),
            "optimizer.groups[0].fp32_optimizer_states is given; it holds for all weights: set it in optimizer.params",
        ),
        (
            "/fp16",
            json!({ "enabled": true, "min_loss_scale": 1e300 }),
            "fp16.min_loss_scale is 1e300; it must be at most 2^126",
        ),
        (
            "/optimizer/groups",
            json!([{ "lr": 1 }]),
            "optimizer.groups[0].match is missing; it must be a list of globs of weight names, such as [\"*bias\"]",
        ),
    ];
    for (path, value, want) in cases {
        assert_eq!(refusal(path, value), format!("run.json: {want}"));
    }
    let both = RunConfig::parse("{\"bfloat16\": {}, \"bf16\": {}}", "run.json").unwrap_err();
    assert_eq!(both.to_string(), "run.json: bfloat16 is the older name of bf16, and both are given; keep bf16");
}

#[test]
fn a_path_of_the_command_line_is_no_deeper_than_a_file() {
    let set = format!("amp.{}=1", vec!["a"; 60_000].join("."));
    let overrides = Overrides { set: &[set], ..Overrides::default() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    std::fs::write(&path, "{}").unwrap();
    let error = RunConfig::load(&path, &overrides).unwrap_err().to_string();
    assert_eq!(error, "--set: a path of more than 64 names; no key lies so deep");
}

#[test]
fn deepspeed_s_rules_of_what_goes_with_what_are_kept() {
    let zero = |stage: u8, rest: Value| {
        let mut zero = rest;
        zero["stage"] = json!(stage);
        zero
    };
    let cases = [
        (
            json!({"fp16": {"enabled": true}, "bf16": {"enabled": true}}),
            "fp16.enabled is true, and so is bf16.enabled; keep one of them",
        ),
        (
            json!({"amp": {"enabled": true}, "zero_optimization": {"stage": 1}}),
            "amp.enabled is true, but zero_optimization.stage is 1; apex works with stage 0 alone",
        ),
        (
            json!({"fp16": {"enabled": true, "loss_scale_window": 0}}),
            "fp16.loss_scale_window is 0; it must be above 0 where fp16.loss_scale is 0, which is dynamic",
        ),
        (
            json!({"bf16": {"enabled": true}, "data_types": {"param_dtype": "half"}}),
            "data_types.param_dtype is \"half\", but the weights are bf16 by fp16.enabled and bf16.enabled; remove it or make it \"bf16\"",
        ),
        (
            json!({"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}}),
            "bf16.bf16_master_weights_and_grads is true; it needs zero_optimization.stage 1, 2 or 3",
        ),
        (
            json!({"bf16": {"enabled": true, "bf16_optimizer_states": true}}),
            "bf16.bf16_optimizer_states is true; it needs bf16.bf16_master_weights_and_grads",
        ),
        (
            json!({"gradient_allreduce_op": "SUM", "zero_optimization": {"stage": 3}}),
            "gradient_allreduce_op is \"sum\", which does not go with zero_optimization.stage 3; it must be \"mean\"",
        ),
        (json!({"gradient_allreduce_op": "max"}), "gradient_allreduce_op is \"max\"; it must be \"mean\" or \"sum\""),
        (
            json!({"communication_data_type": "int8"}),
            "communication_data_type is \"int8\"; it must be \"fp16\", \"bf16\" or \"fp32\"",
        ),
        (
            json!({"gradient_predivide_factor": 2, "zero_optimization": {"stage": 2}}),
            "gradient_predivide_factor is 2; with zero_optimization.stage 2 or 3 and reduce_scatter it must be 1.0",
        ),
        (
            json!({"managed_gradient_accumulation": false, "pipeline": {"stages": 2}}),
            "managed_gradient_accumulation is false, which does not go with pipeline.stages; it must be true",
        ),
        (
            json!({"zero_optimization": zero(2, json!({"offload_optimizer": {"device": "nvme"}}))}),
            "zero_optimization.offload_optimizer.device is \"nvme\", which needs zero_optimization.stage 3; the stage is 2",
        ),
        (
            json!({"zero_optimization": zero(2, json!({"offload_optimizer": {"ratio": 0.5}}))}),
            "zero_optimization.offload_optimizer.ratio is 0.5, which needs zero_optimization.stage 3; the stage is 2",
        ),
        (
            json!({"zero_optimization": zero(1, json!({"legacy_stage1": true}))}),
            "zero_optimization.legacy_stage1 is true, which DeepSpeed no longer has; it must be false",
        ),
        (
            json!({"zero_optimization": zero(2, json!({"zenflow": {}}))}),
            "zero_optimization.zenflow is {\"auto_ratio\":0.99,\"full_warm_up_rounds\":0,\"offload\":false,\"...; it needs zero_optimization.offload_optimizer.device \"cpu\"",
        ),
        (
            json!({"zero_optimization": zero(2, json!({"offload_optimizer": {"device": "cpu"},
                "zenflow": {"select_strategy": "step", "select_interval": 2, "update_interval": 4}}))}),
            "zero_optimization.zenflow.select_interval is 2; it must be at least update_interval, 4",
        ),
        (
            json!({"zero_optimization": {"stage": 3}, "tensor_parallel": {"autotp_size": 2}}),
            "zero_optimization.stage is 3, which does not go with tensor_parallel; it must be 0, 1 or 2",
        ),
        (
            json!({"zero_optimization": {"stage": 2}, "pipeline": {"stages": 2}}),
            "zero_optimization.stage is 2, which does not go with pipeline.stages above 1; it must be 0 or 1",
        ),
        (
            json!({"zero_optimization": {"stage": 1}, "optimizer": {"type": "OneBitAdam"}}),
            "optimizer.type is \"OneBitAdam\", which needs zero_optimization.stage 0: it exchanges momentum itself",
        ),
        (
            json!({"zero_optimization": zero(1, json!({"offload_optimizer": {"device": "cpu"}})), "optimizer": {"type": "Muon"}}),
            "zero_optimization.reduce_scatter is true; with Muon, offload_optimizer and zero_optimization.stage 1 or 2 it must be false",
        ),
        (
            json!({"fp16": {"enabled": true, "loss_scale": 128}, "optimizer": {"type": "Lamb"}}),
            "fp16.loss_scale is 128; with Lamb in fp16 the loss scale must be dynamic: 0",
        ),
        (
            json!({"elasticity": {"enabled": true, "max_train_batch_size": 4, "micro_batch_sizes": [2], "version": 0.15}}),
            "elasticity.version is 0.15; it must be 0.1 or 0.2",
        ),
        (
            json!({"activation_checkpointing": {"contiguous_memory_optimization": true}}),
            "activation_checkpointing.contiguous_memory_optimization is true; it needs partition_activations and number_checkpoints",
        ),
        (
            json!({"tensor_parallel": {"partition_config": {"layer_specs": [{"patterns": ["x"], "shape": [[2, 1], 0]}]}}}),
            "tensor_parallel.partition_config.layer_specs[0].shape[1] is 0; it must be above 0 or -1, or a list of such along axis 0, which is cut",
        ),
        (
            json!({"elasticity": {"enabled": true, "micro_batch_sizes": [2]}}),
            "elasticity.max_train_batch_size is missing; elasticity.enabled needs it",
        ),
        (
            json!({"elasticity": {"enabled": true, "max_train_batch_size": 4, "micro_batch_sizes": [2]}, "train_batch_size": 4}),
            "train_batch_size is 4, but elasticity chooses the batch sizes; remove it, or set elasticity.ignore_non_elastic_batch_info",
        ),
        (
            json!({"zero_optimization": {"cpu_offload": true, "offload_optimizer": {}}}),
            "zero_optimization.cpu_offload is the older form of zero_optimization.offload_optimizer, and both are given; keep zero_optimization.offload_optimizer",
        ),
    ];
    for (file, want) in cases {
        let message =
            RunConfig::from_value(file.clone(), "ds.json").err().unwrap_or_else(|| panic!("{file} was accepted"));
        assert_eq!(message.to_string(), format!("ds.json: {want}"));
    }
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let message = refusal("/train_batch_size", json!("x".repeat(1000)));
    assert_eq!(
        message,
        format!("run.json: train_batch_size is \"{}...; it must be a whole number of at least 1", "x".repeat(59))
    );
}

#[test]
fn a_file_that_cannot_be_read_or_is_no_object_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let message = RunConfig::load(&path, &Overrides::default()).unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("{message}")).to_owned()
    };
    assert_eq!(
        load("latin.json", b"{\n\"data\": \"caf\xe9\"}"),
        "is not UTF-8: byte 0xe9 at offset 14, on line 2; save it as UTF-8"
    );
    assert_eq!(load("empty.json", b" \n"), "is empty; it must hold settings, such as { \"train_batch_size\": 32 }");
    assert_eq!(load("list.json", b"[1]"), "holds [1]; it must hold an object {...}");
    assert_eq!(
        load("twice.json", b"{\"train_batch_size\": 4,\n \"train_batch_size\": 8}"),
        "train_batch_size stands twice, on line 1 and on line 2; keep one of them"
    );
    let missing = folder.path().join("missing.json");
    let message = RunConfig::load(&missing, &Overrides::default()).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}: the run file cannot be read: No such file", missing.display())),
        "{message}"
    );
}

#[test]
fn what_the_command_line_says_is_blamed_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    std::fs::write(&path, file_with("/run", json!({ "steps": 2 })).to_string()).unwrap();
    let refusal = |set: &str| {
        let set = [set.to_owned()];
        RunConfig::load(&path, &Overrides { set: &set, ..Overrides::default() }).unwrap_err().to_string()
    };
    assert_eq!(refusal("zero_optimization.stage=4"), "--set: zero_optimization.stage is 4; it must be 0, 1, 2 or 3");
    assert_eq!(refusal("bfloat16.enabled=yes"), "--set: bf16.enabled is \"yes\"; it must be true or false");
    assert_eq!(refusal("run.setps=4"), "--set: run.setps is not a known key; the nearest one is run.steps");
    assert_eq!(refusal("run.steps"), "--set: \"run.steps\" must be key.path=value, such as run.steps=100");
    assert_eq!(refusal("run..steps=1"), "--set: \"run..steps=1\" must be key.path=value, such as run.steps=100");
    assert_eq!(
        refusal("data.train.path=x"),
        "--set: data.train.path cannot be set: data.train is \"corpus.txt\", not a section"
    );
}

#[test]
fn training_without_model_data_or_optimizer_says_which_is_missing() {
    let refusal =
        |config: Value| RunConfig::from_value(config, "ds.json").unwrap().for_training().unwrap_err().to_string();
    let (model, data) = (json!({ "path": "m" }), json!({ "train": "d.txt" }));
    assert_eq!(
        refusal(json!({ "train_batch_size": 8 })),
        "ds.json: model is missing; training needs one, such as \"model\": { \"preset\": \"gpt2-124m\" }, or --model FOLDER"
    );
    assert_eq!(
        refusal(json!({ "model": model })),
        "ds.json: data is missing; training needs one, such as \"data\": { \"train\": \"corpus.txt\" }, or --data PATH"
    );
    assert_eq!(
        refusal(json!({ "model": model, "data": data })),
        "ds.json: optimizer is missing; training needs one, such as \"optimizer\": { \"type\": \"AdamW\", \"params\": { \"lr\": 1e-3 } }"
    );
}

#[test]
fn a_file_cut_or_damaged_at_any_byte_is_an_error_or_a_file_and_never_a_panic() {
    let text = "// c\n{\"data\": {\"train\": [\"a\", {\"path\": \"\u{e9}\\u00e9\"}]}, # x\n bf16: {\"enabled\": true}, /* y */\n\
                \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 1e-3, \"betas\": [0.9, 0.95,]}}}";
    for (at, _) in text.char_indices() {
        let _ = RunConfig::parse(&text[..at], "cut.json");
        for damage in
            ["", "{", "}", "[", "]", "\"", "\\", ",", ":", "/", "*", "#", "\n", "9", "-", "null", ".", "\u{fe0f}"]
        {
            let next = text[at..].chars().next().map_or(0, char::len_utf8);
            let damaged = format!("{}{damage}{}", &text[..at], &text[at + next..]);
            let _ = RunConfig::parse(&damaged, "damaged.json");
        }
    }
}
