//! What a run tells whoever watches it: a progress bar, a log, a test. Who watches sees no engine and changes nothing; code
//! that takes part in training is a [`crate::callback`].

use crate::breakdown::Breakdown;
use crate::plan::RunPlan;
use crate::precision::adaptive::PrecisionMetrics;
use comm::{Traffic, TrafficByKind};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Said once: a key without effect, a damaged checkpoint passed over.
    Notice(&'a str),
    /// Several lines that somebody asked for: the resolved configuration, a profile.
    Report {
        /// `state` or `flops_profiler`.
        name: &'a str,
        /// Lines without a last line's end.
        text: &'a str,
    },
    /// Text is being tokenised into the cache.
    Tokenizing {
        /// The file or glob.
        source: &'a str,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Everything is resolved; training begins.
    Started {
        /// Every number.
        plan: &'a RunPlan,
        /// Numbers that are trained.
        num_parameters: usize,
        /// Steps that a checkpoint already holds.
        done_steps: u64,
    },
    /// A step is done.
    Step(&'a StepMetrics),
    /// An evaluation has looked at so many samples of so many.
    Evaluating {
        /// Samples done.
        done: u64,
        /// Samples in all.
        total: u64,
    },
    /// An evaluation is done.
    Evaluated {
        /// After this step.
        step: u64,
        /// The name of the validation set, if there are several by name.
        set: Option<&'a str>,
        /// Mean over counted targets.
        loss: f64,
        /// `exp(loss)`.
        perplexity: f64,
        /// Where the bytes of the text are known.
        bits_per_byte: Option<f64>,
        /// Of a classifier.
        accuracy: Option<f64>,
        /// Of a classifier, macro average.
        f1: Option<f64>,
    },
    /// A trial has made so many steps of so many.
    Tuning {
        /// Steps done.
        done: u64,
        /// Steps in all, at most.
        total: u64,
        /// What the last one was, for people.
        note: &'a str,
    },
    /// Text that the model makes now.
    Sample {
        /// After this step.
        step: u64,
        /// Prompt and what came of it.
        text: &'a str,
        /// The run is over.
        last: bool,
    },
    /// A checkpoint is safely on disk.
    Saved {
        /// Its folder.
        path: &'a Path,
    },
    /// The final model is on disk.
    Exported {
        /// A Hugging Face folder.
        path: &'a Path,
    },
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Mean over counted targets, before the update.
    pub loss: f64,
    /// Used in this step.
    pub lr: f64,
    /// Before clipping; null where it is not finite.
    pub grad_norm: Option<f64>,
    /// Counted targets since the start of the run.
    pub tokens: u64,
    /// Of this step.
    pub tokens_per_second: f64,
    /// Of this step.
    pub step_seconds: f64,
    /// Highest resident memory of the process, as the system saw it.
    pub peak_memory_bytes: u64,
    /// The longest row, only there under a curriculum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curriculum_seqlen: Option<u64>,
    /// Tokens of a row that layers which drop some kept; only there under random-LTD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_ltd_tokens: Option<u64>,
    /// What the loss was multiplied by; only there in fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Ops that ran in f32 for a while; only there where precision adapts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<PrecisionMetrics>,
    /// Whether the update was not applied; only there when it was not, and always in fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<bool>,
    /// Where the time went; only there under `wall_clock_breakdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breakdown_seconds: Option<Breakdown>,
    /// The most that was ever in use, by kind; only there under `memory_breakdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<Map<String, Value>>,
    /// `[gradient, weight]` of every block, null where it is not finite; only there at the steps of `run.norms_every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norms: Option<Map<String, Value>>,
    /// What crossed between the first rank and the others in this step, by kind of call; only there on several ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub communication: Option<BTreeMap<&'static str, Communication>>,
}

/// Calls of one kind in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Communication {
    /// Calls begun.
    pub calls: u64,
    /// See [`comm::Call::volume`].
    pub elements: u64,
    /// Of these elements.
    pub bytes: u64,
}

impl Communication {
    /// What was added between two counts of one rank.
    pub(crate) fn between(before: &TrafficByKind, after: &TrafficByKind) -> BTreeMap<&'static str, Self> {
        let added = |(kind, now): (&comm::Kind, &Traffic)| {
            let was = before.get(kind).copied().unwrap_or_default();
            let (calls, elements, bytes) = (now.calls - was.calls, now.elements - was.elements, now.bytes - was.bytes);
            (calls > 0).then_some((kind.name(), Self { calls, elements, bytes }))
        };
        after.iter().filter_map(added).collect()
    }
}

/// Watches a run.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: Event<'_>);
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _: Event<'_>) {}
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn on(&mut self, event: Event<'_>) {
        self(event);
    }
}
