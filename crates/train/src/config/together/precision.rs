//! Rules of fp16, bf16, amp and the dtypes beside them.

use super::{Fault, File, fault, join};
use crate::config::precision::{dtype, name};
use crate::loss_scale::MAX_SCALE;
use serde_json::Value;

impl File<'_> {
    /// DeepSpeed's rule: a dynamic scale that can move. What a static scale does not use may be anything.
    pub(super) fn loss_scale(&self) -> Result<(), Fault> {
        if !self.is_on("fp16.enabled") {
            return Ok(());
        }
        let number = |path: &str| self.given(path).and_then(Value::as_f64);
        let scale = number("fp16.loss_scale").unwrap_or(0.0);
        for path in ["fp16.loss_scale", "fp16.min_loss_scale"] {
            if let Some(scale) = number(path).filter(|scale| *scale > MAX_SCALE) {
                return fault(path, format!("{path} is {scale:e}; it must be at most 2^126"));
            }
        }
        for path in ["fp16.loss_scale_window", "fp16.hysteresis", "fp16.min_loss_scale"] {
            if let Some(number) = number(path).filter(|number| scale == 0.0 && *number <= 0.0) {
                let message = "it must be above 0 where fp16.loss_scale is 0, which is dynamic";
                return fault(path, format!("{path} is {number}; {message}"));
            }
        }
        Ok(())
    }

    /// One mode at a time, and weights in it.
    pub(super) fn precision(&self) -> Result<(), Fault> {
        let (fp16, bf16, amp) = (self.is_on("fp16.enabled"), self.is_on("bf16.enabled"), self.is_on("amp.enabled"));
        self.refuse(fp16 && bf16, "fp16.enabled", ", and so is bf16.enabled; keep one of them")?;
        for (is_on, other) in [(fp16, "fp16.enabled"), (bf16, "bf16.enabled")] {
            self.refuse(amp && is_on, "amp.enabled", &format!(", and so is {other}; keep one of them"))?;
        }
        let stage = self.stage();
        let why = format!(", but zero_optimization.stage is {stage}; apex works with stage 0 alone");
        self.refuse(amp && stage > 0, "amp.enabled", &why)?;
        let autocast = self.is_on("torch_autocast.enabled");
        for (is_on, other) in [(fp16, "fp16.enabled"), (bf16, "bf16.enabled"), (amp, "amp.enabled")] {
            let why = format!(", and so is {other}; keep one of them");
            self.refuse(autocast && is_on, "torch_autocast.enabled", &why)?;
        }
        let quantized = self.is_on("zero_optimization.zero_quantized_weights");
        let why = ", which does not go with zero_optimization.zero_quantized_weights";
        self.refuse(autocast && quantized, "torch_autocast.enabled", why)?;
        let mode = name(dtype(|section| self.is_on(&join(section, "enabled"))));
        let param = self.value("data_types.param_dtype").as_str();
        let why =
            format!(", but the weights are {mode} by fp16.enabled and bf16.enabled; remove it or make it \"{mode}\"");
        self.refuse(param.is_some_and(|param| short(param) != mode), "data_types.param_dtype", &why)
    }

    /// Masters in 16 bits need what DeepSpeed has them for.
    pub(super) fn half_masters(&self) -> Result<(), Fault> {
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
