//! What commands print, and what a run leaves, key by key.

use crate::common::{Place, keys, losses, metrics, run_file_with};
use serde_json::{Value, json};
use std::fs;

/// A run with everything: validation, samples, checkpoints.
fn full_run() -> Place {
    let place = Place::new();
    let run = json!({"output": "out", "steps": 20, "eval_every": 10, "checkpoint_every": 10, "sample_every": 10,
                     "sample_prompt": "The quick", "sample_tokens": 8});
    place.write("r.json", run_file_with(&[("run", run), ("data.validation", json!({"split": 0.1}))]).to_string());
    place
}

#[test]
fn a_run_leaves_its_plan_a_line_a_step_checkpoints_and_a_model() {
    let place = full_run();
    place.output_of(&["train", "r.json"]);
    let (steps, evaluations) = metrics(&place.path("out"));
    assert_eq!((steps.len(), evaluations.len()), (20, 2));
    for step in &steps {
        let want =
            ["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "step_seconds", "peak_memory_bytes"];
        assert_eq!(keys(step), want);
    }
    assert_eq!(steps[19]["tokens"], 20 * 4 * 32);
    assert_eq!(keys(&evaluations[0]), ["step", "eval_loss", "eval_perplexity", "eval_tokens", "eval_bits_per_byte"]);
    assert_eq!((&evaluations[0]["step"], &evaluations[1]["step"]), (&json!(10), &json!(20)));
    assert!(losses(&place.path("out"))[19] < 0.9 * losses(&place.path("out"))[0]);

    let run: Value = serde_json::from_slice(&fs::read(place.path("out/run.json")).unwrap()).unwrap();
    for (pointer, want) in [
        ("/train_micro_batch_size_per_gpu", json!(4)),
        ("/gradient_accumulation_steps", json!(1)),
        ("/gradient_clipping", json!(1.0)),
        ("/run/seed", json!(42)),
        ("/run/steps", json!(20)),
        ("/optimizer/params/betas", json!([0.9, 0.999])),
        ("/zero_optimization/stage", json!(0)),
    ] {
        assert_eq!(run.pointer(pointer), Some(&want), "{pointer}");
    }
    assert!(run["run"]["threads"].as_u64().unwrap() >= 1, "0 threads is not final");

    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(place.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("out/checkpoints"), ["latest", "step-00000010", "step-00000020"]);
    assert_eq!(fs::read_to_string(place.path("out/checkpoints/latest")).unwrap().trim(), "step-00000020");
    assert_eq!(names("out/checkpoints/step-00000020"), ["manifest.json", "rank-00000.safetensors"]);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        assert!(names("out/model").iter().any(|name| name == file), "{file} is missing");
    }
}

#[test]
fn run_json_is_a_run_file_that_gives_the_same_run_again() {
    let place = full_run();
    place.output_of(&["train", "r.json"]);
    place.output_of(&["train", "out/run.json", "--set", "run.output=again"]);
    assert_eq!(losses(&place.path("again")), losses(&place.path("out")));
}

#[test]
fn one_thread_and_two_give_the_same_losses_bit_for_bit() {
    let place = full_run();
    for threads in ["1", "2"] {
        let (output, threads) = (format!("run.output=t{threads}"), format!("run.threads={threads}"));
        place.output_of(&["train", "r.json", "--set", &output, "--set", &threads]);
    }
    assert_eq!(losses(&place.path("t1")), losses(&place.path("t2")));
}

