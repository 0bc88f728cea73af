//! Reading and writing `config.json`: both spellings, Transformers' defaults, and what is refused by name.

use std::path::{Path, PathBuf};

use models::families::presets::{self, preset};
use models::families::{FamilyConfig, Gelu, Gpt2Config, LlamaConfig, ModelConfig, TokenIds};
use models::hf::{Dtype, GenerationConfig};
use models::layers::rope_table::{RopeScaling, Yarn};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn parse(config: Value) -> ModelConfig {
    ModelConfig::from_json(&config, "model.config").unwrap()
}

fn refusal(config: Value) -> String {
    ModelConfig::from_json(&config, "model.config").unwrap_err().to_string()
}

fn gpt2(config: &ModelConfig) -> &Gpt2Config {
    let FamilyConfig::Gpt2(gpt2) = &config.family else { panic!("a GPT-2") };
    gpt2
}

fn llama(config: &ModelConfig) -> &LlamaConfig {
    let FamilyConfig::Llama(llama) = &config.family else { panic!("a Llama") };
    llama
}

/// A configuration of `model_type` with some more keys.
fn with(model_type: &str, keys: Value) -> Value {
    let mut config = json!({ "model_type": model_type });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

#[test]
fn the_fixtures_configurations_are_read() {
    let config = ModelConfig::from_folder(&fixture("gpt2")).unwrap();
    assert_eq!(config.vocab_size, Some(131));
    assert_eq!(config.tokens, TokenIds { bos: Some(1), eos: vec![], pad: None });
    assert!(config.tie_word_embeddings);
    assert_eq!(config.initializer_range, 0.08);
    let sizes = gpt2(&config);
    assert_eq!((sizes.n_embd, sizes.n_layer, sizes.n_head, sizes.n_positions), (48, 2, 4, 64));
    assert_eq!((sizes.inner(), sizes.head_dim()), (192, 12));
    assert_eq!((sizes.resid_pdrop, sizes.embd_pdrop, sizes.attn_pdrop), (0.0, 0.0, 0.0));
    assert!(sizes.activation_function.is_tanh());

    let config = ModelConfig::from_folder(&fixture("llama")).unwrap();
    assert!(!config.tie_word_embeddings);
    let sizes = llama(&config);
    assert_eq!((sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers), (48, 80, 2));
    assert_eq!((sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim), (4, 2, 12));
    assert_eq!((sizes.rope_theta, &sizes.rope_scaling), (10_000.0, &RopeScaling::Default));

    let config = ModelConfig::from_folder(&fixture("llama3-rope")).unwrap();
    assert!(config.tie_word_embeddings);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    assert_eq!(llama(&config).rope_scaling, scaling);
    assert_eq!(llama(&config).rope().rotary_dim, 12);
}

#[test]
fn a_fixture_written_again_says_what_transformers_wrote() {
    for name in ["gpt2", "llama", "llama3-rope"] {
        let file: Value =
            serde_json::from_str(&std::fs::read_to_string(fixture(name).join("config.json")).unwrap()).unwrap();
        let config = ModelConfig::from_json(&file, name).unwrap();
        let mut written = config.to_hf_json(Dtype::F32);
        assert_eq!(ModelConfig::from_json(&written, name).unwrap(), config);
        if name != "gpt2" {
            // The spelling of Transformers 4, beside that of 5.
            let keys = written.as_object_mut().unwrap();
            assert_eq!(keys.shift_remove("rope_theta"), Some(json!(10_000.0)));
            assert_eq!(keys.shift_remove("rope_scaling").unwrap().is_null(), name == "llama");
        }
        assert_eq!(format!("{written:#}"), format!("{file:#}"), "{name}");
    }
}

#[test]
fn an_absent_key_has_transformers_default() {
    let config = parse(json!({"model_type": "gpt2", "vocab_size": 50257}));
    assert_eq!(config.tokens, TokenIds { bos: Some(50256), eos: vec![50256], pad: None });
    assert_eq!((config.tie_word_embeddings, config.initializer_range), (true, 0.02));
    let want = Gpt2Config {
        n_positions: 1024,
        n_embd: 768,
        n_layer: 12,
        n_head: 12,
        n_inner: None,
        activation_function: Gelu::New,
        resid_pdrop: 0.1,
        embd_pdrop: 0.1,
        attn_pdrop: 0.1,
        layer_norm_epsilon: 1e-5,
        scale_attn_weights: true,
        scale_attn_by_inverse_layer_idx: false,
        reorder_and_upcast_attn: false,
    };
    assert_eq!(gpt2(&config), &want);

    let config = parse(json!({"model_type": "llama", "vocab_size": 32000}));
    assert_eq!(config.tokens, TokenIds { bos: Some(1), eos: vec![2], pad: None });
    assert_eq!((config.tie_word_embeddings, config.initializer_range), (false, 0.02));
    let want = LlamaConfig {
        hidden_size: 4096,
        intermediate_size: 11008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        head_dim: 128,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        attention_bias: false,
        mlp_bias: false,
        attention_dropout: 0.0,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
    };
    assert_eq!(llama(&config), &want);
}

#[test]
fn the_hub_files_of_gpt2_and_llama_31_are_read_as_they_are() {
    let config = parse(json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257
    }));
    assert_eq!(config, {
        let mut preset = preset("gpt2-124m", "model").unwrap();
        preset.kept = config.kept.clone();
        preset
    });
    assert_eq!(config.to_hf_json(Dtype::BF16)["task_specific_params"]["text-generation"]["max_length"], 50);

    let config = parse(json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256
    }));
    assert_eq!(config.family, preset("llama-8b", "model").unwrap().family);
    assert_eq!(config.tokens.eos, [128001, 128008, 128009]);
    let written = config.to_hf_json(Dtype::BF16);
    assert_eq!(written["dtype"], "bfloat16");
    assert_eq!(written["eos_token_id"], json!([128001, 128008, 128009]));
    assert_eq!(written.get("torch_dtype"), None);
}

