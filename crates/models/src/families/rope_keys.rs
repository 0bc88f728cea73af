//! The RoPE keys of a `config.json`, in the spellings of Transformers 4 and 5.
//!
//! Version 5 writes one object, `rope_parameters: {rope_type, rope_theta, factor, ...}`. Version 4 has `rope_theta` at
//! the top and `rope_scaling: {type or rope_type, factor, ...}`, null for the default. Source:
//! `RotaryEmbeddingConfigMixin` in `modeling_rope_utils.py` of Transformers 5.23.
//!
//! We write both: 5 reads `rope_scaling` too and fills `rope_theta` into it, while 4 does not know `rope_parameters` and
//! would fall back to theta 10,000 in silence. Both were loaded and compared (Transformers 4.57 and 5.23).

use serde_json::{Map, Value, json};

use crate::hf::ConfigError;
use crate::hf::keys::Keys;
use crate::layers::rope_table::{RopeScaling, Yarn};

/// Transformers' default.
const DEFAULT_THETA: f64 = 10_000.0;
/// The types we compute.
const KNOWN_TYPES: &str = "default, linear, llama3 or yarn";

/// `rope_theta` and the scaling of a configuration, whichever way it spells them.
pub(super) fn read(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<(f64, RopeScaling), ConfigError> {
    whole_heads(keys)?;
    let top_theta = theta(keys)?;
    let pretraining_context = keys.size("original_max_position_embeddings")?;
    let context = |rope: &Keys<'_>| -> Result<usize, ConfigError> {
        let inner = rope.size("original_max_position_embeddings")?;
        Ok(pretraining_context.or(inner).unwrap_or(max_position_embeddings))
    };
    let mut found: Option<(f64, RopeScaling)> = None;
    for spelling in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = keys.object(spelling)? else { continue };
        let inner_theta = theta(&rope)?;
        if let (Some(inner), Some(top)) = (inner_theta, top_theta)
            && inner != top
        {
            return Err(keys.error(format!("rope_theta is {top} but {spelling}.rope_theta is {inner}; keep one")));
        }
        let read = (inner_theta.or(top_theta).unwrap_or(DEFAULT_THETA), scaling(&rope, context)?);
        if found.as_ref().is_some_and(|other| *other != read) {
            return Err(keys.error("rope_parameters and rope_scaling say different things; keep one"));
        }
        found = Some(read);
    }
    Ok(found.unwrap_or((top_theta.unwrap_or(DEFAULT_THETA), RopeScaling::Default)))
}

/// Llama in Transformers rotates whole heads and fails on any other factor.
fn whole_heads(keys: &Keys<'_>) -> Result<(), ConfigError> {
    keys.number("partial_rotary_factor", "1: this family rotates whole heads", |factor| factor == 1.0).map(|_| ())
}

fn theta(keys: &Keys<'_>) -> Result<Option<f64>, ConfigError> {
    keys.number("rope_theta", "a number above 1", |theta| theta > 1.0)
}

fn scaling(
    rope: &Keys<'_>,
    context: impl Fn(&Keys<'_>) -> Result<usize, ConfigError>,
) -> Result<RopeScaling, ConfigError> {
    let rope_type = match rope.spelt(&["rope_type", "type"])? {
        None => "default",
        Some((key, value)) => value.as_str().ok_or_else(|| rope.wrong(key, value, KNOWN_TYPES))?,
    };
    whole_heads(rope)?;
    let scaling = match rope_type {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor(rope, rope_type)? },
        "llama3" => llama3(rope, context(rope)?)?,
        "yarn" => RopeScaling::Yarn(yarn(rope, context(rope)?)?),
        other => {
            let name = rope.name("rope_type");
            return Err(
                rope.error(format!("{name} is {other:?}, which Bessemer does not do; it must be {KNOWN_TYPES}"))
            );
        }
    };
    rope.rest(&[], &format!("rope_type {rope_type}"))?;
    Ok(scaling)
}

fn required<T>(rope: &Keys<'_>, rope_type: &str, key: &str, value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| rope.error(format!("{} is missing; rope_type {rope_type} needs it", rope.name(key))))
}

fn factor(rope: &Keys<'_>, rope_type: &str) -> Result<f64, ConfigError> {
    let factor = rope.number("factor", "a number of at least 1", |factor| factor >= 1.0)?;
    required(rope, rope_type, "factor", factor)
}

fn llama3(rope: &Keys<'_>, original_max_position_embeddings: usize) -> Result<RopeScaling, ConfigError> {
    let factor = factor(rope, "llama3")?;
    let low_freq_factor = required(rope, "llama3", "low_freq_factor", rope.positive("low_freq_factor")?)?;
    let high_freq_factor = required(rope, "llama3", "high_freq_factor", rope.positive("high_freq_factor")?)?;
    if high_freq_factor <= low_freq_factor {
        let (high, low) = (rope.name("high_freq_factor"), rope.name("low_freq_factor"));
        return Err(rope.error(format!("{high} is {high_freq_factor}; it must be above {low}, {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
}

fn yarn(rope: &Keys<'_>, original_max_position_embeddings: usize) -> Result<Yarn, ConfigError> {
    const RULE: &str = "a number of at least 0";
    let at_least_0: fn(f64) -> bool = |x| x >= 0.0;
    // Transformers takes 0 for "not given" in both rates.
    let rate = |key, default: f64| -> Result<f64, ConfigError> {
        Ok(rope.number(key, RULE, at_least_0)?.filter(|&turns| turns > 0.0).unwrap_or(default))
    };
    let yarn = Yarn {
        factor: factor(rope, "yarn")?,
        original_max_position_embeddings,
        beta_fast: rate("beta_fast", 32.0)?,
        beta_slow: rate("beta_slow", 1.0)?,
        attention_factor: rope.positive("attention_factor")?,
        mscale: rope.number("mscale", RULE, at_least_0)?,
        mscale_all_dim: rope.number("mscale_all_dim", RULE, at_least_0)?,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    };
    if yarn.beta_fast < yarn.beta_slow {
        let (fast, slow) = (rope.name("beta_fast"), rope.name("beta_slow"));
        return Err(rope.error(format!("{fast} is {}; it must be at least {slow}, {}", yarn.beta_fast, yarn.beta_slow)));
    }
    Ok(yarn)
}

/// Adds the keys in both spellings.
pub(super) fn write(theta: f64, scaling: &RopeScaling, out: &mut Map<String, Value>) {
    let scaling = scaling_to_json(scaling);
    let mut parameters = scaling.clone();
    parameters.insert("rope_theta".to_owned(), json!(theta));
    parameters.sort_keys();
    let is_default = scaling["rope_type"] == "default";
    out.insert("rope_parameters".to_owned(), Value::Object(parameters));
    out.insert("rope_scaling".to_owned(), if is_default { Value::Null } else { Value::Object(scaling) });
    out.insert("rope_theta".to_owned(), json!(theta));
}

fn scaling_to_json(scaling: &RopeScaling) -> Map<String, Value> {
    let value = match scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"factor": factor, "rope_type": "linear"}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "factor": factor,
            "high_freq_factor": high_freq_factor,
            "low_freq_factor": low_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "rope_type": "llama3",
        }),
        RopeScaling::Yarn(yarn) => json!({
            "attention_factor": yarn.attention_factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "factor": yarn.factor,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "rope_type": "yarn",
            "truncate": yarn.truncate,
        }),
    };
    let Value::Object(mut keys) = value else { unreachable!("json! of braces is an object") };
    keys.retain(|_, value| !value.is_null());
    keys
}
