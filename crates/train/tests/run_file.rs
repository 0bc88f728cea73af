//! What a run file and a DeepSpeed config come to when they are right.

use data::{DataSource, Packing, Sources, Validation};
use optim::Moments;
use optim::schedule::{Schedule, Warmup, WarmupType};
use serde_json::{Value, json};
use std::ops::RangeBounds;
use train::config::keys::{Kind, Status, all_keys};
use train::config::{ModelSource, OptimizerRule, Origin, Overrides, RunConfig, RunLength};
use train::plan::batch::Batch;

fn config(value: Value) -> RunConfig {
    RunConfig::from_value(value, "examples/tiny.json").unwrap_or_else(|e| panic!("{e}"))
}

/// The ZeRO-3 config of the Transformers manual, whose "auto" values its Trainer fills in.
fn zero3_with_auto() -> Value {
    json!({
        "fp16": { "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
                  "hysteresis": 2, "min_loss_scale": 1 },
        "bf16": { "enabled": "auto" },
        "optimizer": { "type": "AdamW",
                       "params": { "lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto" } },
        "scheduler": { "type": "WarmupDecayLR", "params": { "warmup_min_lr": "auto", "warmup_max_lr": "auto",
                       "warmup_num_steps": "auto", "total_num_steps": "auto" } },
        "zero_optimization": { "stage": 3, "offload_optimizer": { "device": "cpu", "pin_memory": true },
            "offload_param": { "device": "cpu", "pin_memory": true }, "overlap_comm": true,
            "contiguous_gradients": true, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": true },
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false
    })
}

#[test]
fn an_empty_file_holds_the_defaults_of_deepspeeds_code_and_of_ours() {
    let config = config(json!({}));
    assert!(
        config.model.is_none() && config.data.is_none() && config.optimizer.is_none() && config.scheduler.is_none()
    );
    assert_eq!((config.train_batch_size, config.gradient_clipping, config.zero_optimization.stage), (None, 1.0, 0));
    assert_eq!((config.bf16.enabled, config.bf16.check_grad_overflow), (false, true));
    assert_eq!((config.run.seed, config.run.keep_checkpoints, config.run.threads), (42, 3, 0));
    assert_eq!((config.run.device.as_str(), config.run.deterministic), ("auto", false));
    assert_eq!(config.recompute(), models::Recompute::Nothing);
    assert_eq!((config.length(), config.log_every()), (RunLength::Epochs(1.0), 10));
    assert_eq!(config.run.output.to_str(), Some("runs/tiny"));
    assert_eq!(config.schedule(0.1, 10), Schedule::Constant { lr: 0.1 });
}

#[test]
fn a_run_file_is_read_with_the_defaults_of_its_types() {
    let config = config(json!({
        "model": { "preset": "gpt2-124m" },
        "data": { "train": [{ "path": "a.jsonl", "weight": 2 }], "validation": { "split": 0.1 } },
        "run": { "tokens": 1e6, "log_every": 5, "isa": "AVX2" },
        "train_batch_size": 32, "steps_per_print": 7,
        "optimizer": { "type": "adam", "params": { "lr": 3e-4, "adam_w_mode": false }, "no_decay": ["*norm*"] },
    }));
    let (model, data, optimizer) = config.for_training().unwrap();
    assert_eq!(model, ModelSource::Preset("gpt2-124m"));
    assert_eq!(data.train.0, [DataSource { weight: Some(2.0), ..DataSource::path("a.jsonl") }]);
    assert_eq!(data.validation, Some(Validation::Split { split: 0.1 }));
    assert_eq!((data.packing, data.shuffle, data.sequence_length), (Packing::Concat, true, None));
    let OptimizerRule::Adam(adam) = &optimizer.rule else { panic!("{optimizer:?}") };
    assert_eq!((adam.lr, adam.betas, adam.eps, adam.weight_decay), (3e-4, [0.9, 0.999], 1e-8, 0.0));
    assert_eq!((optimizer.rule.decoupled_decay(), optimizer.no_decay.as_slice()), (false, &["*norm*".to_owned()][..]));
    assert_eq!((config.length(), config.log_every()), (RunLength::Tokens(1_000_000), 5));
    assert_eq!(config.run.isa.as_deref(), Some("avx2"));
}

#[test]
fn checkpoints_on_the_way_are_written_beside_training_unless_the_file_says_otherwise_in_our_words_or_deepspeeds() {
    let is_async = |every: u64, ours: Value, writer: Value| {
        let run = json!({ "checkpoint_every": every, "checkpoint_async": ours });
        config(json!({ "run": run, "checkpoint": { "writer": writer } })).checkpoint_async()
    };
    let fast = json!({ "type": "FAST" });
    assert!(is_async(10, Value::Null, Value::Null) && is_async(10, Value::Null, fast));
    assert!(!is_async(10, json!(false), Value::Null) && !is_async(10, Value::Null, json!({ "decoupled": false })));
    assert!(is_async(10, Value::Null, json!({ "decoupled": true })));
    assert!(is_async(10, json!(true), json!({ "decoupled": false })));
    // There is nothing to go on with beside the only one, at the end.
    assert!(!is_async(0, json!(true), Value::Null));
}

#[test]
fn adam_decouples_its_decay_unless_told_otherwise_and_adam_w_always_does() {
    let decoupled = |kind: &str, params: Value| {
        config(json!({ "optimizer": { "type": kind, "params": params } })).optimizer.unwrap().rule.decoupled_decay()
    };
    assert!(decoupled("Adam", json!({})) && !decoupled("Adam", json!({ "adam_w_mode": false })));
    assert!(decoupled("AdamW", json!({})) && decoupled("AdamW", json!({ "adam_w_mode": false })));
    assert!(!decoupled("SGD", json!({})));
}

#[test]
fn every_type_of_optimizer_is_read_with_deepspeed_s_or_pytorch_s_defaults_in_any_case_of_letters() {
    for (kind, lr, name) in [
        ("SGD", 0.001, "SGD"),
        ("Adagrad", 0.01, "Adagrad"),
        ("RMSprop", 0.01, "RMSprop"),
        ("Adadelta", 1.0, "Adadelta"),
        ("Adamax", 0.002, "Adamax"),
        ("NAdam", 0.002, "NAdam"),
        ("RAdam", 0.001, "RAdam"),
        ("lion", 0.001, "Lion"),
        ("LAMB", 0.001, "Lamb"),
        ("muon", 0.001, "Muon"),
        ("Adafactor", 0.01, "Adafactor"),
        ("AdamWScheduleFree", 0.0025, "AdamWScheduleFree"),
    ] {
        let rule = config(json!({ "optimizer": { "type": kind } })).optimizer.expect("an optimizer").rule;
        let rated = rule.rated(true);
        assert_eq!((rule.lr(), rated.weight_decay), (lr, 0.0), "{kind}");
        assert_eq!(rated.rule.expect("a rule").name(), name);
    }
}

#[test]
fn an_adam_without_f32_states_keeps_its_moments_in_bf16_unless_told_otherwise() {
    let moments = |optimizer: Value| config(json!({ "optimizer": optimizer })).optimizer.expect("an optimizer").moments;
    let params = json!({ "fp32_optimizer_states": false });
    assert_eq!(moments(json!({ "type": "Adam", "params": params })), Moments::Bf16);
    assert_eq!(moments(json!({ "type": "Adam", "params": params, "moments": "INT8" })), Moments::Int8);
    assert_eq!(moments(json!({ "type": "Adam" })), Moments::F32);
}

#[test]
fn pytorchs_adam_w_decays_by_a_hundredth_as_deepspeed_hands_it_over() {
    let decay = |params: Value| {
        let config = config(json!({ "optimizer": { "type": "AdamW", "params": params } }));
        match config.optimizer.unwrap().rule {
            OptimizerRule::AdamW(params) => params.weight_decay,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(decay(json!({ "torch_adam": true })), 0.01);
    assert_eq!(decay(json!({ "torch_adam": true, "weight_decay": 0.0 })), 0.0);
    assert_eq!(decay(json!({ "torch_adam": false })), 0.0);
}

#[test]
fn a_deepspeed_file_full_of_auto_is_accepted_and_what_has_no_effect_is_listed_once() {
    let config = config(zero3_with_auto());
    assert_eq!((config.zero_optimization.stage, config.gradient_clipping, config.log_every()), (3, 1.0, 2000));
    // "auto" means the optimizer's rate and the run's length; an absent warmup_max_lr would be 0.001.
    let warmup = Warmup { steps: 1000, kind: WarmupType::Log };
    assert_eq!(config.schedule(0.5, 77), Schedule::WarmupDecayLR { min_lr: 0.0, max_lr: 0.5, warmup, total_steps: 77 });
    assert_eq!(
        config.notices(),
        ["these keys have no effect here: zero_optimization.offload_optimizer.device, \
          zero_optimization.offload_param.device, zero_optimization.overlap_comm, \
          zero_optimization.stage3_gather_16bit_weights_on_model_save"]
    );
    assert!(
        Batch::of(&config, 1).unwrap_err().to_string().starts_with("examples/tiny.json: neither train_batch_size nor")
    );
}

#[test]
fn features_that_are_switched_off_may_keep_their_settings() {
    let config = config(json!({
        "fp16": { "enabled": false, "initial_scale_power": 12, "hysteresis": 4 },
        "tensorboard": { "enabled": false, "output_path": "logs" },
        "elasticity": { "enabled": false, "micro_batch_sizes": [1, 8] },
        "data_efficiency": {
            "enabled": false,
            "data_sampling": { "num_workers": 4, "dynamic_batching": { "enabled": true } },
            "data_routing": { "random_ltd": { "enabled": false, "layer_token_lr_schedule": { "enabled": true } } },
        },
        "compression_training": { "row_pruning": { "shared_parameters": { "enabled": false },
            "different_groups": { "a": { "params": { "dense_ratio": 0.5 }, "modules": ["x"] } } } },
        "amp": { "enabled": false, "opt_level": "O1" },
        "bf16": { "enabled": false, "bf16_optimizer_states": true },
    }));
    assert!(config.notices().is_empty(), "{:?}", config.notices());
}

#[test]
fn older_names_are_understood_and_said_so() {
    let config = config(json!({ "bfloat16": { "enabled": true }, "zero_optimization": true }));
    assert_eq!((config.bf16.enabled, config.zero_optimization.stage), (true, 1));
    assert_eq!(
        config.notices(),
        [
            "zero_optimization is true, the older form of zero_optimization.stage 1",
            "bfloat16 is the older name of bf16"
        ]
    );
}

#[test]
fn the_command_line_stands_over_the_file_and_makes_sections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds_config.json");
    std::fs::write(&path, "{\"train_batch_size\": 8, /* DeepSpeed's */ \"optimizer\": {\"type\": \"AdamW\"},}")
        .unwrap();
    let set =
        ["run.steps=20", "run.steps=30", "run.output=7", "data.tokenizer=byte", "optimizer.params.betas=[0.8, 0.9]"];
    let set = set.map(str::to_owned);
    let overrides = Overrides { set: &set, model: Some("models/gpt2"), data: Some("corpus.txt") };
    let config = RunConfig::load(&path, &overrides).unwrap();
    let (model, data, optimizer) = config.for_training().unwrap();
    assert_eq!(model, ModelSource::Path("models/gpt2".as_ref()));
    assert_eq!((&data.train, data.tokenizer.as_deref()), (&Sources::from("corpus.txt"), Some("byte")));
    assert!(matches!(&optimizer.rule, OptimizerRule::AdamW(adam) if adam.betas == [0.8, 0.9]));
    assert_eq!((config.length(), config.run.output.to_str()), (RunLength::Steps(30), Some("7")));

    let overrides = Overrides { set: &[], ..overrides };
    let bare = RunConfig::load(&path, &overrides).unwrap();
    assert_eq!((bare.length(), bare.run.output.to_str()), (RunLength::Epochs(1.0), Some("runs/ds_config")));
    assert_eq!(bare.data.unwrap().sequence_length, None);
}

#[test]
fn every_setting_says_where_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    std::fs::write(&path, "{\"train_batch_size\": 8, \"model\": {\"config\": {\"n_layer\": 2}}}").unwrap();
    let set = ["bf16.enabled=true".to_owned()];
    let config = RunConfig::load(&path, &Overrides { set: &set, model: None, data: Some("d.txt") }).unwrap();
    let batch = Batch::of(&config, 1).unwrap();
    let settings = config.settings(&batch.derived());
    let of = |key: &str| {
        let setting =
            settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key} is not listed"));
        (setting.value.clone(), setting.origin)
    };
    assert_eq!(of("train_batch_size"), (json!(8), Origin::File));
    assert_eq!(of("train_micro_batch_size_per_gpu"), (json!(8), Origin::Derived));
    assert_eq!(of("gradient_accumulation_steps"), (json!(1), Origin::Derived));
    assert_eq!(of("bf16.enabled"), (json!(true), Origin::Set));
    assert_eq!(of("data.train"), (json!([{ "path": "d.txt", "text_field": "text" }]), Origin::Argument));
    assert_eq!(of("model.config.n_layer"), (json!(2), Origin::File));
    assert_eq!(of("run.output"), (json!("runs/run"), Origin::Derived));
    assert_eq!(of("run.epochs"), (json!(1.0), Origin::Derived));
    assert_eq!(of("gradient_clipping"), (json!(1.0), Origin::Default));
    assert_eq!(of("zero_optimization.stage3_max_live_parameters"), (json!(1_000_000_000), Origin::Default));
}

