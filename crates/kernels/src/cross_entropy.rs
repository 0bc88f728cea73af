//! Log-probabilities of targets under a softmax of logits, and their gradient, on a chunk of rows.
//!
//! A row's value is `sum_v p_v log softmax(logits)_v`, where `p` is 1 at the target (hard) or a given distribution
//! (soft); the mean cross-entropy is minus their mean. Its gradient is `scale (p - sum(p) softmax)`, where `scale` is
//! the gradient of the row's value. Only `log_sum_exp` need be kept between the two.
//!
//! The softmax is shifted by the row's largest logit, so that no exponent is above 0. A row that holds NaN or plus
//! infinity gives NaN.

use crate::isa::multiversion;
use crate::lanes::{max, sum};
use crate::math::{exp, ln};
use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element};

/// Writes the log-probability of each row's target to `logprob` `[C]` and the logarithm of the sum of exponentials to
/// `log_sum_exp` `[C]`.
///
/// - `logits` `[C, vocab]`
/// - `targets` `[C]`: below `vocab`; a negative one (-100) is not counted: its `logprob` is 0.
pub fn forward(cpu: &Cpu, logits: &[f32], vocab: usize, targets: &[i32], logprob: &mut [f32], log_sum_exp: &mut [f32]) {
    check("cross_entropy::forward", logits.len(), vocab, targets, log_sum_exp.len());
    assert!(targets.iter().all(|&t| t < vocab as i32), "cross_entropy::forward: a target beyond the vocabulary");
    assert_eq!(logprob.len(), targets.len(), "cross_entropy::forward: length of logprob");
    let outputs = (rows(logprob, 1), rows(log_sum_exp, 1));
    for_rows(cpu, targets.len(), rows_per_task(vocab), outputs, |range, (logprob, log_sum_exp)| {
        for (i, row) in range.enumerate() {
            let logits = &logits[row * vocab..(row + 1) * vocab];
            log_sum_exp[i] = row_log_sum_exp(cpu.isa, logits);
            logprob[i] = usize::try_from(targets[row]).map_or(0.0, |target| logits[target] - log_sum_exp[i]);
        }
    });
}

/// The gradient of the logits: `dlogits` `[C, vocab]` is `scale (onehot - softmax)`.
///
/// `scale` `[C]` is the gradient of each row's log-probability. Where it is 0, and where the target is negative, the
/// gradient is 0 whatever the logits. The rest is that of [`forward`].
pub fn backward<T: Element>(
    cpu: &Cpu,
    logits: &[f32],
    vocab: usize,
    targets: &[i32],
    log_sum_exp: &[f32],
    scale: &[f32],
    dlogits: &mut [T],
) {
    check("cross_entropy::backward", logits.len(), vocab, targets, log_sum_exp.len());
    assert!(targets.iter().all(|&t| t < vocab as i32), "cross_entropy::backward: a target beyond the vocabulary");
    assert_eq!(scale.len(), targets.len(), "cross_entropy::backward: length of scale");
    assert_eq!(dlogits.len(), logits.len(), "cross_entropy::backward: length of dlogits");
    for_rows(cpu, targets.len(), rows_per_task(vocab), rows(dlogits, vocab), |range, dlogits| {
        for (row, dlogits) in range.zip(dlogits.chunks_exact_mut(vocab)) {
            let (logits, scale) = (&logits[row * vocab..(row + 1) * vocab], scale[row]);
            match usize::try_from(targets[row]) {
                Ok(target) if scale != 0.0 => {
                    row_backward(cpu.isa, logits, log_sum_exp[row], scale, dlogits);
                    dlogits[target] = T::from_f32(scale * (1.0 - exp(logits[target] - log_sum_exp[row])));
                }
                _ => dlogits.fill(T::ZERO),
            }
        }
    });
}

/// [`forward`] with a distribution over the vocabulary as each row's target: `logprob = sum_v p_v log softmax_v`.
///
/// `target_probabilities` `[C, vocab]`; a probability of 0 counts nothing even where the logit is minus infinity.
/// `targets` only says which rows count: those that are not negative.
pub fn soft_forward(
    cpu: &Cpu,
    logits: &[f32],
    vocab: usize,
    targets: &[i32],
    target_probabilities: &[f32],
    logprob: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    check("cross_entropy::soft_forward", logits.len(), vocab, targets, log_sum_exp.len());
    assert_eq!(target_probabilities.len(), logits.len(), "cross_entropy::soft_forward: length of target_probabilities");
    assert_eq!(logprob.len(), targets.len(), "cross_entropy::soft_forward: length of logprob");
    let outputs = (rows(logprob, 1), rows(log_sum_exp, 1));
    for_rows(cpu, targets.len(), rows_per_task(vocab), outputs, |range, (logprob, log_sum_exp)| {
        for (i, row) in range.enumerate() {
            let elements = row * vocab..(row + 1) * vocab;
            let (logits, target) = (&logits[elements.clone()], &target_probabilities[elements]);
            log_sum_exp[i] = row_log_sum_exp(cpu.isa, logits);
            logprob[i] = if targets[row] < 0 { 0.0 } else { row_expectation(cpu.isa, logits, target, log_sum_exp[i]) };
        }
    });
}

