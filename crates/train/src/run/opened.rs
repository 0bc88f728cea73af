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

/// A request in which nothing is wrong.
pub(crate) struct Opened {
    pub(super) config: RunConfig,
    pub(super) model: Model,
    pub(super) weights: WeightSource,
    pub(super) data: TrainingData,
    pub(super) output: Output,
}

impl Opened {
    /// The second half of [`Run::prepare`]: on several ranks they do it together.
    pub(crate) fn prepare(self, resume: bool, observer: &mut dyn Observer, comm: Option<Comm>) -> Result<Run> {
        let Self { config, model, weights, data, output } = self;
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
        let resumed_at = if resume { load_newest(&mut engine, &data, &output, observer)? } else { None };
        Ok(Run { engine, data, output, resumed_at })
    }
}
