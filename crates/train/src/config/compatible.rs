//! DeepSpeed's rules of what goes with what, for values that are right each by itself.
//!
//! A rule looks at final values, defaults filled in. A feature that is switched off is not looked at.
//! Source: DeepSpeed 0.19, its configuration classes and the assertions of its engine. Left out: what concerns calls
//! of a program rather than keys.

use super::check::{Fault, shown};
use super::keys::join;
use super::resolve;
use serde_json::{Map, Value};

/// Checks `filled`, the whole configuration; `given` is what was said of it.
pub(super) fn check(given: &Map<String, Value>, filled: &Map<String, Value>) -> Result<(), Fault> {
    let file = File { given, filled };
    file.precision()?;
    file.half_masters()?;
    file.gradients()?;
    file.offload()?;
    file.zenflow()?;
    file.axes()?;
    file.optimizer()?;
    file.tensor_parallel()?;
    file.needed()?;
    file.elasticity()
}

struct File<'a> {
    given: &'a Map<String, Value>,
    filled: &'a Map<String, Value>,
}

/// `path is value: why`.
fn fault(path: &str, value: &Value, why: &str) -> Result<(), Fault> {
    Err(Fault { path: path.to_owned(), message: format!("{path} is {}{why}", shown(value)) })
}

impl<'a> File<'a> {
    fn value(&self, path: &str) -> &'a Value {
        resolve::at(self.filled, path).unwrap_or(&Value::Null)
    }

    fn is_on(&self, path: &str) -> bool {
        self.value(path) == &Value::Bool(true)
    }

    /// Whether a switch is on, and no section around it is switched off.
    fn is_active(&self, switch: &str) -> bool {
        let is_off = |end: usize| self.value(&join(&switch[..end], "enabled")) == &Value::Bool(false);
        self.is_on(switch) && !switch.match_indices('.').any(|(end, _)| is_off(end))
    }

    fn says(&self, path: &str, word: &str) -> bool {
        self.value(path) == word
    }

    /// A number; 0 where there is none.
    fn number(&self, path: &str) -> f64 {
        self.value(path).as_f64().unwrap_or(0.0)
    }

    fn stage(&self) -> u64 {
        self.number("zero_optimization.stage") as u64
    }

    fn offloads_optimizer(&self) -> bool {
        matches!(self.value("zero_optimization.offload_optimizer.device").as_str(), Some("cpu" | "nvme"))
    }

    /// Refuses what is at `path` if `is_wrong`.
    fn refuse(&self, is_wrong: bool, path: &str, why: &str) -> Result<(), Fault> {
        if is_wrong { fault(path, self.value(path), why) } else { Ok(()) }
    }

    fn precision(&self) -> Result<(), Fault> {
        let (fp16, bf16, amp) = (self.is_on("fp16.enabled"), self.is_on("bf16.enabled"), self.is_on("amp.enabled"));
        self.refuse(fp16 && bf16, "fp16.enabled", ", and so is bf16.enabled; keep one of them")?;
        self.refuse(
            amp && self.stage() > 0,
            "amp.enabled",
            &format!(", but zero_optimization.stage is {}; apex works with stage 0 alone", self.stage()),
        )?;
        let autocast = self.is_on("torch_autocast.enabled");
        for (is_on, other) in [(fp16, "fp16.enabled"), (bf16, "bf16.enabled"), (amp, "amp.enabled")] {
            let why = format!(", and so is {other}; keep one of them");
            self.refuse(autocast && is_on, "torch_autocast.enabled", &why)?;
        }
        let quantized = self.is_on("zero_optimization.zero_quantized_weights");
        let why = ", which does not go with zero_optimization.zero_quantized_weights";
        self.refuse(autocast && quantized, "torch_autocast.enabled", why)?;
        let mode = if fp16 {
            "fp16"
        } else if bf16 {
            "bf16"
        } else {
            "fp32"
        };
        let param = self.value("data_types.param_dtype");
        let is_other = param.as_str().is_some_and(|param| short(param) != mode);
        self.refuse(
            is_other,
            "data_types.param_dtype",
            &format!(", but the weights are {mode} by fp16.enabled and bf16.enabled; remove it or make it \"{mode}\""),
        )
    }

    fn half_masters(&self) -> Result<(), Fault> {
        let is_sharded = (1..=3).contains(&self.stage());
        let fp16 = "fp16.fp16_master_weights_and_grads";
        let is_adam = matches!(self.value("optimizer.type").as_str(), None | Some("Adam" | "AdamW"));
        let is_allowed = is_sharded && self.says("zero_optimization.offload_optimizer.device", "cpu") && is_adam;
        self.refuse(
            self.is_on("fp16.enabled") && self.is_on(fp16) && !is_allowed,
            fp16,
            "; it needs zero_optimization.stage 1, 2 or 3, offload_optimizer.device \"cpu\" and an Adam",
        )?;
        let (masters, states) = ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states");
        let says = |path: &str| self.is_on("bf16.enabled") && self.is_on(path);
        self.refuse(says(masters) && !is_sharded, masters, "; it needs zero_optimization.stage 1, 2 or 3")?;
        self.refuse(says(states) && !says(masters), states, "; it needs bf16.bf16_master_weights_and_grads")
    }

    /// How ranks join gradients, and who says where a step ends.
    fn gradients(&self) -> Result<(), Fault> {
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
        let is_managed = self.is_on("managed_gradient_accumulation");
        for (is_wrong, other) in [
            (self.number("pipeline.stages") > 1.0, "pipeline.stages"),
            (compiles, "compile.deepcompile"),
            (self.is_on("amp.enabled"), "amp.enabled"),
        ] {
            let why = format!(", which does not go with {other}; it must be true");
            self.refuse(!is_managed && is_wrong, "managed_gradient_accumulation", &why)?;
        }
        Ok(())
    }

    fn offload(&self) -> Result<(), Fault> {
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

    fn zenflow(&self) -> Result<(), Fault> {
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
    fn axes(&self) -> Result<(), Fault> {
        let stage = self.stage();
        let autotp = "tensor_parallel.autotp_size";
        let splits = self.number(autotp).max(self.number("tensor_parallel.tp.tp_size")) > 1.0;
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

    fn optimizer(&self) -> Result<(), Fault> {
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
    fn tensor_parallel(&self) -> Result<(), Fault> {
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
                    return fault(&format!("{section}[{i}].shape[{axis}]"), size, &why);
                }
            }
        }
        Ok(())
    }

    /// Features that cannot be without one of their keys.
    fn needed(&self) -> Result<(), Fault> {
        let sampling = "data_efficiency.data_sampling";
        let heads = "compression_training.head_pruning.shared_parameters";
        for (section, key) in [(format!("{sampling}.dynamic_batching"), "max_tokens"), (heads.to_owned(), "num_heads")]
        {
            let (switch, path) = (format!("{section}.enabled"), format!("{section}.{key}"));
            if self.is_active(&switch) && self.value(&path).is_null() {
                return Err(Fault { message: format!("{path} is missing; {switch} needs it"), path });
            }
        }
        let rates = "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule.enabled";
        self.refuse(self.is_active(rates), rates, ", which DeepSpeed does not have; it must be false")
    }

    fn elasticity(&self) -> Result<(), Fault> {
        if !self.is_on("elasticity.enabled") {
            return Ok(());
        }
        for path in ["elasticity.max_train_batch_size", "elasticity.micro_batch_sizes"] {
            let is_given = resolve::at(self.given, path).is_some_and(|value| !value.is_null());
            if !is_given {
                return Err(Fault {
                    path: path.into(),
                    message: format!("{path} is missing; elasticity.enabled needs it"),
                });
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
}

/// The short name of a dtype.
fn short(dtype: &str) -> &str {
    match dtype {
        "float16" | "half" => "fp16",
        "bfloat16" => "bf16",
        "float32" | "float" => "fp32",
        short => short,
    }
}