#[test]
fn a_vocabulary_may_be_left_to_the_tokenizer() {
    for config in [json!({"model_type": "gpt2"}), json!({"model_type": "gpt2", "vocab_size": "auto"})] {
        let mut config = parse(config);
        // 50256 is no token of a vocabulary that is not known yet.
        assert_eq!((config.vocab_size, &config.tokens), (None, &TokenIds::default()));
        assert_eq!(config.to_hf_json(Dtype::F32).get("vocab_size"), None);
        assert_eq!(config.resolve_vocab_size(65, "model.config"), Ok(65));
        assert_eq!(config.vocab_size, Some(65));
    }
    let mut config = parse(json!({"model_type": "gpt2", "vocab_size": 128}));
    assert_eq!(config.resolve_vocab_size(65, "model.config"), Ok(128));
    let error = config.resolve_vocab_size(131, "model.config").unwrap_err();
    assert_eq!(error.to_string(), "model.config: vocab_size is 128; it must be at least the tokenizer's 131");
}

#[test]
fn a_null_token_is_no_token_and_an_absent_one_the_default() {
    let tokens = |keys| parse(with("llama", keys)).tokens;
    let ids = |bos, eos: &[u32], pad| TokenIds { bos, eos: eos.to_vec(), pad };
    assert_eq!(tokens(json!({"vocab_size": 100})), ids(Some(1), &[2], None));
    assert_eq!(tokens(json!({"vocab_size": 2})), ids(Some(1), &[], None));
    assert_eq!(tokens(json!({"vocab_size": 100, "bos_token_id": null, "eos_token_id": null})), ids(None, &[], None));
    assert_eq!(tokens(json!({"vocab_size": 100, "pad_token_id": -1})), ids(Some(1), &[2], None));
}

#[test]
fn gpt2_takes_the_general_names_of_its_sizes() {
    let config = parse(with(
        "gpt2",
        json!({"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16}),
    ));
    let sizes = gpt2(&config);
    assert_eq!((sizes.n_embd, sizes.n_layer, sizes.n_head, sizes.n_positions), (32, 3, 2, 16));
}

#[test]
fn scores_are_scaled_as_the_keys_say() {
    let scales = |keys: Value| {
        let config = parse(with("gpt2", json!({"n_embd": 64, "n_head": 4})));
        let mut object = config.to_hf_json(Dtype::F32);
        object.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let config = parse(object);
        [0, 3].map(|layer| gpt2(&config).attention_scale(layer))
    };
    assert_eq!(scales(json!({})), [0.25, 0.25]);
    assert_eq!(scales(json!({"scale_attn_by_inverse_layer_idx": true})), [0.25, 0.0625]);
    assert_eq!(scales(json!({"scale_attn_weights": false})), [1.0, 1.0]);
}

#[test]
fn rope_is_read_in_the_spellings_of_both_versions() {
    let rope = |keys: Value| {
        let config = parse(with("llama", keys));
        (llama(&config).rope_theta, llama(&config).rope_scaling.clone())
    };
    let linear = (5e5, RopeScaling::Linear { factor: 2.0 });
    for keys in [
        json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}}),
        json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
               "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}),
    ] {
        assert_eq!(rope(keys.clone()), linear, "{keys}");
    }
    for keys in [json!({}), json!({"rope_scaling": null}), json!({"rope_parameters": {"rope_theta": 10_000}})] {
        assert_eq!(rope(keys.clone()), (10_000.0, RopeScaling::Default), "{keys}");
    }
    let yarn = Yarn {
        factor: 4.0,
        original_max_position_embeddings: 2048,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: Some(0.7),
        mscale_all_dim: Some(1.0),
        truncate: false,
    };
    // The pretraining context is the model's when it is not given.
    let keys = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0,
                                       "truncate": false}});
    assert_eq!(rope(keys), (10_000.0, RopeScaling::Yarn(yarn)));
}

