//! What `plan` prints: every derived number, before anything is allocated.
//!
//! Memory and work are not estimated by formulas: one optimizer step runs on the dry device ([`tensor::dry`]), which has
//! every op and no memory, among ranks that are not there ([`comm::dry`]); the queue's ledger, the ops' costs and what was
//! moved are read off.

use super::RunPlan;
use super::batch::Batch;
use super::mesh::Mesh;
use super::sharing;
use crate::config::{RunConfig, Setting};
use crate::engine::Engine;
use crate::error::Result;
use crate::event::Communication;
use crate::model_source::ModelOrigin;
use crate::plan;
use crate::precision::adaptive::Adaptive;
use crate::precision::half::Halves;
use crate::precision::{Formats, shown};
use crate::task::full_row;
use models::Model;
use models::weights::WeightSource;
use ops::Family;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tensor::{DType, MemoryKind, dry};

/// Every derived number of a run.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// The configuration, every key resolved, nested as in the file.
    pub config: Value,
    /// Ranks along each axis.
    pub mesh: BTreeMap<&'static str, u64>,
    /// Numbers that are trained; none without a model.
    pub parameters: Option<u64>,
    /// Multiplications and additions of forward and backward, for a token of a full row.
    pub flops_per_token: Option<u64>,
    /// Bytes at the highest point, by kind.
    pub memory_per_rank: BTreeMap<&'static str, u64>,
    /// Elements that a rank sends and receives in a step, by kind.
    pub communication_per_step: BTreeMap<&'static str, u64>,
    /// Share of a step that pipeline stages wait.
    pub pipeline_bubble: f64,
    /// The precision mode, in words.
    pub mode: String,
    /// The format of each op family.
    pub precision: BTreeMap<&'static str, String>,
    /// Every key with its final value, where that came from and what becomes of it.
    pub settings: Vec<Setting>,
}

