//! One walk over a run file against the table: unknown keys, wrong types, values out of range.
//!
//! Keys that do not work yet are no fault of the file: they are noted, and only training refuses them.
//!
//! The walk also brings values to one spelling: `"auto"` becomes an absent key (or null, where null means "derive it"),
//! `5e8` a whole number, a name the table's own case.

use super::instead::instead;
use super::keys::{Key, Keys, Kind, Status, alternatives, join};
use serde_json::{Map, Value};

/// What is wrong, and at which key. The path is the reader's (`data.train[0].path`).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) path: String,
    /// A sentence that begins with the path.
    pub(super) message: String,
}

impl Fault {
    /// `path is value; it must be rule`.
    pub(super) fn value(path: &str, value: &Value, rule: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), message: format!("{path} is {}; it must be {rule}", shown(value)) }
    }
}

/// Keys that are given with another value than their default, and not honoured.
#[derive(Clone, Debug, Default)]
pub(super) struct Unheeded {
    /// Paths of keys without a counterpart here.
    pub(super) no_effect: Vec<String>,
    /// What training says of keys that do not work yet; the one that says most stands first.
    pub(super) not_yet: Vec<Fault>,
}

/// Walks over the whole file.
pub(super) fn check(keys: &Keys, root: &mut Map<String, Value>) -> Result<Unheeded, Fault> {
    let mut walk = Walk { keys, unheeded: Unheeded::default() };
    walk.section(Place::default(), root, None)?;
    // The switch of a feature says more than its settings do.
    walk.unheeded.not_yet.sort_by_key(|fault| !fault.path.ends_with(".enabled"));
    Ok(walk.unheeded)
}

/// A value as a message shows it: as JSON, cut when it is long.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

/// Where the walk is.
#[derive(Clone, Default)]
struct Place {
    /// As the reader would write it.
    path: String,
    /// As the table writes it.
    pattern: String,
    /// Inside a feature that is switched off: its settings are checked and then ignored, as DeepSpeed does.
    is_off: bool,
}

struct Walk<'a> {
    keys: &'a Keys,
    unheeded: Unheeded,
}