#[test]
fn every_rope_type_survives_being_written() {
    for scaling in [
        json!({"rope_type": "default"}),
        json!({"rope_type": "linear", "factor": 2.5}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 512}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "truncate": false}),
    ] {
        let config = parse(with("llama", json!({ "rope_theta": 1e6, "rope_scaling": scaling })));
        let written = config.to_hf_json(Dtype::F32);
        assert_eq!(parse(written), config);
    }
}

#[test]
fn sizes_that_do_not_divide_are_named() {
    assert_eq!(
        refusal(with("gpt2", json!({"n_embd": 32, "n_head": 5}))),
        "model.config: n_embd is 32; it must be a multiple of n_head 5"
    );
    assert_eq!(
        refusal(with("llama", json!({"hidden_size": 48, "num_attention_heads": 5}))),
        "model.config: hidden_size is 48; it must be a multiple of num_attention_heads 5"
    );
    assert_eq!(
        refusal(with("llama", json!({"num_attention_heads": 32, "num_key_value_heads": 5}))),
        "model.config: num_attention_heads is 32; it must be a multiple of num_key_value_heads 5"
    );
    assert_eq!(refusal(with("llama", json!({"head_dim": 13}))), "model.config: head_dim is 13; it must be even");
    assert_eq!(
        refusal(with("llama", json!({"hidden_size": 12, "num_attention_heads": 4}))),
        "model.config: hidden_size / num_attention_heads is 3; it must be even, or head_dim given"
    );
}

#[test]
fn values_of_the_wrong_kind_or_out_of_range_are_named() {
    let cases = [
        ("gpt2", "n_layer", json!(0), "a whole number from 1 to 16777216"),
        ("gpt2", "n_embd", json!("768"), "a whole number from 1 to 16777216"),
        ("gpt2", "vocab_size", json!(-5), "a whole number from 1 to 16777216"),
        ("gpt2", "attn_pdrop", json!(1.0), "a number of at least 0 and less than 1"),
        ("gpt2", "embd_pdrop", json!(-0.1), "a number of at least 0 and less than 1"),
        ("gpt2", "layer_norm_epsilon", json!(0), "a number above 0"),
        ("gpt2", "scale_attn_weights", json!(1), "true or false"),
        ("gpt2", "initializer_range", json!(2), "a number from 0 to 1"),
        ("gpt2", "eos_token_id", json!("x"), "a token id or a list of token ids"),
        (
            "gpt2",
            "activation_function",
            json!("relu"),
            "one of gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate",
        ),
        ("llama", "hidden_act", json!("gelu"), "\"silu\""),
        ("llama", "rms_norm_eps", json!(-1e-5), "a number above 0"),
        ("llama", "rope_theta", json!(1), "a number above 1"),
        ("llama", "rope_parameters", json!([]), "an object"),
        ("llama", "partial_rotary_factor", json!(0.5), "1: this family rotates whole heads"),
    ];
    for (model_type, key, value, rule) in cases {
        let message = refusal(with(model_type, json!({ key: value })));
        assert_eq!(message, format!("model.config: {key} is {value}; it must be {rule}"));
    }
    assert_eq!(
        refusal(with("gpt2", json!({"n_embd": 64, "hidden_size": 32}))),
        "model.config: n_embd is 64 but hidden_size is 32: they are two names of one value; keep one"
    );
    assert_eq!(refusal(json!([1])), "model.config: it must be a JSON object");
}

#[test]
fn a_misspelt_key_is_named_with_the_nearest_known_one() {
    for (model_type, key, near) in [
        ("gpt2", "n_layers", "n_layer"),
        ("gpt2", "n_emdb", "n_embd"),
        ("gpt2", "attn_drop", "attn_pdrop"),
        ("gpt2", "dtpye", "dtype"),
        ("llama", "rope_teta", "rope_theta"),
        ("llama", "num_kv_heads", "num_key_value_heads"),
        ("llama", "tie_word_embedding", "tie_word_embeddings"),
    ] {
        let message = refusal(with(model_type, json!({ key: 1 })));
        let want = format!("model.config: {key} is not a key of a {model_type} configuration; did you mean {near}?");
        assert_eq!(message, want);
    }
    assert_eq!(
        refusal(with("llama", json!({"sliding_window": 4096}))),
        "model.config: sliding_window is not a key of a llama configuration"
    );
}