#[test]
fn a_resolved_configuration_is_a_run_file_that_means_the_same() {
    let files = [
        json!({}),
        zero3_with_auto(),
        json!({ "train_batch_size": 4, "optimizer": { "type": "SGD", "params": { "momentum": 0.9, "nesterov": true } },
                "data": { "train": ["w", { "path": "x" }], "validation": { "split": 0.2 } }, "run": { "steps": 5 },
                "scheduler": { "type": "cosine", "params": { "num_warmup_steps": 3 } } }),
        json!({ "model": { "config": { "vocab_size": "auto", "list": [{ "a": 1 }] } }, "amp": { "opt_level": "O2" },
                "scheduler": { "type": "constant" },
                "optimizer": { "type": "AdamW", "params": { "torch_adam": true } } }),
    ];
    for file in files {
        let first = config(file);
        let again = config(first.resolved(&[]));
        assert_eq!(first.resolved(&[]), again.resolved(&[]));
        assert_eq!(serde_json::to_value(&first).unwrap(), serde_json::to_value(&again).unwrap());
        assert_eq!(first.notices(), again.notices());
    }
}

#[test]
fn a_field_changed_by_a_program_is_in_the_resolved_configuration() {
    let mut config = config(json!({ "optimizer": { "type": "AdamW", "params": { "lr": 0.1 } } }));
    config.run.steps = Some(9);
    let params = json!({ "lr": 0.2, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0,
                         "nesterov": false });
    let sgd = json!({ "type": "SGD", "params": params, "no_decay": [], "groups": [], "moments": "f32" });
    config.optimizer = serde_json::from_value(sgd.clone()).unwrap();
    let resolved = config.resolved(&[("train_batch_size", json!(6))]);
    assert_eq!((&resolved["run"]["steps"], &resolved["train_batch_size"]), (&json!(9), &json!(6)));
    assert_eq!(resolved["optimizer"]["params"], sgd["params"]);
}

