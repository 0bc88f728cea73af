//! Generation: greedy continuations of Transformers, seeds, ends, whole characters, refusals.

mod common;

use std::ops::ControlFlow;

use common::{byte_model, fixture_model, parrot};
use generate::{GenerateOptions, Generated, Generator, LoadedModel, Sampling, StopReason, generate};
use testing::fixtures::Fixture;

const FIXTURES: [&str; 3] = ["gpt2", "llama", "llama3-rope"];

fn greedy(loaded: &LoadedModel, max_new_tokens: usize) -> GenerateOptions {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    GenerateOptions { max_new_tokens, sampling, ..loaded.generate_options(0) }
}

fn run(loaded: &LoadedModel, prompt: &[u32], options: GenerateOptions) -> (Generated, Vec<String>) {
    let mut pieces = Vec::new();
    let generated = generate(loaded.forward(), loaded.tokenizer.as_ref(), prompt, options, |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    });
    (generated.expect("a text"), pieces)
}

fn refusal(loaded: &LoadedModel, prompt: &[u32], options: GenerateOptions) -> String {
    match Generator::new(loaded.forward(), prompt, options) {
        Ok(_) => panic!("nothing was refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let loaded = fixture_model(name, 2);
        let prompt = &fixture.greedy_from;
        let want = &fixture.greedy[prompt.len()..];
        let (generated, pieces) = run(&loaded, prompt, greedy(&loaded, want.len()));
        assert_eq!(generated.tokens, want, "{name}");
        assert_eq!(generated.stop, StopReason::MaxNewTokens(want.len()), "{name}");
        assert_eq!((generated.text, pieces.len()), (None, 0), "{name}: there is no tokenizer");
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens_on_any_number_of_threads_and_another_seed_gives_others() {
    let prompt = [5, 6, 7];
    let text = |threads, seed| {
        let loaded = fixture_model("llama", threads);
        let options = GenerateOptions { max_new_tokens: 40, seed, ..loaded.generate_options(prompt.len()) };
        run(&loaded, &prompt, options).0.tokens
    };
    let first = text(1, 42);
    assert_eq!(first.len(), 40);
    assert_eq!(first, text(2, 42));
    assert_eq!(first, text(3, 42));
    assert_ne!(first, text(2, 43));
}

#[test]
fn a_longer_text_begins_with_the_shorter_one() {
    let loaded = fixture_model("gpt2", 2);
    let text = |max_new_tokens| {
        let options = GenerateOptions { max_new_tokens, seed: 3, ..loaded.generate_options(1) };
        run(&loaded, &[9], options).0.tokens
    };
    assert_eq!(text(30)[..12], text(12));
}

#[test]
fn a_text_ends_when_the_positions_are_full_one_token_beyond_them() {
    let loaded = fixture_model("gpt2", 2);
    let prompt = vec![3; 60];
    let (generated, _) = run(&loaded, &prompt, greedy(&loaded, 1000));
    assert_eq!(generated.stop, StopReason::PositionsFull(64));
    assert_eq!(generated.stop.to_string(), "the model's 64 positions are full");
    assert_eq!(prompt.len() + generated.tokens.len(), 65);
    let (generated, _) = run(&loaded, &[3; 64], greedy(&loaded, 1000));
    assert_eq!((generated.tokens.len(), generated.stop), (1, StopReason::PositionsFull(64)));
}

#[test]
fn a_text_ends_with_the_first_token_that_ends_texts() {
    let fixture = Fixture::read("llama");
    let loaded = fixture_model("llama", 2);
    // 68, 80, 39, 56, 100, ...
    let options = GenerateOptions { eos: vec![100, 39], ..greedy(&loaded, 16) };
    let (generated, _) = run(&loaded, &fixture.greedy_from, options);
    assert_eq!(generated.tokens, fixture.greedy[8..11]);
    assert_eq!(generated.stop, StopReason::EndOfText(39));
    let none = run(&loaded, &fixture.greedy_from, greedy(&loaded, 0)).0;
    assert_eq!((none.tokens, none.stop), (vec![], StopReason::MaxNewTokens(0)));
}

#[test]
fn text_comes_in_whole_characters_though_tokens_are_bytes() {
    let loaded = parrot("né €😀!");
    let prompt = loaded.encode("n").expect("ids");
    let (generated, pieces) = run(&loaded, &prompt, greedy(&loaded, 11));
    assert_eq!(pieces, ["é", " ", "€", "😀", "!"]);
    assert_eq!(generated.text.as_deref(), Some("é €😀!"));
    assert_eq!(generated.tokens, "é €😀!".bytes().map(u32::from).collect::<Vec<_>>());
    // Two of the four bytes of the last character.
    let (generated, pieces) = run(&loaded, &prompt, greedy(&loaded, 8));
    assert_eq!(pieces, ["é", " ", "€", "\u{fffd}"]);
    assert_eq!(generated.tokens.len(), 8);
}

#[test]
fn pieces_joined_are_the_decoded_tokens_for_any_bytes() {
    let loaded = byte_model();
    for seed in 0..8 {
        let options = GenerateOptions { max_new_tokens: 60, seed, ..loaded.generate_options(1) };
        let (generated, pieces) = run(&loaded, &[65], options);
        let decoded = loaded.tokenizer.as_ref().expect("bytes").decode(&generated.tokens, true).expect("text");
        assert_eq!(pieces.concat(), decoded);
        assert_eq!(generated.text, Some(decoded));
    }
}

#[test]
fn whoever_reads_may_break_off() {
    let loaded = parrot("né €😀!");
    let mut shown = String::new();
    let generated =
        generate(loaded.forward(), loaded.tokenizer.as_ref(), &[u32::from(b'n')], greedy(&loaded, 11), |piece| {
            shown.push_str(piece);
            if piece == "€" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    let generated = generated.expect("a text");
    assert_eq!((shown.as_str(), generated.stop), ("é €", StopReason::Interrupted));
    assert_eq!(generated.tokens.len(), 6);
}

#[test]
fn an_empty_prompt_starts_from_bos() {
    let loaded = fixture_model("gpt2", 2);
    let from_bos = run(&loaded, &[1], greedy(&loaded, 5)).0;
    assert_eq!(run(&loaded, &[], greedy(&loaded, 5)).0, from_bos);
    assert_eq!(
        refusal(&loaded, &[], GenerateOptions { bos: None, ..greedy(&loaded, 5) }),
        "the prompt is empty and the model has no bos_token_id to start from; give a prompt of at least one token"
    );
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let loaded = fixture_model("gpt2", 2);
    assert_eq!(
        refusal(&loaded, &[0; 65], greedy(&loaded, 5)),
        "the prompt has 65 tokens and the model 64 positions; shorten the prompt"
    );
    assert_eq!(
        refusal(&loaded, &[0, 130, 131], greedy(&loaded, 5)),
        "token 2 of the prompt is 131; it must be below the model's vocab_size 131"
    );
    let sampling = Sampling { top_p: 1.5, ..Sampling::default() };
    assert_eq!(
        refusal(&loaded, &[0], GenerateOptions { sampling, ..greedy(&loaded, 5) }),
        "top_p is 1.5; it must be a number from 0 to 1"
    );
    assert_eq!(
        loaded.encode("ROMEO:").unwrap_err().to_string(),
        "the model's folder has no tokenizer.json, so it takes no text; give tokens as ids (--tokens)"
    );
}

#[test]
fn a_model_with_damaged_weights_is_an_error_and_not_a_text() {
    let loaded = parrot("ab");
    common::set_weight(&loaded, "lm_head.weight", |_, _| f32::NAN);
    let mut generator = Generator::new(loaded.forward(), &[97], greedy(&loaded, 5)).expect("a good prompt");
    let error = generator.next().expect("a step").unwrap_err().to_string();
    assert!(error.starts_with("the logits of new token 1 are not finite; "), "{error}");
    assert!(generator.next().is_none());
}

#[test]
fn defaults_come_from_the_models_files() {
    let mut loaded = fixture_model("gpt2", 1);
    let options = loaded.generate_options(3);
    assert_eq!((options.max_new_tokens, options.sampling), (128, Sampling::default()));
    assert_eq!((options.bos, options.eos), (Some(1), vec![]));
    loaded.generation.temperature = Some(0.6);
    loaded.generation.top_p = Some(0.9);
    loaded.generation.max_length = Some(20);
    loaded.generation.eos_token_ids = Some(vec![7, 8]);
    let options = loaded.generate_options(3);
    assert_eq!((options.sampling.temperature, options.sampling.top_p, options.max_new_tokens), (0.6, 0.9, 17));
    assert_eq!(options.eos, [7, 8]);
    loaded.generation.max_new_tokens = Some(30);
    loaded.generation.do_sample = Some(false);
    let options = loaded.generate_options(3);
    assert_eq!((options.sampling.temperature, options.max_new_tokens), (0.0, 30));
}
