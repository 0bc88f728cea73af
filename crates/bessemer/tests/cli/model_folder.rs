//! Wrong model folders, and wrong words for the commands that open them.

use crate::common::Place;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A place with a good model in `m`: byte tokenizer, 64 positions.
fn with_model() -> Place {
    let place = Place::trained();
    fs::rename(place.path("out/model"), place.path("m")).unwrap();
    place
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What every command that opens `bad`, a changed copy of `m`, says; all say the same.
fn refusal_of_changed(place: &Place, change: impl Fn(&Path)) -> String {
    let bad = place.path("bad");
    copy_folder(&place.path("m"), &bad);
    change(&bad);
    let refusal = place.refusal(&["score", "bad", "--text", "hello"]);
    let args = ["train", "r.json", "--model", "bad", "--set", "run.output=new"];
    assert_eq!(place.refusal(&args), refusal, "train and score differ");
    assert_eq!(place.refusal(&["generate", "bad", "--prompt", "a"]), refusal);
    assert_eq!(place.refusal(&["eval", "bad", "--data", "corpus.txt"]), refusal);
    refusal
}

fn set_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_truncated_or_corrupt_safetensors_file_is_refused_with_both_lengths_or_what_is_wrong() {
    let place = with_model();
    let weights = |folder: &Path| folder.join("model.safetensors");
    let whole = fs::read(place.path("m/model.safetensors")).unwrap();
    for (kept, says) in [
        (0, "it is 0 bytes long; a safetensors file has at least 8: the file is truncated".to_owned()),
        (4, "it is 4 bytes long; a safetensors file has at least 8: the file is truncated".to_owned()),
        (40, "it is 40 bytes long but its header alone claims ".to_owned()),
        (whole.len() * 2 / 3, format!("bytes long but its header describes {}: the file is truncated", whole.len())),
        (whole.len() - 1, format!("it is {} bytes long but its header describes {}", whole.len() - 1, whole.len())),
    ] {
        let refusal = refusal_of_changed(&place, |bad| fs::write(weights(bad), &whole[..kept]).unwrap());
        assert!(refusal.starts_with("bad/model.safetensors: ") && refusal.contains(&says), "{refusal}");
    }
    for (offset, bytes, says) in [
        (0, &[0, 0, 0, 0, 0, 0, 0, 16][..], "its header claims to be 1152921504606846976 bytes long"),
        (8, b"xxxxxx", "its header is not that of a safetensors file"),
        (0, b"version https://git-lfs.github.com/spec/v1", "this is not a safetensors file, or it is corrupt"),
    ] {
        let mut changed = whole.clone();
        changed[offset..offset + bytes.len()].copy_from_slice(bytes);
        let refusal = refusal_of_changed(&place, |bad| fs::write(weights(bad), &changed).unwrap());
        assert!(refusal.starts_with("bad/model.safetensors: ") && refusal.contains(says), "{refusal}");
    }
    let longer = [&whole[..], b"more"].concat();
    let refusal = refusal_of_changed(&place, |bad| fs::write(weights(bad), &longer).unwrap());
    assert!(refusal.starts_with("bad/model.safetensors: "), "{refusal}");
}

#[test]
fn a_config_whose_shapes_disagree_with_the_weights_names_the_tensor_and_both_shapes() {
    let place = with_model();
    let refusal = refusal_of_changed(&place, |bad| set_config(bad, "n_embd", json!(64)));
    assert_eq!(
        refusal,
        "bad/model.safetensors: transformer.wte.weight is [256, 32]; config.json asks for [256, 64] (vocab x embed)"
    );
    let refusal = refusal_of_changed(&place, |bad| set_config(bad, "vocab_size", json!(300)));
    assert_eq!(
        refusal,
        "bad/model.safetensors: transformer.wte.weight is [256, 32]; config.json asks for [300, 32] (vocab x embed)"
    );
    let refusal = refusal_of_changed(&place, |bad| set_config(bad, "n_layer", json!(3)));
    assert!(refusal.starts_with("bad: the weights lack transformer.h.1."), "{refusal}");
}

#[test]
fn a_vocabulary_smaller_than_the_tokenizer_is_refused_with_both_sizes() {
    let place = with_model();
    let refusal = {
        copy_folder(&place.path("m"), &place.path("bad"));
        set_config(&place.path("bad"), "vocab_size", json!(100));
        place.refusal(&["score", "bad", "--text", "hello"])
    };
    assert!(refusal.contains("100") && refusal.contains("256") && refusal.contains("vocab_size"), "{refusal}");
}

#[test]
fn a_config_that_is_missing_or_no_config_is_refused() {
    let place = with_model();
    for (content, says) in [
        ("hello", "bad/config.json: it is not JSON: "),
        ("", "bad/config.json: it is not JSON: "),
        ("[]", "bad/config.json: it must be a JSON object"),
        ("{}", "bad/config.json: model_type is missing; it must be one of gpt2, llama"),
    ] {
        let refusal = refusal_of_changed(&place, |bad| fs::write(bad.join("config.json"), content).unwrap());
        assert!(refusal.starts_with(says), "{refusal}");
    }
    let refusal = refusal_of_changed(&place, |bad| set_config(bad, "model_type", json!("mamba")));
    assert_eq!(refusal, "bad/config.json: model_type is \"mamba\"; it must be one of gpt2, llama");
    let refusal = refusal_of_changed(&place, |bad| fs::remove_file(bad.join("config.json")).unwrap());
    assert!(refusal.starts_with("bad: it has no config.json; MODEL must be a folder"), "{refusal}");
    let refusal = refusal_of_changed(&place, |bad| fs::remove_file(bad.join("model.safetensors")).unwrap());
    assert!(refusal.starts_with("bad: it holds neither model.safetensors nor"), "{refusal}");
    let refusal = refusal_of_changed(&place, |bad| {
        fs::rename(bad.join("model.safetensors"), bad.join("pytorch_model.bin")).unwrap();
    });
    assert!(refusal.contains("pytorch_model.bin, a Python pickle"), "{refusal}");
}

#[test]
fn what_is_no_model_is_refused_with_what_a_model_may_be() {
    let place = Place::new();
    place.write("empty/x", "");
    for (model, says) in [
        ("missing", "missing: there is no such folder; MODEL must be a folder in the Hugging Face layout"),
        ("corpus.txt", "corpus.txt: it is a file; MODEL must be"),
        ("empty", "empty: it has no config.json; MODEL must be"),
    ] {
        for args in [
            &["eval", model, "--data", "corpus.txt"][..],
            &["score", model, "--text", "a"],
            &["generate", model, "--prompt", "a"],
        ] {
            let refusal = place.refusal(args);
            assert!(refusal.starts_with(says), "{args:?}: {refusal}");
        }
        let refusal = place.refusal(&["export", model, "new"]);
        assert!(refusal.starts_with(&format!("{model}: there is no checkpoint here")), "{refusal}");
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_by_its_file_and_tensor() {
    let place = Place::trained();
    let file = place.path("out/checkpoints/step-00000002/rank-00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    // The last bytes are the optimizer's, which a resume reads and `export` does not.
    let refusal = place.refusal(&["train", "r.json", "--resume"]);
    assert!(refusal.contains("no checkpoint here is whole") && refusal.contains("rank-00000.safetensors"), "{refusal}");
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let refusal = place.refusal(&["export", "out/checkpoints/step-00000002", "new"]);
    assert!(refusal.starts_with("out/checkpoints/step-00000002/rank-00000.safetensors: it is "), "{refusal}");
}

#[test]
fn rows_and_words_that_a_model_cannot_take_are_refused() {
    let place = with_model();
    place.write("ids.jsonl", "{\"input_ids\": [1, 999]}\n");
    place.write("long.jsonl", json!({"input_ids": vec![1; 65]}).to_string() + "\n");
    place.write("zero.jsonl", "{\"input_ids\": []}\n");
    place.write("masked.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n");
    let long = vec!["1"; 65].join(",");
    for (args, says) in [
        (&["score", "m", "--tokens", "missing.jsonl"][..], "--tokens: missing.jsonl: no such file"),
        (&["score", "m", "--tokens", "."], "--tokens: .: is a folder"),
        (
            &["score", "m", "--tokens", "ids.jsonl"],
            "--tokens: ids.jsonl: line 1: input_ids[1] is 999; it must be a token",
        ),
        (&["score", "m", "--tokens", "long.jsonl"], "--tokens: long.jsonl: line 1: has 65 tokens"),
        (&["score", "m", "--tokens", "zero.jsonl"], "--tokens: zero.jsonl: line 1: input_ids is empty"),
        (&["eval", "m", "--data", "missing"], "--data: missing: no such file"),
        (&["eval", "m", "--data", "masked.jsonl"], "--data masked.jsonl: no target counts"),
        (
            &["eval", "m", "--data", "corpus.txt", "--sequence-length", "65"],
            "--sequence-length is 65; it must be at most 64",
        ),
        (
            &["generate", "m", "--tokens", "1,256"],
            "token 1 of the prompt is 256; it must be below the model's vocab_size 256",
        ),
        (
            &["generate", "m", "--tokens", &long],
            "the prompt has 65 tokens and the model 64 positions; shorten the prompt",
        ),
        (&["generate", "m", "--prompt", ""], "the prompt is empty"),
        (
            &["generate", "m", "--prompt", "a", "--temperature", "-1"],
            "temperature is -1; it must be a number of at least 0",
        ),
        (&["generate", "m", "--prompt", "a", "--temperature", "nan"], "temperature is NaN; it must be a number"),
        (&["generate", "m", "--prompt", "a", "--top-p", "2"], "top_p is 2; it must be a number from 0 to 1"),
        (&["generate", "m", "--prompt", "a", "--min-p", "2"], "min_p is 2; it must be a number from 0 to 1"),
        (&["generate", "m", "--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty is 0; it must be"),
        (&["export", "out", "m"], "m: already exists; give a folder that does not"),
        (&["bench", "gpt5"], "gpt5: neither a run file nor a preset (gpt2-124m, "),
        (&["bench", "r.json", "--length", "65"], "--length is 65; it must be at most 64, the positions of the model"),
        (&["bench", "r.json", "--length", "32", "--isa", "sse"], "--isa is \"sse\"; it must be one of portable, "),
    ] {
        let refusal = place.refusal(args);
        assert!(refusal.starts_with(says), "{args:?}: {refusal}");
    }
}

#[test]
fn a_model_without_a_tokenizer_takes_tokens_and_says_so_when_given_text() {
    let place = with_model();
    fs::remove_file(place.path("m/tokenizer.json")).unwrap();
    for args in [
        &["score", "m", "--text", "a"][..],
        &["generate", "m", "--prompt", "a"],
        &["eval", "m", "--data", "corpus.txt"],
    ] {
        let refusal = place.refusal(args);
        assert!(refusal.contains("the model's folder has no tokenizer.json"), "{refusal}");
    }
    let made = place.json_of(&["generate", "m", "--tokens", "1,2,3", "--max-new-tokens", "4", "--json"]);
    assert_eq!((made["tokens"].as_array().unwrap().len(), &made["text"]), (4, &Value::Null));
    let text = place.output_of(&["generate", "m", "--tokens", "1,2,3", "--max-new-tokens", "4"]);
    assert_eq!(text.trim_end().split(',').count(), 4);
}

#[test]
fn wrong_arguments_are_refused_with_what_they_must_be() {
    let place = Place::new();
    for (args, says) in [
        (&["trian"][..], "unrecognized subcommand 'trian'"),
        (&["train"], "the following required arguments were not provided"),
        (&["train", "r.json", "--resum"], "unexpected argument '--resum' found"),
        (&["train", "r.json", "--ranks", "0"], "it must be a whole number of at least 1"),
        (&["score", "m"], "<--text <TEXT>|--tokens <FILE>>"),
        (&["score", "m", "--text", "a", "--tokens", "b"], "cannot be used with"),
        (&["generate", "m"], "<--prompt <PROMPT>|--tokens <ID,ID,...>>"),
        (&["generate", "m", "--tokens", "1,x"], "token ids are whole numbers of at least 0 with commas between them"),
        (&["generate", "m", "--prompt", "a", "--top-k", "-1"], "it must be a whole number of at least 0"),
        (&["generate", "m", "--prompt", "a", "--threads", "5000"], "it must be a whole number from 0 to 1024"),
        (&["eval", "m"], "--data <PATH>"),
        (&["bench", "--batch", "0"], "it must be a whole number of at least 1"),
        (&["bench", "--precision", "fp8"], "[possible values: f32, bf16]"),
        (&["info", "--log-format", "xml"], "[possible values: text, json]"),
    ] {
        let refusal = place.refusal(args);
        assert!(refusal.contains(says), "{args:?}: {refusal}");
    }
}
