//! Precision that adapts while training (`run.adaptive_precision`): a family of ops in one block runs in f32 for a while
//! where its 16-bit format does not do, and then in that format again.
//!
//! # What raises a site (a family in a block) to f32
//! - *Overflow.* The loss of a step is not finite, and the site is the first whose output is not: the step's passes run again
//!   with it in f32, and again, until the loss is finite or the first such site is f32 already. A gradient that is not finite
//!   is treated likewise where no loss scale can fall; else that is the scale's business.
//! - *Look*, every `every` steps, at outputs and gradients of the step's first micro-batch:
//!   an output within `headroom` of the format's largest number; a gradient of which more than `max_underflow` of the
//!   elements other than zero are below its smallest normal number (all of it, where it is zero throughout); an output further
//!   than `max_error` (relative, in the L2 norm) from what the op gives in f32 for the same inputs. The last is measured in
//!   one block at each look, in turn.
//!
//! # Order of events
//! 1. A look watches a micro-batch of step `s`. After its update, sites are raised for steps `s + 1` to `s + window`.
//! 2. A raised site is looked at too, in f32 against the limits of its 16-bit format; what would raise it renews its window.
//! 3. After the last step of its window it is lowered.
//!
//! # Invariants
//! - Looks depend on the step alone and decisions on values that are the same on any number of threads; what is raised is in
//!   the checkpoint: a resumed run raises and lowers what the undisturbed one does.
//! - Between looks nothing is measured. While nothing is raised every op runs as without this.
//! - Evaluation runs in the formats of the step before it.
//! - One rank: others would not see what makes it run its passes again.

use crate::config::{ConfigError, RunConfig};
use crate::error::{Result, TrainError};
use crate::precision::{FormatTable, Formats, shown};
use crate::step::{Accumulated, StepContext, StepReport};
use ::data::Sample;
use models::Model;
use ops::{Env, Family, Precision, Saw, Site};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use tensor::{
    DISTANCE, DType, DistanceArgs, MemoryKind, Queue, SUM_SQUARES_UNIT, SURVEY, SurveyArgs, Tensor, bf16, f16,
};

/// The `run.adaptive_precision` section.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdaptiveConfig {
    /// Steps between looks, at least 1.
    pub every: u64,
    /// Steps that a raised op stays in f32, at least 1.
    pub window: u64,
    /// How many times an output must fit below the format's largest number, at least 1.
    pub headroom: f64,
    /// Largest share of a gradient's elements below the format's smallest normal number.
    pub max_underflow: f64,
    /// Largest relative error of an output.
    pub max_error: f64,
}

impl AdaptiveConfig {
    /// Refuses it in a run that has nothing to raise.
    pub(crate) fn check(config: &RunConfig, formats: &Formats) -> Result<(), ConfigError> {
        if config.run.adaptive_precision.is_none() || formats.low != DType::F32 {
            return Ok(());
        }
        Err(config.error(
            "run.adaptive_precision is given, but every op runs in f32 already; set bf16.enabled, fp16.enabled, \
             torch_autocast or run.precision, or remove it",
        ))
    }
}

/// A site in f32, as checkpoints hold it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Raised {
    /// The block's name.
    pub block: String,
    /// The family's name.
    pub family: String,
    /// Its last step in f32.
    pub until: u64,
}

/// What metrics say of adapting precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PrecisionMetrics {
    /// Sites that ran in f32 because of it in this step.
    pub raised: u64,
    /// What was seen, at looks.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
}

/// The worst of all 16-bit sites at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Look {
    /// Largest finite magnitude of an output.
    pub largest_output: f64,
    /// Largest share of a gradient's elements, other than zero, that are below the format's normal numbers.
    pub underflow: f64,
    /// Largest relative error of an output, in the block whose turn it was.
    pub error: f64,
}

/// What the passes under way are watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Nothing,
    /// Statistics; errors of one block, or of all.
    Look {
        errors_of: Option<usize>,
    },
    /// The first output that is not finite, or gradient too.
    NonFinite {
        gradients: bool,
    },
}

/// Numbers of one site that are still on the device.
struct Seen {
    site: Site,
    what: Saw,
    survey: Tensor,
    distance: Option<Tensor>,
}

