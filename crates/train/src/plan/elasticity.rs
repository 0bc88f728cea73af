//! Elasticity: one batch size that many numbers of ranks can train with.
//!
//! Version 0.1 looks for a multiple of a micro-batch that has many divisors; 0.2 does so for nodes and multiplies by their
//! replicas, and falls back to the number of ranks at hand when that is none of the found ones.
//! Source: DeepSpeed `elasticity/elasticity.py`, which this follows in its oddities too: fewer ranks than one node has are
//! no limit, and the micro-batch is the largest that divides, whatever `prefer_larger_batch` says. Where it ends in a
//! `TypeError` because no number of ranks suits, we fall back (0.2) or say so (0.1).

use super::batch::Batch;
use crate::config::ElasticityConfig;
use std::collections::BTreeSet;

/// Highly composite numbers: each has more divisors than any below it (with those that DeepSpeed leaves out left out).
const MANY_DIVISORS: [u64; 38] = [
    1, 2, 4, 6, 12, 24, 36, 48, 60, 120, 180, 240, 360, 720, 840, 1260, 1680, 2520, 5040, 7560, 10080, 15120, 20160,
    25200, 27720, 45360, 50400, 55440, 83160, 110_880, 166_320, 221_760, 277_200, 332_640, 498_960, 554_400, 665_280,
    720_720,
];

/// A batch size and the numbers of data-parallel ranks that divide it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elastic {
    /// Samples of one optimizer step.
    pub train_batch_size: u64,
    /// Data-parallel ranks, ascending.
    pub valid_ranks: Vec<u64>,
}

impl Elastic {
    /// The batch size for `ranks` data-parallel ranks.
    ///
    /// # Errors
    /// A sentence that begins with the key at fault.
    pub fn resolve(config: &ElasticityConfig, ranks: u64) -> Result<Self, String> {
        let per_node = config.num_gpus_per_node / config.model_parallel_size;
        if config.version < 0.2 {
            let (max_batch, min_ranks, max_ranks) = (config.max_train_batch_size, config.min_gpus, config.max_gpus);
            return Self::first_version(config, max_batch, min_ranks, max_ranks)?.ok_or_else(|| {
                format!(
                    "elasticity finds no batch of at most {max_batch} samples for {min_ranks} to {max_ranks} ranks; widen \
                     elasticity.min_gpus and max_gpus, or make max_train_batch_size larger"
                )
            });
        }
        let node = config.num_gpus_per_node;
        let nodes = Self::first_version(
            config,
            config.max_train_batch_size / per_node,
            config.min_gpus / node,
            config.max_gpus / node,
        );
        if let Some(found) = nodes? {
            let valid_ranks: Vec<u64> = found.valid_ranks.iter().map(|nodes| nodes * per_node).collect();
            if valid_ranks.contains(&ranks) {
                return Ok(Self { train_batch_size: found.train_batch_size * per_node, valid_ranks });
            }
        }
        let largest = |micro: &u64| {
            let step = micro.saturating_mul(ranks);
            config.max_train_batch_size / step * step
        };
        // DeepSpeed takes 0 samples where a micro-batch does not fit and the smallest batch is wanted.
        let sizes = config.micro_batch_sizes.iter().map(largest).filter(|size| *size > 0);
        let size = if config.prefer_larger_batch { sizes.max() } else { sizes.min() };
        match size {
            Some(train_batch_size) => Ok(Self { train_batch_size, valid_ranks: vec![ranks] }),
            None => Err(format!(
                "elasticity.max_train_batch_size is {}, which is less than a micro-batch for each of {ranks} ranks; make \
                 it larger",
                config.max_train_batch_size
            )),
        }
    }

    /// `max_ranks` 0: no limit but the batch. None if no number of ranks suits.
    fn first_version(
        config: &ElasticityConfig,
        max_batch: u64,
        min_ranks: u64,
        max_ranks: u64,
    ) -> Result<Option<Self>, String> {
        let micros = &config.micro_batch_sizes;
        if let Some(micro) = micros.iter().find(|micro| **micro > max_batch) {
            return Err(format!("elasticity.micro_batch_sizes has {micro}; each must be at most {max_batch}"));
        }
        let max_ranks = match (max_ranks, micros.iter().min()) {
            (0, Some(smallest)) => max_batch / smallest,
            _ => max_ranks,
        };
        let multiple = micros.iter().try_fold(1, |all, micro| least_common_multiple(all, *micro));
        // The micro-batches have been held against the largest batch, their common multiple has not.
        let bases = micros.iter().copied().chain(multiple.filter(|multiple| *multiple <= max_batch));
        let candidates: BTreeSet<u64> = bases.map(|base| base * many_divisors_below(max_batch / base)).collect();
        let mut best: Option<Self> = None;
        for train_batch_size in candidates {
            let valid_ranks = valid_ranks(train_batch_size, micros, min_ranks, max_ranks);
            // Candidates ascend, so that the later of equals is the larger batch.
            let is_better = best.as_ref().is_none_or(|best| match valid_ranks.len().cmp(&best.valid_ranks.len()) {
                std::cmp::Ordering::Equal => config.prefer_larger_batch,
                order => order.is_gt(),
            });
            if is_better && !valid_ranks.is_empty() {
                best = Some(Self { train_batch_size, valid_ranks });
            }
        }
        Ok(best)
    }

