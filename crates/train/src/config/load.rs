//! From a file's text and the command line to a checked [`RunConfig`].
//!
//! # Order of events
//! 1. Read the text ([`super::read`]); older names become today's.
//! 2. Write `--set` values, then `--model` and `--data`, over it.
//! 3. Find the keys of the types it names and check every value ([`super::check`]), then what several keys
//!    say together ([`super::together`]).
//! 4. Fill in defaults ([`super::resolve::fill`]) and read the typed configuration from that.

use super::check::{self, Fault, shown};
use super::error::ConfigError;
use super::keys::{Keys, Kind, TypeKeys, join, type_keys};
use super::resolve::{self, Origin};
use super::{Given, RunConfig, encoded, random_ltd, read, recompute, together};
use crate::precision::Formats;
use crate::precision::half::Halves;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What the command line says beside the run file.
#[derive(Clone, Debug, Default)]
pub struct Overrides<'a> {
    /// `--set`: each `key.path=value`, later ones over earlier ones.
    pub set: &'a [String],
    /// `--model`: a folder, in place of the file's `model` section.
    pub model: Option<&'a str>,
    /// `--data`: a path, in place of `data.train`.
    pub data: Option<&'a str>,
}

/// The text of a configuration and how messages call it: a file, or what the argument itself holds ([`super::encoded`]).
pub(super) fn read_file(path: &Path) -> Result<(String, String), ConfigError> {
    let name = path.display().to_string();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => {
            let text = path.to_str().and_then(encoded::decode);
            let text = text.ok_or_else(|| ConfigError::about(&name, format!("the run file cannot be read: {e}")))?;
            return Ok((text, ENCODED.to_owned()));
        }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let (valid, bytes) = (e.utf8_error().valid_up_to(), e.as_bytes());
        let line = read::line_of(bytes, valid);
        let message =
            format!("is not UTF-8: byte {:#04x} at offset {valid}, on line {line}; save it as UTF-8", bytes[valid]);
        ConfigError::about(&name, message)
    })?;
    Ok((text, name))
}

/// How messages, and the run's folder below `runs/`, call a configuration that has no file.
const ENCODED: &str = "base64";

/// `name`: how messages call the file.
pub(super) fn parse(text: &str, name: &str, overrides: &Overrides<'_>) -> Result<RunConfig, ConfigError> {
    let value = read::parse(text).map_err(|message| ConfigError::about(name, message))?;
    from_value(value, name, overrides)
}

pub(super) fn from_value(value: Value, name: &str, overrides: &Overrides<'_>) -> Result<RunConfig, ConfigError> {
    let Value::Object(mut root) = value else {
        return Err(ConfigError::about(name, format!("holds {}; it must hold an object {{...}}", shown(&value))));
    };
    let mut notices = rename_older(&mut root).map_err(|message| ConfigError::about(name, message))?;
    let mut origins = BTreeMap::new();
    for text in overrides.set {
        let path = set(&mut root, text)?;
        origins.insert(path, Origin::Set);
    }
    notices.extend(rename_older(&mut root).map_err(|message| ConfigError::about("--set", message))?);
    arguments(&mut root, overrides, &mut origins)?;

    let blame = |fault: Fault| ConfigError::about(source(name, &origins, &fault.path), fault.message);
    let Types { keys, later } = types(&mut root).map_err(blame)?;
    let keys = Keys::new(&keys);
    let mut unheeded = check::check(&keys, &mut root).map_err(blame)?;
    let filled = resolve::fill(&keys, &root);
    together::check(&root, &filled).map_err(blame)?;
    recompute::check(&root).map_err(blame)?;
    random_ltd::check(&filled).map_err(blame)?;

    notices.extend(known_warmup(&mut root));
    derive(&mut root, name, &mut origins);
    let filled = Value::Object(resolve::fill(&keys, &root));
    let mut typed = filled.clone();
    for fault in &later {
        // A type that is not built has no fields.
        typed[fault.path.trim_end_matches(".type")] = Value::Null;
    }
    let mut config: RunConfig = serde_json::from_value(typed).map_err(|e| ConfigError::about(name, e))?;
    unheeded.not_yet.splice(0..0, later);
    config.given = Given { name: name.to_owned(), root, filled, origins, unheeded, notices };
    Formats::of(&config)?;
    Halves::check(&config)?;
    Ok(config)
}

