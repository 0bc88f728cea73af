//! The two halves of [`Run::prepare`]: ranks check a request once and take the memory for it each.

use super::Run;
use crate::config::RunConfig;
use crate::engine::Engine;
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::output::Output;
use crate::resume::load_newest;
use crate::training_data::TrainingData;
use comm::Comm;
use models::Model;
use models::weights::WeightSource;

/// Model and data in which nothing is wrong.
pub(super) struct Checked {
    pub(super) config: RunConfig,
    pub(super) model: Model,
    pub(super) weights: WeightSource,
    pub(super) data: TrainingData,
}

impl Checked {
    /// The engine for them: one of several where there is a communicator.
    pub(super) fn engine(self, observer: &mut dyn Observer, comm: Option<Comm>) -> Result<(Engine, TrainingData)> {
        let Self { config, model, weights, data } = self;
        for notice in config.notices() {
            observer.on(Event::Notice(&notice));
        }
        let mut engine = match comm {
            Some(comm) => Engine::on_rank(model, config, &weights, comm)?,
            None => Engine::with_weights(model, config, &weights)?,
        };
        engine.resolve_steps(data.loader.epoch_samples())?;
        for notice in engine.plan.notices(&engine.config) {
            observer.on(Event::Notice(&notice));
        }
        Ok((engine, data))
    }
}

/// A request in which nothing is wrong.
pub(crate) struct Opened {
    pub(super) checked: Checked,
    pub(super) output: Output,
}

impl Opened {
    /// The second half of [`Run::prepare`]: on several ranks they do it together.
    pub(crate) fn prepare(self, resume: bool, observer: &mut dyn Observer, comm: Option<Comm>) -> Result<Run> {
        let Self { checked, output } = self;
        let (mut engine, data) = checked.engine(observer, comm)?;
        let resumed_at = if resume { load_newest(&mut engine, &data, &output, observer)? } else { None };
        Ok(Run { engine, data, output, resumed_at })
    }
}