impl PlanReport {
    /// The plan of a run file on `ranks` data-parallel ranks; without a model the configuration alone is resolved.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn of(config: &RunConfig, ranks: u64) -> Result<Self> {
        let mesh = Mesh::of(config, ranks)?;
        let batch = Batch::of(config, mesh.data)?;
        let Some(source) = config.model.as_ref().and_then(|model| model.source()) else {
            return Ok(Self::without_model(config, mesh, batch.derived().to_vec()));
        };
        let mut origin = ModelOrigin::open(config, source)?;
        let sequence_length = plan::sequence_length(config, Some(origin.config.max_positions()))?;
        let tokenizer = origin.tokenizer_of(config)?;
        let model = origin.build(tokenizer.as_ref(), sequence_length)?;
        let plan = RunPlan::resolve_for(config, batch, sequence_length, 0)?;
        let parameters = model.num_parameters() as u64;
        if !mesh.is_data_alone() {
            // What a rank holds of a model that is split, and what it sends, is not worked out yet.
            return Ok(Self {
                parameters: Some(parameters),
                ..Self::without_model(config, mesh, plan.derived(config))
            });
        }
        sharing::check(config, mesh.data)?;
        Self::of_model(config, model, plan, ranks)
    }

    fn without_model(config: &RunConfig, mesh: Mesh, mut derived: Vec<(&'static str, Value)>) -> Self {
        derived.extend(config.consequences());
        Self {
            config: config.resolved(&derived),
            mesh: mesh.axes(),
            parameters: None,
            flops_per_token: None,
            memory_per_rank: BTreeMap::new(),
            communication_per_step: BTreeMap::new(),
            pipeline_bubble: 0.0,
            mode: precision(config),
            precision: Formats::of(config).map(|formats| formats.lines()).unwrap_or_default(),
            settings: config.settings(&derived),
        }
    }

    /// The same for a model that is built, on `ranks` data-parallel ranks.
    pub(crate) fn of_model(config: &RunConfig, model: Model, plan: RunPlan, ranks: u64) -> Result<Self> {
        let mesh = Mesh { data: ranks, sequence: 1, tensor: 1, pipeline: 1 };
        let shell = Self::without_model(config, mesh, plan.derived(config));
        let parameters = model.num_parameters() as u64;
        let comm = comm::dry::comm(0, ranks as usize);
        let source = &WeightSource::Shapes;
        let engine = Engine::with_ranks(model, with_optimizer(config), source, plan, dry::queue(), None, Some(comm))?;
        let DryStep { memory_per_rank, flops_per_token, communication_per_step } = dry_step(engine)?;
        Ok(Self {
            parameters: Some(parameters),
            flops_per_token: Some(flops_per_token),
            memory_per_rank,
            communication_per_step,
            ..shell
        })
    }

    /// Bytes of one rank at the highest point of every kind.
    pub fn total_memory(&self) -> u64 {
        self.memory_per_rank.values().sum()
    }

    /// Takes the snapshot of checkpoints out of the plan if with it the run needs more than `available` bytes; whether it
    /// did.
    pub(crate) fn drop_snapshot_beyond(&mut self, available: Option<u64>) -> bool {
        let is_too_much = available.is_some_and(|available| self.total_memory() > available);
        is_too_much && self.memory_per_rank.remove(SNAPSHOT).is_some()
    }

    /// Refuses a run that this machine, with `available` bytes of memory and swap space in all, cannot hold.
    ///
    /// # Errors
    /// The two numbers, and what would make the first one smaller.
    pub(crate) fn check_memory(&self, config: &RunConfig, available: Option<u64>) -> Result<()> {
        let (needed, Some(available)) = (self.total_memory(), available) else { return Ok(()) };
        if needed <= available {
            return Ok(());
        }
        let (largest, bytes) = self.memory_per_rank.iter().max_by_key(|(_, bytes)| **bytes).unwrap_or((&"weights", &0));
        let async_off = match self.memory_per_rank.contains_key(SNAPSHOT) {
            true => ", or run.checkpoint_async false",
            false => "",
        };
        let [needed, bytes, available] = [needed, *bytes, available].map(|bytes| scaled(bytes as f64, 1024.0, BYTES));
        Err(config
            .error(format!(
                "the run needs {needed} of memory ({largest}: {bytes}) and this machine has {available}; take \
                 a smaller model, a smaller train_micro_batch_size_per_gpu, or run.recompute{async_off}"
            ))
            .into())
    }

    /// The report for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push(format!("{name:<32} {value}"));
        let mesh: Vec<String> = self.mesh.iter().map(|(axis, size)| format!("{axis} {size}")).collect();
        line("mesh", mesh.join(" x "));
        for key in ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"] {
            line(key, self.config[key].to_string());
        }
        let run = &self.config["run"];
        for (key, value) in [("sequence_length", &self.config["data"]["sequence_length"]), ("steps", &run["steps"])] {
            if !value.is_null() {
                line(key, value.to_string());
            }
        }
        line("precision", self.mode.clone());
        if self.precision.values().any(|line| Some(line) != self.precision.values().next()) {
            for family in Family::ALL.map(Family::name) {
                line(&format!("precision: {family}"), self.precision[family].clone());
            }
        }
        if let (Some(parameters), Some(flops)) = (self.parameters, self.flops_per_token) {
            line("parameters", parameters.to_string());
            line("work per token", scaled(flops as f64, 1000.0, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"]));
            for (kind, bytes) in self.memory_per_rank.iter().chain([(&"total", &self.total_memory())]) {
                line(&format!("memory: {kind}"), scaled(*bytes as f64, 1024.0, BYTES));
            }
        }
        for (kind, elements) in &self.communication_per_step {
            line(&format!("communication: {kind}"), format!("{elements} elements a step"));
        }
        lines.push(String::new());
        lines.extend(self.settings.iter().map(Setting::to_string));
        lines
    }
}

/// The copy of weights and optimizer state that a checkpoint is written from while training goes on.
pub(crate) const SNAPSHOT: &str = "snapshot";

pub(crate) const BYTES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A number with the unit that leaves it at least 1 and below `base`, as far as there are units.
pub(crate) fn scaled(mut number: f64, base: f64, units: [&str; 5]) -> String {
    let mut unit = 0;
    while number >= base && unit + 1 < units.len() {
        (number, unit) = (number / base, unit + 1);
    }
    if unit == 0 { format!("{number} {}", units[0]) } else { format!("{number:.1} {}", units[unit]) }
}