#[test]
fn eval_prints_loss_perplexity_bits_per_byte_and_tokens() {
    let place = full_run();
    place.output_of(&["train", "r.json"]);
    let text = fs::read_to_string(place.path("corpus.txt")).unwrap();
    let got = place.json_of(&["eval", "out", "--data", "corpus.txt", "--json"]);
    assert_eq!(keys(&got), ["loss", "perplexity", "bits_per_byte", "tokens"]);
    // Every byte but the first is a target once.
    assert_eq!(got["tokens"], text.len() as u64 - 1);
    let (loss, perplexity) = (got["loss"].as_f64().unwrap(), got["perplexity"].as_f64().unwrap());
    assert!((loss.exp() / perplexity - 1.0).abs() < 1e-12, "{got}");
    let bits = loss * (text.len() - 1) as f64 / std::f64::consts::LN_2 / text.len() as f64;
    assert!((got["bits_per_byte"].as_f64().unwrap() / bits - 1.0).abs() < 1e-12, "{got}");
    // The validation set of the run, evaluated by itself, gives the run's last figure.
    let held_out = text.len() - (0.9 * text.len() as f64).floor() as usize;
    place.write("valid.txt", &text[text.len() - held_out..]);
    let again = place.json_of(&["eval", "out", "--data", "valid.txt", "--sequence-length", "32", "--json"]);
    let (_, evaluations) = metrics(&place.path("out"));
    assert_eq!(again["tokens"], evaluations[1]["eval_tokens"]);
    let (again, run) = (again["loss"].as_f64().unwrap(), evaluations[1]["eval_loss"].as_f64().unwrap());
    assert!((again - run).abs() < 1e-6, "{again} and {run}");
    let lines = place.output_of(&["eval", "out", "--data", "corpus.txt"]);
    assert!(lines.starts_with("loss  ") && lines.contains("bits per byte  "), "{lines}");
}

#[test]
fn eval_takes_rows_of_tokens_whole_as_score_does() {
    let place = Place::trained();
    // Joined into windows of any length, rows of these lengths would be cut somewhere.
    let rows: Vec<String> = [23u32, 17, 29, 11, 31]
        .map(|len| json!({"input_ids": (0..len).map(|i| (i * 37 + len) % 256).collect::<Vec<_>>()}).to_string() + "\n")
        .to_vec();
    place.write("rows.jsonl", rows.concat());
    let eval = place.json_of(&["eval", "out", "--data", "rows.jsonl", "--json"]);
    let score = place.json_of(&["score", "out", "--tokens", "rows.jsonl", "--json"]);
    let (got, want) = (eval["loss"].as_f64().unwrap(), score["loss"].as_f64().unwrap());
    assert!((got - want).abs() < 1e-6, "{got} and {want}");
    assert_eq!((&eval["tokens"], &eval["bits_per_byte"]), (&json!(111 - 5), &Value::Null));
}

#[test]
fn score_prints_the_log_probability_of_every_token_and_a_loss_that_honours_labels() {
    let place = Place::trained();
    let got = place.json_of(&["score", "out", "--text", "Hello", "--json"]);
    assert_eq!(keys(&got), ["loss", "tokens", "logprobs"]);
    assert_eq!(got["tokens"], json!([[72, 101, 108, 108, 111]]));
    let logprobs = got["logprobs"][0].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (5, &Value::Null));
    let sum: f64 = logprobs[1..].iter().map(|x| x.as_f64().unwrap()).sum();
    assert!((got["loss"].as_f64().unwrap() + sum / 4.0).abs() < 1e-6, "{got}");

    place.write(
        "rows.jsonl",
        "{\"input_ids\": [72, 101, 108], \"labels\": [72, -100, 108]}\n{\"input_ids\": [72, 101]}\n",
    );
    let rows = place.json_of(&["score", "out", "--tokens", "rows.jsonl", "--json"]);
    assert_eq!(rows["tokens"], json!([[72, 101, 108], [72, 101]]));
    let logprob = |row: usize, token: usize| rows["logprobs"][row][token].as_f64().unwrap();
    assert!((logprob(0, 1) - logprobs[1].as_f64().unwrap()).abs() < 1e-6, "masked tokens are listed too");
    let loss = -(logprob(0, 2) + logprob(1, 1)) / 2.0;
    assert!((rows["loss"].as_f64().unwrap() - loss).abs() < 1e-6, "{rows}");
    let lines = place.output_of(&["score", "out", "--text", "Hello"]);
    assert_eq!(lines.lines().count(), 6, "{lines}");
}