/// A value of this kind that differs from the default.
fn another(kind: &Kind, default: &Value) -> Value {
    let candidates = [
        json!(true),
        json!(false),
        json!(2),
        json!(0.25),
        json!(1.5),
        json!(-0.25),
        json!("text"),
        json!(["a"]),
        json!([0.1, 0.2]),
        json!([3]),
        json!(3),
        json!(0.15),
    ];
    let named = if let Kind::Names(names) = kind { names.iter().map(|name| json!(name)).collect() } else { vec![] };
    let fits = |value: &&Value| match kind {
        Kind::Bool => value.is_boolean(),
        Kind::Int { .. } => value.is_u64(),
        Kind::Number(low, high) => {
            value.is_f64() && value.as_f64().is_some_and(|number| (*low, *high).contains(&number))
        }
        Kind::Names(_) => named.contains(value),
        Kind::Pair(_) => **value == json!([0.1, 0.2]),
        Kind::List(Kind::Text) => **value == json!(["a"]),
        Kind::List(Kind::Int { .. }) => **value == json!([3]),
        Kind::OneOf(kinds) if kinds.iter().any(|kind| matches!(kind, Kind::List(Kind::Text))) => {
            **value == json!(["a"])
        }
        Kind::OneOf(kinds) if !kinds.iter().any(|kind| matches!(kind, Kind::Text)) => value.as_f64() == Some(0.25),
        _ => value.is_string(),
    };
    let all: Vec<Value> = named.iter().cloned().chain(candidates).collect();
    all.iter().find(|value| fits(value) && *value != default).unwrap_or_else(|| panic!("{kind} has one value")).clone()
}

