//! What is known of every key of a run file, and questions to the table of them.
//!
//! A [`Key`] is one row of the table (`table/`): the only place where a key's name, type, range, default and fate are
//! written. Checking, filling in defaults, suggestions and documentation all read it.

use super::instead::instead;
use super::table;
use super::table::types::{TYPES, TYPES_NOT_YET};
use super::table::types_later;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};

/// One key of a run file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands, as `section.section.key`; `[]` is each item of a list, `*` each name that the user chooses.
    pub path: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// The value when the key is absent, as JSON. `null`: none, or derived.
    pub default: &'static str,
    /// What becomes of it.
    pub status: Status,
    /// One line for the reference page.
    pub meaning: &'static str,
}

/// What a value may be. A key whose default is null may also be given as null.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within both ends; `5e8` is one.
    Int {
        /// The smallest.
        min: i64,
        /// The largest; `i64::MAX` is no limit.
        max: i64,
    },
    /// A number above or from the first bound, below or up to the second.
    Number(Bound<f64>, Bound<f64>),
    /// Any text.
    Text,
    /// A number that this accepts, written as text.
    Quoted(&'static Kind),
    /// One of these names, in any case of letters.
    Names(&'static [&'static str]),
    /// A list of these.
    List(&'static Kind),
    /// A list of two of these.
    Pair(&'static Kind),
    /// An object whose keys stand in the table; with a kind, keys of other names may hold that.
    Section(Option<&'static Kind>),
    /// `null` alone.
    Null,
    /// Whatever JSON can say.
    Any,
    /// The first of these that fits.
    OneOf(&'static [Kind]),
}

/// What becomes of a key that is given with another value than its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does what it says.
    Honoured,
    /// It tunes something that has no counterpart here; listed once in the log.
    NoEffect,
    /// Refused by name, but for these values (as JSON), which ask for what happens anyway.
    NotYet {
        /// Values beside the default that are accepted and have no effect.
        except: &'static [&'static str],
    },
    /// Refused by name, for good.
    Refused {
        /// Why, and what to use instead, as the rest of a sentence that begins with key and value.
        instead: &'static str,
    },
}

/// The keys of `params` under one type of optimizer or schedule.
#[derive(Clone, Copy, Debug)]
pub struct TypeKeys {
    /// `optimizer` or `scheduler`.
    pub section: &'static str,
    /// The type's name as it is spelt by its library.
    pub name: &'static str,
    /// The rows, whose paths begin with `section.params.`.
    pub keys: &'static [Key],
}

impl Key {
    /// The value when the key is absent.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).unwrap_or_else(|e| panic!("Key::default_value: {}: {e}", self.path))
    }

    /// Whether `value` may stand here; rewrites it to the one spelling the rest of the program reads: whole numbers
    /// without a fraction, names as the table spells them. Items of lists and keys of sections are not looked at.
    pub(super) fn accept(&self, value: &mut Value) -> bool {
        (value.is_null() && self.default == "null") || self.kind.accept(value)
    }
}

impl Kind {
    pub(super) fn accept(&self, value: &mut Value) -> bool {
        match *self {
            Kind::Bool => value.is_boolean(),
            Kind::Int { min, max } => match whole(value) {
                Some(number) if (min..=max).contains(&number) => {
                    *value = number.into();
                    true
                }
                _ => false,
            },
            Kind::Number(low, high) => value.as_f64().is_some_and(|number| (low, high).contains(&number)),
            Kind::Quoted(kind) => {
                let number = value.as_str().and_then(|text| text.trim().parse::<f64>().ok());
                let mut unquoted = number.map_or(Value::Null, Value::from);
                let fits = kind.accept(&mut unquoted);
                if fits {
                    *value = unquoted;
                }
                fits
            }
            Kind::Text => value.is_string(),
            Kind::Names(names) => {
                let known = value.as_str().and_then(|text| names.iter().find(|name| name.eq_ignore_ascii_case(text)));
                if let Some(name) = known {
                    *value = (*name).into();
                }
                known.is_some()
            }
            Kind::List(_) => value.is_array(),
            Kind::Pair(_) => value.as_array().is_some_and(|items| items.len() == 2),
            Kind::Section(_) => value.is_object(),
            Kind::Null => value.is_null(),
            Kind::Any => true,
            Kind::OneOf(kinds) => kinds.iter().any(|kind| kind.accept(value)),
        }
    }

