//! Log-probabilities of targets under a softmax of logits, and their gradient, on a chunk of rows.
//!
//! A row predicts a distribution `p`: 1 at its target (hard), or a list of ids and probabilities (soft). With `lse` the
//! logarithm of the sum of exponentials, `e` the label smoothing and `z` the coefficient of the z-loss ([`LossTerms`]),
//!
//! ```text
//! q        = (1 - e) p + e sum(p) / vocab
//! value    = sum_v q_v (logit_v - lse) - z lse^2
//! dlogit_v = scale (q_v - (sum(p) + 2 z lse) softmax_v)
//! ```
//!
//! where `scale` is the gradient of the row's value. The loss is minus the mean of the values: without terms the mean
//! cross-entropy. Only `log_sum_exp` need be kept between the two.
//!
//! The softmax is shifted by the row's largest logit, so that no exponent is above 0. A row that holds NaN or plus
//! infinity gives NaN.
//!
//! Source: label smoothing as in Transformers' `LabelSmoother` (Szegedy et al. 2015, arXiv:1512.00567, section 7); z-loss as
//! in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5: `z = 1e-4`).

use crate::isa::multiversion;
use crate::lanes::{max, sum};
use crate::math::{exp, ln};
use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element};

/// What is added to plain cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    /// Share of the target's probability that is spread evenly over the vocabulary, from 0 to 1.
    pub label_smoothing: f32,
    /// Coefficient of the squared log-sum-exp, at least 0: it keeps the normaliser near 1.
    pub z_loss: f32,
}

/// Distributions to predict, as lists row after row; what a list leaves out has probability 0.
#[derive(Clone, Copy, Debug)]
pub struct SoftTargets<'a> {
    /// `[C + 1]`: the list of row `r` is `starts[r]..starts[r + 1]`.
    pub starts: &'a [u32],
    /// `[E]`: below `vocab`, each at most once in a list.
    pub ids: &'a [u32],
    /// `[E]`: a probability of 0 counts nothing even where the logit is minus infinity.
    pub probabilities: &'a [f32],
}

/// What a chunk of `C` rows is held against.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// `[C]`: below `vocab`; a row whose target is negative (-100) is not counted.
    pub targets: &'a [i32],
    /// Predicted in place of `targets` by the rows that count.
    pub soft: Option<SoftTargets<'a>>,
    /// What is added.
    pub terms: LossTerms,
}

impl<'a> Objective<'a> {
    /// Ids and probabilities that a row predicts; `None` if it is not counted.
    fn row(&self, row: usize) -> Option<(&'a [u32], &'a [f32])> {
        if self.targets[row] < 0 {
            return None;
        }
        Some(match self.soft {
            None => (bytemuck::cast_slice(&self.targets[row..=row]), &[1.0]),
            Some(SoftTargets { starts, ids, probabilities }) => {
                let list = starts[row] as usize..starts[row + 1] as usize;
                (&ids[list.clone()], &probabilities[list])
            }
        })
    }

    fn check(&self, kernel: &str, num_logits: usize, vocab: usize, num_log_sum_exp: usize) {
        let num_rows = self.targets.len();
        assert!(vocab > 0 && num_logits == num_rows * vocab, "{kernel}: one row of logits for each target");
        assert_eq!(num_log_sum_exp, num_rows, "{kernel}: length of log_sum_exp");
        match self.soft {
            None => assert!(
                self.targets.iter().all(|&target| target < vocab as i32),
                "{kernel}: a target beyond the vocabulary"
            ),
            Some(soft) => {
                assert_eq!(soft.starts.len(), num_rows + 1, "{kernel}: one list for each row");
                assert_eq!(soft.ids.len(), soft.probabilities.len(), "{kernel}: one probability for each id");
            }
        }
    }
}

/// Writes the value of each row to `logprob` `[C]`, 0 where it is not counted, and the logarithm of the sum of exponentials
/// to `log_sum_exp` `[C]`.
///
/// `logits`: `[C, vocab]`.
pub fn forward(
    cpu: &Cpu,
    logits: &[f32],
    vocab: usize,
    objective: &Objective<'_>,
    logprob: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    objective.check("cross_entropy::forward", logits.len(), vocab, log_sum_exp.len());
    let num_rows = objective.targets.len();
    assert_eq!(logprob.len(), num_rows, "cross_entropy::forward: length of logprob");
    let outputs = (rows(logprob, 1), rows(log_sum_exp, 1));
    for_rows(cpu, num_rows, rows_per_task(vocab), outputs, |range, (logprob, log_sum_exp)| {
        for (i, row) in range.enumerate() {
            let logits = &logits[row * vocab..(row + 1) * vocab];
            let lse = row_log_sum_exp(cpu.isa, logits);
            log_sum_exp[i] = lse;
            logprob[i] = objective.row(row).map_or(0.0, |target| value(cpu, logits, lse, target, objective.terms));
        }
    });
}

