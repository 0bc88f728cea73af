//! The update rule as a run file names it.
//!
//! Defaults are the table's alone ([`super::keys`]): these types are read from a file whose absent keys are filled in.

use optim::{AdamW, Moments, Optimizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The `optimizer` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct OptimizerConfig {
    /// `type` and `params`.
    #[serde(flatten)]
    pub rule: OptimizerRule,
    /// Globs over weight names: what matches does not decay.
    pub no_decay: Vec<String>,
    /// Weights with settings of their own; a weight belongs to the first group that matches it.
    pub groups: Vec<GroupConfig>,
    /// The format in which moments are kept.
    pub moments: Moments,
}

/// An item of `optimizer.groups`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct GroupConfig {
    /// Globs over weight names.
    #[serde(rename = "match")]
    pub globs: Vec<String>,
    /// No gradient, no state, no update.
    pub frozen: bool,
    /// Keys of `optimizer.params` that are other for this group.
    #[serde(flatten)]
    pub overrides: Map<String, Value>,
}

/// An update rule and its settings.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", content = "params")]
#[allow(missing_docs, reason = "each type is documented with its rule, its keys in the table")]
pub enum OptimizerRule {
    /// Decoupled decay unless `adam_w_mode` is false, as in DeepSpeed.
    Adam(AdamParams),
    AdamW(AdamParams),
    #[serde(rename = "SGD")]
    Sgd(Rated<optim::Sgd>),
    Adagrad(Rated<optim::Adagrad>),
    #[serde(rename = "RMSprop")]
    RmsProp(Rated<optim::RmsProp>),
    Adadelta(Rated<optim::Adadelta>),
    Adamax(Rated<optim::Adamax>),
    NAdam(Rated<optim::NAdam>),
    RAdam(Rated<optim::RAdam>),
    Lion(Rated<optim::Lion>),
    Lamb(Rated<optim::Lamb>),
    Muon(MuonParams),
    Adafactor(Rated<optim::Adafactor>),
    #[serde(rename = "AdamWScheduleFree")]
    ScheduleFree(Rated<optim::ScheduleFree>),
    /// The rule comes from the program ([`crate::Engine::with_optimizer`]).
    #[serde(rename = "custom")]
    Custom(Rated<NoRule>),
}

/// Rate, decay and the rule's own settings.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Rated<R> {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// The rest.
    #[serde(flatten)]
    pub rule: R,
}

/// No settings.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct NoRule {}

/// Settings of Adam and AdamW.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdamParams {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first and of the second moment, each in 0..1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// Divide the moments by `1 - beta^step`.
    pub bias_correction: bool,
    /// Read through [`OptimizerRule::decoupled_decay`]: the type AdamW ignores it.
    pub adam_w_mode: bool,
    /// Divide by the largest second moment so far.
    pub amsgrad: bool,
}

/// Settings of Muon, and of AdamW for the weights that are no hidden matrices.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct MuonParams {
    /// Learning rate of both.
    pub lr: f64,
    /// That of Muon, if it is another.
    pub muon_lr: Option<f64>,
    /// That of AdamW, if it is another.
    pub adam_lr: Option<f64>,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// Of AdamW.
    pub betas: [f64; 2],
    /// Of AdamW.
    pub eps: f64,
    /// Of Muon.
    #[serde(flatten)]
    pub muon: optim::Muon,
}

/// A rule with its rate and decay.
pub struct RatedRule {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// `None`: it comes from the program.
    pub rule: Option<Arc<dyn Optimizer>>,
}

impl<R: Optimizer + Clone + 'static> Rated<R> {
    fn rule(&self) -> RatedRule {
        RatedRule { lr: self.lr, weight_decay: self.weight_decay, rule: Some(Arc::new(self.rule.clone())) }
    }
}

impl OptimizerRule {
    /// The optimizer's own learning rate, which schedules start from.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Muon(params) => params.lr,
            _ => self.rated(true).lr,
        }
    }

    /// The rule for a weight, by whether it is a hidden matrix: Muon takes no others.
    pub fn rated(&self, is_hidden_matrix: bool) -> RatedRule {
        match self {
            Self::Adam(params) | Self::AdamW(params) => {
                let AdamParams { betas, eps, bias_correction, amsgrad, .. } = *params;
                let adam = AdamW { betas, eps, decoupled: self.decoupled_decay(), bias_correction, amsgrad };
                Rated { lr: params.lr, weight_decay: params.weight_decay, rule: adam }.rule()
            }
            Self::Sgd(params) => params.rule(),
            Self::Adagrad(params) => params.rule(),
            Self::RmsProp(params) => params.rule(),
            Self::Adadelta(params) => params.rule(),
            Self::Adamax(params) => params.rule(),
            Self::NAdam(params) => params.rule(),
            Self::RAdam(params) => params.rule(),
            Self::Lion(params) => params.rule(),
            Self::Lamb(params) => params.rule(),
            Self::Muon(params) => params.rated(is_hidden_matrix),
            Self::Adafactor(params) => params.rule(),
            Self::ScheduleFree(params) => params.rule(),
            Self::Custom(Rated { lr, weight_decay, .. }) => {
                RatedRule { lr: *lr, weight_decay: *weight_decay, rule: None }
            }
        }
    }

    /// Whether weights decay apart from the gradient.
    pub fn decoupled_decay(&self) -> bool {
        match self {
            Self::AdamW(_) | Self::Lion(_) | Self::Muon(_) | Self::Adafactor(_) => true,
            Self::Adam(params) => params.adam_w_mode,
            Self::NAdam(params) => params.rule.decoupled_weight_decay,
            Self::RAdam(params) => params.rule.decoupled_weight_decay,
            _ => false,
        }
    }

    /// Whether the rule has betas for a schedule to move; of a program's own rule nobody knows, so it is asked.
    pub fn has_betas(&self) -> bool {
        !matches!(self, Self::Sgd(_) | Self::Adagrad(_) | Self::RmsProp(_) | Self::Adadelta(_) | Self::Adafactor(_))
    }

    /// The same rule with other settings, by the keys of `params`.
    ///
    /// # Errors
    /// What is wrong with a value, as serde says it: the table has checked each key before.
    pub fn with(&self, overrides: &Map<String, Value>) -> Result<Self, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        for (key, setting) in overrides {
            value["params"][key] = setting.clone();
        }
        serde_json::from_value(value)
    }
}

impl MuonParams {
    fn rated(&self, is_hidden_matrix: bool) -> RatedRule {
        let Self { lr, weight_decay, betas, eps, .. } = *self;
        if is_hidden_matrix {
            return Rated { lr: self.muon_lr.unwrap_or(lr), weight_decay, rule: self.muon }.rule();
        }
        let adam = AdamW { betas, eps, decoupled: true, bias_correction: true, amsgrad: false };
        Rated { lr: self.adam_lr.unwrap_or(lr), weight_decay, rule: adam }.rule()
    }
}
