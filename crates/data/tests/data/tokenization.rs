//! From files to ids: known counts, equality for any chunk size, the cache.

use std::cell::RefCell;
use std::path::Path;

use crate::common::{Place, fixture, gpt2, shakespeare, shakespeare_path};
use data::{Event, Tokenizer};
use serde_json::json;

#[test]
fn tinyshakespeare_has_338025_gpt2_tokens_whatever_the_chunks() {
    let tokenizer = gpt2();
    let whole = library_ids(&fixture("tokenizer.json"), &shakespeare());
    assert_eq!(whole.len(), 338_025);
    for (chunk_bytes, threads) in [(8 << 10, 1), (10_007, 2), (64 << 10, 2), (16 << 20, 1)] {
        let place = Place { chunk_bytes, threads, ..Place::new() };
        let ids = place.ids(shakespeare_path().to_str().unwrap(), &tokenizer);
        assert!(ids == whole, "chunks of {chunk_bytes} bytes");
    }
}

/// Text that is hard to cut: runs longer than an overlap of one letter, of spaces, of digits, of characters of four bytes, special
/// tokens everywhere, words without end.
fn hard_text() -> String {
    let words = &shakespeare()[..20_000];
    let runs = ["a", " ", "\n", "7", "🚀", "ab", "<|endoftext|>", "你好", "\r\n\t", "'s ", "e\u{301}"];
    let mut text = String::new();
    for (index, run) in runs.iter().enumerate() {
        text += words;
        text += &run.repeat((9000 + 1001 * index) / run.len());
    }
    let mut state = 7u64;
    text.extend((0..40_000).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b"acgt"[(state >> 62) as usize])
    }));
    text + words
}

/// What the `tokenizers` library makes of the whole text at once.
fn library_ids(tokenizer: &Path, text: &str) -> Vec<u32> {
    ::tokenizers::Tokenizer::from_file(tokenizer).unwrap().encode_fast(text, false).unwrap().get_ids().to_vec()
}