/// The value of one row that predicts `ids` with `probabilities`.
fn value(cpu: &Cpu, logits: &[f32], lse: f32, (ids, probabilities): (&[u32], &[f32]), terms: LossTerms) -> f32 {
    let LossTerms { label_smoothing, z_loss } = terms;
    let term = |(&id, &p): (&u32, &f32)| if p == 0.0 { 0.0 } else { p * (logits[id as usize] - lse) };
    let mut value: f32 = ids.iter().zip(probabilities).map(term).sum();
    if label_smoothing > 0.0 {
        let total: f32 = probabilities.iter().sum();
        let mean = row_sum_less(cpu.isa, logits, lse) / logits.len() as f32;
        value = (1.0 - label_smoothing) * value + label_smoothing * total * mean;
    }
    if z_loss > 0.0 { value - z_loss * lse * lse } else { value }
}

/// The gradient of the logits, `dlogits` `[C, vocab]`.
///
/// `scale` `[C]` is the gradient of each row's value. Where it is 0, and where a row is not counted, the gradient is 0
/// whatever the logits. The rest is that of [`forward`].
pub fn backward<T: Element>(
    cpu: &Cpu,
    logits: &[f32],
    vocab: usize,
    objective: &Objective<'_>,
    log_sum_exp: &[f32],
    scale: &[f32],
    dlogits: &mut [T],
) {
    objective.check("cross_entropy::backward", logits.len(), vocab, log_sum_exp.len());
    let num_rows = objective.targets.len();
    assert_eq!(scale.len(), num_rows, "cross_entropy::backward: length of scale");
    assert_eq!(dlogits.len(), logits.len(), "cross_entropy::backward: length of dlogits");
    for_rows(cpu, num_rows, rows_per_task(vocab), rows(dlogits, vocab), |range, dlogits| {
        for (row, dlogits) in range.zip(dlogits.chunks_exact_mut(vocab)) {
            let logits = &logits[row * vocab..(row + 1) * vocab];
            match objective.row(row) {
                Some(target) if scale[row] != 0.0 => {
                    gradient(cpu, logits, log_sum_exp[row], target, objective.terms, scale[row], dlogits);
                }
                _ => dlogits.fill(T::ZERO),
            }
        }
    });
}

/// The gradient of one row that predicts `ids` with `probabilities`.
fn gradient<T: Element>(
    cpu: &Cpu,
    logits: &[f32],
    lse: f32,
    (ids, probabilities): (&[u32], &[f32]),
    LossTerms { label_smoothing, z_loss }: LossTerms,
    scale: f32,
    dlogits: &mut [T],
) {
    let total: f32 = probabilities.iter().sum();
    let uniform = label_smoothing * total / logits.len() as f32;
    let weight = total + 2.0 * z_loss * lse;
    if (uniform, weight) == (0.0, 1.0) {
        row_backward(cpu.isa, logits, lse, scale, dlogits);
    } else {
        row_backward_of(cpu.isa, logits, lse, [scale, uniform, weight], dlogits);
    }
    for (&id, &p) in ids.iter().zip(probabilities) {
        let (id, q) = (id as usize, (1.0 - label_smoothing) * p + uniform);
        dlogits[id] = T::from_f32(scale * (q - weight * exp(logits[id] - lse)));
    }
}

multiversion! {
    fn row_log_sum_exp(logits: &[f32]) -> f32 {
        let most = max(logits);
        most + ln(sum([logits], |[logit]| exp(logit - most)))
    }
}

