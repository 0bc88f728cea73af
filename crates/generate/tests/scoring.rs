//! Scores and evaluation: the loss and the log-probabilities of Transformers' logits, in any cut of passes.

mod common;

use common::{byte_model, fixture_model, set_weight};
use data::{DataSource, IGNORE, OpenOptions, Packing, Sample, Sources, open_evaluation};
use generate::{LoadedModel, TOKENS_PER_PASS, TokenizedRow, evaluate, score};
use serde_json::json;
use testing::close::{Bound, assert_close};
use testing::fixtures::Fixture;

const FIXTURES: [&str; 3] = ["gpt2", "llama", "llama3-rope"];

fn rows(fixture: &Fixture) -> Vec<TokenizedRow> {
    let row = |(ids, labels): (&Vec<u32>, &Vec<i64>)| TokenizedRow {
        input_ids: ids.clone(),
        labels: Some(labels.iter().map(|&label| label as i32).collect()),
    };
    fixture.input_ids.iter().zip(&fixture.labels).map(row).collect()
}

/// `ln p(id)` after token `t` of row `b` in the reference's logits.
fn reference(fixture: &Fixture, b: usize, t: usize, id: u32) -> f64 {
    let (num_rows, len) = (fixture.input_ids.len(), fixture.input_ids[0].len());
    let vocab = fixture.logits.len() / num_rows / len;
    let logits = &fixture.logits[(b * len + t) * vocab..][..vocab];
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[id as usize]) - sum.ln()
}

fn sample(ids: &[u32]) -> Sample {
    Sample {
        input_ids: ids.to_vec(),
        targets: ids[1..].iter().map(|&id| id as i32).chain([IGNORE]).collect(),
        positions: (0..ids.len() as u32).collect(),
        document_starts: vec![0],
        ..Sample::default()
    }
}

#[test]
fn loss_and_log_probabilities_are_those_of_transformers() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let loaded = fixture_model(name, 2);
        let scores = score(&loaded.forward(), &rows(&fixture)).expect("scores");
        let loss = scores.loss.expect("labels that count");
        assert!((loss - fixture.loss).abs() < 1e-5, "{name}: loss {loss}, want {}", fixture.loss);
        assert_eq!(scores.tokens, fixture.input_ids, "{name}");
        for (b, (ids, got)) in fixture.input_ids.iter().zip(&scores.logprobs).enumerate() {
            assert_eq!((got.len(), got[0]), (ids.len(), None), "{name}");
            let got: Vec<f32> = got[1..].iter().map(|x| x.expect("only the first is unknown")).collect();
            let want: Vec<f64> = (1..ids.len()).map(|t| reference(&fixture, b, t - 1, ids[t])).collect();
            assert_close(&format!("{name} row {b}"), &got, &want, Bound::Absolute(1e-4));
        }
    }
}

#[test]
fn without_labels_the_loss_is_the_mean_of_the_log_probabilities() {
    let fixture = Fixture::read("gpt2");
    let loaded = fixture_model("gpt2", 2);
    let rows = fixture.input_ids.iter().map(|ids| TokenizedRow { input_ids: ids.clone(), labels: None });
    let scores = score(&loaded.forward(), &rows.collect::<Vec<_>>()).expect("scores");
    let known: Vec<f64> = scores.logprobs.iter().flatten().flatten().map(|&x| f64::from(x)).collect();
    let mean = -known.iter().sum::<f64>() / known.len() as f64;
    assert!((scores.loss.expect("labels that count") - mean).abs() < 1e-12);
}

#[test]
fn labels_that_are_other_tokens_change_the_loss_and_not_the_log_probabilities() {
    let fixture = Fixture::read("llama");
    let loaded = fixture_model("llama", 2);
    let plain = score(&loaded.forward(), &rows(&fixture)).expect("scores");
    let mut others = rows(&fixture);
    let mut labels = vec![-100; 24];
    (labels[0], labels[3], labels[23]) = (5, 17, 130);
    others[1].labels = Some(labels);
    others[0].labels = Some(vec![-100; 24]);
    others[2].labels = Some(vec![-100; 24]);
    let scores = score(&loaded.forward(), &others).expect("scores");
    let want = -(reference(&fixture, 1, 2, 17) + reference(&fixture, 1, 22, 130)) / 2.0;
    let loss = scores.loss.expect("two labels that count");
    assert!((loss - want).abs() < 1e-5, "loss {loss}, want {want}");
    assert_eq!(scores.logprobs, plain.logprobs);
}

#[test]
fn one_token_has_no_log_probability_and_no_loss() {
    let loaded = fixture_model("gpt2", 1);
    let scores = score(&loaded.forward(), &[TokenizedRow { input_ids: vec![4], labels: None }]).expect("scores");
    assert_eq!(json!(scores), json!({"loss": null, "tokens": [[4]], "logprobs": [[null]]}));
}

