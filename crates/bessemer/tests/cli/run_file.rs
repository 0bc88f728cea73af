//! A wrong run file is refused in one paragraph that names file, key, value and what it must be; nothing is written.

use crate::common::{Place, run_file};
use serde_json::{Value, json};

const AT_LEAST_0: &str = "a whole number of at least 0";
/// Every optimizer, as a refusal lists them.
const OPTIMIZERS: &str = "\"Adam\", \"AdamW\", \"SGD\", \"Adagrad\", \"RMSprop\", \"Adadelta\", \"Adamax\", \"NAdam\", \"RAdam\", \
     \"Lion\", \"Lamb\", \"Muon\", \"Adafactor\", \"AdamWScheduleFree\" or \"custom\"";
const AT_LEAST_1: &str = "a whole number of at least 1";

/// For each (key, value, rule): the refusal is "r.json: key is value; it must be rule".
fn assert_refused(cases: &[(&str, Value, &str)]) {
    let place = Place::new();
    for (path, value, rule) in cases {
        let want = format!("r.json: {path} is {value}; it must be {rule}");
        assert_eq!(place.refusal_of(&[(path, value.clone())]), want);
    }
}

/// For each change: the whole refusal.
fn assert_refusals(cases: &[(&str, Value, &str)]) {
    let place = Place::new();
    for (path, value, want) in cases {
        assert_eq!(place.refusal_of(&[(path, value.clone())]), *want);
    }
}

#[test]
fn a_number_of_the_run_out_of_range_or_of_another_type_is_refused_with_its_range() {
    assert_refused(&[
        ("run.steps", json!(0), AT_LEAST_1),
        ("run.steps", json!(-1), AT_LEAST_1),
        ("run.steps", json!(2.5), AT_LEAST_1),
        ("run.steps", json!(1e30), AT_LEAST_1),
        ("run.steps", json!("abc"), AT_LEAST_1),
        ("run.steps", json!(true), AT_LEAST_1),
        ("run.steps", json!([2]), AT_LEAST_1),
        ("run.seed", json!(-1), AT_LEAST_0),
        ("run.eval_every", json!(-1), AT_LEAST_0),
        ("run.checkpoint_every", json!("never"), AT_LEAST_0),
        ("run.keep_checkpoints", json!(-1), AT_LEAST_0),
        ("run.sample_tokens", json!(0), AT_LEAST_1),
        ("run.log_every", json!(0), AT_LEAST_1),
        ("run.threads", json!(-1), "a whole number of at least 0 and at most 1024"),
        ("run.threads", json!(100_000), "a whole number of at least 0 and at most 1024"),
        ("data.sequence_length", json!(0), AT_LEAST_1),
        ("data.sequence_length", json!(-5), AT_LEAST_1),
        ("train_batch_size", json!(0), AT_LEAST_1),
        ("train_batch_size", json!("4"), AT_LEAST_1),
        ("train_batch_size", json!(4.5), AT_LEAST_1),
        ("train_micro_batch_size_per_gpu", json!(0), AT_LEAST_1),
        ("gradient_accumulation_steps", json!(-2), AT_LEAST_1),
    ]);
}

#[test]
fn words_and_switches_are_refused_with_what_they_may_be() {
    assert_refused(&[
        ("run.deterministic", json!("yes"), "true or false"),
        ("run.device", json!("cuda"), "\"auto\" or \"cpu\""),
        ("run.isa", json!("sse"), "\"portable\", \"avx2\", \"avx512\" or \"avx512_bf16\""),
        ("run.output", json!(7), "text in quotes"),
        ("run.sample_prompt", json!(5), "text in quotes"),
        ("data.packing", json!("foo"), "\"concat\" or \"none\""),
        ("data.shuffle", json!("no"), "true or false"),
        ("data.tokenizer", json!(["byte"]), "text in quotes"),
        ("bf16.enabled", json!("yes"), "true or false"),
        ("zero_optimization.stage", json!(4), "0, 1, 2 or 3"),
        ("model", json!("gpt2-124m"), "a section {...}"),
        ("optimizer", json!("AdamW"), "a section {...}"),
    ]);
}