/// What a look has found of one site.
#[derive(Clone, Copy, Default)]
struct Found {
    largest: f64,
    not_finite: f64,
    underflow: f64,
    error: f64,
}

/// The formats of a run that adapts them.
pub(crate) struct Adaptive {
    config: AdaptiveConfig,
    table: FormatTable,
    low: DType,
    blocks: Vec<String>,
    /// Each with its last step in f32.
    raised: BTreeMap<Site, u64>,
    watch: Cell<Watch>,
    every_block: Cell<bool>,
    seen: RefCell<Vec<Seen>>,
    first_non_finite: Cell<Option<Site>>,
    metrics: PrecisionMetrics,
    notices: Vec<String>,
}

impl Precision for Adaptive {
    fn dtype(&self, site: Site) -> DType {
        if self.raised.contains_key(&site) { DType::F32 } else { self.table.dtype(site) }
    }

    fn watches(&self) -> bool {
        self.watch.get() != Watch::Nothing
    }

    fn compares(&self, site: Site) -> bool {
        matches!(self.watch.get(), Watch::Look { errors_of } if errors_of.is_none_or(|block| block == site.block))
    }

    fn saw(&self, env: &Env<'_>, site: Site, what: Saw, value: &Tensor, exact: Option<&Tensor>) -> ops::Result<()> {
        match self.watch.get() {
            Watch::NonFinite { gradients } => {
                let wanted = what == Saw::Output || gradients;
                if wanted && self.first_non_finite.get().is_none() && !self.is_finite(env.queue, value)? {
                    self.first_non_finite.set(Some(site));
                }
            }
            Watch::Look { .. } if self.table.dtype(site) != DType::F32 => {
                let survey = self.survey(env.queue, value)?;
                let distance = exact.map(|exact| distance(env.queue, value, exact)).transpose()?;
                self.seen.borrow_mut().push(Seen { site, what, survey, distance });
            }
            _ => {}
        }
        Ok(())
    }
}

impl Adaptive {
    pub(crate) fn new(config: AdaptiveConfig, table: FormatTable, low: DType, model: &Model) -> Self {
        let blocks = model.blocks.iter().map(|block| block.name.clone()).collect();
        let (raised, every_block, seen, first_non_finite, metrics, notices) = Default::default();
        let watch = Cell::new(Watch::Nothing);
        Self { config, table, low, blocks, raised, watch, every_block, seen, first_non_finite, metrics, notices }
    }

    /// For a checkpoint.
    pub(crate) fn state(&self) -> Vec<Raised> {
        let raised = |(site, until): (&Site, &u64)| {
            let (block, family) = (self.blocks[site.block].clone(), site.family.name().to_owned());
            Raised { block, family, until: *until }
        };
        self.raised.iter().map(raised).collect()
    }

    /// Goes on from a checkpoint. What it names and the model lacks is left out: weights of another shape are refused elsewhere.
    pub(crate) fn restore(&mut self, state: &[Raised]) {
        let site = |raised: &Raised| {
            let block = self.blocks.iter().position(|name| *name == raised.block)?;
            let family = Family::ALL.into_iter().find(|family| family.name() == raised.family)?;
            Some((Site { block, family }, raised.until))
        };
        self.raised = state.iter().filter_map(site).collect();
    }

    /// Before the forward of a step's first micro-batch: looks at it if a look is due.
    pub(crate) fn begin_step(&self, step: u64) {
        self.seen.take();
        self.go_on(step);
    }

    /// Before its backward.
    pub(crate) fn go_on(&self, step: u64) {
        let looks = step.saturating_sub(1);
        if looks.is_multiple_of(self.config.every) {
            let turn = (looks / self.config.every) as usize % self.blocks.len();
            let errors_of = (!self.every_block.get()).then_some(turn);
            self.watch.set(Watch::Look { errors_of });
        }
    }

    /// For a run that only measures memory: looks take errors of every block, so that the largest is among them.
    pub(crate) fn measure(&self) {
        self.every_block.set(true);
    }

    /// After a micro-batch.
    pub(crate) fn pause(&self) {
        self.watch.set(Watch::Nothing);
    }

    /// What has been said since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Of the last step.
    pub(crate) fn metrics(&self) -> PrecisionMetrics {
        self.metrics
    }

