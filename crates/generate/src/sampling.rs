//! How the next token is chosen: what is done to the logits, in Transformers' order, and the draw.
//!
//! # Order of events
//! 1. [`repetition_penalty`] by all tokens before, those of the prompt included.
//! 2. Temperature 0: the largest logit ([`argmax`]). Else [`temperature`], [`top_k`], [`top_p`], [`min_p`], then [`draw`].
//!
//! A token that is taken out has a logit of minus infinity. At least one token is always left. Source: the warpers of
//! `generation/logits_process.py`, Transformers 5.23; unlike there, the default is to keep every token (`top_k` 0 and
//! not 50).

use std::cmp::Ordering;

/// How a token is chosen. The default is to draw from the model's own distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only this many likeliest tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// From 0 to 1: the fewest likeliest tokens of at least this total probability are kept; 1 keeps all.
    pub top_p: f64,
    /// From 0 to 1: tokens of at least this share of the likeliest one's probability are kept; 0 keeps all.
    pub min_p: f64,
    /// Above 0: divides positive logits and multiplies negative ones of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}; it must be {rule}")]
pub struct SamplingError {
    /// The field of [`Sampling`].
    pub name: &'static str,
    /// The value found.
    pub value: f64,
    /// What it must be.
    pub rule: &'static str,
}

impl Sampling {
    /// Refuses values that mean nothing.
    pub fn check(&self) -> Result<(), SamplingError> {
        let unit = 0.0..=1.0;
        let rules = [
            (
                "temperature",
                self.temperature,
                (0.0..f64::INFINITY).contains(&self.temperature),
                "a number of at least 0",
            ),
            ("top_p", self.top_p, unit.contains(&self.top_p), "a number from 0 to 1"),
            ("min_p", self.min_p, unit.contains(&self.min_p), "a number from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "a number above 0",
            ),
        ];
        let wrong = rules.into_iter().find(|(_, _, is_good, _)| !is_good);
        wrong.map_or(Ok(()), |(name, value, _, rule)| Err(SamplingError { name, value, rule }))
    }

    /// Whether the choice needs no random number.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Chooses from `logits` `[V]`, which are overwritten.
    ///
    /// - `previous`: prompt and new tokens so far.
    /// - `u`: uniform in [0, 1).
    ///
    /// `None` if a logit is NaN or positive infinity, or none is finite: the model is broken.
    pub fn choose(&self, logits: &mut [f32], previous: &[u32], u: f64) -> Option<u32> {
        repetition_penalty(logits, previous, self.repetition_penalty);
        if logits.iter().any(|logit| logit.is_nan()) || !largest(logits).is_finite() {
            return None;
        }
        if self.is_greedy() {
            return Some(argmax(logits));
        }
        self.warp(logits);
        Some(draw(logits, u))
    }

    /// All but the repetition penalty.
    fn warp(&self, logits: &mut [f32]) {
        temperature(logits, self.temperature);
        top_k(logits, self.top_k);
        top_p(logits, self.top_p);
        min_p(logits, self.min_p);
    }
}

/// Divides positive logits of `previous` tokens by `penalty` and multiplies negative ones. A token that came several
/// times is penalised once. Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, with the sign taken into account.
pub fn repetition_penalty(logits: &mut [f32], previous: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let penalty = penalty as f32;
    let penalised = |&id: &u32| match logits[id as usize] {
        logit if logit < 0.0 => logit * penalty,
        logit => logit / penalty,
    };
    // All are read before one is written: a second occurrence writes the same value again.
    let penalised: Vec<f32> = previous.iter().map(penalised).collect();
    for (&id, logit) in previous.iter().zip(penalised) {
        logits[id as usize] = logit;
    }
}

/// Divides all logits by `temperature`, above 0. The largest one becomes 0, so that none overflows.
pub fn temperature(logits: &mut [f32], temperature: f64) {
    if temperature == 1.0 {
        return;
    }
    let largest = largest(logits);
    for logit in logits {
        *logit = (f64::from(*logit - largest) / temperature) as f32;
    }
}

/// Keeps the `k` largest logits, and those equal to the smallest of them; 0 keeps all.
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut smallest_kept, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    for logit in logits.iter_mut().filter(|logit| **logit < smallest_kept) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Keeps the fewest likeliest tokens whose probabilities sum to at least `p`; of equally likely ones the later id is kept.
/// Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
pub fn top_p(logits: &mut [f32], p: f64) {
    if p >= 1.0 {
        return;
    }
    let largest = largest(logits);
    let weight = |id: u32| f64::from(logits[id as usize] - largest).exp();
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] > f32::NEG_INFINITY).collect();
    let by_logit = |a: &u32, b: &u32| logits[*a as usize].total_cmp(&logits[*b as usize]);
    ids.sort_unstable_by(|a, b| by_logit(a, b).then(a.cmp(b)));
    // From the least likely on, as long as what is taken out leaves p. The likeliest one stays.
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let may_go = (1.0 - p) * total;
    let mut gone = 0.0;
    let mut num_gone = 0;
    for &id in &ids[..ids.len() - 1] {
        gone += weight(id);
        if gone > may_go {
            break;
        }
        num_gone += 1;
    }
    for &id in &ids[..num_gone] {
        logits[id as usize] = f32::NEG_INFINITY;
    }
}

