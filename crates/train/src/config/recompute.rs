//! The words for recompute: `run.recompute`, and DeepSpeed's two that say the same.
//!
//! | key | [`Recompute`] |
//! | --- | --- |
//! | `run.recompute: true` | every layer by itself |
//! | `run.recompute: {"segment": n}`, `pipeline.activation_checkpoint_interval: n` | n layers at a time |
//! | `run.recompute: {"every": n}` | one layer in n |
//! | `run.recompute: {"ops": [...]}` | some ops of every block |
//! | `activation_checkpointing.number_checkpoints: n` | n segments |
//!
//! In DeepSpeed the last one sizes a buffer for as many saved inputs as the program makes; here it makes them.

use super::check::{Fault, shown};
use super::resolve;
use super::{ConfigError, RunConfig, keys::join};
use models::{Model, Recompute};
use ops::RecomputedOp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `run.recompute`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum RecomputeConfig {
    /// Every layer by itself, or none.
    All(bool),
    /// Exactly one of its fields is given.
    Some(RecomputeChoice),
}

/// What is run again.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct RecomputeChoice {
    /// One layer in so many.
    pub every: Option<usize>,
    /// So many layers at a time.
    pub segment: Option<usize>,
    /// Names of [`RecomputedOp`]s.
    pub ops: Option<Vec<String>>,
}

/// The `activation_checkpointing` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ActivationCheckpointingConfig {
    /// Segments that the layers are cut into.
    pub number_checkpoints: Option<usize>,
}

/// The `pipeline` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PipelineConfig {
    /// Layers of one segment; 0: nothing is run again.
    pub activation_checkpoint_interval: usize,
}

impl RecomputeConfig {
    /// None where it asks for nothing.
    fn asked(&self) -> Option<Recompute> {
        match self {
            Self::All(on) => on.then_some(Recompute::Segments(1)),
            Self::Some(RecomputeChoice { every: Some(step), .. }) => Some(Recompute::Every(*step)),
            Self::Some(RecomputeChoice { segment: Some(length), .. }) => Some(Recompute::Segments(*length)),
            Self::Some(RecomputeChoice { ops, .. }) => {
                let named = |name: &String| RecomputedOp::ALL.into_iter().find(|op| op.name() == name);
                Some(Recompute::Ops(ops.as_ref()?.iter().filter_map(named).collect()))
            }
        }
    }
}

impl RunConfig {
    /// What of the forward pass is run again in backward.
    pub fn recompute(&self) -> Recompute {
        let parts = self.activation_checkpointing.number_checkpoints.filter(|parts| *parts > 0);
        let length = Some(self.pipeline.activation_checkpoint_interval).filter(|length| *length > 0);
        let asked = self.run.recompute.asked().or(parts.map(Recompute::Parts)).or(length.map(Recompute::Segments));
        asked.unwrap_or_default()
    }

    /// Refuses one layer in more than the model has: none would be run again.
    pub(crate) fn check_recompute(&self, model: &Model) -> Result<(), ConfigError> {
        let num_layers = model.blocks.len().saturating_sub(2);
        match self.recompute() {
            Recompute::Every(step) if step > num_layers => Err(self.error(format!(
                "run.recompute.every is {step}; it must be at most {num_layers}, the layers of the model"
            ))),
            _ => Ok(()),
        }
    }
}

/// One key at most may ask for recompute, and a section for one kind of it.
pub(super) fn check(root: &Map<String, Value>) -> Result<(), Fault> {
    const RUN: &str = "run.recompute";
    let given = |path: &str| resolve::at(root, path).filter(|value| !value.is_null());
    if given(RUN).is_some_and(Value::is_object) {
        let kinds: Vec<_> =
            ["every", "segment", "ops"].into_iter().filter(|kind| given(&join(RUN, kind)).is_some()).collect();
        if kinds.len() != 1 {
            let found = if kinds.is_empty() { "no kind".to_owned() } else { kinds.join(" and ") };
            let message = format!("{RUN} has {found}; it must be true, false or hold one of every, segment and ops");
            return Err(Fault { path: RUN.to_owned(), message });
        }
        let ops = join(RUN, "ops");
        if given(&ops).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            return Err(Fault { message: format!("{ops} is []; it must name at least one op"), path: ops });
        }
    }
    let asks = |value: &&Value| **value != false && value.as_u64() != Some(0);
    let keys = [RUN, "activation_checkpointing.number_checkpoints", "pipeline.activation_checkpoint_interval"];
    let asking: Vec<_> = keys.into_iter().filter_map(|key| Some((key, given(key).filter(asks)?))).collect();
    if let [(first, a), (second, b), ..] = asking[..] {
        let message = format!("{first} is {} and {second} is {}; keep one of them", shown(a), shown(b));
        return Err(Fault { path: second.to_owned(), message });
    }
    Ok(())
}