    /// The batch sizes of a run file on `ranks` data-parallel ranks.
    ///
    /// # Errors
    /// As [`Elastic::resolve`], or no micro-batch divides the share of a rank.
    pub fn batch(config: &ElasticityConfig, ranks: u64) -> Result<Batch, String> {
        let elastic = Self::resolve(config, ranks)?;
        let train_batch_size = elastic.train_batch_size;
        if !elastic.valid_ranks.contains(&ranks) {
            let (count, few) = (elastic.valid_ranks.len(), shown(&elastic.valid_ranks));
            return Err(format!(
                "elasticity gives train_batch_size {train_batch_size}, which {ranks} data-parallel ranks cannot share; \
                 take one of these {count} numbers of ranks: {few}"
            ));
        }
        let share = train_batch_size / ranks;
        let fits = |micro: &&u64| share.is_multiple_of(**micro);
        let Some(&micro_batch_size) = config.micro_batch_sizes.iter().filter(fits).max() else {
            return Err(format!(
                "elasticity gives train_batch_size {train_batch_size}, and none of elasticity.micro_batch_sizes {:?} \
                 divides {share}, the share of one of {ranks} ranks",
                config.micro_batch_sizes
            ));
        };
        let accumulation_steps = train_batch_size / (micro_batch_size * ranks);
        Batch::resolve(Some(train_batch_size), Some(micro_batch_size), Some(accumulation_steps), ranks)
            .map_err(|error| format!("elasticity: {error}"))
    }
}

/// Numbers of ranks that share `batch` in whole micro-batches of one of `micros`.
fn valid_ranks(batch: u64, micros: &[u64], min: u64, max: u64) -> Vec<u64> {
    let divisors = (1..=batch.isqrt()).filter(|small| batch.is_multiple_of(*small));
    let fits = |ranks: &u64| {
        (min.max(1)..=max).contains(ranks) && micros.iter().any(|micro| (batch / ranks).is_multiple_of(*micro))
    };
    let ranks: BTreeSet<u64> = divisors.flat_map(|small| [small, batch / small]).filter(fits).collect();
    ranks.into_iter().collect()
}

/// The largest of [`MANY_DIVISORS`] up to `limit`; 1 below them.
fn many_divisors_below(limit: u64) -> u64 {
    MANY_DIVISORS.iter().copied().take_while(|number| *number <= limit).last().unwrap_or(1)
}

/// None if it does not fit.
fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).checked_mul(b)
}

