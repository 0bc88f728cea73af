//! What does not go together with several data-parallel ranks: refused by name, before there are any.
//!
//! Sums over ranks are f32; ranks that share masters have weights in the compute format alone beside their share; and what is
//! decided in a step must follow from numbers that every rank has.

use crate::config::{ConfigError, RunConfig};
use crate::precision::Formats;
use crate::precision::half::Halves;

/// Refuses what `ranks` data-parallel ranks cannot do.
///
/// # Errors
/// The key, and what to do.
pub(super) fn check(config: &RunConfig, ranks: u64) -> Result<(), ConfigError> {
    if ranks == 1 {
        return Ok(());
    }
    let (run, stage) = (&config.run, config.zero_optimization.stage);
    if run.deterministic && !ranks.is_power_of_two() {
        return Err(config.error(format!(
            "run.deterministic is true on {ranks} data-parallel ranks; sums along a binary tree need 1, 2, 4, 8, ...: change \
             --ranks, or leave run.deterministic out"
        )));
    }
    if run.norms_every > 0 && stage > 0 {
        return Err(config.error(format!(
            "run.norms_every is {} and ranks share by zero_optimization.stage {stage}; norms of blocks are taken of whole \
             gradients: take stage 0 or --ranks 1, or leave run.norms_every out",
            run.norms_every
        )));
    }
    if let Some(key) = key_of_halves(config) {
        return Err(config.error_of(
            &[key],
            format!(
                "{key} keeps weights or gradients in 16 bits, and {ranks} data-parallel ranks add gradients in f32: take --ranks 1, \
                 or leave {key} out"
            ),
        ));
    }
    if run.adaptive_precision.is_some() {
        return Err(config.error_of(
            &["run.adaptive_precision"],
            format!(
                "run.adaptive_precision is given on {ranks} data-parallel ranks; what one rank sees in its own micro-batches does \
                 not reach the others: take --ranks 1, or leave it out"
            ),
        ));
    }
    if stage > 0 && !Formats::of(config)?.is_uniform() {
        let key = if config.torch_autocast.enabled { "torch_autocast" } else { "run.precision" };
        return Err(config.error_of(
            &[key, "zero_optimization.stage"],
            format!(
                "{key} gives ops formats of their own, and {ranks} data-parallel ranks share by zero_optimization.stage {stage}; ops \
                 in f32 read f32 weights, of which a rank has its share alone: take stage 0 or --ranks 1, or leave {key} out"
            ),
        ));
    }
    Ok(())
}

/// The key by which masters or sums of gradients are kept in 16 bits, if one does.
fn key_of_halves(config: &RunConfig) -> Option<&'static str> {
    let Halves { masters, gradients } = Halves::of(config);
    match masters {
        Some(_) if config.fp16.enabled => Some("fp16.fp16_master_weights_and_grads"),
        Some(_) => Some("bf16.bf16_master_weights_and_grads"),
        None => gradients.map(|_| "data_types.grad_accum_dtype"),
    }
}
