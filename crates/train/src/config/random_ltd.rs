//! The `data_efficiency` section, as far as it is honoured: random layer-wise token dropping.

use super::check::{Fault, shown};
use super::keys::join;
use super::resolve;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The `data_efficiency` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DataEfficiencyConfig {
    /// The switch around all others.
    pub enabled: bool,
    /// Goes with `run.seed` into the draw of kept tokens.
    pub seed: u64,
    /// Token dropping.
    pub data_routing: DataRoutingConfig,
}

/// `data_efficiency.data_routing`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DataRoutingConfig {
    /// The switch around random-LTD.
    pub enabled: bool,
    /// Random layer-wise token dropping.
    pub random_ltd: RandomLtdConfig,
}

/// `data_efficiency.data_routing.random_ltd`. Where it is on, everything is given.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RandomLtdConfig {
    /// Whether layers drop tokens.
    pub enabled: bool,
    /// Layers of the model.
    pub total_layer_num: Option<usize>,
    /// Layers that drop tokens.
    pub random_ltd_layer_num: Option<usize>,
    /// Which, counted from 0.
    pub random_ltd_layer_id: Vec<usize>,
    /// `decoder`.
    pub model_type: Option<String>,
    /// Tokens that are kept over the steps.
    pub random_ltd_schedule: RandomLtdSchedule,
}

/// `random_ltd_schedule`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RandomLtdSchedule {
    /// Tokens of a row that are kept at first.
    pub min_value: Option<u64>,
    /// Tokens of a row that are kept in the end.
    pub max_value: Option<u64>,
    /// `fixed_linear`.
    pub schedule_type: String,
    /// How the number grows.
    pub schedule_config: RandomLtdGrowth,
}

/// `schedule_config` of random-LTD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RandomLtdGrowth {
    /// Steps from the first number to the last.
    pub require_steps: Option<u64>,
    /// What the numbers on the way are multiples of.
    pub seq_per_step: Option<u64>,
}

impl DataEfficiencyConfig {
    /// Random-LTD, if it and everything around it is on.
    pub(crate) fn random_ltd(&self) -> Option<&RandomLtdConfig> {
        let ltd = &self.data_routing.random_ltd;
        (self.enabled && self.data_routing.enabled && ltd.enabled).then_some(ltd)
    }
}

/// Where random-LTD is on, everything it needs must be there and fit together. `filled`: the whole file, defaults filled in.
pub(super) fn check(filled: &Map<String, Value>) -> Result<(), Fault> {
    const LTD: &str = "data_efficiency.data_routing.random_ltd";
    let value = |path: &str| resolve::at(filled, path).filter(|value| !value.is_null());
    let is_on = |section: &str| value(&join(section, "enabled")) == Some(&Value::Bool(true));
    if !["data_efficiency", "data_efficiency.data_routing", LTD].into_iter().all(is_on) {
        return Ok(());
    }
    let at = |name: &str| join(LTD, name);
    let fault = |path: String, message: String| Err(Fault { message: format!("{path} {message}"), path });
    let [min, max, require, step] =
        ["min_value", "max_value", "schedule_config.require_steps", "schedule_config.seq_per_step"]
            .map(|name| join(&at("random_ltd_schedule"), name));
    let (count, ids) = (at("random_ltd_layer_num"), at("random_ltd_layer_id"));
    for needed in [&at("total_layer_num"), &count, &min, &max, &require, &step] {
        if value(needed).is_none() {
            return fault(needed.clone(), "is missing; random_ltd needs it".to_owned());
        }
    }
    let number = |path: &str| value(path).and_then(Value::as_u64).unwrap_or(0);
    let kind = at("model_type");
    if value(&kind).is_some_and(|kind| kind == "encoder") {
        return fault(kind, "is \"encoder\"; the models here are decoders: it must be \"decoder\"".to_owned());
    }
    let listed = value(&ids).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if let Some(twice) = (1..listed.len()).find(|i| listed[..*i].contains(&listed[*i])) {
        return fault(format!("{ids}[{twice}]"), format!("is {}, which stands there twice", shown(&listed[twice])));
    }
    if number(&count) != listed.len() as u64 {
        let message =
            format!("is {}; random_ltd_layer_id names {}, and the two must agree", number(&count), listed.len());
        return fault(count, message);
    }
    if number(&min) > number(&max) {
        return fault(max.clone(), format!("is {}; it must be at least {}, the min_value", number(&max), number(&min)));
    }
    if number(&min) < number(&step) && number(&min) < number(&max) {
        let rule = "the seq_per_step: numbers of tokens are rounded down to multiples of it";
        return fault(min.clone(), format!("is {}; it must be at least {}, {rule}", number(&min), number(&step)));
    }
    Ok(())
}