/// Which words of the command line, or which file, said what stands at `path`.
pub(super) fn source<'a>(name: &'a str, origins: &BTreeMap<String, Origin>, path: &str) -> &'a str {
    match origin_of(origins, path) {
        Some(Origin::Set) => "--set",
        Some(Origin::Argument) if path.starts_with("model") => "--model",
        Some(Origin::Argument) => "--data",
        _ => name,
    }
}

/// The origin of `path` itself or of a section around it.
pub(super) fn origin_of(origins: &BTreeMap<String, Origin>, path: &str) -> Option<Origin> {
    let sections = path.match_indices(['.', '[']).map(|(end, _)| &path[..end]);
    std::iter::once(path).chain(sections).find_map(|section| origins.get(section).copied())
}

/// DeepSpeed's older names: section, older name, today's name.
const OLDER: [(&str, &str, &str); 3] = [
    ("", "bfloat16", "bf16"),
    ("zero_optimization", "stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"),
    ("aio", "thread_count", "intra_op_parallelism"),
];

/// Keys of `zero_optimization` that DeepSpeed takes without their `stage3_` too.
const WITHOUT_STAGE3: [&str; 9] = [
    "allgather_sequential",
    "gather_16bit_weights_on_model_save",
    "max_live_parameters",
    "max_reuse_distance",
    "model_persistence_threshold",
    "module_granularity_threshold",
    "param_persistence_threshold",
    "prefetch_bucket_size",
    "use_all_reduce_for_fetch_params",
];

/// Every other name of a key: section, name, the key's own name, and which name it is.
fn other_names() -> impl Iterator<Item = (&'static str, &'static str, String, &'static str)> {
    let older = OLDER.into_iter().map(|(section, older, today)| (section, older, today.to_owned(), "the older name"));
    let short = WITHOUT_STAGE3.into_iter();
    older.chain(short.map(|name| ("zero_optimization", name, format!("stage3_{name}"), "another name")))
}

/// Older names become today's; what was renamed, for the log.
fn rename_older(root: &mut Map<String, Value>) -> Result<Vec<String>, String> {
    let mut notices = Vec::new();
    if let Some(flag) = root.get("zero_optimization").and_then(Value::as_bool) {
        root.insert("zero_optimization".into(), json!({ "stage": u8::from(flag) }));
        notices
            .push(format!("zero_optimization is {flag}, the older form of zero_optimization.stage {}", u8::from(flag)));
    }
    notices.extend(switches_of_offload(root)?);
    for (section, other, own, which) in other_names() {
        let map =
            if section.is_empty() { Some(&mut *root) } else { root.get_mut(section).and_then(Value::as_object_mut) };
        let Some(map) = map.filter(|map| map.contains_key(other)) else { continue };
        let (other_path, path) = (join(section, other), join(section, &own));
        if map.contains_key(&own) {
            return Err(format!("{other_path} is {which} of {path}, and both are given; keep {path}"));
        }
        if let Some(value) = map.shift_remove(other) {
            map.insert(own, value);
        }
        notices.push(format!("{other_path} is {which} of {path}"));
    }
    Ok(notices)
}

/// Switches of `zero_optimization` that became sections.
const SWITCHES: [(&str, &str); 2] = [("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")];