/// The mode, the formats of weights and gradients, and how the loss is scaled.
fn precision(config: &RunConfig) -> String {
    let Ok(formats) = Formats::of(config) else { return String::new() };
    let (low, halves) = (shown(formats.low), Halves::of(config));
    let scale = || match &config.fp16 {
        fp16 if !fp16.enabled => ", dynamic loss scale from 2^16".to_owned(),
        fp16 if fp16.is_dynamic() => format!(", dynamic loss scale from 2^{}", fp16.initial_scale_power),
        fp16 => format!(", loss scale {:?}", fp16.loss_scale),
    };
    let mode = match () {
        () if config.torch_autocast.enabled => format!("{low} by op family (torch_autocast)"),
        () if !formats.is_uniform() => format!("{low} by op family (run.precision)"),
        () => low.to_owned(),
    };
    let scale = if formats.low == DType::F16 { scale() } else { String::new() };
    if formats.low == DType::F32 && halves.gradients.is_none() {
        return mode;
    }
    format!("{mode}, {}{scale}", halves.line())
}

/// `plan` shows a run without an optimizer too; its memory is then that of AdamW.
fn with_optimizer(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    if config.optimizer.is_none() {
        let adamw = RunConfig::from_value(json!({"train_batch_size": 1, "optimizer": {"type": "AdamW"}}), "AdamW");
        config.optimizer = adamw.expect("with_optimizer: AdamW's defaults fit together").optimizer;
    }
    config
}

/// What one rank's dry steps say.
struct DryStep {
    /// Peak bytes by kind.
    memory_per_rank: BTreeMap<&'static str, u64>,
    flops_per_token: u64,
    /// Elements by kind of call.
    communication_per_step: BTreeMap<&'static str, u64>,
}

/// Optimizer steps of full rows on one rank, and what it takes to show averaged weights.
fn dry_step(mut engine: Engine) -> Result<DryStep> {
    let (length, batch) = (engine.plan.sequence_length, engine.plan.batch);
    let sample = full_row(&engine.model, vec![0; length], vec![0; length]);
    // The memory is that of the end of a curriculum, when rows are whole, and of token dropping.
    engine.plan.curriculum = None;
    engine.adaptive.iter().for_each(Adaptive::measure);
    engine.plan.random_ltd = engine.plan.random_ltd.take().map(|ltd| ltd.at_its_end(engine.plan.steps));
    let (ranks, is_deterministic) = (engine.zero.comm().size(), engine.config.run.deterministic);
    let mut step = |rounds: u64| -> Result<(Traffic, u64)> {
        let before = engine.zero.comm().traffic();
        let samples = vec![sample.clone(); rounds as usize * batch.micro_batch_size as usize * ranks];
        let report = engine.train_batch(&samples)?;
        let moved = Communication::between(&before, &engine.zero.comm().traffic());
        // Backward of a product is two products.
        Ok((
            moved.into_iter().map(|(kind, moved)| (kind, moved.elements)).collect(),
            3 * report.cost.flops + report.recomputed.flops,
        ))
    };
    let (first, flops) = step(1)?;
    // The second micro-batch may take memory that the first does not, and in a deterministic run every one may.
    let rounds = if is_deterministic { batch.accumulation_steps } else { batch.accumulation_steps.min(2) };
    let more = if rounds > 1 { step(rounds)?.0 } else { first.clone() };
    let per_step = |(kind, elements): (&&'static str, &u64)| {
        let once = first.get(kind).copied().unwrap_or(0);
        let each = (elements - once) / (rounds - 1).max(1);
        (*kind, once + (batch.accumulation_steps - 1) * each)
    };
    let communication_per_step = more.iter().map(per_step).collect();
    drop(engine.state.show_average(&engine.queue, &engine.zero)?);
    let ledger = engine.queue.ledger();
    let memory = MemoryKind::ALL.map(|kind| (kind.name(), ledger.peak[kind as usize] as u64));
    let snapshot_bytes = || (engine.state.checkpoint_elements(&engine.model) * size_of::<f32>()) as u64;
    let is_async = ranks == 1 && engine.config.checkpoint_async();
    let snapshot = is_async.then(|| (SNAPSHOT, snapshot_bytes()));
    Ok(DryStep {
        memory_per_rank: memory.into_iter().chain(snapshot).collect(),
        flops_per_token: flops / (length as u64 * batch.micro_batch_size),
        communication_per_step,
    })
}

