//! Callbacks: code of a user's own at every stage of training, which may ask for a stop, a checkpoint, an evaluation or a
//! line in `metrics.jsonl`.
//!
//! The moments are those of Transformers' `TrainerCallback` but `on_push_begin`: there is no hub here. A callback is added
//! with [`Engine::add_callback`] and is told by [`Engine::train`] and by a loop of one's own alike. An [`Observer`] is the
//! other thing: it hears of a run as text and figures, also where there is no engine yet, and changes nothing.
//!
//! # Order of events
//! ```text
//! on_init_end                          added to an engine
//! on_train_begin                       a run begins
//!   on_epoch_begin                     its first sample is the next; at the start of the run in the middle of one, too
//!     on_step_begin                    before the first micro-batch of an optimizer step
//!       on_substep_end                 after each micro-batch but the last
//!     on_pre_optimizer_step            the gradient is complete
//!     on_optimizer_step                it was applied, or skipped
//!     on_step_end                      the counters have moved
//!     on_log                           a line was written to metrics.jsonl
//!   on_epoch_end                       its last sample is done, or the run is
//!     on_prediction_step, on_evaluate  where an evaluation is due or asked for
//!     on_save                          a checkpoint is safely on disk
//!     on_predict                       a sample was made
//! on_train_end                         the final model is on disk
//! ```
//! The moments of a step are told by the engine, in a loop of one's own too; the others belong to a run.
//!
//! # Invariants
//! - Callbacks are told in the order they were added. One that calls the engine (an evaluation) makes no further moments.
//! - They read the engine and cannot change it, so that a run is the same with and without them but for what they ask for.
//! - What is asked for is done after the step under way, in the order evaluation, checkpoint, stop.
//! - What [`Callback::state`] gives is in every checkpoint and given back on resume.
//!
//! [`Observer`]: crate::Observer
//! [`Engine::train`]: crate::Engine::train
//! [`Engine::add_callback`]: crate::Engine::add_callback

use crate::engine::Engine;
use crate::step::StepReport;
use generate::Evaluation;
use serde_json::{Map, Value};
use std::path::Path;

/// What a callback asks of the run. In a loop of one's own: [`Engine::take_requests`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    stop: bool,
    save: bool,
    evaluate: bool,
    logged: Vec<Map<String, Value>>,
}

impl Control {
    /// Ends the run after this step as after its last one: with evaluation, checkpoint and final model. A resumed run goes
    /// on to its length.
    pub fn stop(&mut self) {
        self.stop = true;
    }

    /// Saves a checkpoint after this step.
    pub fn save(&mut self) {
        self.save = true;
    }

    /// Evaluates on the validation data after this step, unless that was done. A run without such data has none to evaluate.
    pub fn evaluate(&mut self) {
        self.evaluate = true;
    }

    /// Writes a line of figures to `metrics.jsonl`, which gets the step.
    pub fn log(&mut self, figures: Map<String, Value>) {
        self.logged.push(figures);
    }

    /// Whether [`Control::stop`] was called.
    pub fn wants_stop(&self) -> bool {
        self.stop
    }

    /// Whether [`Control::save`] was called.
    pub fn wants_save(&self) -> bool {
        self.save
    }

    /// Whether [`Control::evaluate`] was called.
    pub fn wants_evaluation(&self) -> bool {
        self.evaluate
    }

    /// What [`Control::log`] was given.
    pub fn logged(&self) -> &[Map<String, Value>] {
        &self.logged
    }
}

/// Takes part in training. See the head of this module for when each method is called.
#[expect(unused_variables, reason = "a method that does nothing names its arguments for those who write one that does")]
pub trait Callback: Send {
    /// It was added to an engine that is complete; the state of a checkpoint has been given back.
    fn on_init_end(&mut self, engine: &Engine, control: &mut Control) {}

    /// A run begins.
    fn on_train_begin(&mut self, engine: &Engine, control: &mut Control) {}

    /// A run has ended without an error: finished, stopped, or interrupted by a signal.
    fn on_train_end(&mut self, engine: &Engine, control: &mut Control) {}

    /// `epoch`: from 0.
    fn on_epoch_begin(&mut self, engine: &Engine, epoch: u64, control: &mut Control) {}

    /// `epoch`: from 0. A step may end one epoch and begin the next: this is told after it.
    fn on_epoch_end(&mut self, engine: &Engine, epoch: u64, control: &mut Control) {}

    /// Before the first micro-batch of an optimizer step.
    fn on_step_begin(&mut self, engine: &Engine, control: &mut Control) {}

    /// After a micro-batch that another one follows in the same step.
    fn on_substep_end(&mut self, engine: &Engine, control: &mut Control) {}

    /// The gradient of the step is complete. `grad_norm`: before clipping by norm; it need not be finite.
    fn on_pre_optimizer_step(&mut self, engine: &Engine, grad_norm: f64, control: &mut Control) {}