/// [`backward`] of [`soft_forward`]: `scale (p - sum(p) softmax)`.
#[allow(clippy::too_many_arguments, reason = "those of forward and the gradient")]
pub fn soft_backward<T: Element>(
    cpu: &Cpu,
    logits: &[f32],
    vocab: usize,
    targets: &[i32],
    target_probabilities: &[f32],
    log_sum_exp: &[f32],
    scale: &[f32],
    dlogits: &mut [T],
) {
    check("cross_entropy::soft_backward", logits.len(), vocab, targets, log_sum_exp.len());
    assert_eq!(
        target_probabilities.len(),
        logits.len(),
        "cross_entropy::soft_backward: length of target_probabilities"
    );
    assert_eq!(scale.len(), targets.len(), "cross_entropy::soft_backward: length of scale");
    assert_eq!(dlogits.len(), logits.len(), "cross_entropy::soft_backward: length of dlogits");
    for_rows(cpu, targets.len(), rows_per_task(vocab), rows(dlogits, vocab), |range, dlogits| {
        for (row, dlogits) in range.zip(dlogits.chunks_exact_mut(vocab)) {
            let elements = row * vocab..(row + 1) * vocab;
            let (logits, target) = (&logits[elements.clone()], &target_probabilities[elements]);
            if targets[row] < 0 || scale[row] == 0.0 {
                dlogits.fill(T::ZERO);
            } else {
                row_soft_backward(cpu.isa, logits, target, log_sum_exp[row], scale[row], dlogits);
            }
        }
    });
}

fn check(kernel: &str, num_logits: usize, vocab: usize, targets: &[i32], num_log_sum_exp: usize) {
    assert!(vocab > 0 && num_logits == targets.len() * vocab, "{kernel}: one row of logits for each target");
    assert_eq!(num_log_sum_exp, targets.len(), "{kernel}: length of log_sum_exp");
}

multiversion! {
    fn row_log_sum_exp(logits: &[f32]) -> f32 {
        let most = max(logits);
        most + ln(sum([logits], |[logit]| exp(logit - most)))
    }
}

multiversion! {
    fn row_backward<T: Element>(logits: &[f32], log_sum_exp: f32, scale: f32, dlogits: &mut [T]) {
        for (dlogit, logit) in dlogits.iter_mut().zip(logits) {
            *dlogit = T::from_f32(-scale * exp(logit - log_sum_exp));
        }
    }
}

multiversion! {
    fn row_expectation(logits: &[f32], target: &[f32], log_sum_exp: f32) -> f32 {
        sum([logits, target], |[logit, p]| if p == 0.0 { 0.0 } else { p * (logit - log_sum_exp) })
    }
}

