//! The batch triangle: `train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks`.
//!
//! From any two of the three keys follows the third, by DeepSpeed's rules and with its integer division; from the first
//! or the second alone follow the others with one accumulation step. Ranks are data-parallel ranks.
//! Source: DeepSpeed `runtime/config.py`, `_set_batch_related_parameters`.

use super::elasticity::Elastic;
use crate::config::{ConfigError, RunConfig};
use serde_json::Value;

/// The three batch sizes of a run: all at least 1, and their product with the ranks fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Samples of one optimizer step over all ranks.
    pub train_batch_size: u64,
    /// Samples of one forward on one rank.
    pub micro_batch_size: u64,
    /// Micro-batches of one optimizer step.
    pub accumulation_steps: u64,
}

/// Tokens of one optimizer step: its samples are in memory together.
const MAX_STEP_TOKENS: u64 = 1 << 31;
/// Tokens of one micro-batch: hundreds of times what any accelerator holds the activations of.
pub(crate) const MAX_MICRO_BATCH_TOKENS: u64 = 1 << 24;

/// The keys of the triangle.
pub(crate) const BATCH_KEYS: [&str; 3] =
    ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"];
/// Keys that choose the sizes in their place.
const ELASTIC_KEYS: [&str; 9] = [
    "elasticity.enabled",
    "elasticity.max_train_batch_size",
    "elasticity.micro_batch_sizes",
    "elasticity.min_gpus",
    "elasticity.max_gpus",
    "elasticity.num_gpus_per_node",
    "elasticity.model_parallel_size",
    "elasticity.prefer_larger_batch",
    "elasticity.version",
];

/// A number and where it came from, as a message says it.
struct Sourced {
    number: u64,
    origin: String,
}

fn given(number: u64) -> Sourced {
    Sourced { number, origin: "given".into() }
}

fn given_or_one(number: Option<u64>) -> Sourced {
    number.map_or_else(|| Sourced { number: 1, origin: "default".into() }, given)
}

fn derived(number: u64, how: String) -> Sourced {
    Sourced { number, origin: format!("derived: {how}") }
}

impl Batch {
    /// The batch sizes of a run file on `ranks` data-parallel ranks; elasticity, if it is on, chooses them.
    ///
    /// # Errors
    /// As [`Batch::resolve`], with the file's name.
    pub fn of(config: &RunConfig, ranks: u64) -> Result<Self, ConfigError> {
        if config.elasticity.enabled {
            let error = |message| config.error_of(&ELASTIC_KEYS, message);
            return Elastic::batch(&config.elasticity, ranks).map_err(error);
        }
        let (train, micro) = (config.train_batch_size, config.train_micro_batch_size_per_gpu);
        let batch = Self::resolve(train, micro, config.gradient_accumulation_steps, ranks);
        batch.map_err(|message| config.error_of(&BATCH_KEYS, message))
    }

    /// What follows from the keys that are given, on `ranks` data-parallel ranks.
    ///
    /// # Errors
    /// Neither `train_batch_size` nor `train_micro_batch_size_per_gpu` is given, or the product does not fit. The
    /// message says where each number came from.
    ///
    /// # Panics
    /// If `ranks` is 0.
    pub fn resolve(
        train_batch_size: Option<u64>,
        micro_batch_size: Option<u64>,
        accumulation_steps: Option<u64>,
        ranks: u64,
    ) -> Result<Self, ConfigError> {
        assert!(ranks >= 1, "Batch::resolve: {ranks} ranks");
        let (train, micro, steps) = match (train_batch_size, micro_batch_size, accumulation_steps) {
            (Some(train), Some(micro), Some(steps)) => (given(train), given(micro), given(steps)),
            (Some(train), Some(micro), None) => {
                let steps = train.checked_div(micro).unwrap_or(0) / ranks;
                (given(train), given(micro), derived(steps, format!("{train} / {micro} / {ranks}")))
            }
            (Some(train), None, steps) => {
                let micro = (train / ranks).checked_div(steps.unwrap_or(1)).unwrap_or(0);
                let how = format!("{train} / {ranks} / {}", steps.unwrap_or(1));
                (given(train), derived(micro, how), given_or_one(steps))
            }
            (None, Some(micro), steps) => {
                let train = micro.saturating_mul(steps.unwrap_or(1)).saturating_mul(ranks);
                let how = format!("{micro} x {} x {ranks}", steps.unwrap_or(1));
                (derived(train, how), given(micro), given_or_one(steps))
            }
            (None, None, steps) => {
                let also = steps.map_or(String::new(), |steps| format!(" (gradient_accumulation_steps is {steps})"));
                return Err(ConfigError::new(format!(
                    "neither train_batch_size nor train_micro_batch_size_per_gpu is given{also}; give one of them as a \
                     number"
                )));
            }
        };
        let product = (u128::from(micro.number) * u128::from(steps.number)).saturating_mul(u128::from(ranks));
        if product == 0 || product != u128::from(train.number) {
            let advice = advice(micro_batch_size, accumulation_steps, ranks);
            return Err(misfit(&train, &micro, &steps, ranks, product, &advice));
        }
        Ok(Self { train_batch_size: train.number, micro_batch_size: micro.number, accumulation_steps: steps.number })
    }

