//! The precision of a run: which of `fp16.enabled` and `bf16.enabled` is on.

use serde_json::Value;
use tensor::DType;

/// The format of activations and compute copies. `is_on`: whether a section, `fp16` or `bf16`, is enabled; not both are.
pub(crate) fn dtype(is_on: impl Fn(&str) -> bool) -> DType {
    match (is_on("fp16"), is_on("bf16")) {
        (true, _) => DType::F16,
        (_, true) => DType::BF16,
        _ => DType::F32,
    }
}

/// The same from a configuration as JSON.
pub(crate) fn dtype_of(config: &Value) -> DType {
    dtype(|section| config[section]["enabled"] == true)
}

/// What DeepSpeed's keys call a format that a run can have.
pub(super) fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "fp16",
        DType::BF16 => "bf16",
        _ => "fp32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_run_is_in_f32_unless_one_of_the_two_sections_is_on() {
        for (config, want) in [
            (json!({}), DType::F32),
            (json!({ "fp16": { "enabled": true }, "bf16": { "enabled": false } }), DType::F16),
            (json!({ "bf16": { "enabled": true } }), DType::BF16),
            (json!({ "fp16": null, "bf16": { "enabled": "true" } }), DType::F32),
        ] {
            assert_eq!(dtype_of(&config), want, "{config}");
        }
    }
}
