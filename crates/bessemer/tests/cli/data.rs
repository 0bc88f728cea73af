//! Wrong data: the refusal names the key and the file, where in it, and what it must be.

use crate::common::{Place, put, run_file};
use serde_json::{Value, json};

/// For each content of a file: the end of the refusal when it is `data.train`, after "r.json: data.train: ".
fn assert_contents_refused(file: &str, cases: &[(&[u8], &str)]) {
    let place = Place::new();
    for (content, want) in cases {
        place.write(file, content);
        let refusal = place.refusal_of(&[("data.train", json!(file))]);
        assert_eq!(refusal, format!("r.json: data.train: {want}"));
    }
}

#[test]
fn text_that_is_missing_empty_or_too_short_is_refused() {
    assert_contents_refused(
        "t.txt",
        &[
            (b"", "t.txt: is empty (0 bytes); it must hold at least one character"),
            (
                b"hi",
                "t.txt holds 2 tokens; data.sequence_length 32 needs at least 33: give more text or a shorter \
                 sequence_length",
            ),
            (
                &[b'a'; 32],
                "t.txt holds 32 tokens; data.sequence_length 32 needs at least 33: give more text or a shorter \
                 sequence_length",
            ),
        ],
    );
    let place = Place::new();
    place.write("folder/a.csv", "a");
    for (path, want) in [
        ("missing.txt", "missing.txt: no such file; give the path of a file that exists, or a glob"),
        ("folder", "folder: is a folder; it must be a file, or a glob such as folder/*.txt"),
        (
            "folder/*.txt",
            "folder/*.txt: no file matches this glob; give the path of a file that exists, or a glob that matches one",
        ),
    ] {
        assert_eq!(place.refusal_of(&[("data.train", json!(path))]), format!("r.json: data.train: {want}"));
    }
    let refusal = place.refusal_of(&[("data.train", json!([]))]);
    assert_eq!(refusal, "r.json: data.train is []; it must name at least one source");
    let refusal = place.refusal_of(&[("data.train", json!(["corpus.txt", "missing.txt"]))]);
    assert!(refusal.contains("missing.txt: no such file"), "{refusal}");
}

#[test]
fn text_that_is_not_utf_8_is_refused_with_the_offset_of_the_first_bad_byte() {
    let mut latin = vec![b'a'; 100_000];
    latin[99_000] = 0xe9;
    assert_contents_refused(
        "t.txt",
        &[(
            &latin,
            "t.txt: not UTF-8 at byte offset 99000 (byte 0xe9); text must be UTF-8: convert it, e.g. \
             `iconv -f ISO-8859-1 -t UTF-8`",
        )],
    );
}

#[test]
fn a_line_of_jsonl_that_cannot_be_used_is_refused_with_its_number() {
    assert_contents_refused("t.jsonl", &[(b"", "t.jsonl: is empty (0 bytes); it must hold at least one row")]);
    let place = Place::new();
    for (content, line, names) in [
        ("{\"text\": \"hello\"}\n{\"text\": nope}\n", 2, "is not valid JSON"),
        ("{\"text\": \"hello\"}\n\n{\"text\": \"x\"}\n", 2, "is blank"),
        ("{\"text\": \"hello\"}\n{\"text\": 5}\n", 2, "\"text\" is 5; it must be a string"),
        ("{\"content\": \"hello\"}\n", 1, "\"text\""),
        ("[1, 2]\n", 1, "is an array; every line must be a JSON object"),
        ("{\"text\": \"hello\"}\n{\"text\": \"cut", 2, "is not valid JSON"),
    ] {
        place.write("t.jsonl", content);
        let refusal = place.refusal_of(&[("data.train", json!("t.jsonl"))]);
        let begins = format!("r.json: data.train: t.jsonl: line {line}: ");
        assert!(refusal.starts_with(&begins) && refusal.contains(names), "{content:?}: {refusal}");
    }
}

#[test]
fn a_validation_set_that_cannot_be_is_refused() {
    let place = Place::new();
    for split in [json!(0), json!(1), json!(2), json!(-0.1), json!("x")] {
        let refusal = place.refusal_of(&[("data.validation", json!({"split": split}))]);
        let want = format!("r.json: data.validation.split is {split}; it must be a number above 0 and below 1");
        assert_eq!(refusal, want);
    }
    assert_eq!(
        place.refusal_of(&[("data.validation", json!({"split": 1e-9}))]),
        "r.json: data.validation.split: corpus.txt holds 1 token; data.sequence_length 32 needs at least 2: give more \
         text or a shorter sequence_length"
    );
    assert_eq!(
        place.refusal_of(&[("data.validation", json!("missing.txt"))]),
        "r.json: data.validation: missing.txt: no such file; give the path of a file that exists, or a glob"
    );
    assert!(place.refusal_of(&[("data.validation", json!(0.1))]).starts_with("r.json: data.validation is 0.1; "));
}