#[test]
fn every_honoured_key_of_the_table_reaches_the_typed_configuration() {
    let mut num_checked = 0;
    for (of_type, key) in all_keys() {
        // Sections, list items and the sources of data have types of their own; run.device has one other value.
        let is_leaf =
            !matches!(key.kind, Kind::Section(_)) && !key.path.contains(['[', '*']) && !key.path.ends_with(".type");
        if key.status != Status::Honoured
            || !is_leaf
            || matches!(key.path, "run.device" | "data.train" | "data.validation" | "optimizer.groups" | "run.recompute" | "run.recompute.ops")
            // They need another key beside them.
            || matches!(key.path, "run.eval_set" | "run.load_best_at_end")
            // It has one value.
            || key.path == "curriculum_learning.curriculum_type"
            // Any other word than linear is log.
            || (key.path == "scheduler.params.warmup_type" && matches!(key.kind, Kind::Text))
            || key.path.ends_with(".random_ltd_schedule.schedule_type")
            // It is written into optimizer.moments.
            || key.path.ends_with(".fp32_optimizer_states")
        {
            continue;
        }
        let value = another(&key.kind, &key.default_value());
        let mut names: Vec<&str> = key.path.split('.').collect();
        let mut file = names.drain(..).rev().fold(value.clone(), |inner, name| json!({ name: inner }));
        let section = key.path.split('.').next().unwrap();
        if section == "data" && key.path != "data.train" {
            file["data"]["train"] = json!("corpus.txt");
        }
        if key.path == "model.labels" {
            file["model"]["preset"] = json!("gpt2-124m");
        }
        if section == "elasticity" {
            for (key, value) in [("max_train_batch_size", json!(8)), ("micro_batch_sizes", json!([2]))] {
                let elasticity = file["elasticity"].as_object_mut().unwrap();
                elasticity.entry(key).or_insert(value);
            }
        }
        if matches!(section, "optimizer" | "scheduler") {
            file[section]["type"] = json!(of_type.unwrap_or("SGD"));
            if key.path.ends_with(".nesterov") {
                file[section]["params"]["momentum"] = json!(0.5);
            }
        }
        let needed: &[&str] = match of_type {
            Some("OneCycle") => &["cycle_min_lr", "cycle_max_lr"],
            Some("warmup_stable_decay") => &["num_decay_steps"],
            Some("cosine_with_min_lr") if !key.path.contains("min_lr") => &["min_lr"],
            _ => &[],
        };
        for name in needed.iter().filter(|name| !key.path.ends_with(*name)) {
            file[section]["params"][name] = json!(1);
        }
        if key.path == "curriculum_learning.enabled" {
            let settings = json!({ "total_curriculum_step": 9, "difficulty_step": 8 });
            for (name, value) in [
                ("min_difficulty", json!(8)),
                ("max_difficulty", json!(16)),
                ("schedule_type", json!("fixed_linear")),
                ("schedule_config", settings),
            ] {
                file[section][name] = value;
            }
        }
        let typed = serde_json::to_value(config(file)).unwrap();
        let found = typed.pointer(&format!("/{}", key.path.replace('.', "/")));
        assert_eq!(found, Some(&value), "{} of {of_type:?}", key.path);
        num_checked += 1;
    }
    assert!(num_checked > 60, "{num_checked} keys");
}