/// Keeps tokens at least `p` times as likely as the likeliest one. Source: Nguyen et al. 2024, arXiv:2407.01082.
pub fn min_p(logits: &mut [f32], p: f64) {
    if p == 0.0 {
        return;
    }
    let largest = largest(logits);
    for logit in logits.iter_mut().filter(|logit| f64::from(**logit - largest).exp() < p) {
        *logit = f32::NEG_INFINITY;
    }
}

/// The id of the largest logit; of equal ones the lowest, as `torch.argmax` on the CPU.
pub fn argmax(logits: &[f32]) -> u32 {
    let larger = |best: usize, id: usize| match logits[id].partial_cmp(&logits[best]) {
        Some(Ordering::Greater) => id,
        _ => best,
    };
    (0..logits.len()).fold(0, larger) as u32
}

/// The token that `u`, uniform in [0, 1), falls on when the probabilities are laid side by side in order of ids.
pub fn draw(logits: &[f32], u: f64) -> u32 {
    let largest = largest(logits);
    let weight = |logit: &f32| f64::from(*logit - largest).exp();
    let wanted = u * logits.iter().map(weight).sum::<f64>();
    let (mut sum, mut last) = (0.0, 0);
    for (id, weight) in logits.iter().map(weight).enumerate().filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = id;
        if sum > wanted {
            break;
        }
    }
    // u < 1 and the same sum in the same order: only rounding of the product can leave the loop without a break.
    last as u32
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids() {
        assert_eq!(argmax(&[0.0, 3.0, -1.0, 3.0]), 1);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(greedy.choose(&mut [GONE, GONE, -7.0, GONE], &[], 0.9), Some(2));
    }

    #[test]
    fn top_k_keeps_all_that_equal_the_last_one_kept() {
        let mut logits = [1.0, 2.0, 3.0, 2.0, 0.0];
        top_k(&mut logits, 2);
        assert_eq!(logits, [GONE, 2.0, 3.0, 2.0, GONE]);
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_p() {
        let of = |p: f64| {
            let mut logits = [0.5f32.ln(), 0.125f32.ln(), 0.25f32.ln(), 0.125f32.ln()];
            top_p(&mut logits, p);
            logits.map(|logit| logit > GONE)
        };
        assert_eq!(of(0.0), [true, false, false, false]);
        assert_eq!(of(0.49), [true, false, false, false]);
        assert_eq!(of(0.51), [true, false, true, false]);
        assert_eq!(of(0.76), [true, false, true, true]);
        assert_eq!(of(0.9), [true; 4]);
    }

    #[test]
    fn min_p_keeps_what_is_at_least_so_likely_as_a_share_of_the_likeliest() {
        let mut logits = [0.6f32.ln(), 0.31f32.ln(), 0.09f32.ln()];
        min_p(&mut logits, 0.5);
        assert_eq!(logits.map(|logit| logit > GONE), [true, true, false]);
        min_p(&mut logits, 1.0);
        assert_eq!(logits.map(|logit| logit > GONE), [true, false, false]);
    }

    #[test]
    fn a_token_seen_twice_is_penalised_once() {
        let mut logits = [2.0, -2.0, 4.0];
        repetition_penalty(&mut logits, &[0, 1, 0], 2.0);
        assert_eq!(logits, [1.0, -4.0, 4.0]);
    }

    #[test]
    fn the_smallest_temperature_still_gives_the_likeliest_token() {
        let sampling = Sampling { temperature: f64::MIN_POSITIVE, ..Sampling::default() };
        assert_eq!(sampling.choose(&mut [1e30, 2e30, -1e30], &[], 0.999_999), Some(1));
    }

    #[test]
    fn a_draw_falls_on_each_token_for_its_share_of_u() {
        let logits = [0.25f32.ln(), GONE, 0.75f32.ln(), GONE];
        assert_eq!(draw(&logits, 0.0), 0);
        assert_eq!(draw(&logits, 0.249), 0);
        assert_eq!(draw(&logits, 0.251), 2);
        assert_eq!(draw(&logits, 1.0 - f64::EPSILON / 2.0), 2);
    }

    #[test]
    fn logits_that_are_not_finite_give_no_token() {
        let sampling = Sampling::default();
        assert_eq!(sampling.choose(&mut [0.0, f32::NAN], &[], 0.5), None);
        assert_eq!(sampling.choose(&mut [0.0, f32::INFINITY], &[], 0.5), None);
        assert_eq!(sampling.choose(&mut [GONE, GONE], &[], 0.5), None);
    }

    #[test]
    fn a_setting_out_of_range_is_named_with_its_value() {
        let message = |sampling: Sampling| sampling.check().unwrap_err().to_string();
        let good = Sampling::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(
            message(Sampling { temperature: -1.0, ..good }),
            "temperature is -1; it must be a number of at least 0"
        );
        assert_eq!(message(Sampling { top_p: 1.5, ..good }), "top_p is 1.5; it must be a number from 0 to 1");
        assert_eq!(message(Sampling { min_p: f64::NAN, ..good }), "min_p is NaN; it must be a number from 0 to 1");
        assert_eq!(
            message(Sampling { repetition_penalty: 0.0, ..good }),
            "repetition_penalty is 0; it must be a number above 0"
        );
    }
}