    /// What each item of a list must be, if this may be a list.
    pub(super) fn item(&self) -> Option<&'static Kind> {
        match *self {
            Kind::List(item) | Kind::Pair(item) => Some(item),
            Kind::OneOf(kinds) => kinds.iter().find_map(Kind::item),
            _ => None,
        }
    }

    /// If this may be a section: what keys that do not stand in the table may hold.
    pub(super) fn section(&self) -> Option<Option<&'static Kind>> {
        match *self {
            Kind::Section(rest) => Some(rest),
            Kind::OneOf(kinds) => kinds.iter().find_map(Kind::section),
            _ => None,
        }
    }
}

/// A whole number, however it is written.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // 2^63: beyond it the cast would saturate.
        (number.fract() == 0.0 && number.abs() < 9.2e18).then_some(number as i64)
    })
}

/// Ends the sentence "it must be".
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Int { min, max } if min != i64::MIN && max.saturating_sub(min) < 8 => {
                f.write_str(&alternatives((min..=max).map(|number| number.to_string())))
            }
            Kind::Int { min, max } => {
                f.write_str("a whole number")?;
                let low = if min == i64::MIN { Bound::Unbounded } else { Bound::Included(min) };
                let high = if max == i64::MAX { Bound::Unbounded } else { Bound::Included(max) };
                write_bounds(f, low, high)
            }
            Kind::Number(low, high) => {
                f.write_str("a number")?;
                write_bounds(f, low, high)
            }
            Kind::Quoted(_) => f.write_str("such a number in quotes"),
            Kind::Text => f.write_str("text in quotes"),
            Kind::Names(names) => f.write_str(&alternatives(names.iter().map(|name| format!("{name:?}")))),
            Kind::List(item) => write!(f, "a list [...] whose items are {item}"),
            Kind::Pair(item) => write!(f, "a list of two, each {item}"),
            Kind::Section(_) => f.write_str("a section {...}"),
            Kind::Null => f.write_str("null"),
            Kind::Any => f.write_str("any value"),
            Kind::OneOf(kinds) => f.write_str(&alternatives(kinds.iter().map(Kind::to_string))),
        }
    }
}