multiversion! {
    fn row_soft_backward<T: Element>(
        logits: &[f32], target: &[f32], log_sum_exp: f32, scale: f32, dlogits: &mut [T],
    ) {
        let total = sum([target], |[p]| p);
        for ((dlogit, logit), p) in dlogits.iter_mut().zip(logits).zip(target) {
            *dlogit = T::from_f32(scale * (p - total * exp(logit - log_sum_exp)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    struct Case {
        vocab: usize,
        logits: Vec<f32>,
        targets: Vec<i32>,
        /// Not normalised: the gradient must be right all the same.
        soft: Vec<f32>,
        scale: Vec<f32>,
    }

    impl Case {
        /// Every third row is not counted.
        fn new(num_rows: usize, vocab: usize) -> Self {
            let target = |row: usize| if row % 3 == 2 { -100 } else { (row * 31 % vocab) as i32 };
            Self {
                vocab,
                logits: values(1, num_rows * vocab).iter().map(|v| (4.0 * v) as f32).collect(),
                targets: (0..num_rows).map(target).collect(),
                soft: values(2, num_rows * vocab).iter().map(|v| v.abs() as f32 / vocab as f32).collect(),
                scale: elements(3, num_rows),
            }
        }

        fn run<T: Element>(&self, cpu: &Cpu, soft: bool) -> (Vec<f32>, Vec<f32>, Vec<T>) {
            let Case { vocab, logits, targets, scale, soft: p } = self;
            let (mut logprob, mut lse) = (vec![9.0; targets.len()], vec![9.0; targets.len()]);
            let mut dlogits = vec![T::from_f32(9.0); logits.len()];
            if soft {
                soft_forward(cpu, logits, *vocab, targets, p, &mut logprob, &mut lse);
                soft_backward(cpu, logits, *vocab, targets, p, &lse, scale, &mut dlogits);
            } else {
                forward(cpu, logits, *vocab, targets, &mut logprob, &mut lse);
                backward(cpu, logits, *vocab, targets, &lse, scale, &mut dlogits);
            }
            (logprob, lse, dlogits)
        }

        /// Row by row: the log-probability, and the log-sum-exp.
        fn reference(&self, logits: &[f64], soft: bool) -> (Vec<f64>, Vec<f64>) {
            let row = |row: usize| {
                let logits = &logits[row * self.vocab..(row + 1) * self.vocab];
                let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
                let p = |v: usize| match soft {
                    true => f64::from(self.soft[row * self.vocab + v]),
                    false => f64::from(u8::from(self.targets[row] == v as i32)),
                };
                let value = (0..self.vocab).map(|v| p(v) * (logits[v] - lse)).sum();
                (if self.targets[row] < 0 { 0.0 } else { value }, lse)
            };
            (0..self.targets.len()).map(row).unzip()
        }
    }

    fn agrees_with_f64<T: Element>(num_rows: usize, vocab: usize, soft: bool) {
        let case = Case::new(num_rows, vocab);
        let (logprob, lse, dlogits) = case.run::<T>(&Cpu::single(), soft);
        let (logits, scale) = (to_f64(&case.logits), to_f64(&case.scale));
        let (want_logprob, want_lse) = case.reference(&logits, soft);
        assert_close("logprob", &logprob, &want_logprob, 1e-6);
        assert_close("log_sum_exp", &lse, &want_lse, 3e-7);
        let want = gradient(&logits, |logits| dot(&case.reference(logits, soft).0, &scale));
        assert_close("dlogits", &dlogits, &want, 2e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, vocab) in [(1, 1), (4, 3), (3, 65), (5, 32)] {
            for soft in [false, true] {
                agrees_with_f64::<f32>(num_rows, vocab, soft);
                agrees_with_f64::<bf16>(num_rows, vocab, soft);
            }
        }
    }

    #[test]
    fn logits_of_any_size_neither_overflow_nor_vanish() {
        let (mut logprob, mut lse) = ([0.0; 2], [0.0; 2]);
        let logits = [1e4, 1e4, -1e4, -1e4, -1e4, f32::NEG_INFINITY];
        forward(&Cpu::single(), &logits, 3, &[0, 1], &mut logprob, &mut lse);
        let half = -std::f32::consts::LN_2;
        // One unit in the last place of 1e4 is 0.00098.
        assert!((logprob[0] - half).abs() < 1e-3 && (logprob[1] - half).abs() < 1e-3, "{logprob:?}");
        assert!((lse[0] - 1e4 + half).abs() < 1e-3 && (lse[1] + 1e4 + half).abs() < 1e-3, "{lse:?}");
    }

    #[test]
    fn a_row_that_does_not_count_has_no_value_and_no_gradient_even_if_its_logits_are_nan() {
        let logits = [f32::NAN; 6];
        let cpu = Cpu::single();
        let (mut logprob, mut lse, mut dlogits) = ([1.0; 3], [0.0; 3], [1.0f32; 6]);
        forward(&cpu, &logits, 2, &[-100, -1, 0], &mut logprob, &mut lse);
        assert_eq!(logprob[..2], [0.0; 2]);
        assert!(logprob[2].is_nan(), "a row that counts shows the NaN");
        backward(&cpu, &logits, 2, &[-100, -1, 0], &lse, &[1.0, 1.0, 0.0], &mut dlogits);
        assert_eq!(dlogits, [0.0; 6]);
        soft_forward(&cpu, &logits, 2, &[-100, -1, 0], &[0.5; 6], &mut logprob, &mut lse);
        assert_eq!(logprob[..2], [0.0; 2]);
        dlogits.fill(1.0);
        soft_backward(&cpu, &logits, 2, &[-100, -1, 0], &[0.5; 6], &lse, &[1.0, 1.0, 0.0], &mut dlogits);
        assert_eq!(dlogits, [0.0; 6]);
    }

    #[test]
    fn a_probability_of_0_counts_nothing_at_a_logit_of_minus_infinity() {
        let (mut logprob, mut lse) = ([0.0], [0.0]);
        let logits = [0.0, f32::NEG_INFINITY];
        soft_forward(&Cpu::single(), &logits, 2, &[0], &[1.0, 0.0], &mut logprob, &mut lse);
        assert_eq!((logprob, lse), ([0.0], [0.0]));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, vocab) in [(2, 1), (3, 31), (700, 65), (7, 5003)] {
            let case = Case::new(num_rows, vocab);
            for soft in [false, true] {
                assert_same_bits(|cpu| {
                    let (logprob, lse, dlogits) = case.run::<bf16>(cpu, soft);
                    logprob.into_iter().chain(lse).chain(dlogits.iter().map(|d| d.to_f32())).collect::<Vec<f32>>()
                });
            }
        }
    }

    #[test]
    #[should_panic(expected = "cross_entropy::forward: a target beyond the vocabulary")]
    fn a_target_beyond_the_vocabulary_is_refused() {
        forward(&Cpu::single(), &[0.0; 4], 2, &[0, 2], &mut [0.0; 2], &mut [0.0; 2]);
    }
}
