//! The oracle against PyTorch and Transformers, and against its own finite differences.

use serde_json::{Value, json};

use super::*;
use crate::close::{Bound, assert_close, max_abs_difference, mean_abs_difference};
use crate::fixtures::Fixture;

const FIXTURES: [&str; 4] = ["gpt2", "llama", "llama3-rope", "mistral-window"];

/// A copy with GPT-2's key bias set to 0: it moves no probability (softmax forgets what all keys share), so its gradient
/// is 0 and Adam turns the reference's f32 rounding into steps.
fn without_key_bias(name: &str, tensor: &[impl Copy + Into<f64>]) -> Vec<f64> {
    let third = tensor.len() / 3;
    let is_key = |n: usize| name.ends_with("c_attn.bias") && (third..2 * third).contains(&n);
    tensor.iter().enumerate().map(|(n, &value)| if is_key(n) { 0.0 } else { value.into() }).collect()
}

#[test]
fn logits_loss_and_every_gradient_are_those_of_transformers() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let oracle = Oracle::new(&fixture.config, &fixture.weights);
        let outcome = oracle.loss_and_gradients(&fixture.rows());
        // The difference is the reference's own f32 rounding.
        assert_close(&format!("{name} logits"), &outcome.logits.concat(), &fixture.logits, Bound::Absolute(5e-6));
        assert_close(&format!("{name} loss"), &[outcome.loss], &[fixture.loss], Bound::Absolute(2e-6));
        assert_eq!(outcome.gradients.len(), fixture.gradients.len(), "{name}");
        for (weight, (_, want)) in &fixture.gradients {
            let what = format!("{name} grad.{weight}");
            assert_close(&what, &outcome.gradients[weight], want, Bound::OfLargest(5e-6));
        }
    }
}

#[test]
fn ten_adamw_steps_lead_where_they_lead_in_pytorch() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let mut oracle = Oracle::new(&fixture.config, &fixture.weights);
        let mut state = AdamWState::default();
        let mut losses = Vec::new();
        for _ in 0..fixture.adamw_losses.len() {
            let outcome = oracle.loss_and_gradients(&fixture.rows());
            losses.push(outcome.loss);
            oracle.adamw_step(&outcome.gradients, &mut state, &fixture.adamw);
        }
        assert_close(&format!("{name} losses"), &losses, &fixture.adamw_losses, Bound::Absolute(5e-6));
        for (weight, (_, want)) in &fixture.after {
            let got = without_key_bias(weight, &oracle.weights[weight].1);
            let want = without_key_bias(weight, want);
            assert_close(&format!("{name} after.{weight}"), &got, &want, Bound::Absolute(1e-4));
            let mean = mean_abs_difference(&got, &want);
            assert!(mean <= 1e-6, "{name} after.{weight}: {mean:e} on average");
        }
    }
}

#[test]
fn the_greedy_continuation_is_that_of_transformers() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let oracle = Oracle::new(&fixture.config, &fixture.weights);
        let mut ids = fixture.greedy_from.clone();
        while ids.len() < fixture.greedy.len() {
            let logits = oracle.logits(&Row::new(ids.clone(), vec![IGNORE; ids.len()]));
            let last = &logits[logits.len() - oracle.config.vocab_size..];
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
            ids.push(best as u32);
        }
        assert_eq!(ids, fixture.greedy, "{name}");
    }
}