#[test]
fn settings_of_optimizer_and_schedule_out_of_range_are_refused_with_their_range() {
    let beta = "a number of at least 0 and below 1";
    assert_refused(&[
        ("optimizer.params.lr", json!(-1e-3), "a number of at least 0"),
        ("optimizer.params.lr", json!("abc"), "a number of at least 0"),
        ("optimizer.params.lr", json!("NaN"), "a number of at least 0"),
        ("optimizer.params.eps", json!(-1), "a number of at least 0"),
        ("optimizer.params.weight_decay", json!(-1), "a number of at least 0"),
        ("optimizer.params.betas", json!([0.9, 0.99, 0.9]), &format!("a list of two, each {beta}")),
        ("optimizer.params.betas", json!(0.9), &format!("a list of two, each {beta}")),
        ("gradient_clipping", json!(-1), "a number of at least 0"),
        ("optimizer.type", json!("AdaMW2"), OPTIMIZERS),
    ]);
    assert_refusals(&[
        (
            "optimizer.params.betas",
            json!([0.9, 1.0]),
            "r.json: optimizer.params.betas[1] is 1.0; it must be a number of at least 0 and below 1",
        ),
        (
            "scheduler",
            json!({"type": "WarmupLR", "params": {"warmup_num_steps": -2}}),
            "r.json: scheduler.params.warmup_num_steps is -2; it must be a whole number of at least 1",
        ),
        (
            "scheduler",
            json!({"type": "Cosine2"}),
            "r.json: scheduler.type is \"Cosine2\"; it must be \"WarmupLR\", \"WarmupDecayLR\", \"WarmupCosineLR\", \
             \"constant\", \"constant_with_warmup\", \"linear\", \"cosine\", \"cosine_with_restarts\", \
             \"cosine_with_min_lr\", \"polynomial\", \"inverse_sqrt\", \"warmup_stable_decay\", \"reduce_lr_on_plateau\", \"OneCycle\" or \
             \"LRRangeTest\"",
        ),
        (
            "optimizer",
            json!({"params": {"lr": 1}}),
            format!("r.json: optimizer.type is missing; it must be {OPTIMIZERS}").as_str(),
        ),
    ]);
}

#[test]
fn an_unknown_key_at_any_depth_is_refused_with_the_nearest_known_one() {
    assert_refusals(&[
        (
            "gradient_cliping",
            json!(1.0),
            "r.json: gradient_cliping is not a known key; the nearest one is gradient_clipping",
        ),
        ("run.stepz", json!(3), "r.json: run.stepz is not a known key; the nearest one is run.steps"),
        (
            "optimizer.params.learning_rate",
            json!(3),
            "r.json: optimizer.params.learning_rate is not a known key; the nearest one is optimizer.params.lr",
        ),
        (
            "zero_optimization.stag",
            json!(3),
            "r.json: zero_optimization.stag is not a known key; the nearest one is zero_optimization.stage",
        ),
        (
            "scheduler",
            json!({"type": "WarmupLR", "params": {"warmup_steps": 2}}),
            "r.json: scheduler.params.warmup_steps is not a known key; the nearest one is \
             scheduler.params.warmup_num_steps",
        ),
        (
            "data.train",
            json!([{"path": "corpus.txt", "formt": "text"}]),
            "r.json: data.train[0].formt is not a known key; the nearest one is data.train[].format",
        ),
        (
            "data.validation",
            json!({"splt": 0.1}),
            "r.json: data.validation.splt is not a known key; the nearest one is data.validation.split",
        ),
        ("model.presett", json!("x"), "r.json: model.presett is not a known key; the nearest one is model.preset"),
        (
            "model.config.n_heads",
            json!(4),
            "r.json: model.config: n_heads is not a key of a gpt2 configuration; did you mean n_head?",
        ),
    ]);
}

#[test]
fn what_is_not_supported_yet_is_refused_by_name() {
    let place = Place::new();
    for (path, value, named) in [
        ("amp", json!({"enabled": true}), "amp.enabled is true"),
        ("optimizer.type", json!("OneBitAdam"), "optimizer.type is \"OneBitAdam\""),
        ("scheduler", json!({"type": "StepLR", "params": {}}), "scheduler.type is \"StepLR\""),
        (
            "zero_optimization",
            json!({"stage": 3, "zero_quantized_weights": true}),
            "zero_optimization.zero_quantized_weights is true",
        ),
    ] {
        let refusal = place.refusal_of(&[(path, value)]);
        let (begins, says) = (format!("r.json: {named}, which is not supported yet; "), "it must be ");
        assert!(refusal.starts_with(&begins) && refusal.contains(says), "{refusal}");
    }
    let refusal = place.refusal(&["train", "r.json", "--ranks", "2"]);
    assert!(!refusal.is_empty());
}