impl Walk<'_> {
    fn section(&mut self, at: Place, map: &mut Map<String, Value>, rest: Option<&Kind>) -> Result<(), Fault> {
        self.drop_auto(&at.pattern, map);
        let is_off = at.is_off || self.is_switched_off(&at.pattern, map);
        for (name, value) in map.iter_mut() {
            let path = join(&at.path, name);
            let pattern = join(&at.pattern, name);
            let known = self.keys.get(&pattern);
            if known.is_some() && name.contains('.') {
                let message = format!("{path} has dots in one key; write each name before a dot as a section {{...}}");
                return Err(Fault { path, message });
            }
            if let Some(key) = known {
                if !key.accept(value) {
                    return Err(Fault::value(&path, value, key.kind));
                }
                self.note(&path, is_off, key, value);
                self.inside(Place { path, pattern, is_off }, &key.kind, value)?;
            } else if let Some(kind) = rest {
                // Where free names stand beside known keys, a value that no free name takes is a slip in a known one.
                let is_slip = self.keys.children(&at.pattern).next().is_some();
                if !kind.accept(value) {
                    let fault = || Fault::value(&path, value, kind);
                    return Err(if is_slip { self.unknown(&at.pattern, name, &path) } else { fault() });
                }
                self.inside(Place { path, pattern: join(&at.pattern, "*"), is_off }, kind, value)?;
            } else {
                return Err(self.unknown(&at.pattern, name, &path));
            }
        }
        Ok(())
    }

    fn unknown(&self, section: &str, name: &str, path: &str) -> Fault {
        let nearest = self.keys.nearest(section, name);
        Fault { path: path.to_owned(), message: format!("{path} is not a known key; the nearest one is {nearest}") }
    }

    /// Walks on into the items of a list or the keys of a section.
    fn inside(&mut self, at: Place, kind: &Kind, value: &mut Value) -> Result<(), Fault> {
        match (value, kind.item(), kind.section()) {
            (Value::Array(items), Some(item_kind), _) => {
                for (i, item) in items.iter_mut().enumerate() {
                    let path = format!("{}[{i}]", at.path);
                    if !item_kind.accept(item) {
                        return Err(Fault::value(&path, item, item_kind));
                    }
                    let item_at = Place { path, pattern: format!("{}[]", at.pattern), is_off: at.is_off };
                    self.inside(item_at, item_kind, item)?;
                }
                Ok(())
            }
            (Value::Object(map), _, Some(rest)) => self.section(at, map, rest),
            _ => Ok(()),
        }
    }

    /// Takes out keys whose value is `"auto"`, unless that is a value of theirs.
    fn drop_auto(&self, section: &str, map: &mut Map<String, Value>) {
        let auto = Value::from("auto");
        let derived: Vec<String> =
            map.iter().filter(|(_, value)| **value == auto).map(|(name, _)| name.clone()).collect();
        for name in derived {
            match self.keys.get(&join(section, &name)) {
                // Among our own keys, any text may be meant: a prompt, a file's name.
                Some(key) if is_text(key) && !is_ours(section) => {
                    map.shift_remove(&name);
                }
                Some(key) if key.accept(&mut auto.clone()) => {}
                Some(key) if key.accept(&mut Value::Null) => {
                    map.insert(name, Value::Null);
                }
                Some(_) => {
                    map.shift_remove(&name);
                }
                None => {}
            }
        }
    }

    /// Whether the section has a switch (`enabled`, or that of its `shared_parameters`) that is off.
    fn is_switched_off(&self, section: &str, map: &Map<String, Value>) -> bool {
        let switched_on = |switch: &str, value: Option<&Value>| {
            self.keys.get(&join(section, switch)).map(|key| value.cloned().unwrap_or_else(|| key.default_value()))
        };
        let shared = map.get("shared_parameters").and_then(|shared| shared.get("enabled"));
        [switched_on("enabled", map.get("enabled")), switched_on("shared_parameters.enabled", shared)]
            .contains(&Some(Value::Bool(false)))
    }

    /// Remembers a key that is given with another value than its default and is not honoured.
    fn note(&mut self, path: &str, is_off: bool, key: &Key, value: &Value) {
        if is_off || same(value, &key.default_value()) {
            return;
        }
        match key.status {
            Status::Honoured => {}
            Status::NoEffect => self.unheeded.no_effect.push(path.to_owned()),
            Status::Refused { instead } => {
                let message = format!("{path} is {}, {instead}", shown(value));
                self.unheeded.not_yet.push(Fault { path: path.to_owned(), message });
            }
            Status::NotYet { except } if except.contains(&value.to_string().as_str()) => {
                self.unheeded.no_effect.push(path.to_owned());
            }
            Status::NotYet { except } => {
                let allowed = std::iter::once(key.default).chain(except.iter().copied()).filter(|text| *text != "null");
                let allowed = alternatives(allowed.map(str::to_owned));
                let what_to_do = match (key.default, except) {
                    ("null", []) => "remove it".to_owned(),
                    ("null", _) => format!("it must be {allowed} or absent"),
                    _ => format!("it must be {allowed}"),
                };
                let instead = instead(key.path).map_or(String::new(), |instead| format!(" ({instead})"));
                let message = format!("{path} is {}, which is not supported yet; {what_to_do}{instead}", shown(value));
                self.unheeded.not_yet.push(Fault { path: path.to_owned(), message });
            }
        }
    }
}

fn is_text(key: &Key) -> bool {
    matches!(key.kind, Kind::Text)
}

fn is_ours(section: &str) -> bool {
    matches!(section.split(['.', '[']).next(), Some("model" | "data" | "run"))
}

/// Equal as values: 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