#[test]
fn a_configuration_may_be_an_argument_in_base64_as_deepspeed_takes_it() {
    // {"train_batch_size": 8, "bf16": {"enabled": true}}
    let argument = "eyJ0cmFpbl9iYXRjaF9zaXplIjogOCwgImJmMTYiOiB7ImVuYWJsZWQiOiB0cnVlfX0=";
    let config = RunConfig::load(argument.as_ref(), &Overrides::default()).unwrap();
    assert_eq!((config.train_batch_size, config.bf16.enabled, config.name()), (Some(8), true, "base64"));
    assert_eq!(config.run.output.to_str(), Some("runs/base64"));
    // {"train_batch_size": 0}
    let wrong = RunConfig::load("eyJ0cmFpbl9iYXRjaF9zaXplIjogMH0".as_ref(), &Overrides::default()).unwrap_err();
    assert_eq!(wrong.to_string(), "base64: train_batch_size is 0; it must be a whole number of at least 1");
    let missing = RunConfig::load("missing".as_ref(), &Overrides::default()).unwrap_err().to_string();
    assert!(missing.starts_with("missing: the run file cannot be read: No such file"), "{missing}");
}

#[test]
fn keys_of_stage_3_may_be_written_without_their_stage() {
    let config =
        config(json!({ "zero_optimization": { "stage": 3, "prefetch_bucket_size": 7, "reduce_bucket_size": 0 } }));
    let resolved = config.resolved(&[]);
    assert_eq!(resolved["zero_optimization"]["stage3_prefetch_bucket_size"], 7);
    assert_eq!(
        config.notices()[0],
        "zero_optimization.prefetch_bucket_size is another name of zero_optimization.stage3_prefetch_bucket_size"
    );
    let both = json!({ "zero_optimization": { "max_live_parameters": 1, "stage3_max_live_parameters": 1 } });
    assert_eq!(
        RunConfig::from_value(both, "ds.json").unwrap_err().to_string(),
        "ds.json: zero_optimization.max_live_parameters is another name of \
         zero_optimization.stage3_max_live_parameters, and both are given; keep \
         zero_optimization.stage3_max_live_parameters"
    );
}