fn tiny_gpt2() -> Value {
    json!({"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 12,
           "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0})
}

fn tiny_llama() -> Value {
    json!({"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 12})
}

fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

/// One model for each thing a config can change.
fn tiny_models() -> Vec<(&'static str, Value)> {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 6});
    let yarn = json!({"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8});
    vec![
        ("gpt2", tiny_gpt2()),
        ("gpt2 untied, erf, n_inner", {
            let changes = [("tie_word_embeddings", json!(false)), ("activation_function", json!("gelu"))];
            with(with(tiny_gpt2(), &changes), &[("n_inner", json!(6))])
        }),
        ("gpt2 scale by layer", with(tiny_gpt2(), &[("scale_attn_by_inverse_layer_idx", json!(true))])),
        ("llama", tiny_llama()),
        ("llama tied, one kv head", {
            with(tiny_llama(), &[("tie_word_embeddings", json!(true)), ("num_key_value_heads", json!(1))])
        }),
        ("llama biases", with(tiny_llama(), &[("attention_bias", json!(true)), ("mlp_bias", json!(true))])),
        ("llama head_dim 6", with(tiny_llama(), &[("head_dim", json!(6)), ("num_key_value_heads", Value::Null)])),
        ("llama3 rope", with(tiny_llama(), &[("rope_parameters", llama3), ("head_dim", json!(8))])),
        ("yarn", with(tiny_llama(), &[("rope_parameters", yarn), ("head_dim", json!(8))])),
        ("window", with(tiny_llama(), &[("model_type", json!("mistral")), ("sliding_window", json!(3))])),
    ]
}

/// Two rows with an uneven count of targets, the first of three documents.
fn tiny_rows() -> Vec<Row> {
    let first: Vec<u32> = vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    let second: Vec<u32> = vec![10, 8, 9, 7, 9, 3];
    let labels = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    let mut second_labels = labels(&second);
    second_labels[2] = IGNORE;
    vec![Row::new(first.clone(), labels(&first)).with_documents(&[4, 1, 5]), Row::new(second, second_labels)]
}

/// The slope of the loss along one element, by the five-point formula: its error is of order `step^4`.
fn finite_difference(oracle: &Oracle, rows: &[Row], weight: &str, index: usize) -> f64 {
    let step = 3e-4;
    let loss_at = |shift: f64| {
        let mut moved = oracle.clone();
        moved.weights.get_mut(weight).expect("a weight of the model").1[index] += shift * step;
        moved.loss(rows)
    };
    (8.0 * (loss_at(1.0) - loss_at(-1.0)) - (loss_at(2.0) - loss_at(-2.0))) / (12.0 * step)
}

#[test]
fn every_gradient_is_the_slope_of_the_loss() {
    for (model, config) in tiny_models() {
        let oracle = Oracle::random(&config, 1);
        let rows = tiny_rows();
        let outcome = oracle.loss_and_gradients(&rows);
        assert_eq!(outcome.num_targets, 11, "{model}");
        assert_close(model, &[oracle.loss(&rows)], &[outcome.loss], Bound::Absolute(0.0));
        for (weight, gradient) in &outcome.gradients {
            let largest = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
            let elements =
                [0, gradient.len() / 3, gradient.len() / 2, gradient.len() - 1, largest.expect("an element")];
            let got = elements.map(|index| gradient[index]);
            let want = elements.map(|index| finite_difference(&oracle, &rows, weight, index));
            assert_close(&format!("{model}: {weight} at {elements:?}"), &got, &want, Bound::OfLargest(1e-8));
        }
    }
}

#[test]
fn documents_in_a_row_do_not_see_each_other() {
    for (model, config) in tiny_models() {
        let oracle = Oracle::random(&config, 2);
        let ids: Vec<u32> = vec![3, 1, 4, 1, 5, 9, 2, 6, 5];
        let row = |ids: &[u32]| Row::new(ids.to_vec(), ids.iter().map(|&id| i64::from(id)).collect());
        let packed = oracle.loss_and_gradients(&[row(&ids).with_documents(&[3, 2, 4])]);
        let apart = oracle.loss_and_gradients(&[row(&ids[..3]), row(&ids[3..5]), row(&ids[5..])]);
        assert_eq!((packed.num_targets, apart.num_targets), (6, 6));
        assert_close(model, &packed.logits.concat(), &apart.logits.concat(), Bound::Absolute(1e-13));
        assert_close(model, &[packed.loss], &[apart.loss], Bound::Absolute(1e-13));
        for (weight, gradient) in &packed.gradients {
            assert_close(&format!("{model}: {weight}"), gradient, &apart.gradients[weight], Bound::Absolute(1e-13));
        }
        let joined = oracle.logits(&row(&ids));
        assert!(max_abs_difference(&joined, &packed.logits.concat()) > 1e-3, "{model}: documents change nothing");
    }
}

#[test]
fn a_token_sees_no_later_one_and_none_before_its_window() {
    let config = with(
        tiny_llama(),
        &[("model_type", json!("mistral")), ("sliding_window", json!(3)), ("num_hidden_layers", json!(1))],
    );
    let oracle = Oracle::random(&config, 3);
    let logits = |ids: &[u32]| oracle.logits(&Row::new(ids.to_vec(), vec![IGNORE; ids.len()]));
    let (before, after) = (logits(&[1, 2, 3, 4, 5, 6, 7]), logits(&[1, 2, 9, 4, 5, 6, 7]));
    let changed: Vec<bool> = before.chunks(11).zip(after.chunks(11)).map(|(before, after)| before != after).collect();
    assert_eq!(changed, [false, false, true, true, true, false, false]);
}

fn rope_of(head_dim: usize, parameters: Value) -> Rope {
    let config = with(tiny_llama(), &[("head_dim", json!(head_dim)), ("rope_parameters", parameters)]);
    Config::read(&config).rope.expect("a llama has rope")
}

#[test]
fn v4_and_v5_keys_give_the_same_rope() {
    let v5 = rope_of(4, json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}));
    let v4 = [("rope_theta", json!(10000.0)), ("rope_scaling", json!({"type": "linear", "factor": 2.0}))];
    let v4 = with(with(tiny_llama(), &v4), &[("head_dim", json!(4))]);
    assert_eq!(v5.inv_freq, [0.5, 0.005]);
    assert_eq!(Config::read(&v4).rope.expect("a llama has rope").inv_freq, v5.inv_freq);
}

/// Wanted values: the formulas of Transformers' `modeling_rope_utils.py`, evaluated in Python's f64.
#[test]
fn scaled_frequencies_are_those_of_transformers() {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let want = [1.0, 0.24438459943539834, 0.013042256043820465, 0.003952847075210474, 0.00125];
    assert_close("llama3", &rope_of(16, llama3).inv_freq[..5], &want, Bound::OfLargest(1e-15));

    let yarn = |length: usize| json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": length});
    let rope = rope_of(16, yarn(512));
    let want = [1.0, 0.2569350598886808, 0.0625, 0.01383496476323666, 0.0025];
    assert_close("yarn", &rope.inv_freq[..5], &want, Bound::OfLargest(1e-15));
    assert_close("yarn attention_factor", &[rope.attention_factor], &[1.138629436111989], Bound::OfLargest(1e-15));

    let uncut = with(yarn(32), &[("truncate", json!(false)), ("mscale", json!(0.707)), ("mscale_all_dim", json!(0.5))]);
    let rope = rope_of(16, uncut);
    assert_close("yarn uncut", &rope.inv_freq[..3], &[1.0, 0.14849024701094485, 0.025], Bound::OfLargest(1e-15));
    assert_close("ratio of mscales", &[rope.attention_factor], &[1.0268361529030026], Bound::OfLargest(1e-15));
}

#[test]
fn erf_is_that_of_the_c_library() {
    let got = [-3.0, -0.5, 0.0, 0.3, 1.0, 2.5, 5.9, 7.0].map(erf);
    let want = [
        -0.9999779095030014,
        -0.5204998778130465,
        0.0,
        0.3286267594591274,
        0.8427007929497149,
        0.999593047982555,
        1.0,
        1.0,
    ];
    assert_close("erf", &got, &want, Bound::Absolute(1e-15));
}

#[test]
fn random_weights_are_the_same_again_and_exact_in_f32() {
    let (one, two) = (Oracle::random(&tiny_llama(), 7), Oracle::random(&tiny_llama(), 7));
    assert_eq!(one.weights, two.weights);
    assert_eq!(Oracle::new(&tiny_llama(), &one.weights_f32()).weights, one.weights);
    assert_ne!(one.weights, Oracle::random(&tiny_llama(), 8).weights);
}

#[test]
fn scores_scaled_by_layer_are_queries_scaled_by_layer() {
    let by_layer = Oracle::random(&with(tiny_gpt2(), &[("scale_attn_by_inverse_layer_idx", json!(true))]), 4);
    let unscaled = Oracle::random(&with(tiny_gpt2(), &[("scale_attn_weights", json!(false))]), 4);
    let mut plain = Oracle::random(&tiny_gpt2(), 4);
    let row = &tiny_rows()[0];
    let scale_queries = |oracle: &mut Oracle, layer: usize, scale: f64| {
        for part in ["weight", "bias"] {
            let name = format!("transformer.h.{layer}.attn.c_attn.{part}");
            let (_, data) = oracle.weights.get_mut(&name).expect("a weight of the model");
            data.chunks_mut(3 * 8).for_each(|qkv| qkv[..8].iter_mut().for_each(|q| *q *= scale));
        }
    };
    scale_queries(&mut plain, 1, 0.5);
    assert_close("by layer", &by_layer.logits(row), &plain.logits(row), Bound::Absolute(1e-14));
    scale_queries(&mut plain, 0, 2.0); // sqrt(head_dim) = 2 undoes the scale by width
    scale_queries(&mut plain, 1, 4.0);
    assert_close("unscaled", &unscaled.logits(row), &plain.logits(row), Bound::Absolute(1e-14));
}
