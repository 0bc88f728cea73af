//! Reading a JSON object key by key, so that no key passes unread.
//!
//! Every getter notes its key as known; [`Keys::rest`] then names the first key of the object that nobody
//! asked for, and the known one nearest to it. A key that is `null` counts as absent, as it does in Transformers.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::error::ConfigError;

/// The largest size a model may have along one axis: no published model comes near it, and two of them times a small
/// factor still count in 64 bits.
pub const MAX_SIZE: usize = 1 << 24;

/// One JSON object of a configuration.
pub struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// Where the object's configuration stands, for messages.
    place: &'a str,
    /// The path from `place` to this object, with a final point, or nothing.
    path: String,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Keys<'a> {
    /// The keys of `object`, the whole configuration at `place` (`model.config`, or the path of a file).
    pub fn new(object: &'a Map<String, Value>, place: &'a str) -> Self {
        Self { object, place, path: String::new(), known: RefCell::default() }
    }

    /// An error at this configuration.
    pub fn error(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { place: self.place.to_owned(), problem: problem.into() }
    }

    /// The full name of `key` as messages call it.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// `key is VALUE; it must be RULE`.
    pub fn wrong(&self, key: &str, value: &Value, rule: &str) -> ConfigError {
        self.error(format!("{} is {}; it must be {rule}", self.name(key), shorten(value)))
    }

    /// The value of `key`, unless it is absent or null.
    pub fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.note(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the object has `key`, be it null.
    pub fn has(&self, key: &'static str) -> bool {
        self.note(key);
        self.object.contains_key(key)
    }

    /// The value under the first of several spellings; two that say different things are an error.
    pub fn spelt(&self, spellings: &[&'static str]) -> Result<Option<(&'static str, &'a Value)>, ConfigError> {
        let mut found: Option<(&'static str, &Value)> = None;
        for &key in spellings {
            let Some(value) = self.value(key) else { continue };
            match found {
                Some((first, other)) if other != value => {
                    return Err(self.error(format!(
                        "{} is {} but {} is {}: they are two names of one value; keep one",
                        self.name(first),
                        shorten(other),
                        self.name(key),
                        shorten(value)
                    )));
                }
                Some(_) => {}
                None => found = Some((key, value)),
            }
        }
        Ok(found)
    }

    /// A whole number from 1 to [`MAX_SIZE`] under one of several spellings.
    pub fn size_spelt(&self, spellings: &[&'static str]) -> Result<Option<usize>, ConfigError> {
        let Some((key, value)) = self.spelt(spellings)? else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_SIZE).contains(n));
        size.map(Some).ok_or_else(|| self.wrong(key, value, &format!("a whole number from 1 to {MAX_SIZE}")))
    }

    /// A whole number from 1 to [`MAX_SIZE`].
    pub fn size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        self.size_spelt(&[key])
    }

    /// A number for which `fits` holds; `rule` says so in words.
    pub fn number(&self, key: &'static str, rule: &str, fits: fn(f64) -> bool) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|&x| x.is_finite() && fits(x));
        number.map(Some).ok_or_else(|| self.wrong(key, value, rule))
    }

    /// A dropout probability, below 1 in f32 as well.
    pub fn probability(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        self.number(key, "a number of at least 0 and less than 1", |p| p >= 0.0 && (p as f32) < 1.0)
    }

    /// A number above 0, in f32 as well.
    pub fn positive(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        self.number(key, "a number above 0", |x| x as f32 > 0.0)
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// One token id or a list of them. -1 means none in old files, and the list is then empty.
    pub fn token_ids(&self, key: &'static str) -> Result<Option<Vec<u32>>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect(),
            Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
            one => id(one).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }

    /// One token id, `None` for -1.
    pub fn token_id(&self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        let Some(ids) = self.token_ids(key)? else { return Ok(None) };
        match ids[..] {
            [] => Ok(None),
            [id] => Ok(Some(id)),
            _ => Err(self.wrong(key, &self.object[key], "one token id")),
        }
    }

    /// The object under `key`.
    pub fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::Object(object) = value else { return Err(self.wrong(key, value, "an object")) };
        let path = format!("{}.", self.name(key));
        Ok(Some(Keys { object, place: self.place, path, known: RefCell::default() }))
    }

    /// Refuses a key whose value, unless absent or null, would change what is computed.
    pub fn only(&self, key: &'static str, allowed: &Value) -> Result<(), ConfigError> {
        match self.value(key) {
            Some(value) if value != allowed => {
                let name = self.name(key);
                Err(self.error(format!(
                    "{name} is {}, which Bessemer does not do; it must be {allowed} or absent",
                    shorten(value)
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a key that, unless absent or null, would change what is computed.
    pub fn absent(&self, key: &'static str) -> Result<(), ConfigError> {
        match self.value(key) {
            None => Ok(()),
            Some(_) => {
                Err(self.error(format!("{} is given, which Bessemer does not do; it must be absent", self.name(key))))
            }
        }
    }

    /// The keys that no getter asked for; each must be one of `inert` or begin with `_`, else it is an error that names
    /// the nearest known key. `of` completes the sentence "KEY is not a key of ...".
    pub fn rest(&self, inert: &[&'static str], of: &str) -> Result<Map<String, Value>, ConfigError> {
        let known = self.known.borrow();
        let mut rest = Map::new();
        for (key, value) in self.object {
            if known.contains(&key.as_str()) {
                continue;
            }
            if !key.starts_with('_') && !inert.contains(&key.as_str()) {
                let candidates = known.iter().chain(inert).copied();
                let hint = nearest(key, candidates)
                    .map_or_else(String::new, |near| format!("; did you mean {}?", self.name(near)));
                return Err(self.error(format!("{} is not a key of {of}{hint}", self.name(key))));
            }
            rest.insert(key.clone(), value.clone());
        }
        Ok(rest)
    }

    fn note(&self, key: &'static str) {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
    }
}

/// The candidate nearest to `word`, if less than half of the longer of the two differs.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let difference = |candidate: &str| {
        let longer = word.chars().count().max(candidate.chars().count());
        edit_distance(word, candidate) as f64 / longer as f64
    };
    let measured = candidates.into_iter().map(|candidate| (difference(candidate), candidate));
    let near = measured.filter(|&(difference, _)| difference < 0.5);
    near.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours from `a` to `b` (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}

/// A value as messages show it: whole if short.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_nearest_key_is_found_across_slips_and_nothing_is_made_up() {
        let keys = ["n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon", "num_beams", "num_key_value_heads"];
        assert_eq!(nearest("num_kv_heads", keys), Some("num_key_value_heads"));
        assert_eq!(nearest("n_emdb", keys), Some("n_embd"));
        assert_eq!(nearest("n_layers", keys), Some("n_layer"));
        assert_eq!(nearest("layer_norm_eps", keys), Some("layer_norm_epsilon"));
        assert_eq!(nearest("quantum", keys), None);
    }

    #[test]
    fn a_wrong_value_is_shown_with_its_full_path() {
        let value = json!({"rope_parameters": {"factor": "eight"}});
        let keys = Keys::new(value.as_object().unwrap(), "model.config");
        let rope = keys.object("rope_parameters").unwrap().unwrap();
        let error = rope.positive("factor").unwrap_err();
        assert_eq!(error.to_string(), "model.config: rope_parameters.factor is \"eight\"; it must be a number above 0");
    }

    #[test]
    fn two_spellings_may_agree_but_not_differ() {
        let value = json!({"n_embd": 32, "hidden_size": 48, "n_layer": 2, "num_hidden_layers": 2});
        let keys = Keys::new(value.as_object().unwrap(), "model.config");
        assert_eq!(keys.size_spelt(&["n_layer", "num_hidden_layers"]), Ok(Some(2)));
        assert_eq!(
            keys.size_spelt(&["n_embd", "hidden_size"]).unwrap_err().to_string(),
            "model.config: n_embd is 32 but hidden_size is 48: they are two names of one value; keep one"
        );
    }

    #[test]
    fn sizes_are_whole_and_within_reason() {
        for bad in [json!(0), json!(-1), json!(1.5), json!("3"), json!(true), json!(u64::MAX), json!(MAX_SIZE + 1)] {
            let value = json!({ "n": bad });
            let keys = Keys::new(value.as_object().unwrap(), "p");
            let error = keys.size("n").unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("p: n is {}; it must be a whole number from 1 to 16777216", value["n"])
            );
        }
    }

    #[test]
    fn token_ids_are_one_or_many_and_minus_one_is_none() {
        let value = json!({"one": 5, "many": [5, 6], "none": -1, "bad": [5, -6]});
        let keys = Keys::new(value.as_object().unwrap(), "p");
        assert_eq!(keys.token_ids("one"), Ok(Some(vec![5])));
        assert_eq!(keys.token_ids("many"), Ok(Some(vec![5, 6])));
        assert_eq!(keys.token_ids("none"), Ok(Some(vec![])));
        assert_eq!(keys.token_id("none"), Ok(None));
        assert!(keys.token_ids("bad").is_err());
        assert_eq!(keys.token_id("many").unwrap_err().to_string(), "p: many is [5,6]; it must be one token id");
    }
}