    /// After step `step`: raises what the look has found, and lowers what is at its end.
    pub(crate) fn settle(&mut self, queue: &Queue, step: u64) -> Result<()> {
        if self.every_block.get() {
            // There are no values that a decision could follow from.
            self.seen.take();
            return Ok(());
        }
        let found = self.read_look(queue)?;
        let look = (!found.is_empty()).then(|| self.worst(&found));
        self.metrics = PrecisionMetrics { raised: self.raised.len() as u64, look };
        for (site, found) in found {
            if let Some(why) = self.reason(&found) {
                self.raise(site, step, step + self.config.window, &why);
            }
        }
        let done: Vec<Site> = self.raised.iter().filter(|(_, until)| **until <= step).map(|(site, _)| *site).collect();
        for site in done {
            self.raised.remove(&site);
            self.notices.push(format!("step {step}: {} runs in {} again", self.name(site), shown(self.low)));
        }
        Ok(())
    }

    fn name(&self, site: Site) -> String {
        format!("{} of {}", site.family.name(), self.blocks[site.block])
    }

    fn raise(&mut self, site: Site, step: u64, until: u64, why: &str) {
        if self.raised.insert(site, until).is_none() {
            self.notices.push(format!("step {step}: {} runs in f32 up to step {until}: {why}", self.name(site)));
        }
    }

    /// The largest and the smallest normal number of the 16-bit format.
    fn limits(&self) -> (f64, f32) {
        match self.low {
            DType::F16 => (f64::from(f16::MAX.to_f32()), f16::MIN_POSITIVE.to_f32()),
            _ => (f64::from(bf16::MAX.to_f32()), bf16::MIN_POSITIVE.to_f32()),
        }
    }

    /// Why a site is to run in f32, as the end of a sentence.
    fn reason(&self, found: &Found) -> Option<String> {
        let AdaptiveConfig { headroom, max_underflow, max_error, .. } = self.config;
        let (largest, low) = (self.limits().0, shown(self.low));
        if found.not_finite > 0.0 {
            return Some(format!("its output overflows {low}"));
        }
        if found.largest * headroom > largest {
            return Some(format!("its output reaches {:.4e}, and {low} ends at {largest:.4e}", found.largest));
        }
        if found.underflow > max_underflow {
            let share = 100.0 * found.underflow;
            return Some(format!("{share:.0} % of its gradient are below the normal numbers of {low}"));
        }
        (found.error > max_error).then(|| format!("its output is {:.2e} from f32, relative", found.error))
    }

    fn worst(&self, found: &BTreeMap<Site, Found>) -> Look {
        let low = found.iter().filter(|(site, _)| !self.raised.contains_key(site));
        low.fold(Look::default(), |worst, (_, found)| Look {
            largest_output: worst.largest_output.max(found.largest),
            underflow: worst.underflow.max(found.underflow),
            error: worst.error.max(found.error),
        })
    }

    fn survey(&self, queue: &Queue, x: &Tensor) -> ops::Result<Tensor> {
        let units = x.shape().elements().div_ceil(SUM_SQUARES_UNIT);
        let out = queue.alloc(MemoryKind::Workspace, DType::F32, [units, SURVEY])?;
        (queue.backend().survey)(queue, SurveyArgs { x, tiny: self.limits().1, out: &out })?;
        Ok(out)
    }

    fn is_finite(&self, queue: &Queue, x: &Tensor) -> ops::Result<bool> {
        let numbers = queue.read::<f32>(&self.survey(queue, x)?)?;
        Ok(numbers.chunks(SURVEY).all(|unit| unit[1] == 0.0))
    }