    /// The weights are new, unless the step was skipped: see [`Engine::was_step_applied`]. The counters have not moved yet.
    fn on_optimizer_step(&mut self, engine: &Engine, control: &mut Control) {}

    /// An optimizer step is done.
    fn on_step_end(&mut self, engine: &Engine, report: &StepReport, control: &mut Control) {}

    /// An evaluation has looked at `done` samples of `total`.
    fn on_prediction_step(&mut self, engine: &Engine, done: u64, total: u64, control: &mut Control) {}

    /// An evaluation is done.
    fn on_evaluate(&mut self, engine: &Engine, evaluation: &Evaluation, control: &mut Control) {}

    /// The model has gone on from `run.sample_prompt`; `text` has both.
    fn on_predict(&mut self, engine: &Engine, text: &str, control: &mut Control) {}

    /// A checkpoint is safely on disk. Written beside training, it may be of an earlier step.
    fn on_save(&mut self, engine: &Engine, checkpoint: &Path, control: &mut Control) {}

    /// A line was written to `metrics.jsonl`, by the run or for [`Control::log`].
    fn on_log(&mut self, engine: &Engine, line: &Value, control: &mut Control) {}

    /// What its state is called in checkpoints: by default the name of its type, which need not be the same under another
    /// compiler.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// What it must know to go on after a resume; null: nothing.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes back what [`Callback::state`] gave when the checkpoint was saved.
    fn restore(&mut self, state: &Value) {}
}

/// The callbacks of an engine and what they have asked for.
#[derive(Default)]
pub(crate) struct Callbacks {
    list: Vec<Box<dyn Callback>>,
    control: Control,
    /// States of a checkpoint whose callbacks have not been added yet, by name.
    waiting: Vec<(String, Value)>,
}

impl Callbacks {
    /// Gives a callback the first state of its name, if one waits for it.
    fn give_state(&mut self, callback: &mut dyn Callback) {
        if let Some(place) = self.waiting.iter().position(|(name, _)| name == callback.name()) {
            callback.restore(&self.waiting.remove(place).1);
        }
    }

    /// What a checkpoint holds: each state that is not null, with its name.
    pub(crate) fn states(&self) -> Vec<(String, Value)> {
        let own = self.list.iter().map(|callback| (callback.name().to_owned(), callback.state()));
        own.filter(|(_, state)| !state.is_null()).chain(self.waiting.iter().cloned()).collect()
    }

    /// Takes the states of a checkpoint, those of callbacks to come wait for them, and whether an evaluation was asked for.
    pub(crate) fn restore(&mut self, states: Vec<(String, Value)>, evaluate: bool) {
        self.waiting = states;
        self.control.evaluate |= evaluate;
        let mut list = std::mem::take(&mut self.list);
        list.iter_mut().for_each(|callback| self.give_state(callback.as_mut()));
        self.list = list;
    }
}

impl Engine {
    /// Adds a callback; what a checkpoint that was loaded holds for it is given back to it.
    pub fn add_callback(&mut self, callback: impl Callback + 'static) {
        let mut callback = Box::new(callback);
        let mut control = Control::default();
        self.callbacks.get_mut().give_state(callback.as_mut());
        callback.on_init_end(self, &mut control);
        let callbacks = self.callbacks.get_mut();
        callbacks.control.merge(control);
        callbacks.list.push(callback);
    }

    /// What callbacks have asked for since the last call. A run asks by itself; a loop of one's own does here.
    pub fn take_requests(&self) -> Control {
        // Within a callback there is nothing to take: the run is told when it returns.
        self.callbacks.try_borrow_mut().map(|mut callbacks| std::mem::take(&mut callbacks.control)).unwrap_or_default()
    }

    /// Tells every callback of a moment, unless one is being told: what callbacks do makes no further moments.
    pub(crate) fn tell(&self, mut moment: impl FnMut(&mut dyn Callback, &mut Control)) {
        let Ok(mut callbacks) = self.callbacks.try_borrow_mut() else { return };
        let Callbacks { list, control, .. } = &mut *callbacks;
        list.iter_mut().for_each(|callback| moment(callback.as_mut(), control));
    }
}

impl Control {
    /// Whether an evaluation was asked for; it is not any more.
    pub(crate) fn take_evaluation(&mut self) -> bool {
        std::mem::take(&mut self.evaluate)
    }

    /// Whether a checkpoint was asked for; it is not any more.
    pub(crate) fn take_save(&mut self) -> bool {
        std::mem::take(&mut self.save)
    }

    /// The lines to be written.
    pub(crate) fn take_logged(&mut self) -> Vec<Map<String, Value>> {
        std::mem::take(&mut self.logged)
    }

    pub(crate) fn merge(&mut self, other: Control) {
        self.stop |= other.stop;
        self.save |= other.save;
        self.evaluate |= other.evaluate;
        self.logged.extend(other.logged);
    }
}
