//! What `plan` prints: every derived number, before anything is allocated.
//!
//! Memory and work are not estimated by formulas: one optimizer step runs on the dry device ([`tensor::dry`]), which has
//! every op and no memory, and the queue's ledger and the ops' costs are read off.

use super::RunPlan;
use super::batch::Batch;
use crate::config::RunConfig;
use crate::engine::Engine;
use crate::error::Result;
use crate::model_source::ModelOrigin;
use crate::plan;
use data::Sample;
use models::weights::WeightSource;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tensor::{MemoryKind, dry};

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
}

impl PlanReport {
    /// The plan of a run file on `ranks` data-parallel ranks; without a model the configuration alone is resolved.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn of(config: &RunConfig, ranks: u64) -> Result<Self> {
        let batch = Batch::of(config, ranks)?;
        let mesh = BTreeMap::from([("data", ranks)]);
        let Some(source) = config.model.as_ref().and_then(|model| model.source()) else {
            let config = config.resolved(&batch.derived());
            let (memory_per_rank, communication_per_step) = Default::default();
            let (parameters, flops_per_token, pipeline_bubble) = (None, None, 0.0);
            let report = Self {
                config,
                mesh,
                parameters,
                flops_per_token,
                memory_per_rank,
                communication_per_step,
                pipeline_bubble,
            };
            return Ok(report);
        };
        let mut origin = ModelOrigin::open(config, source)?;
        let sequence_length = plan::sequence_length(config, Some(origin.config.max_positions()))?;
        let tokenizer = origin.tokenizer_of(config)?;
        let model = origin.build(tokenizer.as_ref(), sequence_length)?;
        let mut plan = RunPlan::resolve(config, sequence_length, 0)?;
        plan.batch = batch;
        let resolved = plan.resolved(config);
        let parameters = model.num_parameters() as u64;
        let stage = config.zero_optimization.stage;
        let (memory, flops_per_token) =
            dry_step(Engine::on_queue(model, with_optimizer(config), &WeightSource::Shapes, plan, dry::queue())?)?;
        let memory_per_rank = memory.into_iter().map(|(kind, bytes)| (kind, sharded(kind, bytes, stage, ranks)));
        Ok(Self {
            config: resolved,
            mesh,
            parameters: Some(parameters),
            flops_per_token: Some(flops_per_token),
            memory_per_rank: memory_per_rank.collect(),
            communication_per_step: communication(parameters, stage, ranks),
            pipeline_bubble: 0.0,
        })
    }

    /// The report for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for key in ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"] {
            lines.push(format!("{key:<32} {}", self.config[key]));
        }
        let mesh: Vec<String> = self.mesh.iter().map(|(axis, size)| format!("{axis} {size}")).collect();
        lines.push(format!("{:<32} {}", "mesh", mesh.join(" x ")));
        if let (Some(parameters), Some(flops)) = (self.parameters, self.flops_per_token) {
            lines.push(format!("{:<32} {parameters}", "parameters"));
            lines.push(format!("{:<32} {:.3} GFLOP", "work per token", flops as f64 / 1e9));
        }
        let total: u64 = self.memory_per_rank.values().sum();
        for (kind, bytes) in self.memory_per_rank.iter().chain([(&"total", &total)]) {
            lines.push(format!("{:<32} {:.1} MiB", format!("memory: {kind}"), *bytes as f64 / 1048576.0));
        }
        for (kind, elements) in &self.communication_per_step {
            lines.push(format!("{:<32} {elements} elements a step", format!("communication: {kind}")));
        }
        lines
    }
}

/// `plan` shows a run without an optimizer too; its memory is then that of AdamW.
fn with_optimizer(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    if config.optimizer.is_none() {
        let adamw = RunConfig::from_value(json!({"train_batch_size": 1, "optimizer": {"type": "AdamW"}}), "AdamW");
        config.optimizer = adamw.ok().and_then(|adamw| adamw.optimizer);
    }
    config
}

/// Peak bytes by kind, and FLOPs per token, of one optimizer step of full rows.
fn dry_step(mut engine: Engine) -> Result<(BTreeMap<&'static str, u64>, u64)> {
    let (length, rows) = (engine.plan.sequence_length, engine.plan.batch.micro_batch_size as usize);
    let sample = Sample {
        input_ids: vec![0; length],
        targets: vec![0; length],
        positions: (0..length as u32).collect(),
        document_starts: vec![0],
    };
    engine.micro_batch(&vec![sample; rows])?;
    let report = engine.step()?;
    let ledger = engine.queue.ledger();
    let memory = MemoryKind::ALL.map(|kind| (kind.name(), ledger.peak[kind as usize] as u64));
    // Backward of a product is two products; recompute runs forward once more.
    let passes = if engine.config.run.recompute { 4 } else { 3 };
    Ok((memory.into_iter().collect(), passes * report.cost.flops / (length * rows) as u64))
}

/// What is left of a kind on each of `ranks` under ZeRO (Rajbhandari et al. 2020, section 5).
fn sharded(kind: &str, bytes: u64, stage: u8, ranks: u64) -> u64 {
    let first_stage = match kind {
        "optimizer" => 1,
        "gradients" => 2,
        "weights" => 3,
        _ => u8::MAX,
    };
    if stage >= first_stage { bytes.div_ceil(ranks) } else { bytes }
}

/// Elements of gradients and weights that cross between data-parallel ranks in one step.
fn communication(parameters: u64, stage: u8, ranks: u64) -> BTreeMap<&'static str, u64> {
    match stage {
        _ if ranks == 1 => BTreeMap::new(),
        0 => BTreeMap::from([("all_reduce", parameters)]),
        1 | 2 => BTreeMap::from([("reduce_scatter", parameters), ("all_gather", parameters)]),
        _ => BTreeMap::from([("reduce_scatter", parameters), ("all_gather", 2 * parameters)]),
    }
}
