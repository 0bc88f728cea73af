//! Norms of gradient and weights, block by block: where a run begins to go wrong shows here before it shows in the loss.
//!
//! Both are L2 norms over the trained parameters of a block, taken before the step's update: of the mean gradient (with
//! penalties and clipped by value, before clipping by norm and noise) and of the f32 weights. A tied weight counts for the
//! block that declared it. The squares of all blocks' gradient norms add up to that of `grad_norm`.

use crate::error::Result;
use crate::grad_norm::norm;
use crate::state::TrainState;
use models::Model;
use ops::ParamId;
use parallel::Owned;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use tensor::{Queue, Tensor};

/// The norms of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockNorms {
    /// Its name.
    pub block: String,
    /// Of its part of the mean gradient; not finite if an element is not.
    pub gradient: f64,
    /// Of its trained weights.
    pub weight: f64,
}

/// The norms of every block with a trained parameter. `gradients`: whole ones; `to_mean`: what makes these sums their mean.
pub(crate) fn of_blocks(
    queue: &Queue,
    model: &Model,
    state: &TrainState,
    gradients: &[Owned],
    to_mean: f64,
) -> Result<Vec<BlockNorms>> {
    let weights: Vec<(ParamId, &Tensor)> = state.trained().collect();
    let (mut counted, mut norms) = (BTreeSet::new(), Vec::new());
    for block in &model.blocks {
        let own: BTreeSet<ParamId> = block.params.iter().copied().filter(|id| counted.insert(*id)).collect();
        let gradient = gradients.iter().filter(|owned| own.contains(&owned.id)).map(|owned| &owned.grad);
        let weight: Vec<&Tensor> =
            weights.iter().filter(|(id, _)| own.contains(id)).map(|(_, weight)| *weight).collect();
        if !weight.is_empty() {
            let gradient = to_mean * norm(queue, gradient)?;
            norms.push(BlockNorms { block: block.name.clone(), gradient, weight: norm(queue, weight.into_iter())? });
        }
    }
    Ok(norms)
}

/// As `metrics.jsonl` has them: `{block: [gradient, weight]}`, null where a norm is not finite.
pub(crate) fn to_json(norms: &[BlockNorms]) -> Map<String, Value> {
    norms.iter().map(|norms| (norms.block.clone(), json!([norms.gradient, norms.weight]))).collect()
}