multiversion! {
    fn row_sum_less(logits: &[f32], log_sum_exp: f32) -> f32 {
        sum([logits], |[logit]| logit - log_sum_exp)
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
    fn row_backward_of<T: Element>(
        logits: &[f32], log_sum_exp: f32, factors: [f32; 3], dlogits: &mut [T],
    ) {
        let [scale, uniform, weight] = factors;
        for (dlogit, logit) in dlogits.iter_mut().zip(logits) {
            *dlogit = T::from_f32(scale * (uniform - weight * exp(logit - log_sum_exp)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{bf16, f16};

    const NONE: LossTerms = LossTerms { label_smoothing: 0.0, z_loss: 0.0 };
    const BOTH: LossTerms = LossTerms { label_smoothing: 0.1, z_loss: 0.01 };

    struct Case {
        vocab: usize,
        logits: Vec<f32>,
        targets: Vec<i32>,
        /// Lists of every second id, not normalised: the gradient must be right all the same.
        soft: Option<(Vec<u32>, Vec<u32>, Vec<f32>)>,
        terms: LossTerms,
        scale: Vec<f32>,
    }

    impl Case {
        /// Every third row is not counted.
        fn new(num_rows: usize, vocab: usize, soft: bool, terms: LossTerms) -> Self {
            let target = |row: usize| if row % 3 == 2 { -100 } else { (row * 31 % vocab) as i32 };
            let (mut starts, mut ids) = (vec![0], Vec::new());
            for row in 0..num_rows {
                ids.extend((row % 2..vocab).step_by(2).map(|id| id as u32));
                starts.push(ids.len() as u32);
            }
            let probabilities = values(2, ids.len()).iter().map(|v| v.abs() as f32 / vocab as f32).collect();
            Self {
                vocab,
                logits: values(1, num_rows * vocab).iter().map(|v| (4.0 * v) as f32).collect(),
                targets: (0..num_rows).map(target).collect(),
                soft: soft.then_some((starts, ids, probabilities)),
                terms,
                scale: elements(3, num_rows),
            }
        }

        fn objective(&self) -> Objective<'_> {
            let soft = self.soft.as_ref();
            let soft = soft.map(|(starts, ids, probabilities)| SoftTargets { starts, ids, probabilities });
            Objective { targets: &self.targets, soft, terms: self.terms }
        }

        fn run<T: Element>(&self, cpu: &Cpu) -> (Vec<f32>, Vec<f32>, Vec<T>) {
            let Case { vocab, logits, targets, scale, .. } = self;
            let (mut logprob, mut lse) = (vec![9.0; targets.len()], vec![9.0; targets.len()]);
            let mut dlogits = vec![T::from_f32(9.0); logits.len()];
            forward(cpu, logits, *vocab, &self.objective(), &mut logprob, &mut lse);
            backward(cpu, logits, *vocab, &self.objective(), &lse, scale, &mut dlogits);
            (logprob, lse, dlogits)
        }

        /// Row by row, in plain f64: the value, and the log-sum-exp.
        fn reference(&self, logits: &[f64]) -> (Vec<f64>, Vec<f64>) {
            let row = |row: usize| {
                let logits = &logits[row * self.vocab..(row + 1) * self.vocab];
                let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
                let Some((ids, probabilities)) = self.objective().row(row) else { return (0.0, lse) };
                let (e, z) = (f64::from(self.terms.label_smoothing), f64::from(self.terms.z_loss));
                let total: f64 = probabilities.iter().map(|p| f64::from(*p)).sum();
                let mut q = vec![e * total / self.vocab as f64; self.vocab];
                ids.iter().zip(probabilities).for_each(|(id, p)| q[*id as usize] += (1.0 - e) * f64::from(*p));
                (q.iter().zip(logits).map(|(q, l)| q * (l - lse)).sum::<f64>() - z * lse * lse, lse)
            };
            (0..self.targets.len()).map(row).unzip()
        }
    }

    fn cases(num_rows: usize, vocab: usize) -> impl Iterator<Item = Case> {
        let kinds = [(false, NONE), (true, NONE), (false, BOTH), (true, BOTH)];
        kinds.into_iter().map(move |(soft, terms)| Case::new(num_rows, vocab, soft, terms))
    }

    fn agrees_with_f64<T: Element>(case: &Case) {
        let (logprob, lse, dlogits) = case.run::<T>(&Cpu::single());
        let (logits, scale) = (to_f64(&case.logits), to_f64(&case.scale));
        let (want_logprob, want_lse) = case.reference(&logits);
        assert_close("logprob", &logprob, &want_logprob, 1e-6);
        assert_close("log_sum_exp", &lse, &want_lse, 3e-7);
        let want = crate::testing::gradient(&logits, |logits| dot(&case.reference(logits).0, &scale));
        assert_close("dlogits", &dlogits, &want, 2e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, vocab) in [(1, 1), (4, 3), (3, 65), (5, 32)] {
            for case in cases(num_rows, vocab) {
                agrees_with_f64::<f32>(&case);
                agrees_with_f64::<bf16>(&case);
                agrees_with_f64::<f16>(&case);
            }
        }
    }

    /// `q = (1 - e) p + e / vocab` by hand: a fair coin of two logits has cross-entropy ln 2 whatever `q` is.
    #[test]
    fn smoothing_spreads_its_share_evenly_and_the_z_loss_is_the_squared_log_sum_exp() {
        let (mut logprob, mut lse) = ([0.0; 2], [0.0; 2]);
        let terms = LossTerms { label_smoothing: 0.25, z_loss: 0.5 };
        let objective = Objective { targets: &[0, 1], soft: None, terms };
        forward(&Cpu::single(), &[0.0, 0.0, 1.0, 0.0], 2, &objective, &mut logprob, &mut lse);
        let ln2 = std::f32::consts::LN_2;
        assert!((logprob[0] - (-ln2 - 0.5 * ln2 * ln2)).abs() < 1e-6, "{logprob:?}");
        // Row 1: q = [0.125, 0.875], log-probabilities [-0.3132617, -1.3132617], log-sum-exp 1.3132617.
        let want = -0.125 * 0.313_261_7 - 0.875 * 1.313_261_7 - 0.5 * 1.313_261_7 * 1.313_261_7;
        assert!((logprob[1] - want).abs() < 1e-6, "{} and {want}", logprob[1]);
    }

    #[test]
    fn a_list_of_one_id_with_probability_1_is_a_hard_target() {
        for terms in [NONE, BOTH] {
            let hard = Case::new(5, 67, false, terms);
            let ids = hard.targets.iter().map(|target| (*target).max(0) as u32).collect();
            let soft = Case { soft: Some(((0..6).collect(), ids, vec![1.0; 5])), ..Case::new(5, 67, false, terms) };
            assert!(hard.run::<f32>(&Cpu::single()) == soft.run::<f32>(&Cpu::single()));
        }
    }

    fn hard(targets: &[i32]) -> Objective<'_> {
        Objective { targets, soft: None, terms: NONE }
    }

    #[test]
    fn logits_of_any_size_neither_overflow_nor_vanish() {
        let (mut logprob, mut lse) = ([0.0; 2], [0.0; 2]);
        let logits = [1e4, 1e4, -1e4, -1e4, -1e4, f32::NEG_INFINITY];
        forward(&Cpu::single(), &logits, 3, &hard(&[0, 1]), &mut logprob, &mut lse);
        let half = -std::f32::consts::LN_2;
        // One unit in the last place of 1e4 is 0.00098.
        assert!((logprob[0] - half).abs() < 1e-3 && (logprob[1] - half).abs() < 1e-3, "{logprob:?}");
        assert!((lse[0] - 1e4 + half).abs() < 1e-3 && (lse[1] + 1e4 + half).abs() < 1e-3, "{lse:?}");
    }

    #[test]
    fn a_row_that_does_not_count_has_no_value_and_no_gradient_even_if_its_logits_are_nan() {
        let logits = [f32::NAN; 6];
        let cpu = Cpu::single();
        let soft = SoftTargets { starts: &[0, 1, 2, 3], ids: &[0; 3], probabilities: &[1.0; 3] };
        for (soft, terms) in [(None, NONE), (Some(soft), NONE), (None, BOTH)] {
            let objective = Objective { targets: &[-100, -1, 0], soft, terms };
            let (mut logprob, mut lse, mut dlogits) = ([1.0; 3], [0.0; 3], [1.0f32; 6]);
            forward(&cpu, &logits, 2, &objective, &mut logprob, &mut lse);
            assert_eq!(logprob[..2], [0.0; 2]);
            assert!(logprob[2].is_nan(), "a row that counts shows the NaN");
            backward(&cpu, &logits, 2, &objective, &lse, &[1.0, 1.0, 0.0], &mut dlogits);
            assert_eq!(dlogits, [0.0; 6]);
        }
    }

    #[test]
    fn a_probability_of_0_counts_nothing_at_a_logit_of_minus_infinity() {
        let (mut logprob, mut lse) = ([0.0], [0.0]);
        let logits = [0.0, f32::NEG_INFINITY];
        let soft = SoftTargets { starts: &[0, 2], ids: &[0, 1], probabilities: &[1.0, 0.0] };
        let objective = Objective { soft: Some(soft), ..hard(&[0]) };
        forward(&Cpu::single(), &logits, 2, &objective, &mut logprob, &mut lse);
        assert_eq!((logprob, lse), ([0.0], [0.0]));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, vocab) in [(2, 1), (3, 31), (700, 65), (7, 5003)] {
            for case in cases(num_rows, vocab) {
                assert_same_bits(|cpu| {
                    let (logprob, lse, dlogits) = case.run::<bf16>(cpu);
                    logprob.into_iter().chain(lse).chain(dlogits.iter().map(|d| d.to_f32())).collect::<Vec<f32>>()
                });
            }
        }
    }

    #[test]
    #[should_panic(expected = "cross_entropy::forward: a target beyond the vocabulary")]
    fn a_target_beyond_the_vocabulary_is_refused() {
        forward(&Cpu::single(), &[0.0; 4], 2, &hard(&[0, 2]), &mut [0.0; 2], &mut [0.0; 2]);
    }
}