/// `cpu_offload: true` becomes `offload_optimizer: { device: cpu }`, and likewise for the weights.
fn switches_of_offload(root: &mut Map<String, Value>) -> Result<Vec<String>, String> {
    let mut notices = Vec::new();
    let Some(zero) = root.get_mut("zero_optimization").and_then(Value::as_object_mut) else { return Ok(notices) };
    for (older, today) in SWITCHES {
        let Some(value) = zero.shift_remove(older) else { continue };
        let (older, path) = (format!("zero_optimization.{older}"), format!("zero_optimization.{today}"));
        if zero.contains_key(today) {
            return Err(format!("{older} is the older form of {path}, and both are given; keep {path}"));
        }
        match value {
            Value::Bool(true) => _ = zero.insert(today.to_owned(), json!({ "device": "cpu" })),
            Value::Bool(false) | Value::Null => {}
            Value::String(auto) if auto == "auto" => {}
            other => return Err(format!("{older} is {}; it must be true or false", shown(&other))),
        }
        notices.push(format!("{older} is the older form of {path}.device"));
    }
    Ok(notices)
}

/// A path with another name of a key in it, by the key's own.
fn own_path(path: &str) -> String {
    let renamed = other_names().find_map(|(section, other, own, _)| {
        let rest = path.strip_prefix(&join(section, other))?;
        (rest.is_empty() || rest.starts_with('.')).then(|| join(section, &own) + rest)
    });
    renamed.unwrap_or_else(|| path.to_owned())
}

/// Writes one `key.path=value`; the value is JSON if it reads as such, else text. Returns the path that it has in the end.
fn set(root: &mut Map<String, Value>, text: &str) -> Result<String, ConfigError> {
    let Some((path, raw)) = text.split_once('=').filter(|(path, _)| !path.split('.').any(str::is_empty)) else {
        return Err(ConfigError::about("--set", format!("{text:?} must be key.path=value, such as run.steps=100")));
    };
    if path.split('.').count() > read::MAX_DEPTH {
        let most = read::MAX_DEPTH;
        return Err(ConfigError::about("--set", format!("a path of more than {most} names; no key lies so deep")));
    }
    let path = &own_path(path);
    let is_text = Keys::new(&[]).get(path).is_some_and(|key| matches!(key.kind, Kind::Text));
    let is_quoted = raw.trim_start().starts_with(['"', '\'']);
    let value = match read::parse_value(raw) {
        // A path that looks like a number is still a path.
        Ok(value) if value.is_null() || (if value.is_string() { is_quoted } else { !is_text }) => value,
        _ => Value::String(raw.to_owned()),
    };
    resolve::insert(root, path, value).map_err(|section| {
        let found = resolve::at(root, &section).unwrap_or(&Value::Null);
        ConfigError::about("--set", format!("{path} cannot be set: {section} is {}, not a section", shown(found)))
    })?;
    let own = SWITCHES.iter().find(|(older, _)| *path == join("zero_optimization", older));
    Ok(own.map_or_else(|| path.to_owned(), |(_, own)| join("zero_optimization", own)))
}

/// `--model` and `--data` replace what the file says of the model and of the training data.
fn arguments(
    root: &mut Map<String, Value>,
    overrides: &Overrides<'_>,
    origins: &mut BTreeMap<String, Origin>,
) -> Result<(), ConfigError> {
    if let Some(model) = overrides.model {
        let labels = resolve::at(root, "model.labels").cloned();
        root.insert("model".into(), json!({ "path": model }));
        if let Some(labels) = labels {
            root["model"]["labels"] = labels; // of the head, which no folder of a language model has
        }
        origins.insert("model".into(), Origin::Argument);
    }
    if let Some(data) = overrides.data {
        resolve::insert(root, "data.train", data.into())
            .map_err(|_| ConfigError::about("--data", "data is not a section {...} in the run file"))?;
        origins.insert("data.train".into(), Origin::Argument);
    }
    Ok(())
}

/// The keys of the optimizer's and the schedule's type, and what training says of those that are not built.
#[derive(Default)]
struct Types {
    keys: Vec<TypeKeys>,
    later: Vec<Fault>,
}