/// A folder with the GPT-2 tokenizer after `change`.
fn variant(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let mut json = serde_json::from_slice(&std::fs::read(fixture("tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    folder
}

#[test]
fn hard_text_gives_the_ids_of_the_whole_with_every_kind_of_tokenizer() {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let llama3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    let tokenizers = [
        ("gpt2", variant(|_| {})),
        ("digits in threes, as Llama 3", variant(|json| json["pre_tokenizer"] = split(llama3))),
        ("a space before the first word", variant(|json| json["pre_tokenizer"]["add_prefix_space"] = true.into())),
        ("a normalizer that joins characters", variant(|json| json["normalizer"] = json!({"type": "NFC"}))),
        (
            "no words at all, as Llama 2",
            variant(|json| {
                json["normalizer"] = json!({"type": "Prepend", "prepend": "_"});
                json["pre_tokenizer"] =
                    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
            }),
        ),
        (
            "special tokens that eat spaces",
            variant(|json| {
                json["added_tokens"][0]["lstrip"] = true.into();
                json["added_tokens"][0]["rstrip"] = true.into();
            }),
        ),
    ];
    let text = hard_text();
    for (name, folder) in tokenizers {
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let whole = library_ids(&folder.path().join("tokenizer.json"), &text);
        assert!(tokenizer.encode(&text).unwrap() == whole, "{name}, at once");
        for chunk_bytes in [9_973, 64 << 10] {
            let place = Place { chunk_bytes, ..Place::new() };
            let path = place.file("hard.txt", &text);
            assert!(place.ids(&path, &tokenizer) == whole, "{name}, chunks of {chunk_bytes} bytes");
            let row = place.file("hard.jsonl", json!({"text": text}).to_string());
            assert!(place.ids(&row, &tokenizer) == whole, "{name}, a row, chunks of {chunk_bytes} bytes");
        }
    }
}

/// GPT-2 writes sixteen letters a as one token, so chunks that begin elsewhere in the word disagree to its end.
#[test]
fn a_cut_in_a_word_on_which_the_chunks_never_agree_is_taken_out() {
    let text = format!("A word: {}. The end.", "a".repeat(100_003)) + &shakespeare()[..50_000];
    let whole = library_ids(&fixture("tokenizer.json"), &text);
    for chunk_bytes in [9_973, 10_001] {
        let place = Place { chunk_bytes, ..Place::new() };
        let path = place.file("a.txt", &text);
        assert!(place.ids(&path, &gpt2()) == whole, "chunks of {chunk_bytes} bytes");
    }
}

#[test]
fn char_and_byte_ids_are_those_of_the_whole_text() {
    let text = shakespeare() + &"é你🚀".repeat(9000);
    let place = Place { chunk_bytes: 8 << 10, ..Place::new() };
    let path = place.file("a.txt", &text);
    for tokenizer in [Tokenizer::char([text.as_str()]), Tokenizer::byte()] {
        assert!(place.ids(&path, &tokenizer) == tokenizer.encode(&text).unwrap());
    }
}

#[test]
fn text_is_tokenised_once_until_content_or_tokenizer_changes() {
    let place = Place::new();
    let path = place.file("a.txt", "to be or not to be");
    let config = json!({"train": path, "sequence_length": 4});
    let num_events = |tokenizer: &Tokenizer| {
        let count = RefCell::new(0);
        place.open_watched(config.clone(), Some(tokenizer), &|_| *count.borrow_mut() += 1).unwrap();
        count.into_inner()
    };
    assert!(num_events(&Tokenizer::byte()) > 0);
    assert_eq!(num_events(&Tokenizer::byte()), 0);
    assert!(num_events(&Tokenizer::char(["to be or not"])) > 0);
    place.file("a.txt", "to be or not to bx"); // the same size
    assert!(num_events(&Tokenizer::byte()) > 0);
    place.file("a.txt", "to be or not to be");
    assert_eq!(num_events(&Tokenizer::byte()), 0, "the old content's cache is still good");
}

#[test]
fn a_damaged_or_truncated_cache_is_reported_and_written_again() {
    let place = Place::new();
    let path = place.file("a.txt", shakespeare());
    let config = json!({"train": path, "sequence_length": 64});
    let tokenizer = Tokenizer::byte();
    let first = place.open(config.clone(), Some(&tokenizer)).unwrap().0.get(3);
    let is_tokens = |path: &std::path::PathBuf| path.extension().is_some_and(|ending| ending == "tokens");
    let files = || std::fs::read_dir(place.cache()).unwrap().map(|entry| entry.unwrap().path());
    let cache = files().find(is_tokens).unwrap();
    let good = std::fs::read(&cache).unwrap();
    let mut flipped = good.clone();
    flipped[3 * 64 * 2] ^= 1;
    for (damaged, reason) in
        [(flipped, "checksum"), (good[..good.len() / 2].to_vec(), "footer"), (Vec::new(), "0 bytes long")]
    {
        std::fs::write(&cache, damaged).unwrap();
        let reasons = RefCell::new(Vec::new());
        let watch = |event: Event<'_>| {
            if let Event::CacheDamaged { reason, .. } = event {
                reasons.borrow_mut().push(reason.to_owned());
            }
        };
        let sample = place.open_watched(config.clone(), Some(&tokenizer), &watch).unwrap().0.get(3);
        assert_eq!(sample, first);
        assert!(reasons.borrow().len() == 1 && reasons.borrow()[0].contains(reason), "{reasons:?}");
        assert_eq!(std::fs::read(&cache).unwrap(), good);
    }
    assert_eq!(files().filter(|path| path.extension().is_some_and(|ending| ending == "tmp")).count(), 0);
}

#[test]
fn what_is_wrong_with_a_source_is_said_under_its_key() {
    let place = Place { vocab_size: Some(256), ..Place::new() };
    let message = |config: serde_json::Value, tokenizer: Option<&Tokenizer>| {
        place.open(config, tokenizer).unwrap_err().to_string()
    };
    let byte = Tokenizer::byte();
    let text = place.file("a.txt", "to be");
    let latin1 = place.file("latin1.txt", b"caf\xe9");
    let rows = place.file("rows.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 256]}\n");
    let train = |path: &str| json!({"train": path, "sequence_length": 64});
    assert_eq!(
        message(train(&text), Some(&byte)),
        format!(
            "data.train: {text} holds 5 tokens; data.sequence_length 64 needs at least 65: give more text or a shorter sequence_length"
        )
    );
    assert!(
        message(train(&latin1), Some(&byte))
            .starts_with(&format!("data.train: {latin1}: not UTF-8 at byte offset 3 (byte 0xe9)"))
    );
    assert_eq!(
        message(train(&rows), None),
        format!("data.train: {rows}: line 2: input_ids[1] is 256; it must be a token id from 0 to 255")
    );
    assert!(message(train("/nonexistent.txt"), None).starts_with("data.train: /nonexistent.txt: no such file"));
    assert!(message(train(&text), None).starts_with("data.train: data.tokenizer is absent"));
    assert!(
        message(train(&text), Some(&gpt2()))
            .contains("data.tokenizer is a tokenizer of 50257 ids; the model's vocab_size is 256")
    );
    let split = json!({"train": text, "validation": {"split": 1.5}, "sequence_length": 2});
    assert_eq!(
        message(split, Some(&byte)),
        "data.validation.split is 1.5; it must be above 0 and below 1, the share that is held out"
    );
    let list = json!({"train": [text, {"path": "nowhere.txt"}], "sequence_length": 2});
    assert!(message(list, Some(&byte)).starts_with("data.train[1]: nowhere.txt: no such file"));
    let list = json!({"train": [{"path": text, "weight": -1.0}, text], "sequence_length": 2});
    assert_eq!(message(list, Some(&byte)), "data.train[0].weight is -1; it must be a number above 0");
    assert!(!place.cache().join("x").exists());
}

#[test]
fn a_row_of_tokens_that_cannot_be_used_is_named() {
    let place = Place { vocab_size: Some(100), ..Place::new() };
    for (row, problem) in [
        ("{\"input_ids\": [1, 2], \"labels\": [1]}", "labels has 1 values and input_ids 2; they must be equally long"),
        ("{\"input_ids\": [1, 2.5]}", "input_ids[1] is 2.5; it must be an integer"),
        ("{\"input_ids\": [1, -1]}", "input_ids[1] is -1; it must be a token id from 0 to 99"),
        ("{\"input_ids\": [1], \"labels\": [-7]}", "labels[0] is -7; it must be a token id from 0 to 99, or -100"),
        ("{\"input_ids\": []}", "input_ids is empty; a row must hold at least one token"),
        ("{\"input_ids\": 3}", "\"input_ids\" is 3; it must be an array of integers"),
        ("{\"labels\": [3]}", "has no field \"input_ids\"; a row of the format `tokenized` must have it"),
        (
            "{\"input_ids\": [1, 2], \"attention_mask\": [1, 0]}",
            "attention_mask[1] is not 1; take padding out of the row, batches are padded here",
        ),
    ] {
        let path = place.file("a.jsonl", format!("{{\"input_ids\": [1, 2, 3]}}\n{row}\n"));
        let error = place.open(json!({"train": path, "sequence_length": 2}), None).unwrap_err().to_string();
        assert_eq!(error, format!("data.train: {path}: line 2: {problem}"));
    }
}