#[test]
fn a_missing_section_is_refused_with_an_example_of_it() {
    assert_refusals(&[
        (
            "model",
            Value::Null,
            "r.json: model is missing; training needs one, such as \"model\": { \"preset\": \"gpt2-124m\" }, or \
             --model FOLDER",
        ),
        (
            "data",
            Value::Null,
            "r.json: data is missing; training needs one, such as \"data\": { \"train\": \"corpus.txt\" }, or --data PATH",
        ),
        ("data.train", Value::Null, "r.json: data.train is missing; it must be a path, a glob or a list of sources"),
        (
            "optimizer",
            Value::Null,
            "r.json: optimizer is missing; training needs one, such as \"optimizer\": { \"type\": \"AdamW\", \"params\": \
             { \"lr\": 1e-3 } }",
        ),
        (
            "train_batch_size",
            Value::Null,
            "r.json: neither train_batch_size nor train_micro_batch_size_per_gpu is given; give one of them as a number",
        ),
        ("model", json!({}), "r.json: model is empty; it must hold one of path, preset and config"),
    ]);
}

#[test]
fn batch_numbers_that_do_not_fit_say_where_each_came_from() {
    let place = Place::new();
    assert_eq!(
        place.refusal_of(&[("train_batch_size", json!(33)), ("train_micro_batch_size_per_gpu", json!(16))]),
        "r.json: train_batch_size is 33 (given), but train_micro_batch_size_per_gpu 16 (given) x \
         gradient_accumulation_steps 2 (derived: 33 / 16 / 1) x 1 data-parallel rank is 32; \
         make train_batch_size a multiple of 16"
    );
    let refusal = place.refusal_of(&[("run.epochs", json!(2))]);
    assert_eq!(refusal, "r.json: run.steps is 2 and run.epochs is 2; keep one of run.steps, run.epochs and run.tokens");
    let refusal = place.refusal_of(&[("model.preset", json!("gpt2-124m"))]);
    assert!(refusal.ends_with("keep one of model.path, model.preset and model.config"), "{refusal}");
}

#[test]
fn a_run_beyond_the_machine_is_refused_before_anything_is_allocated() {
    let place = Place::new();
    assert_eq!(
        place.refusal_of(&[("train_batch_size", json!(1_000_000_000_000u64))]),
        "r.json: train_batch_size is 1000000000000; with rows of 32 tokens it must be at most 67108864"
    );
    assert_eq!(
        place.refusal_of(&[("train_batch_size", json!(10_000_000))]),
        "r.json: train_micro_batch_size_per_gpu is 10000000; with rows of 32 tokens it must be at most 524288"
    );
    // Weights, moments and gradients of 3 TiB.
    let wide = json!({"model_type": "gpt2", "vocab_size": 256, "n_positions": 64, "n_embd": 1 << 16, "n_layer": 4,
                      "n_head": 4});
    let refusal = place.refusal_of(&[("model.config", wide)]);
    assert!(refusal.starts_with("r.json: the run needs ") && refusal.contains("TiB of memory"), "{refusal}");
    assert!(refusal.contains("and this machine has"), "{refusal}");
}

#[test]
fn a_model_that_cannot_be_is_refused_by_its_key() {
    let size = "it must be a whole number from 1 to 16777216";
    let share = "it must be a number of at least 0 and less than 1";
    let place = Place::new();
    for (key, value, rule) in [
        ("n_head", json!(0), size),
        ("n_layer", json!(0), size),
        ("n_layer", json!(-1), size),
        ("n_layer", json!("two"), size),
        ("n_layer", json!(1.5), size),
        ("n_embd", json!(1u64 << 40), size),
        ("vocab_size", json!(0), size),
        ("vocab_size", json!("many"), size),
        ("resid_pdrop", json!(1.0), share),
        ("attn_pdrop", json!(-0.1), share),
        ("layer_norm_epsilon", json!(-1), "it must be a number above 0"),
        ("model_type", json!("bert"), "it must be one of gpt2, llama"),
    ] {
        let refusal = place.refusal_of(&[(&format!("model.config.{key}"), value.clone())]);
        assert_eq!(refusal, format!("r.json: model.config: {key} is {value}; {rule}"));
    }
    assert_refusals(&[
        ("model.config.n_head", json!(5), "r.json: model.config: n_embd is 32; it must be a multiple of n_head 5"),
        (
            "model.config.model_type",
            Value::Null,
            "r.json: model.config: model_type is missing; it must be one of gpt2, llama",
        ),
        (
            "data.sequence_length",
            json!(65),
            "r.json: data.sequence_length is 65; it must be at most 64, the positions of the model",
        ),
    ]);
    let refusal = place.refusal_of(&[("model", json!({"preset": "gpt3"}))]);
    assert!(refusal.contains("\"gpt3\"; it must be one of gpt2-124m, "), "{refusal}");
}

