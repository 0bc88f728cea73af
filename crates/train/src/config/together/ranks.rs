//! Rules of what ranks share and how they talk, of offload, pipelines and elasticity.

use super::{Fault, File, fault};
use crate::config::check::shown;
use serde_json::Value;

/// Ranks that split each matrix, which two keys can say; 1: none. `number`: what stands at a path, 0 for nothing.
pub(crate) fn tensor_ranks(number: impl Fn(&str) -> u64) -> u64 {
    number("tensor_parallel.autotp_size").max(number("tensor_parallel.tp.tp_size")).max(1)
}

impl File<'_> {
    fn offloads_optimizer(&self) -> bool {
        matches!(self.value("zero_optimization.offload_optimizer.device").as_str(), Some("cpu" | "nvme"))
    }

    /// How ranks join gradients.
    pub(super) fn gradients(&self) -> Result<(), Fault> {
        let sums = self.says("gradient_allreduce_op", "sum");
        let zenflow = !self.value("zero_optimization.zenflow").is_null();
        let compiles = self.is_on("compile.deepcompile");
        for (is_wrong, other) in [
            (self.stage() == 3, "zero_optimization.stage 3"),
            (zenflow, "zero_optimization.zenflow"),
            (compiles, "compile.deepcompile"),
        ] {
            let why = format!(", which does not go with {other}; it must be \"mean\"");
            self.refuse(sums && is_wrong, "gradient_allreduce_op", &why)?;
        }
        let scatters = self.stage() >= 2 && self.is_on("zero_optimization.reduce_scatter");
        let why = "; with zero_optimization.stage 2 or 3 and reduce_scatter it must be";
        let factor = "gradient_predivide_factor";
        self.refuse(scatters && self.number(factor) != 1.0, factor, &format!("{why} 1.0"))?;
        self.refuse(scatters && self.is_on("prescale_gradients"), "prescale_gradients", &format!("{why} false"))?;
        Ok(())
    }

    /// Who says where a step ends.
    pub(super) fn accumulation(&self) -> Result<(), Fault> {
        let managed = "managed_gradient_accumulation";
        if self.is_on(managed) {
            return Ok(());
        }
        let overlaps = self.is_on("zero_optimization.overlap_comm") && self.stage() < 2;
        for (is_wrong, other) in [
            (self.number("pipeline.stages") > 1.0, "pipeline.stages"),
            (self.is_on("compile.deepcompile"), "compile.deepcompile"),
            (self.is_on("amp.enabled"), "amp.enabled"),
            (overlaps, "zero_optimization.overlap_comm below stage 2"),
        ] {
            self.refuse(is_wrong, managed, &format!(", which does not go with {other}; it must be true"))?;
        }
        Ok(())
    }

    /// What may lie elsewhere.
    pub(super) fn offload(&self) -> Result<(), Fault> {
        let wants_3 = format!(", which needs zero_optimization.stage 3; the stage is {}", self.stage());
        let is_early = self.stage() < 3;
        let section = |name: &str| format!("zero_optimization.offload_{name}");
        for device in [section("optimizer.device"), section("param.device")] {
            self.refuse(is_early && self.says(&device, "nvme"), &device, &wants_3)?;
        }
        let (ratio, super_offload) = (section("optimizer.ratio"), section("optimizer.super_offload"));
        let has_section = !self.value(&section("optimizer")).is_null();
        self.refuse(has_section && is_early && self.number(&ratio) < 1.0, &ratio, &wants_3)?;
        self.refuse(is_early && self.is_on(&super_offload), &super_offload, &wants_3)?;
        let legacy = "zero_optimization.legacy_stage1";
        self.refuse(self.is_on(legacy), legacy, ", which DeepSpeed no longer has; it must be false")?;
        let buffer = "activation_checkpointing.contiguous_memory_optimization";
        let has_both = self.is_on("activation_checkpointing.partition_activations")
            && !self.value("activation_checkpointing.number_checkpoints").is_null();
        self.refuse(self.is_on(buffer) && !has_both, buffer, "; it needs partition_activations and number_checkpoints")
    }

    /// The intervals of ZenFlow, and where it works.
    pub(super) fn zenflow(&self) -> Result<(), Fault> {
        let section = "zero_optimization.zenflow";
        if self.value(section).is_null() {
            return Ok(());
        }
        let is_offloaded = self.says("zero_optimization.offload_optimizer.device", "cpu");
        self.refuse(!is_offloaded, section, "; it needs zero_optimization.offload_optimizer.device \"cpu\"")?;
        let interval = format!("{section}.select_interval");
        let [select, update] =
            ["select_interval", "update_interval"].map(|key| self.value(&format!("{section}.{key}")));
        let is_auto = self.says(&format!("{section}.select_strategy"), "auto");
        self.refuse(is_auto && select.is_number(), &interval, ", but select_strategy \"auto\" chooses it; remove it")?;
        let is_short = select.as_u64().zip(update.as_u64()).is_some_and(|(select, update)| select < update);
        self.refuse(is_short, &interval, &format!("; it must be at least update_interval, {update}"))
    }

    /// Ways of sharing work that exclude each other.
    pub(super) fn axes(&self) -> Result<(), Fault> {
        let stage = self.stage();
        let splits = tensor_ranks(|path| self.number(path) as u64) > 1;
        self.refuse(
            splits && stage == 3,
            "zero_optimization.stage",
            ", which does not go with tensor_parallel; it must be 0, 1 or 2",
        )?;
        let is_piped = self.number("pipeline.stages") > 1.0;
        self.refuse(
            is_piped && stage >= 2,
            "zero_optimization.stage",
            ", which does not go with pipeline.stages above 1; it must be 0 or 1",
        )?;
        let all_three = splits && self.is_on("expert_parallel.enabled") && self.is_on("compile.deepcompile");
        self.refuse(
            all_three,
            "compile.deepcompile",
            ", which does not go with expert_parallel and tensor_parallel together; leave one out",
        )
    }

    /// Optimizers that ask something of how ranks work.
    pub(super) fn exchange(&self) -> Result<(), Fault> {
        let kind = self.value("optimizer.type").as_str().unwrap_or_default();
        let one_bit = matches!(kind, "OneBitAdam" | "OneBitLamb" | "ZeroOneAdam") && self.stage() > 0;
        self.refuse(
            one_bit,
            "optimizer.type",
            ", which needs zero_optimization.stage 0: it exchanges momentum itself",
        )?;
        let is_lamb = matches!(kind, "Lamb" | "OneBitLamb") && self.is_on("fp16.enabled");
        self.refuse(
            is_lamb && self.number("fp16.loss_scale") != 0.0,
            "fp16.loss_scale",
            &format!("; with {kind} in fp16 the loss scale must be dynamic: 0"),
        )?;
        let scatter = "zero_optimization.reduce_scatter";
        let muon =
            kind == "Muon" && (1..=2).contains(&self.stage()) && self.is_on(scatter) && self.offloads_optimizer();
        self.refuse(muon, scatter, "; with Muon, offload_optimizer and zero_optimization.stage 1 or 2 it must be false")
    }

    /// A view has sizes above 0 or -1, and one of several sizes only along the axis that is cut.
    pub(super) fn tensor_parallel(&self) -> Result<(), Fault> {
        let section = "tensor_parallel.partition_config.layer_specs";
        let specs = self.value(section).as_array().map_or(&[][..], Vec::as_slice);
        for (i, spec) in specs.iter().enumerate() {
            let is_row = spec["partition_type"] == "row";
            let cut = spec["partition_dim"].as_u64().unwrap_or(u64::from(is_row));
            let is_size = |size: &Value| size.as_i64().is_some_and(|size| size > 0 || size == -1);
            for (axis, size) in spec["shape"].as_array().into_iter().flatten().enumerate() {
                let parts = size.as_array();
                let is_right = parts.map_or(is_size(size), |parts| axis as u64 == cut && parts.iter().all(is_size));
                if !is_right {
                    let why = format!("; it must be above 0 or -1, or a list of such along axis {cut}, which is cut");
                    let path = format!("{section}[{i}].shape[{axis}]");
                    return fault(&path, format!("{path} is {}{why}", shown(size)));
                }
            }
        }
        Ok(())
    }

    /// What elasticity needs, and that nobody else chooses the batch sizes.
    pub(super) fn elasticity(&self) -> Result<(), Fault> {
        if !self.is_on("elasticity.enabled") {
            return Ok(());
        }
        for path in ["elasticity.max_train_batch_size", "elasticity.micro_batch_sizes"] {
            if self.given(path).is_none() {
                return fault(path, format!("{path} is missing; elasticity.enabled needs it"));
            }
        }
        let micros = "elasticity.micro_batch_sizes";
        self.refuse(
            self.value(micros).as_array().is_some_and(Vec::is_empty),
            micros,
            "; it must name at least one size",
        )?;
        let most = "elasticity.max_gpus";
        self.refuse(
            self.number(most) < self.number("elasticity.min_gpus"),
            most,
            "; it must be at least elasticity.min_gpus",
        )?;
        let ranks = "elasticity.model_parallel_size";
        let (replica, node) = (self.number(ranks), self.number("elasticity.num_gpus_per_node"));
        let version = "elasticity.version";
        self.refuse(![0.1, 0.2].contains(&self.number(version)), version, "; it must be 0.1 or 0.2")?;
        let is_first = self.number(version) < 0.2;
        self.refuse(is_first && replica > 1.0, ranks, "; elasticity.version 0.1 knows 1 alone")?;
        self.refuse(node % replica != 0.0, ranks, &format!("; it must divide elasticity.num_gpus_per_node, {node}"))?;
        let may_stand = self.is_on("elasticity.ignore_non_elastic_batch_info");
        for path in ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"] {
            let is_given = !self.value(path).is_null();
            self.refuse(
                is_given && !may_stand,
                path,
                ", but elasticity chooses the batch sizes; remove it, or set \
                elasticity.ignore_non_elastic_batch_info",
            )?;
        }
        Ok(())
    }

    /// DeepSpeed's rule: NCCL wants the gather to start at even elements.
    pub(super) fn buckets(&self) -> Result<(), Fault> {
        let path = "zero_optimization.allgather_bucket_size";
        match self.given(path) {
            Some(size) if size.as_i64().is_some_and(|size| size % 2 != 0) => {
                Err(Fault::value(path, size, "a multiple of 2"))
            }
            _ => Ok(()),
        }
    }
}
