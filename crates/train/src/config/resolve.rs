//! Every key of a run with its final value, and where each came from.

use super::check::Unheeded;
use super::keys::{Keys, Kind, join};
use super::{RunConfig, load};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The run file says it.
    File,
    /// `--set` on the command line.
    Set,
    /// Another argument of the command line: `--model`, `--data`.
    Argument,
    /// Nobody said anything.
    Default,
    /// Worked out from other values.
    Derived,
}

/// What becomes of a value in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It does what it says, or asks for what happens anyway.
    Heeded,
    /// It tunes something that has no counterpart here.
    NoEffect,
    /// It does not work yet, and training refuses it.
    NotYet,
}

/// One key with its final value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// The path a user can type.
    pub key: String,
    /// Its value; a list or a section of free names is one value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
    /// What becomes of it.
    pub fate: Fate,
}

impl RunConfig {
    /// The final value at a path; none where it is null.
    pub(crate) fn value(&self, path: &str) -> Option<&Value> {
        at(self.given.filled.as_object()?, path).filter(|value| !value.is_null())
    }

    /// What follows from other keys and is shown by `plan`.
    pub(crate) fn consequences(&self) -> Vec<(&'static str, Value)> {
        let mut found = Vec::new();
        if self.value("zero_optimization.overlap_comm").is_none() {
            found.push(("zero_optimization.overlap_comm", (self.zero_optimization.stage == 3).into()));
        }
        if self.value("flops_profiler.enabled") == Some(&true.into()) {
            found.push(("wall_clock_breakdown", true.into()));
        }
        found
    }

    /// Every key nested as in the file, each with its final value: the file's, else its default. Fields of this struct
    /// that were changed since count; `derived` (path, value) comes on top, such as the batch sizes of the plan.
    pub fn resolved(&self, derived: &[(&str, Value)]) -> Value {
        let mut resolved = self.given.filled.clone();
        let mut typed = serde_json::to_value(self).unwrap_or_else(|e| panic!("RunConfig::resolved: {e}"));
        for section in ["optimizer", "scheduler"] {
            let not_built = self.given.unheeded.not_yet.iter().any(|fault| fault.path == format!("{section}.type"));
            if not_built && typed[section].is_null() {
                typed[section] = resolved[section].clone();
            }
            // Another type has other params.
            if resolved[section]["type"] != typed[section]["type"] {
                resolved[section] = Value::Null;
            }
        }
        overlay(&mut resolved, typed);
        if let Value::Object(root) = &mut resolved {
            for (path, value) in derived {
                let written = insert(root, path, value.clone());
                assert!(written.is_ok(), "RunConfig::resolved: {path} stands in no section");
            }
        }
        resolved
    }

    /// [`RunConfig::resolved`] as a list of keys with the origin of each value.
    pub fn settings(&self, derived: &[(&str, Value)]) -> Vec<Setting> {
        let resolved = self.resolved(derived);
        let mut settings = Vec::new();
        leaves(&resolved, "", &mut |key, value| {
            let origin = self.origin(key, value, derived);
            let fate = self.fate(key);
            settings.push(Setting { key: key.to_owned(), value: value.clone(), origin, fate });
        });
        settings
    }

    fn fate(&self, key: &str) -> Fate {
        let is_at =
            |path: &str| key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        match &self.given.unheeded {
            Unheeded { not_yet, .. } if not_yet.iter().any(|fault| is_at(&fault.path)) => Fate::NotYet,
            Unheeded { no_effect, .. } if no_effect.iter().any(|path| is_at(path)) => Fate::NoEffect,
            _ => Fate::Heeded,
        }
    }

    fn origin(&self, key: &str, value: &Value, derived: &[(&str, Value)]) -> Origin {
        let given = at(&self.given.root, key);
        let is_derived = derived.iter().any(|(path, _)| *path == key);
        match load::origin_of(&self.given.origins, key) {
            _ if is_derived && given != Some(value) => Origin::Derived,
            Some(origin) if given.is_some() => origin,
            None if given.is_some() => Origin::File,
            _ => Origin::Default,
        }
    }
}

/// A line of `plan`: key, value, origin, and what becomes of it if that is not what it says.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::File => "file",
            Origin::Set => "--set",
            Origin::Argument => "command line",
            Origin::Default => "default",
            Origin::Derived => "derived",
        };
        let fate = match self.fate {
            Fate::Heeded => "",
            Fate::NoEffect => "; no effect here",
            Fate::NotYet => "; does not work yet, train refuses it",
        };
        write!(f, "{} = {} ({origin}{fate})", self.key, self.value)
    }
}

/// `given` with every absent key of its sections at its default, in the table's order. A section that is null by
/// default stays null unless it is given.
pub(super) fn fill(keys: &Keys, given: &Map<String, Value>) -> Map<String, Value> {
    fill_section(keys, "", given, None)
}

fn fill_section(keys: &Keys, pattern: &str, given: &Map<String, Value>, rest: Option<&Kind>) -> Map<String, Value> {
    let mut filled = Map::new();
    for (name, key) in keys.children(pattern) {
        let value = given.get(name).cloned().unwrap_or_else(|| key.default_value());
        filled.insert(name.to_owned(), fill_value(keys, &join(pattern, name), &key.kind, value));
    }
    for (name, value) in given {
        if !filled.contains_key(name) {
            let value = value.clone();
            let value = rest.map_or(value.clone(), |kind| fill_value(keys, &join(pattern, "*"), kind, value));
            filled.insert(name.clone(), value);
        }
    }
    filled
}

fn fill_value(keys: &Keys, pattern: &str, kind: &Kind, value: Value) -> Value {
    match (value, kind.item(), kind.section()) {
        (Value::Array(items), Some(item), _) => {
            let item_pattern = format!("{pattern}[]");
            items.into_iter().map(|value| fill_value(keys, &item_pattern, item, value)).collect()
        }
        (Value::Object(map), _, Some(rest)) => fill_section(keys, pattern, &map, rest).into(),
        (value, ..) => value,
    }
}

/// Calls `visit` with the path and value of every leaf: what is no section, or an empty one.
pub(super) fn leaves(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, value)| leaves(value, &join(path, name), visit))
        }
        _ => visit(path, value),
    }
}

/// Writes `value` at `path`, making sections on the way. The error is the path of something that is no section.
pub(super) fn insert(root: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), String> {
    let mut map = root;
    let mut rest = path;
    while let Some((name, after)) = rest.split_once('.') {
        rest = after;
        let next = map.entry(name).or_insert(Value::Null);
        if next.is_null() {
            *next = Map::new().into();
        }
        let Value::Object(section) = next else {
            return Err(path[..path.len() - rest.len() - 1].to_owned());
        };
        map = section;
    }
    map.insert(rest.to_owned(), value);
    Ok(())
}

/// The value at a path of names.
pub(super) fn at<'a>(root: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let (section, rest) = path.split_once('.').map_or((path, None), |(section, rest)| (section, Some(rest)));
    match (root.get(section)?, rest) {
        (value, None) => Some(value),
        (Value::Object(map), Some(rest)) => at(map, rest),
        _ => None,
    }
}

/// `over` written over `under`, section by section.
pub(super) fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                overlay(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}