    /// What the last look has seen, by site; nothing if there was none.
    fn read_look(&self, queue: &Queue) -> Result<BTreeMap<Site, Found>> {
        let mut sites: BTreeMap<Site, Found> = BTreeMap::new();
        for Seen { site, what, survey, distance } in self.seen.take() {
            let found = sites.entry(site).or_default();
            let [mut largest, mut not_finite, mut not_zero, mut tiny] = [0.0f64; SURVEY];
            for unit in queue.read::<f32>(&survey)?.chunks(SURVEY) {
                largest = largest.max(f64::from(unit[0]));
                not_finite += f64::from(unit[1]);
                not_zero += f64::from(unit[2]);
                tiny += f64::from(unit[3]);
            }
            match what {
                Saw::Output => {
                    (found.largest, found.not_finite) = (found.largest.max(largest), found.not_finite + not_finite);
                }
                Saw::Gradient => {
                    let share = if not_zero == 0.0 { 1.0 } else { tiny / not_zero };
                    found.underflow = found.underflow.max(share);
                }
            }
            if let Some(distance) = distance {
                let numbers = queue.read::<f32>(&distance)?;
                let sum = |of: usize| numbers.chunks(DISTANCE).map(|unit| f64::from(unit[of])).sum::<f64>();
                let (apart, size) = (sum(0), sum(1));
                found.error = found.error.max(if apart == 0.0 { 0.0 } else { (apart / size).sqrt() });
            }
        }
        Ok(sites)
    }
}

fn distance(queue: &Queue, x: &Tensor, y: &Tensor) -> ops::Result<Tensor> {
    let units = x.shape().elements().div_ceil(SUM_SQUARES_UNIT);
    let out = queue.alloc(MemoryKind::Workspace, DType::F32, [units, DISTANCE])?;
    (queue.backend().distance)(queue, DistanceArgs { x, y, out: &out })?;
    Ok(out)
}

impl crate::Engine {
    /// The update of a step; where a 16-bit format overflowed and precision adapts, its passes again in other formats first.
    /// `sizes`: samples of each micro-batch.
    pub(crate) fn update_adapting(
        &mut self,
        accumulated: Accumulated,
        samples: &[Sample],
        sizes: &[usize],
    ) -> Result<StepReport> {
        let mut report = self.update_once(accumulated, samples);
        while self.adaptive.is_some() {
            let gradients = match &report {
                Err(TrainError::NonFinite { .. }) => false,
                Ok(report) if report.skipped && !self.scaler.is_some_and(|scaler| scaler.can_fall()) => true,
                _ => break,
            };
            if !self.raise_what_overflows(samples, sizes, gradients)? {
                break;
            }
            let again = passes(&self.context(), samples, sizes)?;
            report = self.update_once(again, samples);
        }
        report
    }

    fn update_once(&self, accumulated: Accumulated, samples: &[Sample]) -> Result<StepReport> {
        let mut ready = |norm: f64| self.tell(|callback, control| callback.on_pre_optimizer_step(self, norm, control));
        self.context().update(accumulated, samples, &mut ready)
    }

    /// Raises the first site that makes a value which is not finite, until there is none; whether that helped.
    fn raise_what_overflows(&mut self, samples: &[Sample], sizes: &[usize], gradients: bool) -> Result<bool> {
        let (step, mut has_raised) = (self.counters.step + 1, false);
        while let Some(site) = self.first_overflow(samples, sizes, gradients)? {
            let Some(adaptive) = self.adaptive.as_mut().filter(|adaptive| adaptive.dtype(site) != DType::F32) else {
                return Ok(false);
            };
            let what = if gradients { "a gradient" } else { "its output" };
            let why = format!("{what} overflows {}", shown(adaptive.low));
            adaptive.raise(site, step, step + adaptive.config.window, &why);
            has_raised = true;
        }
        Ok(has_raised)
    }

    /// The first site of a step's passes whose output, or gradient, is not finite.
    fn first_overflow(&self, samples: &[Sample], sizes: &[usize], gradients: bool) -> Result<Option<Site>> {
        let Some(adaptive) = &self.adaptive else { return Ok(None) };
        // What a look has seen of these passes is of no use.
        adaptive.seen.take();
        adaptive.first_non_finite.set(None);
        adaptive.watch.set(Watch::NonFinite { gradients });
        let passes = passes(&self.context(), samples, sizes);
        adaptive.pause();
        passes?;
        Ok(adaptive.first_non_finite.get())
    }
}

/// The passes of a step once more.
fn passes(context: &StepContext<'_>, samples: &[Sample], sizes: &[usize]) -> Result<Accumulated> {
    let (mut accumulated, mut first) = (Accumulated::default(), 0);
    for (index, size) in sizes.iter().enumerate() {
        if let Some(forwarded) = context.forward(&samples[first..first + size], first as u32, &accumulated)? {
            context.backward(forwarded, index + 1 == sizes.len(), &mut accumulated)?;
        }
        first += size;
    }
    Ok(accumulated)
}