#[test]
fn generate_honours_seed_temperature_and_the_number_of_tokens() {
    let place = Place::trained();
    let made = |more: &[&str]| {
        let args = [&["generate", "out", "--prompt", "The", "--max-new-tokens", "12", "--json"], more].concat();
        let got = place.json_of(&args);
        assert_eq!(keys(&got), ["tokens", "text"]);
        got["tokens"].as_array().unwrap().clone()
    };
    assert_eq!(made(&[]).len(), 12);
    assert_eq!(made(&["--seed", "1"]), made(&["--seed", "1"]));
    assert_ne!(made(&["--seed", "1"]), made(&["--seed", "2"]));
    assert_eq!(made(&["--temperature", "0", "--seed", "1"]), made(&["--temperature", "0", "--seed", "2"]));
    assert_eq!(made(&["--top-k", "1", "--seed", "1"]), made(&["--temperature", "0"]));
    let got = place.json_of(&["generate", "out", "--prompt", "The", "--max-new-tokens", "0", "--json"]);
    assert_eq!(got["tokens"], json!([]));
    // As text: the prompt, then the same tokens.
    let text = place.output_of(&["generate", "out", "--prompt", "The", "--max-new-tokens", "5", "--temperature", "0"]);
    assert!(text.starts_with("The") && text.ends_with('\n'), "{text:?}");
    let ended = place.run(&["generate", "out", "--prompt", "The", "--max-new-tokens", "500"]);
    assert_eq!(ended.err, "note: the text ends here because the model's 64 positions are full\n");
}

#[test]
fn export_makes_the_same_model_from_a_checkpoint_as_the_run_left() {
    let place = full_run();
    place.output_of(&["train", "r.json"]);
    place.output_of(&["export", "out/checkpoints/step-00000020", "exported"]);
    place.output_of(&["export", "out/checkpoints/step-00000010", "earlier"]);
    for file in ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"] {
        let (ours, runs) = (format!("exported/{file}"), format!("out/model/{file}"));
        assert!(fs::read(place.path(&ours)).unwrap() == fs::read(place.path(&runs)).unwrap(), "{file} differs");
    }
    let score = |model: &str| place.json_of(&["score", model, "--text", "The quick", "--json"]);
    assert_eq!(score("exported"), score("out"));
    assert_eq!(score("earlier"), score("out/checkpoints/step-00000010"));
    assert_ne!(score("earlier"), score("out"));
}

#[test]
fn training_goes_on_from_a_checkpoint_or_a_model_folder_given_as_the_model() {
    let place = full_run();
    place.output_of(&["train", "r.json"]);
    let first_loss = |model: &str, output: &str| {
        let output_is = format!("run.output={output}");
        place.output_of(&["train", "r.json", "--model", model, "--set", &output_is, "--set", "run.steps=1"]);
        losses(&place.path(output))[0]
    };
    let from_folder = first_loss("out/model", "a");
    assert_eq!(from_folder, first_loss("out/checkpoints/step-00000020", "b"));
    assert_eq!(from_folder, first_loss("out", "c"));
    assert!(from_folder < 0.9 * losses(&place.path("out"))[0]);
}