#[test]
fn rows_of_more_than_one_pass_are_scored_as_they_are_alone() {
    let fixture = Fixture::read("gpt2");
    let loaded = fixture_model("gpt2", 2);
    let rows = rows(&fixture);
    let many: Vec<TokenizedRow> = rows.iter().cycle().take(TOKENS_PER_PASS / 24 + 20).cloned().collect();
    let scores = score(&loaded.forward(), &many).expect("scores");
    let alone = score(&loaded.forward(), &rows).expect("scores");
    for (row, got) in scores.logprobs.iter().enumerate() {
        let numbers = |row: &Vec<Option<f32>>| row[1..].iter().map(|x| x.expect("known")).collect::<Vec<f32>>();
        assert_close(&format!("row {row}"), &numbers(got), &numbers(&alone.logprobs[row % 3]), Bound::Absolute(1e-5));
    }
}

#[test]
fn a_row_that_cannot_be_scored_is_named() {
    let loaded = fixture_model("gpt2", 1);
    let message = |input_ids: Vec<u32>, labels: Option<Vec<i32>>| {
        let good = TokenizedRow { input_ids: vec![1, 2], labels: None };
        score(&loaded.forward(), &[good, TokenizedRow { input_ids, labels }]).unwrap_err().to_string()
    };
    assert_eq!(message(vec![], None), "row 2 is empty; a row must hold at least one token");
    assert_eq!(message(vec![0; 65], None), "row 2 has 65 tokens and the model 64 positions; shorten the row");
    assert_eq!(message(vec![1, 131], None), "row 2: input_ids[1] is 131; it must be below the model's vocab_size 131");
    assert_eq!(
        message(vec![1, 2], Some(vec![-100, -5])),
        "row 2: labels[1] is -5; it must be below the model's vocab_size 131, or -100"
    );
    assert_eq!(message(vec![1, 2], Some(vec![1])), "row 2 has 2 input_ids and 1 labels; they must be equally many");
}

#[test]
fn a_sample_turns_into_the_row_it_came_from() {
    let row = TokenizedRow { input_ids: vec![1, 2, 3], labels: Some(vec![-100, 2, 9]) };
    let sample = Sample { targets: vec![2, 9, IGNORE], ..sample(&[1, 2, 3]) };
    assert_eq!(TokenizedRow::from(sample), row);
}

#[test]
fn evaluation_gives_the_loss_of_transformers_however_passes_are_cut() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let loaded = fixture_model(name, 2);
        let sample = |(ids, labels): (&Vec<u32>, &Vec<i64>)| Sample {
            targets: labels[1..].iter().map(|&label| label as i32).chain([IGNORE]).collect(),
            ..sample(ids)
        };
        let samples: Vec<Sample> = fixture.input_ids.iter().zip(&fixture.labels).map(sample).collect();
        let num_targets = samples.iter().map(|sample| sample.num_targets() as u64).sum::<u64>();
        for tokens_per_pass in [1, 48, TOKENS_PER_PASS] {
            let sum = evaluate(&loaded.forward(), samples.clone(), tokens_per_pass).expect("an evaluation");
            let got = sum.evaluation(None).expect("targets that count");
            assert!((got.loss - fixture.loss).abs() < 1e-5, "{name}: loss {}, want {}", got.loss, fixture.loss);
            assert!((got.perplexity - got.loss.exp()).abs() < 1e-9 && got.bits_per_byte.is_none());
            assert_eq!(got.tokens, num_targets, "{name}");
        }
    }
}

#[test]
fn a_model_that_knows_nothing_of_bytes_needs_eight_bits_for_each() {
    let loaded: LoadedModel = byte_model();
    set_weight(&loaded, "lm_head.weight", |_, _| 0.0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    let text = "nothing is known ".repeat(31);
    std::fs::write(&path, &text).expect("a file");
    let source =
        DataSource { path: path.display().to_string(), format: None, weight: None, text_field: "text".to_owned() };
    let options = OpenOptions {
        sequence_length: 40,
        packing: Packing::Concat,
        cache: folder.path().join("cache"),
        threads: 1,
        chunk_bytes: data::CHUNK_BYTES,
        vocab_size: Some(256),
        classes: None,
        on_event: &|_| {},
    };
    let dataset = open_evaluation(&Sources(vec![source]), loaded.tokenizer.as_ref(), &options, "--data").expect("data");
    let samples = (0..dataset.num_samples()).map(|index| dataset.get(index));
    let sum = evaluate(&loaded.forward(), samples, 100).expect("an evaluation");
    let got = sum.evaluation(dataset.text_bytes()).expect("targets that count");
    let bytes = text.len() as f64;
    assert_eq!(got.tokens, text.len() as u64 - 1);
    assert!((got.perplexity - 256.0).abs() < 1e-3, "{}", got.perplexity);
    let bits = got.bits_per_byte.expect("it was text");
    assert!((bits - 8.0 * (bytes - 1.0) / bytes).abs() < 1e-5, "{bits}");
}

#[test]
fn a_row_longer_than_the_positions_is_refused_in_evaluation() {
    let loaded = fixture_model("gpt2", 1);
    let error = evaluate(&loaded.forward(), [sample(&[1; 65])], TOKENS_PER_PASS).unwrap_err().to_string();
    assert_eq!(
        error,
        "a row of 65 tokens is longer than the model's 64 positions; shorten it or set data.sequence_length"
    );
}
