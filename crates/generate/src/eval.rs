//! The mean loss over a set, its perplexity and bits per byte.
//!
//! `loss = sum of -ln p(target) / targets`, `perplexity = exp(loss)`, `bits_per_byte = sum / ln 2 / bytes of the text`.
//! Bits per byte compare models with different tokenizers; the first token of a document, which is no target, is in the
//! bytes and not in the sum.
//!
//! A classifier's targets are classes, one a row; it has accuracy and F1 as well ([`Confusion`]).
//!
//! Evaluation is plain cross-entropy, or that of soft labels, whatever training adds to it (label smoothing, z-loss): unlike
//! in Transformers, whose evaluation loss is smoothed too, so that the perplexity stays one.
//!
//! Log-probabilities are added in f64 in the order of the tokens, so that the sum does not depend on where passes are
//! cut. Only one pass is in memory.

use data::Sample;
use ops::{OpError, Result};
use serde::Serialize;

use crate::batch::{Passes, check_task, to_batch};
use crate::confusion::Confusion;
use crate::forward::Forward;

/// A loss that is being summed. Ranks add theirs up field by field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of `-ln p(target)`.
    pub nats: f64,
    /// Targets that counted: tokens, or a classifier's rows.
    pub tokens: u64,
    /// Of a classifier.
    pub confusion: Option<Confusion>,
}

/// What `eval` reports.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean of `-ln p(target)`.
    pub loss: f64,
    /// `exp(loss)`; infinite where that overflows.
    pub perplexity: f64,
    /// Absent where the data came as tokens.
    pub bits_per_byte: Option<f64>,
    /// Targets that counted: tokens, or a classifier's rows.
    pub tokens: u64,
    /// Share of rows whose class is predicted right; only there for a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Macro average; only there for a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
}

impl LossSum {
    /// Adds the log-probabilities of those `targets` that count, in order.
    pub(crate) fn add(&mut self, targets: impl Iterator<Item = i32>, logprobs: &[f32]) {
        for (_, &logprob) in targets.zip(logprobs).filter(|(target, _)| *target >= 0) {
            self.nats -= f64::from(logprob);
            self.tokens += 1;
        }
    }

    /// Adds the rows of a classifier, whose logits are `[samples, C]`.
    fn add_classes(&mut self, samples: &[Sample], logits: &[f32]) {
        let confusion = self.confusion.get_or_insert_default();
        for (sample, logits) in samples.iter().zip(logits.chunks_exact(logits.len() / samples.len())) {
            let class = sample.class.expect("LossSum::add_classes: the task was checked");
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let shifted = |class: u32| f64::from(logits[class as usize]) - f64::from(most);
            let log_sum = logits.iter().map(|logit| (f64::from(*logit) - f64::from(most)).exp()).sum::<f64>().ln();
            self.nats += match &sample.soft {
                Some(soft) => soft.list(0).map(|(class, p)| f64::from(p) * (log_sum - shifted(class))).sum(),
                None => log_sum - shifted(class),
            };
            self.tokens += 1;
            confusion.add(logits, class as usize);
        }
    }

    /// The mean; `None` if no target counted.
    pub fn loss(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nats / self.tokens as f64)
    }

    /// The figures; `None` if no target counted. `text_bytes`: UTF-8 bytes of the text, if it was text.
    pub fn evaluation(&self, text_bytes: Option<u64>) -> Option<Evaluation> {
        let loss = self.loss()?;
        let bits_per_byte = text_bytes.map(|bytes| self.nats / std::f64::consts::LN_2 / bytes as f64);
        let (accuracy, f1) = self.confusion.as_ref().map(|counts| (counts.accuracy(), counts.f1())).unzip();
        Some(Evaluation { loss, perplexity: loss.exp(), bits_per_byte, tokens: self.tokens, accuracy, f1 })
    }
}

/// Sums the loss over `samples`, in passes of at most `tokens_per_pass` tokens and at least one row.
///
/// # Errors
/// A row longer than the model's positions, one that has not the model's kind of target, or the device's.
///
/// # Panics
/// If a token or target is beyond the vocabulary: data is opened with the model's `vocab_size`, which refuses that.
pub fn evaluate(
    forward: &Forward<'_>,
    samples: impl IntoIterator<Item = Sample>,
    tokens_per_pass: usize,
) -> Result<LossSum> {
    let mut sum = LossSum::default();
    for samples in Passes::new(samples.into_iter(), tokens_per_pass) {
        if let Some(len) = samples.iter().map(|sample| sample.input_ids.len()).find(|&len| len > forward.positions) {
            return Err(OpError::TooLong(format!(
                "a row of {len} tokens is longer than the model's {} positions; shorten it or set data.sequence_length",
                forward.positions
            )));
        }
        samples.iter().try_for_each(|sample| check_task(forward.model, sample))?;
        let batch = to_batch(forward.queue, &samples, 0)?;
        if forward.model.labels().is_some() {
            sum.add_classes(&samples, &forward.logits(&batch)?);
            continue;
        }
        let logprobs = forward.token_logprobs(&batch)?;
        sum.add(samples.iter().flat_map(|sample| sample.targets.iter().copied()), &logprobs);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_fair_coin_over_bytes_are_ln_2_perplexity_2_and_1_bit() {
        let mut sum = LossSum::default();
        sum.add([1, 0, -100, 1].into_iter(), &[0.5f32.ln(), 0.5f32.ln(), 0.0, 0.5f32.ln()]);
        let got = sum.evaluation(Some(3)).unwrap();
        assert_eq!(got.tokens, 3);
        assert!((got.loss - 0.5f64.ln().abs()).abs() < 1e-7, "{}", got.loss);
        assert!((got.perplexity - 2.0).abs() < 1e-6, "{}", got.perplexity);
        assert!((got.bits_per_byte.unwrap() - 1.0).abs() < 1e-6, "{:?}", got.bits_per_byte);
    }

    #[test]
    fn nothing_counted_gives_no_figures() {
        let mut sum = LossSum::default();
        sum.add([-100].into_iter(), &[0.0]);
        assert_eq!(sum.evaluation(Some(1)), None);
    }
}