#[test]
fn plan_prints_every_key_resolved_memory_by_kind_and_work() {
    let place = Place::new();
    let plan = place.json_of(&["plan", "r.json", "--json"]);
    let want = [
        "config",
        "mesh",
        "parameters",
        "flops_per_token",
        "memory_per_rank",
        "communication_per_step",
        "pipeline_bubble",
        "mode",
        "precision",
        "settings",
    ];
    assert_eq!(keys(&plan), want);
    // 256 x 32 + 64 x 32 embeddings, 12 x 32^2 + 13 x 32 a block, 2 x 32 of the last norm; the head is tied.
    assert_eq!(plan["parameters"], 256 * 32 + 64 * 32 + 12 * 32 * 32 + 13 * 32 + 64);
    let memory = &plan["memory_per_rank"];
    assert_eq!(keys(memory), ["activations", "gradients", "optimizer", "weights", "workspace"]);
    assert_eq!(memory["weights"], 4 * 23_008);
    assert_eq!(memory["optimizer"], 8 * 23_008);
    assert_eq!((&plan["mesh"], &plan["pipeline_bubble"]), (&json!({"data": 1}), &json!(0.0)));
    assert!(!place.path("out").exists());
    let lines = place.output_of(&["plan", "r.json"]);
    assert!(lines.contains("parameters                       23008\n") && lines.contains(" KiB\n"), "{lines}");
}

#[test]
fn plan_without_model_and_data_resolves_a_bare_deepspeed_config() {
    let place = Place::new();
    place.write(
        "ds.json",
        r#"{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "bf16": {"enabled": "auto"}}"#,
    );
    let plan = place.json_of(&["plan", "ds.json", "--ranks", "4", "--json"]);
    let config = &plan["config"];
    assert_eq!(
        (&config["train_micro_batch_size_per_gpu"], &config["gradient_accumulation_steps"]),
        (&json!(2), &json!(4))
    );
    assert_eq!((&config["zero_optimization"]["stage"], &config["gradient_clipping"]), (&json!(3), &json!(1.0)));
    assert_eq!((&plan["parameters"], &plan["mesh"]), (&Value::Null, &json!({"data": 4})));
    // With a model, keys that fit on four ranks only are planned on four.
    let plan = place.json_of(&["plan", "ds.json", "--ranks", "4", "--model", "gpt2-124m", "--json"]);
    assert_eq!(plan["parameters"], 124_439_808);
    assert_eq!(keys(&plan["communication_per_step"]), ["all_gather", "reduce_scatter"]);
}

#[test]
fn a_deepspeed_config_with_model_and_data_trains_one_epoch_into_a_folder_of_its_name() {
    let place = Place::trained();
    place.write(
        "ds_config.json",
        r#"{"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}, "steps_per_print": 5}"#,
    );
    place.output_of(&["train", "ds_config.json", "--model", "out/model", "--data", "corpus.txt"]);
    let bytes = fs::metadata(place.path("corpus.txt")).unwrap().len();
    // The smaller of 1024 and the model's 64 positions.
    let samples = (bytes - 1) / 64;
    assert_eq!(losses(&place.path("runs/ds_config")).len() as u64, samples.div_ceil(8));
    let run: Value = serde_json::from_slice(&fs::read(place.path("runs/ds_config/run.json")).unwrap()).unwrap();
    assert_eq!(run["data"]["sequence_length"], 64);
}

#[test]
fn bench_and_info_print_their_keys() {
    let place = Place::new();
    let bench =
        place.json_of(&["bench", "r.json", "--batch", "2", "--length", "32", "--steps", "3", "--json", "--quiet"]);
    for key in ["tokens_per_second", "step_seconds", "flops_per_second", "share_of_peak", "peak_memory_bytes"] {
        assert!(bench[key].as_f64().unwrap() > 0.0, "{key}: {bench}");
    }
    let (speed, step) = (bench["tokens_per_second"].as_f64().unwrap(), bench["step_seconds"].as_f64().unwrap());
    assert!((speed * step - 64.0).abs() < 1e-6, "{bench}");
    let info = place.json_of(&["info", "--json"]);
    assert_eq!(keys(&info), ["version", "devices", "cpu_features", "libraries"]);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["devices"][0]["name"], "cpu");
    assert!(info["cpu_features"].as_array().unwrap().iter().any(|set| set["found"] == true));
}
