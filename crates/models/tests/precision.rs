//! Formats by op family: gradients with any one family in bf16, and autocast held against PyTorch's.

mod common;

use common::Loaded;
use ops::{Family, HeadRequest, Precision, Site};
use tensor::{DType, Isa, LossTerms};
use testing::fixtures::Fixture;

/// Some families in a 16-bit format, the others in f32.
struct Low(&'static [Family], DType);

impl Precision for Low {
    fn dtype(&self, site: Site) -> DType {
        if self.0.contains(&site.family) { self.1 } else { DType::F32 }
    }
}

/// The loss of a fixture and the relative error of its whole gradient, f32 weights cast op by op.
fn loss_and_error(name: &str, precision: &dyn Precision) -> (f64, f64) {
    let loaded = Loaded::from_folder(&Fixture::folder(name), DType::F32, Isa::detect());
    let fixture = Fixture::read(name);
    let batch = loaded.batch(&fixture.rows());
    let head = HeadRequest::TokenLogprobs { seed: Some(-1.0 / batch.num_targets as f32), terms: LossTerms::default() };
    let env = ops::Env { precision: Some(precision), ..loaded.env(&batch, head) };
    let pass = loaded.pass().forward_backward(&env, 0.0, &false.into()).expect("forward and backward");
    let loss = -common::sum(&loaded.queue, &pass.logprobs) / batch.num_targets as f64;
    let (mut apart, mut size) = (0.0, 0.0);
    for (id, gradient) in loaded.store.gradients(&loaded.queue).expect("gradients") {
        let values = loaded.queue.read::<f32>(&gradient).expect("a gradient");
        for (got, want) in values.iter().zip(&fixture.gradients[loaded.store.name(id)].1) {
            apart += (f64::from(*got) - f64::from(*want)).powi(2);
            size += f64::from(*want).powi(2);
        }
    }
    (loss, (apart / size).sqrt())
}

#[test]
fn any_one_family_in_bf16_leaves_the_gradient_within_two_percent_and_none_leaves_it_exact() {
    for name in ["gpt2", "llama"] {
        let (loss, error) = loss_and_error(name, &Low(&[], DType::BF16));
        assert!(error < 1e-5 && (loss / Fixture::read(name).loss - 1.0).abs() < 1e-6, "{name}: {loss}, {error}");
        for family in &Family::ALL {
            let (loss, error) = loss_and_error(name, &Low(std::slice::from_ref(family), DType::BF16));
            println!("{name} {}: loss {loss:.6}, gradient {error:.2e}", family.name());
            assert!((1e-5..2e-2).contains(&error), "{name}, {} in bf16: {error}", family.name());
        }
    }
}

/// PyTorch 2.15 with Transformers 5.23 on these fixtures, `torch.autocast("cpu", dtype)` around the forward pass: loss, and
/// the relative error of the whole gradient against f32.
const TORCH: [(&str, DType, f64, f64); 4] = [
    ("gpt2", DType::BF16, 5.206404, 6.357e-3),
    ("gpt2", DType::F16, 5.205764, 8.684e-4),
    ("llama", DType::BF16, 5.013483, 1.0047e-2),
    ("llama", DType::F16, 5.013777, 1.1948e-3),
];

#[test]
fn autocast_is_as_far_from_f32_as_that_of_pytorch() {
    const AUTOCAST: &[Family] = &[Family::Linear, Family::Attention, Family::Activation, Family::Head];
    for (name, dtype, torch_loss, torch_error) in TORCH {
        let (loss, error) = loss_and_error(name, &Low(AUTOCAST, dtype));
        println!("{name} {dtype}: loss {loss:.6} (torch {torch_loss}), gradient {error:.3e} (torch {torch_error:.3e})");
        assert!((loss / torch_loss - 1.0).abs() < 5e-4, "{name} {dtype}: {loss}, torch {torch_loss}");
        assert!((0.5..1.5).contains(&(error / torch_error)), "{name} {dtype}: {error}, torch {torch_error}");
    }
}