/// The first of many numbers.
fn shown(numbers: &[u64]) -> String {
    const MOST: usize = 12;
    let first: Vec<String> = numbers.iter().take(MOST).map(u64::to_string).collect();
    first.join(", ") + if numbers.len() > MOST { ", ..." } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use serde_json::{Value, json};

    fn config(section: Value) -> ElasticityConfig {
        let mut section = section;
        section["enabled"] = json!(true);
        RunConfig::from_value(json!({"elasticity": section}), "r.json").unwrap().elasticity
    }

    #[test]
    fn the_batch_with_most_numbers_of_ranks_is_chosen() {
        let config =
            config(json!({"max_train_batch_size": 10_000, "micro_batch_sizes": [8, 12, 16, 17], "min_gpus": 32,
                                   "max_gpus": 1500, "version": 0.1}));
        let elastic = Elastic::resolve(&config, 64).unwrap();
        assert_eq!(elastic.train_batch_size, 9792);
        assert_eq!(elastic.valid_ranks.len(), 23);
        for ranks in &elastic.valid_ranks {
            let per_rank = 9792 / ranks;
            assert!([8, 12, 16, 17].iter().any(|micro| per_rank % micro == 0), "{ranks} ranks");
        }
    }

    #[test]
    fn one_rank_takes_the_largest_micro_batch_that_divides() {
        let elastic = config(json!({"max_train_batch_size": 2000, "micro_batch_sizes": [2, 4, 6]}));
        let batch = Elastic::batch(&elastic, 1).unwrap();
        // 840 x 2: 840 has 32 divisors, more than any product with 4, 6 or their common multiple 12.
        let sizes = (batch.train_batch_size, batch.micro_batch_size, batch.accumulation_steps);
        assert_eq!(sizes, (1680, 6, 280));
    }

    #[test]
    fn the_common_multiple_is_no_candidate_above_the_largest_batch() {
        // 42, the common multiple, would suit as many numbers of ranks as 24 and is larger.
        let config = config(json!({"max_train_batch_size": 32, "micro_batch_sizes": [1, 2, 3, 7], "version": 0.1}));
        let elastic = Elastic { train_batch_size: 24, valid_ranks: vec![1, 2, 3, 4, 6, 8, 12, 24] };
        assert_eq!(Elastic::resolve(&config, 4), Ok(elastic));
        let batch = Elastic::batch(&config, 4).unwrap();
        assert_eq!((batch.train_batch_size, batch.micro_batch_size, batch.accumulation_steps), (24, 3, 2));
        let within = ElasticityConfig { max_train_batch_size: 100, micro_batch_sizes: vec![8, 10, 12], ..config };
        assert!(Elastic::resolve(&within, 1).unwrap().train_batch_size <= 100);
    }

    #[test]
    fn the_micro_batch_is_the_largest_that_divides_even_where_the_smaller_batch_is_preferred() {
        let section = json!({"max_train_batch_size": 48, "micro_batch_sizes": [2, 4], "prefer_larger_batch": false});
        let batch = Elastic::batch(&config(section), 1).unwrap();
        assert_eq!((batch.train_batch_size, batch.micro_batch_size), (48, 4));
    }

    #[test]
    fn version_0_2_counts_in_nodes_and_multiplies_by_their_replicas() {
        let section = json!({"max_train_batch_size": 400, "micro_batch_sizes": [4], "num_gpus_per_node": 8,
                             "model_parallel_size": 2, "max_gpus": 4});
        let config = config(section);
        // 100 samples for each replica of a node: 4 x 24, shared by 1, 2, 3, 4, 6, 8, 12 or 24 nodes of 4 replicas. Less
        // than a node of ranks is no limit.
        let elastic = Elastic { train_batch_size: 384, valid_ranks: vec![4, 8, 12, 16, 24, 32, 48, 96] };
        assert_eq!(Elastic::resolve(&config, 4), Ok(elastic));
        let large = ElasticityConfig { micro_batch_sizes: vec![4, 101], ..config };
        assert_eq!(
            Elastic::resolve(&large, 4).unwrap_err(),
            "elasticity.micro_batch_sizes has 101; each must be at most 100"
        );
    }

    #[test]
    fn the_largest_batches_are_shared_out_at_once() {
        let section = json!({"max_train_batch_size": 1u64 << 31, "micro_batch_sizes": [1, 1400], "num_gpus_per_node": 2,
                             "max_gpus": 1});
        let elastic = Elastic::resolve(&config(section), 2).unwrap();
        let (batch, ranks) = (elastic.train_batch_size, &elastic.valid_ranks);
        assert!(ranks.is_sorted() && ranks.iter().all(|ranks| batch.is_multiple_of(*ranks)), "{batch} {ranks:?}");
    }

    #[test]
    fn a_micro_batch_that_does_not_fit_the_ranks_at_hand_leaves_the_choice_to_the_others() {
        let section = json!({"max_train_batch_size": 10, "micro_batch_sizes": [2, 6], "prefer_larger_batch": false});
        assert_eq!(Elastic::resolve(&config(section), 3).unwrap().train_batch_size, 6);
    }

    #[test]
    fn version_0_2_falls_back_to_the_ranks_at_hand_and_0_1_refuses_them() {
        let section = |version: f64| {
            config(json!({"max_train_batch_size": 100, "micro_batch_sizes": [8], "max_gpus": 12, "version": version}))
        };
        // 8 x 12 = 96 samples are shared by 1, 2, 3, 4, 6 or 12 ranks; 7 ranks take 7 x 8.
        assert_eq!(Elastic::resolve(&section(0.1), 7).unwrap().valid_ranks, [1, 2, 3, 4, 6, 12]);
        assert_eq!(Elastic::resolve(&section(0.2), 7), Ok(Elastic { train_batch_size: 56, valid_ranks: vec![7] }));
        assert_eq!(
            Elastic::batch(&section(0.1), 7).unwrap_err(),
            "elasticity gives train_batch_size 96, which 7 data-parallel ranks cannot share; take one of these 6 numbers \
             of ranks: 1, 2, 3, 4, 6, 12"
        );
    }
}