#[test]
fn a_sample_that_cannot_be_made_is_refused_before_the_run() {
    let place = Place::new();
    for (changes, says) in [
        (&[("run.sample_every", json!(5))][..], "run.sample_every is 5 and run.sample_prompt is missing"),
        (&[("run.sample_prompt", json!(""))], "run.sample_prompt is \"\"; it must hold at least one token"),
        (&[("run.sample_prompt", json!("a".repeat(64)))], "must be shorter than the model's 64 positions"),
    ] {
        let refusal = place.refusal_of(changes);
        assert!(refusal.starts_with("r.json: ") && refusal.contains(says), "{refusal}");
    }
}

#[test]
fn a_file_that_is_no_run_file_says_what_it_is() {
    let place = Place::new();
    for (content, want) in [
        (&b""[..], "f.json: is empty; it must hold settings, such as { \"train_batch_size\": 32 }"),
        (b"  \n", "f.json: is empty; it must hold settings, such as { \"train_batch_size\": 32 }"),
        (b"hello there", "f.json: line 1, column 7: expected \":\" after the key \"hello\", found \"t\""),
        (b"[1,2]", "f.json: holds [1,2]; it must hold an object {...}"),
        (
            b"{\"model\": {",
            "f.json: line 1, column 12: the file ends inside the object that begins on line 1; close it with }",
        ),
        (b"{\"a\": \"\xff\"}", "f.json: is not UTF-8: byte 0xff at offset 7, on line 1; save it as UTF-8"),
        (
            b"{\n  \"seed\": 1,\n  \"seed\": 2\n}",
            "f.json: seed stands twice, on line 2 and on line 3; keep one of them",
        ),
        (
            b"{\"run\": {\"steps\": 1,\n\"steps\": 2}}",
            "f.json: run.steps stands twice, on line 1 and on line 2; keep one of them",
        ),
        (b"{\"a\": 1e999}", "f.json: line 1, column 7: \"1e999\" is not a number; write it as 12, -0.5 or 1e-8"),
        (
            b"{\"a\": NaN}",
            "f.json: line 1, column 11: the file ends inside the object that begins on line 1; close it with }; \
             the text \"NaN}\" on line 1 has no quotes and so goes on to the end of its line",
        ),
    ] {
        place.write("f.json", content);
        assert_eq!(place.refusal(&["train", "f.json"]), want);
        assert_eq!(place.refusal(&["plan", "f.json"]), want);
    }
    let refusal = place.refusal(&["train", "missing.json"]);
    assert!(refusal.starts_with("missing.json: the run file cannot be read: No such file"), "{refusal}");
    let refusal = place.refusal(&["train", "."]);
    assert!(refusal.starts_with(".: the run file cannot be read: Is a directory"), "{refusal}");
}

#[test]
fn words_of_the_command_line_that_set_keys_are_checked_like_the_file() {
    let place = Place::new();
    for (set, want) in [
        ("run.stepz=3", "--set: run.stepz is not a known key; the nearest one is run.steps"),
        ("run.steps", "--set: \"run.steps\" must be key.path=value, such as run.steps=100"),
        ("run.steps=abc", "--set: run.steps is \"abc\"; it must be a whole number of at least 1"),
        ("run.steps.x=1", "--set: run.steps.x cannot be set: run.steps is 2, not a section"),
        ("optimizer.type=Adagrad2", format!("--set: optimizer.type is \"Adagrad2\"; it must be {OPTIMIZERS}").as_str()),
    ] {
        assert_eq!(place.refusal(&["train", "r.json", "--set", set]), want);
    }
    let refusal = place.refusal(&["train", "r.json", "--model", "nonsense"]);
    assert!(refusal.starts_with("--model: nonsense: there is no such folder; it must be a folder"), "{refusal}");
    assert!(refusal.contains("or a preset (gpt2-124m, "), "{refusal}");
    assert_eq!(
        place.refusal(&["train", "r.json", "--data", "nonsense"]),
        "--data: nonsense: no such file; give the path of a file that exists, or a glob"
    );
}

#[test]
fn a_deepspeed_config_alone_lacks_model_and_data_and_the_optimizer_is_never_guessed() {
    let place = Place::new();
    place.write("ds.json", r#"{"train_batch_size": 4, "optimizer": {"type": "AdamW"}}"#);
    assert!(place.refusal(&["train", "ds.json"]).starts_with("ds.json: model is missing"));
    assert!(place.refusal(&["train", "ds.json", "--model", "gpt2-124m"]).starts_with("ds.json: data is missing"));
    let mut without = run_file();
    without["optimizer"] = Value::Null;
    place.write("r.json", without.to_string());
    assert!(place.refusal(&["train", "r.json"]).starts_with("r.json: optimizer is missing"));
}
