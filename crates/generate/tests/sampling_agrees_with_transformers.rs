//! What is done to logits gives the probabilities of Transformers' processors; draws follow the probabilities.

use generate::Sampling;
use generate::sampling::{min_p, repetition_penalty, temperature, top_k, top_p};
use serde_json::Value;
use tensor::rng::Stream;
use testing::close::{Bound, assert_close};

/// Processors of the file that we do not have.
const NOT_HERE: [&str; 4] = ["typical_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"];

struct Reference {
    logits: Vec<f32>,
    previous: Vec<u32>,
    cases: Vec<(String, Vec<f64>)>,
}

fn reference() -> Reference {
    let file: Value = serde_json::from_str(include_str!("fixtures/sampling.json")).expect("JSON");
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let case = |case: &Value| (case["name"].as_str().expect("a name").to_owned(), numbers(&case["probabilities"]));
    Reference {
        logits: numbers(&file["logits"]).into_iter().map(|x| x as f32).collect(),
        previous: numbers(&file["previous_tokens"]).into_iter().map(|x| x as u32).collect(),
        cases: file["cases"].as_array().expect("a list").iter().map(case).collect(),
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[test]
fn every_processor_gives_the_probabilities_of_transformers() {
    let reference = reference();
    let mut num_held = 0;
    for (name, want) in &reference.cases {
        let steps: Vec<(&str, f64)> = (name.split(", "))
            .map(|step| step.split_once(' ').expect("a processor and its value"))
            .map(|(step, value)| (step, value.parse().expect("a number")))
            .collect();
        if steps.iter().any(|(step, _)| NOT_HERE.contains(step)) {
            continue;
        }
        let mut logits = reference.logits.clone();
        for (step, value) in steps {
            match step {
                "repetition_penalty" => repetition_penalty(&mut logits, &reference.previous, value),
                "temperature" => temperature(&mut logits, value),
                "top_k" => top_k(&mut logits, value as usize),
                "top_p" => top_p(&mut logits, value),
                "min_p" => min_p(&mut logits, value),
                other => panic!("a processor that nobody knows: {other}"),
            }
        }
        assert_close(name, &softmax(&logits), want, Bound::Absolute(1e-6));
        num_held += 1;
    }
    assert_eq!((num_held, reference.cases.len()), (6, 10));
}

#[test]
fn draws_come_as_often_as_their_probability_says() {
    let reference = reference();
    let sampling = Sampling { temperature: 1.5, top_k: 6, repetition_penalty: 1.3, ..Sampling::default() };
    let mut logits = reference.logits.clone();
    repetition_penalty(&mut logits, &reference.previous, 1.3);
    temperature(&mut logits, 1.5);
    top_k(&mut logits, 6);
    let probabilities = softmax(&logits);

    let (stream, num_draws) = (Stream::new(42, "generate"), 100_000);
    let mut counts = [0.0f64; 12];
    for step in 0..num_draws {
        let mut logits = reference.logits.clone();
        let token = sampling.choose(&mut logits, &reference.previous, stream.uniform(step)).expect("finite logits");
        counts[token as usize] += 1.0;
    }
    for (token, (&count, &p)) in counts.iter().zip(&probabilities).enumerate() {
        // Four standard deviations of a binomial count; nothing where nothing may come.
        let (mean, bound) = (p * num_draws as f64, 4.0 * (p * (1.0 - p) * num_draws as f64).sqrt());
        assert!((count - mean).abs() <= bound, "token {token}: {count} of {num_draws}, want {mean} within {bound}");
    }
    assert_eq!(counts.iter().filter(|&&count| count > 0.0).count(), 6);
}