#[test]
fn a_tokenizer_that_is_missing_broken_or_larger_than_the_vocabulary_is_refused() {
    let place = Place::new();
    assert_eq!(
        place.refusal_of(&[("data.tokenizer", json!("chars"))]),
        "r.json: data.tokenizer is \"chars\"; there is no such file; it must be the path of a tokenizer.json or of a \
         folder that holds one, \"char\" or \"byte\""
    );
    assert_eq!(
        place.refusal_of(&[("data.tokenizer", Value::Null)]),
        "r.json: data.tokenizer is absent and the model folder has no tokenizer.json; set it to the path of a \
         tokenizer.json, \"char\" or \"byte\""
    );
    for content in ["", "hello", "{\"a\": 1}", "[]"] {
        place.write("tokenizer.json", content);
        let refusal = place.refusal_of(&[("data.tokenizer", json!("tokenizer.json"))]);
        assert!(refusal.starts_with("r.json: data.tokenizer: tokenizer.json: "), "{refusal}");
    }
    assert_eq!(
        place.refusal_of(&[("model.config.vocab_size", json!(100))]),
        "r.json: data.tokenizer is a tokenizer of 256 ids; the model's vocab_size is 100, which must be at least as large"
    );
}

/// A run file for rows of tokens, one row a sample.
fn rows_run_file() -> Value {
    let mut root = run_file();
    put(
        &mut root,
        "data",
        json!({"train": [{"path": "rows.jsonl", "format": "tokenized"}], "sequence_length": 32,
                                  "packing": "none"}),
    );
    root
}

#[test]
fn a_row_of_tokens_that_cannot_be_used_is_refused_with_its_line() {
    let place = Place::new();
    place.write("r.json", rows_run_file().to_string());
    let good = json!({"input_ids": [1, 2, 3]}).to_string();
    let long = json!({"input_ids": vec![1; 33]});
    for (row, want) in [
        (json!({"input_ids": [1, 2, 256]}), "input_ids[2] is 256; it must be a token id from 0 to 255"),
        (json!({"input_ids": [1, 2, -1]}), "input_ids[2] is -1; it must be a token id from 0 to 255"),
        (json!({"input_ids": [1, 2.5]}), "input_ids[1] is 2.5; it must be an integer"),
        (json!({"input_ids": []}), "input_ids is empty; a row must hold at least one token"),
        (json!({"input_ids": "abc"}), "\"input_ids\" is a string; it must be an array of integers"),
        (json!({"ids": [1]}), "has no field \"input_ids\"; a row of the format `tokenized` must have it"),
        (
            json!({"input_ids": [1, 2, 3], "labels": [1, 2]}),
            "labels has 2 values and input_ids 3; they must be equally long",
        ),
        (
            json!({"input_ids": [1, 2, 3], "labels": [1, 2, 300]}),
            "labels[2] is 300; it must be a token id from 0 to 255, or -100",
        ),
        (
            json!({"input_ids": [1, 2, 3], "labels": [1, 2, -5]}),
            "labels[2] is -5; it must be a token id from 0 to 255, or -100",
        ),
        (
            long,
            "has 33 tokens; with data.packing \"none\" it must have at most data.sequence_length 32: raise that, shorten \
             the row, or set data.packing to \"concat\"",
        ),
    ] {
        place.write("rows.jsonl", format!("{good}\n{good}\n{row}\n"));
        let refusal = place.refusal(&["train", "r.json"]);
        assert_eq!(refusal, format!("r.json: data.train: rows.jsonl: line 3: {want}"));
    }
}

#[test]
fn data_without_a_target_that_counts_are_refused_before_the_first_step() {
    let place = Place::new();
    place.write("r.json", rows_run_file().to_string());
    for row in [json!({"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}), json!({"input_ids": [5]})] {
        place.write("rows.jsonl", format!("{row}\n{row}\n"));
        assert_eq!(
            place.refusal(&["train", "r.json"]),
            "r.json: data.train: no target counts: every label is -100 or every row has one token; some labels must be \
             token ids"
        );
    }
}
