//! GPT-2 and Llama give the numbers of PyTorch and Transformers: logits, loss, every gradient, greedy continuation.
//! (Ten AdamW steps are held in `crates/train/tests`.)

mod common;

use common::Loaded;
use ops::{Batch, Document, Env, HeadRequest, KvCache};
use tensor::{DType, Isa};
use testing::close::{Bound, assert_close};
use testing::fixtures::Fixture;

const FIXTURES: [&str; 3] = ["gpt2", "llama", "llama3-rope"];

#[test]
fn logits_and_loss_are_those_of_transformers_on_every_instruction_set() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        for isa in Isa::all() {
            let loaded = Loaded::from_folder(&Fixture::folder(name), DType::F32, isa);
            let batch = loaded.batch(&fixture.rows());
            let (logits, _) = loaded.pass().forward(&loaded.env(&batch, HeadRequest::AllLogits)).expect("forward");
            let logits: Vec<f32> = loaded.queue.read(&logits).expect("logits");
            assert_close(&format!("{name} {isa} logits"), &logits, &fixture.logits, Bound::Absolute(1e-5));
            let (loss, _) = loaded.loss_and_gradients(&fixture.rows(), false);
            assert!((loss - fixture.loss).abs() < 1e-5, "{name} {isa}: loss {loss}, want {}", fixture.loss);
        }
    }
}

#[test]
fn every_gradient_is_that_of_pytorch_with_and_without_recompute() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let loaded = Loaded::from_folder(&Fixture::folder(name), DType::F32, Isa::detect());
        for recompute in [false, true] {
            let (_, gradients) = loaded.loss_and_gradients(&fixture.rows(), recompute);
            assert_eq!(gradients.len(), fixture.gradients.len());
            for (parameter, gradient) in gradients {
                let want = &fixture.gradients[&parameter].1;
                assert_close(&format!("{name} grad {parameter}"), &gradient, want, Bound::OfLargest(1e-4));
            }
        }
    }
}

#[test]
fn bf16_gives_the_loss_of_f32_to_three_digits() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        for isa in Isa::all() {
            let loaded = Loaded::from_folder(&Fixture::folder(name), DType::BF16, isa);
            let (loss, _) = loaded.loss_and_gradients(&fixture.rows(), false);
            assert!((loss - fixture.loss).abs() < 5e-3, "{name} {isa}: loss {loss}, want {}", fixture.loss);
        }
    }
}

#[test]
fn token_by_token_with_a_cache_gives_the_logits_of_the_whole_row() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let loaded = Loaded::from_folder(&Fixture::folder(name), DType::F32, Isa::detect());
        let (ids, vocab) = (&fixture.input_ids[0], fixture.logits.len() / fixture.input_ids.len() / 24);
        let cache = KvCache::new(ids.len());
        // A prompt of five, then chunks of one, two and the rest.
        for range in [0..5, 5..6, 6..8, 8..ids.len()] {
            let document = Document { len: range.len(), sample: 0, row_position: 0, position: range.start as u32 };
            let batch = Batch::new(&loaded.queue, &ids[range.clone()], None, &[document]).expect("a batch");
            let env = Env { cache: Some(&cache), ..loaded.env(&batch, HeadRequest::LastLogits) };
            let (logits, _) = loaded.pass().forward(&env).expect("forward");
            cache.advance(range.len());
            let got: Vec<f32> = loaded.queue.read(&logits).expect("logits");
            let want = &fixture.logits[(range.end - 1) * vocab..range.end * vocab];
            assert_close(&format!("{name} after {}", range.end), &got, want, Bound::Absolute(1e-5));
        }
    }
}