fn write_bounds<T: fmt::Display>(f: &mut fmt::Formatter<'_>, low: Bound<T>, high: Bound<T>) -> fmt::Result {
    let both = !matches!((&low, &high), (Bound::Unbounded, _) | (_, Bound::Unbounded));
    match low {
        Bound::Included(low) => write!(f, " of at least {low}")?,
        Bound::Excluded(low) => write!(f, " above {low}")?,
        Bound::Unbounded => {}
    }
    f.write_str(if both { " and" } else { "" })?;
    match high {
        Bound::Included(high) => write!(f, " at most {high}"),
        Bound::Excluded(high) => write!(f, " below {high}"),
        Bound::Unbounded => Ok(()),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn alternatives(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    match names.pop() {
        Some(last) if !names.is_empty() => format!("{} or {last}", names.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// The keys of one run file, by path: all of the table, and those of the types it names.
pub(super) struct Keys {
    rows: BTreeMap<&'static str, &'static Key>,
}

impl Keys {
    /// `types`: the optimizer's and the schedule's, from [`type_keys`]; their rows stand over the table's.
    pub(super) fn new(types: &[TypeKeys]) -> Self {
        let typed = types.iter().flat_map(|of_type| of_type.keys);
        let rows = table::TABLES.into_iter().flatten().chain(typed).map(|key| (key.path, key)).collect();
        Self { rows }
    }

    /// The key at a path with `[]` and `*` in it. A group of weights may override each of the optimizer's settings.
    pub(super) fn get(&self, pattern: &str) -> Option<&'static Key> {
        let setting = || self.rows.get(join("optimizer.params", pattern.strip_prefix("optimizer.groups[].")?).as_str());
        self.rows.get(pattern).or_else(setting).copied()
    }

    /// Every key, by path.
    pub(super) fn all(&self) -> impl Iterator<Item = &'static Key> {
        self.rows.values().copied()
    }

    /// The keys directly inside a section (the whole file: ""), with their last names.
    pub(super) fn children(&self, section: &str) -> impl Iterator<Item = (&'static str, &'static Key)> {
        let prefix = join(section, "");
        let from_here = self.rows.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        let inside = from_here.map_while(move |(path, key)| Some((path.strip_prefix(prefix.as_str())?, *key)));
        inside.filter(|(name, _)| !name.contains(['.', '[']))
    }

    /// The known path nearest to an unknown `name` inside `section`, for a message.
    pub(super) fn nearest(&self, section: &str, name: &str) -> &'static str {
        // Of sections whose type is not known yet, the keys of every type.
        let is_open =
            |of_type: &&TypeKeys| !self.all().any(|key| key.path.starts_with(&join(of_type.section, "params.")));
        let typed = TYPES.iter().filter(is_open).flat_map(|of_type| of_type.keys);
        let score = |key: &Key| likeness(key, section, name);
        // `max_by` keeps the last of equals; reversed, the first by path.
        let all: Vec<&'static Key> = self.all().chain(typed).collect();
        all.into_iter().rev().max_by(|a, b| score(a).total_cmp(&score(b))).map_or("", |key| key.path)
    }
}

/// How near `key` is to an unknown `name` inside `section`: likeness of the last names in 0..=1, and something for
/// standing in the same section, for being honoured and for being ours.
fn likeness(key: &Key, section: &str, name: &str) -> f64 {
    /// A slip of a few letters is found in its own section, the same name elsewhere before an unlike one here.
    const SAME_SECTION: f64 = 0.35;
    const HONOURED: f64 = 0.1;
    const OURS: f64 = 0.05;
    /// `lr` for `learning_rate`.
    const INITIALS: f64 = 0.9;
    let (parent, last) = key.path.rsplit_once('.').unwrap_or(("", key.path));
    let initials: String = name.split('_').filter_map(|word| word.chars().next()).collect();
    let letters = strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &last.to_lowercase());
    let alike = if initials == last { INITIALS } else { letters };
    let same_section = if parent == section { SAME_SECTION } else { 0.0 };
    let honoured = if key.status == Status::Honoured { HONOURED } else { 0.0 };
    let ours = if key.path.starts_with("run.") { OURS } else { 0.0 };
    alike + same_section + honoured + ours
}

/// `section.name`, or the name alone at the top.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The keys of a type's `params`, by its name in any case, and what training says of a type that is not built yet. Both
/// that and the error, for a name nobody knows, end a sentence that began with the value.
pub(super) fn type_keys(section: &str, name: &str) -> Result<(TypeKeys, Option<String>), String> {
    let is_it = |of_type: &&TypeKeys| of_type.section == section && of_type.name.eq_ignore_ascii_case(name);
    if let Some(found) = TYPES.iter().find(is_it) {
        return Ok((*found, None));
    }
    let built = TYPES.iter().filter(|of_type| of_type.section == section);
    let rule = format!("; it must be {}", alternatives(built.map(|of_type| format!("{:?}", of_type.name))));
    let others = TYPES_NOT_YET.iter().filter(|(of, _)| *of == section);
    let mut others = others.flat_map(|(of, names)| names.iter().map(move |name| (*of, *name)));
    let other =
        || others.find(|(_, other)| other.eq_ignore_ascii_case(name)).map(|(of, name)| types_later::open(of, name));
    match types_later::TYPES.iter().find(is_it).copied().or_else(other) {
        Some(later) => {
            let place = format!("{section}.type.{}", later.name);
            let instead = instead(&place).map_or(String::new(), |instead| format!(" ({instead})"));
            Ok((later, Some(format!(", which is not supported yet{rule}{instead}"))))
        }
        None => Err(rule),
    }
}

/// Every key there is, by path; those of `params` once for each type, after its name.
pub fn all_keys() -> impl Iterator<Item = (Option<&'static str>, &'static Key)> {
    let fixed = table::TABLES.into_iter().flatten().map(|key| (None, key));
    let types = TYPES.iter().chain(types_later::TYPES);
    let typed = types.flat_map(|of_type| of_type.keys.iter().map(move |key| (Some(of_type.name), key)));
    fixed.chain(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Vec<&'static [Key]> {
        let types = TYPES.iter().chain(types_later::TYPES);
        table::TABLES.into_iter().chain(types.map(|of_type| of_type.keys)).collect()
    }

    #[test]
    fn every_table_is_sorted_by_path_and_no_path_stands_twice() {
        for keys in tables() {
            for pair in keys.windows(2) {
                assert!(pair[0].path < pair[1].path, "{} stands before {}", pair[0].path, pair[1].path);
            }
        }
        let num_rows: usize = table::TABLES.iter().map(|keys| keys.len()).sum();
        assert_eq!(Keys::new(&[]).rows.len(), num_rows);
    }

    #[test]
    fn every_key_stands_in_a_section_that_is_itself_in_the_table() {
        let all = Keys::new(&[]);
        for (_, key) in all_keys() {
            let Some((parent, _)) = key.path.rsplit_once('.') else { continue };
            let section = parent.trim_end_matches("[]").trim_end_matches(".*");
            let kind = all.get(section).unwrap_or_else(|| panic!("{} has no section", key.path)).kind;
            let holds_keys = match parent {
                _ if parent.ends_with("[]") => kind.item().and_then(Kind::section).is_some(),
                _ if parent.ends_with(".*") => kind.section().flatten().and_then(Kind::section).is_some(),
                _ => kind.section().is_some(),
            };
            assert!(holds_keys, "{} stands in {parent}, which is {kind}", key.path);
        }
    }

    #[test]
    fn every_default_is_json_that_its_own_key_accepts_as_it_is_written() {
        for (_, key) in all_keys() {
            let mut value = key.default_value();
            assert!(key.accept(&mut value), "{} is {value} by default; it must be {}", key.path, key.kind);
            assert_eq!(value, key.default_value(), "{} has another spelling", key.path);
            if let (Some(item), Some(items)) = (key.kind.item(), value.as_array_mut()) {
                assert!(items.iter_mut().all(|value| item.accept(value)), "{}", key.path);
            }
        }
    }

    #[test]
    fn every_accepted_exception_is_a_value_of_its_key() {
        for (_, key) in all_keys() {
            let Status::NotYet { except } = key.status else { continue };
            for text in except {
                let mut value: Value = serde_json::from_str(text).unwrap();
                assert!(key.accept(&mut value), "{}: {text}", key.path);
            }
        }
    }

    #[test]
    fn every_meaning_is_one_line_without_a_full_stop() {
        for (_, key) in all_keys() {
            assert!(
                !key.meaning.is_empty() && !key.meaning.contains('\n') && !key.meaning.ends_with('.'),
                "{}",
                key.path
            );
        }
    }

    #[test]
    fn a_kind_says_what_it_must_be() {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let cases = [
            (Kind::Int { min: 0, max: 3 }, "0, 1, 2 or 3"),
            (Kind::Int { min: 1, max: 1 }, "1"),
            (Kind::Int { min: 1, max: i64::MAX }, "a whole number of at least 1"),
            (Kind::Int { min: i64::MIN, max: i64::MAX }, "a whole number"),
            (Kind::Number(Included(0.0), Excluded(1.0)), "a number of at least 0 and below 1"),
            (Kind::Number(Excluded(0.0), Unbounded), "a number above 0"),
            (Kind::Number(Unbounded, Included(1.0)), "a number at most 1"),
            (Kind::List(&Kind::Text), "a list [...] whose items are text in quotes"),
            (Kind::OneOf(&[Kind::Bool, Kind::Null]), "true or false or null"),
        ];
        for (kind, want) in cases {
            assert_eq!(kind.to_string(), want);
        }
    }
}