/// Elements by kind of call.
type Traffic = BTreeMap<&'static str, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_the_unit_that_fits_them() {
        assert_eq!(scaled(512.0, 1024.0, BYTES), "512 B");
        assert_eq!(scaled(1536.0, 1024.0, BYTES), "1.5 KiB");
        assert_eq!(scaled((119u64 << 30) as f64, 1024.0, BYTES), "119.0 GiB");
        assert_eq!(scaled((5u64 << 52) as f64, 1024.0, BYTES), "20480.0 TiB");
    }

    #[test]
    fn keys_that_fit_on_eight_ranks_are_planned_on_eight_although_they_do_not_fit_on_one() {
        let config = json!({"model": {"preset": "gpt2-124m"}, "train_batch_size": 32,
                            "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1});
        let config = RunConfig::from_value(config, "ds.json").unwrap();
        let report = PlanReport::of(&config, 8).unwrap();
        assert_eq!(report.parameters, Some(124_439_808));
        assert_eq!(report.config["train_micro_batch_size_per_gpu"], 4);
    }

    #[test]
    fn the_copy_that_checkpoints_are_written_from_is_planned_and_dropped_where_there_is_no_memory_for_it() {
        let plan = |run: Value| {
            let config = json!({"model": {"preset": "gpt2-124m"}, "train_batch_size": 1, "run": run});
            let config = RunConfig::from_value(config, "r.json").unwrap();
            (PlanReport::of(&config, 1).unwrap(), config)
        };
        let (with, config) = plan(json!({"checkpoint_every": 10}));
        // Weights and two moments, in f32.
        assert_eq!(with.memory_per_rank["snapshot"], 3 * 4 * 124_439_808);
        assert!(with.lines().contains(&format!("{:<32} 1.4 GiB", "memory: snapshot")), "{:?}", with.lines());
        for run in [json!({"checkpoint_every": 10, "checkpoint_async": false}), json!({"checkpoint_every": 0})] {
            assert!(!plan(run.clone()).1.checkpoint_async());
            assert_eq!(plan(run).0.total_memory(), with.total_memory() - with.memory_per_rank["snapshot"]);
        }
        let enough = with.total_memory();
        assert!(!with.clone().drop_snapshot_beyond(Some(enough)) && !with.clone().drop_snapshot_beyond(None));
        let refusal = with.check_memory(&config, Some(enough - 1)).unwrap_err().to_string();
        assert!(refusal.ends_with(", or run.checkpoint_async false"), "{refusal}");
        let mut without = with;
        assert!(without.drop_snapshot_beyond(Some(enough - 1)));
        without.check_memory(&config, Some(enough - 1)).unwrap();
    }

    #[test]
    fn the_plan_of_a_curriculum_is_that_of_its_end_and_its_tokens_are_not_counted_as_whole_rows() {
        let plan = |enabled: bool, run: Value| {
            let config = json!({"model": {"preset": "gpt2-124m"}, "train_batch_size": 1, "run": run,
                                "curriculum_learning": {"enabled": enabled, "min_difficulty": 8, "max_difficulty": 1024,
                                    "schedule_type": "fixed_linear",
                                    "schedule_config": {"total_curriculum_step": 10, "difficulty_step": 8}}});
            PlanReport::of(&RunConfig::from_value(config, "r.json").unwrap(), 1)
        };
        let [with, without] = [true, false].map(|enabled| plan(enabled, json!({"steps": 9})).unwrap());
        assert_eq!((with.memory_per_rank, with.flops_per_token), (without.memory_per_rank, without.flops_per_token));
        let refusal = plan(true, json!({"tokens": 9})).unwrap_err().to_string();
        assert!(refusal.starts_with("r.json: run.tokens does not go with curriculum_learning"), "{refusal}");
    }

    #[test]
    fn a_run_larger_than_the_machine_is_refused_with_both_numbers() {
        let config = RunConfig::from_value(json!({"model": {"preset": "llama-8b"}, "train_batch_size": 1}), "r.json");
        let config = config.unwrap();
        let refusal =
            PlanReport::of(&config, 1).unwrap().check_memory(&config, Some(16 << 30)).unwrap_err().to_string();
        assert!(refusal.starts_with("r.json: the run needs 12"), "{refusal}");
        assert!(refusal.contains("(optimizer: 59.8 GiB) and this machine has 16.0 GiB;"), "{refusal}");
    }
}