#[test]
fn what_would_change_the_computation_is_refused_by_name() {
    assert_eq!(
        refusal(with("gpt2", json!({"add_cross_attention": true}))),
        "model.config: add_cross_attention is true, which Bessemer does not do; it must be false or absent"
    );
    assert_eq!(
        refusal(with("llama", json!({"pretraining_tp": 2}))),
        "model.config: pretraining_tp is 2, which Bessemer does not do; it must be 1 or absent"
    );
    assert_eq!(
        refusal(with("llama", json!({"quantization_config": {"quant_method": "bitsandbytes"}}))),
        "model.config: quantization_config is given, which Bessemer does not do; it must be absent"
    );
    assert_eq!(
        refusal(json!({"model_type": "mamba"})),
        "model.config: model_type is \"mamba\"; it must be one of gpt2, llama"
    );
    assert_eq!(refusal(json!({"n_embd": 32})), "model.config: model_type is missing; it must be one of gpt2, llama");
}

#[test]
fn a_rope_that_we_do_not_compute_or_that_lacks_a_number_is_named() {
    let rope = |rope: Value| refusal(with("llama", json!({ "rope_parameters": rope })));
    for rope_type in ["dynamic", "longrope", "proportional"] {
        assert_eq!(
            rope(json!({"rope_type": rope_type, "factor": 2.0})),
            format!(
                "model.config: rope_parameters.rope_type is \"{rope_type}\", which Bessemer does not do; it must be \
                 default, linear, llama3 or yarn"
            )
        );
    }
    assert_eq!(
        rope(json!({"rope_type": "linear"})),
        "model.config: rope_parameters.factor is missing; rope_type linear needs it"
    );
    assert_eq!(
        rope(json!({"rope_type": "linear", "factor": 0.5})),
        "model.config: rope_parameters.factor is 0.5; it must be a number of at least 1"
    );
    assert_eq!(
        rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})),
        "model.config: rope_parameters.high_freq_factor is 4; it must be above rope_parameters.low_freq_factor, 4"
    );
    assert_eq!(
        rope(json!({"rope_type": "yarn", "factor": 8, "beta_fsat": 4})),
        "model.config: rope_parameters.beta_fsat is not a key of rope_type yarn; did you mean \
         rope_parameters.beta_fast?"
    );
    assert_eq!(
        refusal(with("llama", json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}))),
        "model.config: rope_theta is 500000 but rope_parameters.rope_theta is 10000; keep one"
    );
    assert_eq!(
        refusal(with(
            "llama",
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}})
        )),
        "model.config: rope_parameters and rope_scaling say different things; keep one"
    );
}

/// Parameters of a model, counted from its sizes.
fn num_parameters(config: &ModelConfig) -> usize {
    let vocab = config.vocab_size.unwrap();
    let heads = if config.tie_word_embeddings { 1 } else { 2 };
    match &config.family {
        FamilyConfig::Gpt2(c) => {
            let (d, f) = (c.n_embd, c.inner());
            let block = 4 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d);
            heads * vocab * d + c.n_positions * d + c.n_layer * block + 2 * d
        }
        FamilyConfig::Llama(c) => {
            let (d, f) = (c.hidden_size, c.intermediate_size);
            let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
            heads * vocab * d + c.num_hidden_layers * (2 * d + 2 * q * d + 2 * kv * d + 3 * f * d) + d
        }
    }
}

#[test]
fn presets_have_the_published_numbers_of_parameters() {
    let counts = [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1.5b", 1_557_611_200),
        ("llama-160m", 162_417_408),
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
    ];
    assert_eq!(counts.map(|(name, _)| name), presets::NAMES);
    for (name, count) in counts {
        let config = preset(name, "model").unwrap();
        assert_eq!(num_parameters(&config), count, "{name}");
        assert_eq!(parse(config.to_hf_json(Dtype::BF16)), config, "{name}");
    }
    assert_eq!(
        preset("gpt3", "model").unwrap_err().to_string(),
        "model: preset is \"gpt3\"; it must be one of gpt2-124m, gpt2-355m, gpt2-774m, gpt2-1.5b, llama-160m, \
         llama-1b, llama-8b"
    );
}

#[test]
fn a_folder_names_the_file_that_is_missing_or_is_not_json() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    let message = ModelConfig::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: cannot read: ", file.display())), "{message}");
    std::fs::write(&file, "{\"n_embd\": 32,").unwrap();
    let message = ModelConfig::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: it is not JSON: ", file.display())), "{message}");
}

#[test]
fn the_fixtures_generation_configurations_name_their_first_token() {
    for name in ["gpt2", "llama", "llama3-rope"] {
        let config = GenerationConfig::from_folder(&fixture(name)).unwrap();
        assert_eq!((config.bos_token_id, config.temperature, config.eos_token_ids), (Some(1), None, None));
    }
}
