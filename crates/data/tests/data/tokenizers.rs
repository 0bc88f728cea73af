//! The three kinds of tokenizer against known ids, their export, and streaming.

use crate::common::{fixture, gpt2, shakespeare};
use data::Tokenizer;
use serde_json::Value;

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<Option<String>>, String) {
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<_> = ids.iter().map(|&id| stream.push(id)).collect();
    let joined = pieces.iter().flatten().cloned().chain(stream.finish()).collect();
    (pieces, joined)
}

#[test]
fn gpt2_gives_the_ids_of_the_tokenizers_library_special_tokens_included() {
    let tokenizer = gpt2();
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(fixture("encodings.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(stream(&tokenizer, &ids).1, text);
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (50257, Some(50256)));
}

#[test]
fn char_takes_the_sorted_characters_and_names_one_it_does_not_know() {
    let text = shakespeare();
    let tokenizer = Tokenizer::char([text.as_str()]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (65, None));
    assert_eq!(tokenizer.encode("\n hii there").unwrap(), [0, 1, 46, 47, 47, 1, 58, 46, 43, 56, 43]); // nanoGPT's ids
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), false).unwrap(), text);
    let error = tokenizer.encode("naïve").unwrap_err().to_string();
    assert!(error.starts_with("the character 'ï' is not among the 65 characters of the tokenizer"), "{error}");
}

#[test]
fn byte_ids_are_byte_values() {
    let tokenizer = Tokenizer::byte();
    assert_eq!(tokenizer.encode("aé").unwrap(), [97, 0xc3, 0xa9]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (256, None));
    assert_eq!(tokenizer.decode(&[97, 0xc3, 0xa9, 0xff], false).unwrap(), "aé\u{fffd}");
}

#[test]
fn exported_char_and_byte_load_again_and_mean_the_same_to_the_tokenizers_library() {
    let text = "First Citizen:\n  naïve 你好 🚀\0\t\r\n'quoted' \"x\" <|endoftext|>";
    for tokenizer in [Tokenizer::char([text]), Tokenizer::byte()] {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(again.hash(), tokenizer.hash());
        assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        let library = ::tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let encoding = library.encode(text, false).unwrap();
        assert_eq!(encoding.get_ids(), tokenizer.encode(text).unwrap());
        assert_eq!(library.decode(encoding.get_ids(), false).unwrap(), text);
        assert_eq!(library.get_vocab_size(true), tokenizer.vocab_size());
    }
}

#[test]
fn every_byte_survives_the_export() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::byte().save(folder.path()).unwrap();
    let library = ::tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let text: String = ('\0'..='\u{2fff}').collect();
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(library.encode(text.as_str(), false).unwrap().get_ids(), ids);
    assert_eq!(library.decode(&ids, false).unwrap(), text);
}

#[test]
fn a_loaded_tokenizer_is_saved_as_it_was_with_the_files_beside_it() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let json = std::fs::read(fixture("tokenizer.json")).unwrap();
    std::fs::write(from.path().join("tokenizer.json"), &json).unwrap();
    let config = br#"{"eos_token": {"content": "!"}, "model_max_length": 7}"#;
    std::fs::write(from.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::load(from.path()).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(0), "the config's eos_token comes before the well-known names");
    tokenizer.save(to.path()).unwrap();
    assert_eq!(std::fs::read(to.path().join("tokenizer.json")).unwrap(), json);
    assert_eq!(std::fs::read(to.path().join("tokenizer_config.json")).unwrap(), config);
    gpt2().save(to.path()).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(to.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(config["eos_token"], "<|endoftext|>");
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
}

#[test]
fn a_stream_never_cuts_a_character_and_keeps_leading_spaces() {
    let byte = Tokenizer::byte();
    let (pieces, joined) = stream(&byte, &byte.encode(" 你!").unwrap());
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(pieces, [some(" "), None, None, some("你"), some("!")]);
    assert_eq!(joined, " 你!");
    let gpt2 = gpt2();
    let (pieces, _) = stream(&gpt2, &[3756, 2272, 220, 19526, 254]); // " leading", " space", " ", two parts of 你
    assert_eq!(pieces, [some(" leading"), some(" space"), some(" "), None, some("你")]);
}

#[test]
fn a_stream_of_any_bytes_joins_to_what_decoding_at_once_gives() {
    let byte = Tokenizer::byte();
    let mut state = 1u32;
    for _ in 0..2000 {
        let ids: Vec<u32> = (0..12)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [0x41, 0x80, 0xbf, 0xc3, 0xe4, 0xf0, 0x9f, 0xff][(state >> 29) as usize]
            })
            .collect();
        assert_eq!(stream(&byte, &ids).1, byte.decode(&ids, false).unwrap(), "{ids:x?}");
    }
}

#[test]
fn a_sentencepiece_decoder_streams_spaces_between_words() {
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
            "vocab": {"<unk>": 0, "▁This": 1, "▁is": 2, "<0xC3>": 3, "<0xA9>": 4}, "merges": []}}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json).unwrap();
    let tokenizer = Tokenizer::load(&path).unwrap();
    let ids = [1, 2, 3, 4, 1];
    let (pieces, joined) = stream(&tokenizer, &ids);
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(pieces, [some("This"), some(" is"), None, some("é"), some(" This")]);
    assert_eq!(joined, tokenizer.decode(&ids, false).unwrap());
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for (content, problem) in
        [("{", "not valid JSON"), ("{}", "it has no \"model\""), ("{\"model\": {\"type\": \"X\"}}", "")]
    {
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: ") && error.contains(problem), "{error}");
        assert!(error.ends_with("it must be a tokenizer.json of the Hugging Face `tokenizers` library"), "{error}");
    }
    assert!(Tokenizer::load(&folder.path().join("x")).unwrap_err().to_string().contains("x: no such file"));
}
