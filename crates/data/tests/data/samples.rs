//! From documents to samples and their order.

use crate::common::{Place, samples, shakespeare, shakespeare_path};
use data::{Dataset, IGNORE, Loader, OpenOptions, Packing, Sample, Tokenizer, choose_tokenizer};
use serde_json::json;

const I: i32 = IGNORE;

fn sample(input_ids: &[u32], targets: &[i32], positions: &[u32], document_starts: &[u32]) -> Sample {
    let (input_ids, targets) = (input_ids.to_vec(), targets.to_vec());
    let (positions, document_starts) = (positions.to_vec(), document_starts.to_vec());
    Sample { input_ids, targets, positions, document_starts, ..Sample::default() }
}

/// A tokenizer whose ids are those of letters ('a' = 0 ...) and whose end-of-text token is 26.
fn letters() -> Tokenizer {
    let vocab: serde_json::Map<_, _> = ('a'..='z').enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"},
        "added_tokens": [{"id": 26, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": vocab, "merges": []}});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(26));
    tokenizer
}

fn rows(place: &Place, texts: &[&str]) -> String {
    place.file("rows.jsonl", texts.iter().map(|text| json!({"text": text}).to_string() + "\n").collect::<String>())
}

#[test]
fn char_level_shakespeare_splits_as_nanogpt_splits_it() {
    let place = Place::new();
    let path = shakespeare_path();
    let config = json!({"train": path, "validation": {"split": 0.1}, "tokenizer": "char", "sequence_length": 64});
    let tokenizer = choose_tokenizer(&place.config(config.clone()), None, &place.cache()).unwrap().unwrap();
    let (train, validation) = place.open(config, Some(&tokenizer)).unwrap();
    let validation = validation.unwrap();
    assert_eq!((train.num_tokens(), validation.num_tokens()), (1_003_854, 111_540));
    assert_eq!((train.num_samples(), validation.num_samples()), (1_003_853 / 64, 1743)); // 111,539 targets in rows of 64, the last of 51
    assert_eq!(validation.text_bytes(), Some(111_540));
    let num_targets: usize = samples(&validation).iter().map(Sample::num_targets).sum();
    assert_eq!(num_targets, 111_539);
    let text = shakespeare();
    assert_eq!(tokenizer.decode(&validation.get(0).input_ids, false).unwrap(), text[1_003_854..][..64]);
}

#[test]
fn concat_joins_documents_with_the_end_of_text_token_and_predicts_every_token_once() {
    let place = Place::new();
    let path = rows(&place, &["abc", "de", "fghij"]);
    // The stream: a b c </s> d e </s> f g h i j
    let config = json!({"train": path, "validation": path, "sequence_length": 4});
    let (train, validation) = place.open(config, Some(&letters())).unwrap();
    let first = sample(&[0, 1, 2, 26], &[1, 2, 26, I], &[0, 1, 2, 3], &[0]);
    let second = sample(&[3, 4, 26, 5], &[4, 26, I, 6], &[0, 1, 2, 0], &[0, 3]);
    let last = sample(&[6, 7, 8], &[7, 8, 9], &[0, 1, 2], &[0]);
    assert_eq!(samples(&train), [first.clone(), second.clone()]);
    assert_eq!(samples(&validation.unwrap()), [first, second, last]);
}

#[test]
fn without_an_end_of_text_token_documents_are_joined_as_they_are() {
    let place = Place::new();
    let path = rows(&place, &["ab", "", "cde"]);
    let (train, _) =
        place.open(json!({"train": path, "sequence_length": 4}), Some(&Tokenizer::char(["abcde"]))).unwrap();
    assert_eq!(samples(&train), [sample(&[0, 1, 2, 3], &[1, I, 3, 4], &[0, 1, 0, 1], &[0, 2])]);
}

#[test]
fn an_empty_document_is_an_end_of_text_token_alone() {
    let place = Place::new();
    let path = rows(&place, &["a", "", "b"]);
    let (train, _) = place.open(json!({"train": path, "sequence_length": 3}), Some(&letters())).unwrap();
    assert_eq!(samples(&train), [sample(&[0, 26, 26], &[26, I, I], &[0, 1, 0], &[0, 2])]);
}

#[test]
fn every_token_is_a_target_once_but_for_first_ones_at_any_length() {
    let place = Place::new();
    let texts: Vec<String> =
        (1..40).map(|n| "abcdefghijklmnopqrstuvwxyz".repeat(2)[..(n * 7) % 11 + 1].to_owned()).collect();
    let path = rows(&place, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let expected: Vec<i32> = texts
        .iter()
        .enumerate()
        .flat_map(|(index, text)| {
            let separator = (index + 1 < texts.len()).then_some(26);
            text.bytes().map(|byte| i32::from(byte - b'a')).chain(separator).skip(1)
        })
        .collect();
    for sequence_length in [1, 2, 3, 7, 64, 1000] {
        let config = json!({"train": path, "validation": path, "sequence_length": sequence_length});
        let Ok((_, Some(validation))) = place.open(config.clone(), Some(&letters())) else {
            assert_eq!(sequence_length, 1000, "only that is longer than the text");
            continue;
        };
        let all = samples(&validation);
        let targets: Vec<i32> =
            all.iter().flat_map(|sample| sample.targets.clone()).filter(|&target| target != I).collect();
        assert_eq!(targets, expected, "{sequence_length}");
        for sample in &all {
            let length = sample.input_ids.len();
            assert!((1..=sequence_length).contains(&length));
            assert_eq!((sample.targets.len(), sample.positions.len(), sample.document_starts[0]), (length, length, 0));
            for (at, &position) in sample.positions.iter().enumerate() {
                assert_eq!(position == 0, sample.document_starts.contains(&(at as u32)));
            }
        }
    }
}

#[test]
fn rows_of_tokens_honour_their_labels_one_ahead() {
    let place = Place::new();
    let path = place.file(
        "a.jsonl",
        "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, 7]}\n{\"input_ids\": [8, 9]}\n{\"input_ids\": [1, 2], \"labels\": [3, 4]}\n",
    );
    let config = json!({"train": path, "sequence_length": 3, "packing": "none"});
    let (none, _) = place.open(config, None).unwrap();
    assert_eq!(
        samples(&none),
        [
            sample(&[5, 6, 7], &[I, 7, I], &[0, 1, 2], &[0]),
            sample(&[8, 9], &[9, I], &[0, 1], &[0]),
            sample(&[1, 2], &[4, I], &[0, 1], &[0]),
        ]
    );
    assert_eq!(none.text_bytes(), None);
    let (concat, _) = place.open(json!({"train": path, "sequence_length": 6}), Some(&letters())).unwrap();
    assert_eq!(samples(&concat), [sample(&[5, 6, 7, 8, 9, 1], &[I, 7, I, 9, I, 4], &[0, 1, 2, 0, 1, 0], &[0, 3, 5])]);
}

#[test]
fn with_packing_none_a_row_too_long_is_named() {
    let place = Place::new();
    let path = rows(&place, &["abc", "abcd", "ab"]);
    let config = json!({"train": path, "sequence_length": 3, "packing": "none"});
    let error = place.open(config.clone(), Some(&letters())).unwrap_err().to_string();
    let expected = "line 2: has 4 tokens; with data.packing \"none\" it must have at most data.sequence_length 3: \
                    raise that, shorten the row, or set data.packing to \"concat\"";
    assert_eq!(error, format!("data.train: {path}: {expected}"));
    rows(&place, &["abc", "ab", ""]);
    let error = place.open(config, Some(&letters())).unwrap_err().to_string();
    assert!(error.contains("line 3: has no token"), "{error}");
}

#[test]
fn an_evaluation_is_not_told_to_change_a_run_file() {
    let place = Place::new();
    let refusal = |path: &str, packing| {
        let options = OpenOptions {
            sequence_length: 3,
            packing,
            cache: place.cache(),
            threads: 1,
            chunk_bytes: place.chunk_bytes,
            vocab_size: None,
            classes: None,
            on_event: &|_| {},
        };
        data::open_evaluation(&path.into(), None, &options, "--tokens").unwrap_err().to_string()
    };
    let path = place.file("a.jsonl", "{\"input_ids\": [1]}\n{\"input_ids\": [1, 2, 3, 4]}\n");
    let problem = "line 2: has 4 tokens; shorten the row; the model takes at most 3 tokens";
    assert_eq!(refusal(&path, Packing::None), format!("--tokens: {path}: {problem}"));
    let path = place.file("b.jsonl", "{\"input_ids\": [1]}\n");
    let problem = "holds 1 token; it must hold at least 2: give more text";
    assert_eq!(refusal(&path, Packing::Concat), format!("--tokens: {path} {problem}"));
}

#[test]
fn a_cache_that_cannot_be_written_names_the_key_and_the_variables() {
    let place = Place::new();
    place.file("cache", "a file where the folder should be");
    let path = place.file("a.txt", "abcdef");
    let error = place.open(json!({"train": path, "sequence_length": 2}), Some(&letters())).unwrap_err().to_string();
    assert!(error.contains("could not create the folder (token cache)"), "{error}");
    let advice = "set data.cache in the run file, or for a command without one XDG_CACHE_HOME or HOME in the \
                  environment, to a folder that can be written";
    assert!(error.ends_with(advice), "{error}");
}

#[test]
fn the_fingerprint_changes_with_all_that_determines_samples_and_not_with_the_path() {
    let place = Place::new();
    let text = shakespeare();
    let (first, second) = (place.file("a.txt", &text), place.file("b.txt", "abcdef"));
    let (char, byte) = (Tokenizer::char([text.as_str()]), Tokenizer::byte());
    let of = |json, tokenizer| place.open(json, Some(tokenizer)).unwrap().0.fingerprint();
    let of_path = |path: &str| of(json!({"train": path, "sequence_length": 8}), &char);
    let whole = of_path(&first);
    assert!(whole.len() == 16 && whole.bytes().all(|digit| digit.is_ascii_hexdigit()), "{whole}");
    std::fs::create_dir(place.folder.path().join("elsewhere")).unwrap();
    assert_eq!(of_path(&place.file("elsewhere/c.txt", &text)), whole);
    let weighted = |weights: [f64; 2]| {
        let sources = json!([{"path": first, "weight": weights[0]}, {"path": second, "weight": weights[1]}]);
        of(json!({"train": sources, "sequence_length": 4}), &char)
    };
    assert_eq!(weighted([1.0, 3.0]), weighted([25.0, 75.0]), "the same proportion, the same samples");
    let mut all = vec![
        whole,
        of(json!({"train": first, "sequence_length": 9}), &char),
        of(json!({"train": first, "sequence_length": 8}), &byte),
        of(json!({"train": first, "sequence_length": 8, "validation": {"split": 0.1}}), &char),
        of(json!({"train": first, "sequence_length": 1 << 21, "packing": "none"}), &char),
        of(json!({"train": [first, second], "sequence_length": 4}), &char),
        of(json!({"train": [second, first], "sequence_length": 4}), &char),
        weighted([1.0, 1.0]),
        weighted([1.0, 3.0]),
    ];
    let mut bytes = text.into_bytes();
    let middle = bytes.len() / 2;
    let seven = bytes[middle..middle + 7].to_vec();
    bytes[middle..middle + 7].reverse();
    assert_ne!(bytes[middle..middle + 7], seven[..]);
    std::thread::sleep(std::time::Duration::from_millis(20)); // longer than the tick of a file's times
    place.file("a.txt", &bytes);
    all.push(of_path(&first));
    let distinct: std::collections::HashSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
}

#[test]
fn a_split_takes_the_last_characters_or_rows_of_all_files_together() {
    let place = Place::new();
    place.file("1.txt", "aéb");
    let second = place.file("2.txt", "cdéfghi"); // ten characters in all
    let config = json!({"train": second.replace('2', "*"), "validation": {"split": 0.4}, "sequence_length": 1});
    let (train, validation) = place.open(config, Some(&Tokenizer::char(["aébcdfghi"]))).unwrap();
    let tokenizer = Tokenizer::char(["aébcdfghi"]);
    let text = |dataset: &Dataset| {
        let targets = samples(dataset)
            .iter()
            .map(|sample| sample.targets[0])
            .filter(|&id| id != I)
            .map(|id| id as u32)
            .collect::<Vec<_>>();
        tokenizer.decode(&targets, false).unwrap()
    };
    assert_eq!(text(&train), "ébdé"); // documents "aéb" and "cdé", without their first characters
    assert_eq!(text(&validation.unwrap()), "ghi");

    let path = rows(&place, &["a", "b", "c", "d", "e"]);
    let config = json!({"train": path, "validation": {"split": 0.4}, "sequence_length": 1, "packing": "none"});
    let (train, validation) = place.open(config, Some(&letters())).unwrap();
    let inputs = |dataset: &Dataset| samples(dataset).iter().map(|sample| sample.input_ids[0]).collect::<Vec<_>>();
    assert_eq!((inputs(&train), inputs(&validation.unwrap())), (vec![0, 1, 2], vec![3, 4]));
}

/// Samples of one token each, 0 to `n` - 1.
fn numbers(place: &Place, name: &str, ids: std::ops::Range<u32>) -> String {
    place.file(name, ids.map(|id| format!("{{\"input_ids\": [{id}]}}\n")).collect::<String>())
}

fn order(loader: &Loader, first: u64, count: usize) -> Vec<u32> {
    loader.batch(first, count).iter().map(|sample| sample.input_ids[0]).collect()
}

#[test]
fn without_shuffling_rows_come_in_file_order_again_and_again() {
    let place = Place::new();
    let path = numbers(&place, "a.jsonl", 0..3);
    let (train, _) = place.open(json!({"train": path, "sequence_length": 1, "packing": "none"}), None).unwrap();
    assert_eq!(order(&Loader::new(train, 42, false), 0, 8), [0, 1, 2, 0, 1, 2, 0, 1]);
}

#[test]
fn shuffling_shows_every_sample_once_an_epoch_and_depends_on_the_seed_alone() {
    let place = Place::new();
    let path = numbers(&place, "a.jsonl", 0..50);
    let (train, _) = place.open(json!({"train": path, "sequence_length": 1, "packing": "none"}), None).unwrap();
    let loader = Loader::new(train.clone(), 42, true);
    let (first, second) = (order(&loader, 0, 50), order(&loader, 50, 50));
    for epoch in [&first, &second] {
        let mut sorted = epoch.clone();
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
    assert_ne!(first, second);
    assert_eq!(
        order(&Loader::new(train.clone(), 42, true), 37, 40),
        [&first[37..], &second[..27]].concat(),
        "resumed at 37"
    );
    assert_ne!(order(&Loader::new(train, 43, true), 0, 50), first);
}

#[test]
fn weights_are_shares_of_the_samples_and_every_source_goes_through_its_own_epochs() {
    let place = Place::new();
    let (large, small) = (numbers(&place, "a.jsonl", 0..900), numbers(&place, "b.jsonl", 1000..1010));
    let config = json!({"train": [{"path": large, "weight": 3.0}, {"path": small, "weight": 1.0}], "sequence_length": 1, "packing": "none"});
    let (train, _) = place.open(config, None).unwrap();
    assert_eq!(train.num_samples(), 910);
    let loader = Loader::new(train, 7, true);
    let ids = order(&loader, 0, 1200);
    let drawn: Vec<u32> = ids.iter().copied().filter(|&id| id >= 1000).collect();
    assert_eq!(drawn.len(), 300);
    for epoch in drawn.chunks(10) {
        let mut sorted = epoch.to_vec();
        sorted.sort();
        assert_eq!(sorted, (1000..1010).collect::<Vec<_>>());
    }
    assert_eq!(order(&loader, 601, 599), ids[601..], "resumed at 601");
}

#[test]
fn without_weights_an_epoch_is_every_sample_of_every_source_once() {
    let place = Place::new();
    let (large, small) = (numbers(&place, "a.jsonl", 0..9), numbers(&place, "b.jsonl", 9..12));
    let config = json!({"train": [large, small], "sequence_length": 1, "packing": "none"});
    let (train, _) = place.open(config, None).unwrap();
    let mut ids = order(&Loader::new(train, 7, true), 0, 12);
    ids.sort();
    assert_eq!(ids, (0..12).collect::<Vec<_>>());
}

#[test]
fn char_takes_the_characters_of_validation_too() {
    let place = Place::new();
    let train = place.file("a.txt", "abc");
    let validation = rows(&place, &["xyz", "é"]);
    let config =
        place.config(json!({"train": train, "validation": validation, "tokenizer": "char", "packing": "concat"}));
    assert_eq!(config.packing, Packing::Concat);
    let tokenizer = choose_tokenizer(&config, None, &place.cache()).unwrap().unwrap();
    assert_eq!(tokenizer.encode("abcxyzé").unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(tokenizer.vocab_size(), 7);
}