    /// Refuses steps and micro-batches that no machine holds and no kernel counts.
    pub(crate) fn check_size(&self, sequence_length: usize) -> Result<(), ConfigError> {
        let sizes = [
            (BATCH_KEYS[0], self.train_batch_size, MAX_STEP_TOKENS),
            (BATCH_KEYS[1], self.micro_batch_size, MAX_MICRO_BATCH_TOKENS),
        ];
        for (key, rows, most) in sizes {
            if rows.saturating_mul(sequence_length as u64) > most {
                return Err(ConfigError::new(format!(
                    "{key} is {rows}; with rows of {sequence_length} tokens it must be at most {}",
                    most / sequence_length as u64
                )));
            }
        }
        Ok(())
    }

    /// The three keys with their final values, for [`RunConfig::resolved`].
    pub fn derived(&self) -> [(&'static str, Value); 3] {
        let [train, micro, steps] = BATCH_KEYS;
        [
            (train, self.train_batch_size.into()),
            (micro, self.micro_batch_size.into()),
            (steps, self.accumulation_steps.into()),
        ]
    }
}

/// What would fit, given what the user fixed beside the batch size.
fn advice(micro: Option<u64>, steps: Option<u64>, ranks: u64) -> String {
    let unit = (u128::from(micro.unwrap_or(1)) * u128::from(steps.unwrap_or(1))).saturating_mul(u128::from(ranks));
    match (micro, steps) {
        (Some(_), Some(_)) => format!("make train_batch_size {unit}, or leave one of the three out"),
        _ => format!("make train_batch_size a multiple of {unit}"),
    }
}

fn misfit(train: &Sourced, micro: &Sourced, steps: &Sourced, ranks: u64, product: u128, advice: &str) -> ConfigError {
    let plural = if ranks == 1 { "" } else { "s" };
    ConfigError::new(format!(
        "train_batch_size is {} ({}), but train_micro_batch_size_per_gpu {} ({}) x gradient_accumulation_steps {} ({}) \
         x {ranks} data-parallel rank{plural} is {product}; {advice}",
        train.number, train.origin, micro.number, micro.origin, steps.number, steps.origin
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(train: Option<u64>, micro: Option<u64>, steps: Option<u64>, ranks: u64) -> (u64, u64, u64) {
        let batch = Batch::resolve(train, micro, steps, ranks).unwrap();
        (batch.train_batch_size, batch.micro_batch_size, batch.accumulation_steps)
    }

    fn refusal(train: Option<u64>, micro: Option<u64>, steps: Option<u64>, ranks: u64) -> String {
        Batch::resolve(train, micro, steps, ranks).unwrap_err().to_string()
    }

    #[test]
    fn any_two_give_the_third_and_one_gives_both_others() {
        assert_eq!(sizes(Some(32), Some(4), Some(4), 2), (32, 4, 4));
        assert_eq!(sizes(Some(32), Some(4), None, 2), (32, 4, 4));
        assert_eq!(sizes(Some(32), None, Some(4), 2), (32, 4, 4));
        assert_eq!(sizes(None, Some(4), Some(4), 2), (32, 4, 4));
        assert_eq!(sizes(Some(32), None, None, 2), (32, 16, 1));
        assert_eq!(sizes(None, Some(4), None, 2), (8, 4, 1));
    }

    #[test]
    fn a_batch_that_does_not_divide_says_where_each_number_came_from() {
        assert_eq!(
            refusal(Some(33), Some(16), None, 1),
            "train_batch_size is 33 (given), but train_micro_batch_size_per_gpu 16 (given) x \
             gradient_accumulation_steps 2 (derived: 33 / 16 / 1) x 1 data-parallel rank is 32; \
             make train_batch_size a multiple of 16"
        );
        assert_eq!(
            refusal(Some(10), None, Some(4), 2),
            "train_batch_size is 10 (given), but train_micro_batch_size_per_gpu 1 (derived: 10 / 2 / 4) x \
             gradient_accumulation_steps 4 (given) x 2 data-parallel ranks is 8; make train_batch_size a multiple of 8"
        );
        assert_eq!(
            refusal(Some(7), None, None, 2),
            "train_batch_size is 7 (given), but train_micro_batch_size_per_gpu 3 (derived: 7 / 2 / 1) x \
             gradient_accumulation_steps 1 (default) x 2 data-parallel ranks is 6; make train_batch_size a \
             multiple of 2"
        );
        assert_eq!(
            refusal(Some(32), Some(4), Some(3), 1),
            "train_batch_size is 32 (given), but train_micro_batch_size_per_gpu 4 (given) x \
             gradient_accumulation_steps 3 (given) x 1 data-parallel rank is 12; \
             make train_batch_size 12, or leave one of the three out"
        );
    }

    #[test]
    fn a_batch_smaller_than_its_micro_batch_is_refused_and_not_rounded_to_nothing() {
        assert_eq!(
            refusal(Some(2), Some(16), None, 1),
            "train_batch_size is 2 (given), but train_micro_batch_size_per_gpu 16 (given) x \
             gradient_accumulation_steps 0 (derived: 2 / 16 / 1) x 1 data-parallel rank is 0; \
             make train_batch_size a multiple of 16"
        );
    }

    #[test]
    fn accumulation_steps_alone_are_not_enough() {
        assert_eq!(
            refusal(None, None, Some(4), 1),
            "neither train_batch_size nor train_micro_batch_size_per_gpu is given (gradient_accumulation_steps is 4); \
             give one of them as a number"
        );
    }

    #[test]
    fn numbers_too_large_for_their_product_are_refused_without_overflow() {
        assert!(refusal(None, Some(u64::MAX), Some(u64::MAX), 8).contains("is 18446744073709551615"));
        assert!(refusal(Some(0), Some(0), None, 1).contains("is 0"));
    }
}