/// Finds the types that a file names; its spelling of them becomes the table's.
fn types(root: &mut Map<String, Value>) -> Result<Types, Fault> {
    let mut found = Types::default();
    for section in ["optimizer", "scheduler"] {
        let Some(map) = root.get_mut(section).and_then(Value::as_object_mut) else { continue };
        let path = join(section, "type");
        match map.get_mut("type") {
            None | Some(Value::Null) => {
                let rule = type_keys(section, "").err().unwrap_or_default();
                return Err(Fault { message: format!("{path} is missing{rule}"), path });
            }
            Some(Value::String(name)) => {
                let fault = |rule| Fault { message: format!("{path} is {name:?}{rule}"), path: path.clone() };
                let (keys, later) = type_keys(section, name).map_err(fault)?;
                found.later.extend(later.map(fault));
                found.keys.push(keys);
                *name = keys.name.to_owned();
            }
            Some(other) => return Err(Fault::value(&path, other, Kind::Text)),
        }
        if section == "optimizer" && map.get("params").is_some_and(|params| params.get("max_grad_norm").is_some()) {
            let path = format!("{section}.params.max_grad_norm");
            let message =
                format!("{path} is not a setting of the optimizer; the global norm is clipped by gradient_clipping");
            return Err(Fault { path, message });
        }
    }
    Ok(found)
}

/// DeepSpeed takes a curve it does not know for the logarithm, and says so.
fn known_warmup(root: &mut Map<String, Value>) -> Option<String> {
    let scheduler = root.get_mut("scheduler")?;
    let is_deepspeeds = ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"].iter().any(|name| scheduler["type"] == *name);
    let curve = scheduler.get_mut("params")?.get_mut("warmup_type")?;
    if !is_deepspeeds || ["log", "linear"].iter().any(|known| curve == known) {
        return None;
    }
    let notice =
        format!("scheduler.params.warmup_type is {curve}, which is neither log nor linear: it is taken for log");
    *curve = "log".into();
    Some(notice)
}

/// Values that follow from others rather than from the table.
fn derive(root: &mut Map<String, Value>, name: &str, origins: &mut BTreeMap<String, Origin>) {
    let mut put = |root: &mut Map<String, Value>, path: &str, value: Value| {
        if resolve::at(root, path).is_none_or(Value::is_null) && resolve::insert(root, path, value).is_ok() {
            origins.insert(path.to_owned(), Origin::Derived);
        }
    };
    let stem = Path::new(name).file_stem().map_or_else(|| name.into(), |stem| stem.to_string_lossy());
    put(root, "run.output", format!("runs/{stem}").into());
    if ["run.steps", "run.epochs", "run.tokens"].iter().all(|path| resolve::at(root, path).is_none_or(Value::is_null)) {
        put(root, "run.epochs", 1.into());
    }
    // `torch_adam` hands the parameters to PyTorch, whose AdamW decays by 0.01 unless told otherwise.
    let says = |path: &str, value: Value| resolve::at(root, path) == Some(&value);
    let is_w = says("optimizer.type", "AdamW".into())
        || (says("optimizer.type", "Adam".into()) && !says("optimizer.params.adam_w_mode", false.into()));
    let says_on = |path: &str| resolve::at(root, path) == Some(&Value::Bool(true));
    let is_bf16 = says("optimizer.params.fp32_optimizer_states", false.into())
        || (says_on("bf16.enabled") && says_on("bf16.bf16_optimizer_states"));
    if is_w && says("optimizer.params.torch_adam", true.into()) {
        put(root, "optimizer.params.weight_decay", 0.01.into());
    }
    // DeepSpeed's CPU Adam then keeps moments in bf16.
    if is_bf16 && resolve::at(root, "optimizer").is_some() {
        put(root, "optimizer.moments", "bf16".into());
    }
}
