//! The labels of a row beside its text or tokens: its class, a distribution over classes, or one over tokens.
//!
//! | field | of | what |
//! | --- | --- | --- |
//! | `label` | classification | the class: its id from 0, or its name |
//! | `class_probs` | classification | one probability a class, in the order of the ids |
//! | `soft_labels` | `tokenized` | per position `[[id, probability], ...]`; null or an empty list leaves `labels` in force there |
//!
//! Probabilities are at least 0 and add up to 1 within 1e-3; what rounding left over is divided out.
//! As with `labels`, entry t of `soft_labels` is held against the prediction made at t - 1.

use serde_json::{Map, Value};

use super::jsonl::{RowPlace, kind};
use crate::error::Result;

/// The classes of a classifier's data.
#[derive(Clone, Copy, Debug)]
pub struct Classes<'a> {
    /// By id.
    pub names: &'a [String],
    /// Padding at the end of a row is taken off: the class is read from the last token that is not padding.
    pub pad: Option<u32>,
}

/// Ids with probabilities above 0.
pub(crate) type Distribution = Vec<(u32, f32)>;

/// What a row is.
#[derive(Debug, PartialEq)]
pub(crate) struct ClassLabel {
    /// The class; the likeliest of a distribution, the first of several such.
    pub(crate) class: i32,
    /// Over the classes, if the row has one.
    pub(crate) soft: Option<Distribution>,
}

/// How far a sum of probabilities may be from 1.
const SUM_BOUND: f64 = 1e-3;

/// Takes the class out of a row.
pub(crate) fn class_of(place: RowPlace<'_>, row: &Map<String, Value>, names: &[String]) -> Result<ClassLabel> {
    let given = |field: &str| row.get(field).filter(|value| !value.is_null());
    match (given("label"), given("class_probs")) {
        (Some(_), Some(_)) => Err(place.error("has both label and class_probs; keep one of them")),
        (None, None) => Err(place.error(
            "has neither label nor class_probs; a row of a classifier's data must have one of them, such as \"label\": 0",
        )),
        (Some(label), None) => Ok(ClassLabel { class: class_id(place, label, names)?, soft: None }),
        (None, Some(probs)) => {
            let soft = class_probs(place, probs, names.len())?;
            let likeliest = soft.iter().fold((0, 0.0), |best, next| if next.1 > best.1 { *next } else { best });
            Ok(ClassLabel { class: likeliest.0 as i32, soft: Some(soft) })
        }
    }
}

fn class_id(place: RowPlace<'_>, label: &Value, names: &[String]) -> Result<i32> {
    let by_id = label.as_u64().filter(|id| *id < names.len() as u64).map(|id| id as usize);
    let by_name = || label.as_str().and_then(|label| names.iter().position(|name| name == label));
    by_id.or_else(by_name).map(|id| id as i32).ok_or_else(|| {
        const SHOWN: usize = 5;
        let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        let rule = format!("a class from 0 to {} or one of {}{more}", names.len() - 1, shown.join(", "));
        place.error(format!("label is {label}; it must be {rule}"))
    })
}

fn class_probs(place: RowPlace<'_>, value: &Value, num_classes: usize) -> Result<Distribution> {
    let Value::Array(values) = value else {
        return Err(place.error(format!("class_probs is {}; it must be an array of numbers", kind(value))));
    };
    if values.len() != num_classes {
        let found = values.len();
        return Err(
            place.error(format!("class_probs has {found} numbers; it must have one for each of {num_classes} classes"))
        );
    }
    let pairs = values.iter().enumerate().map(|(id, p)| (id as u32, p));
    distribution(place, "class_probs", pairs)
}

/// The distributions of `soft_labels`, one a token; an empty one leaves the single label in force.
pub(crate) fn soft_labels(
    place: RowPlace<'_>,
    values: &[Value],
    vocab_size: Option<usize>,
) -> Result<Vec<Distribution>> {
    let limit = vocab_size.map_or(i64::from(i32::MAX), |size| size as i64 - 1);
    let pair = |field: &str, value: &Value| -> Result<(u32, Value)> {
        let [id, p] = value.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(place.error(format!("{field} holds {}; it must hold pairs [id, probability]", kind(value))));
        };
        match id.as_i64() {
            Some(id) if (0..=limit).contains(&id) => Ok((id as u32, p.clone())),
            _ => Err(place.error(format!("{field} has id {}; it must be a token id from 0 to {limit}", kind(id)))),
        }
    };
    let list = |(index, value): (usize, &Value)| {
        let field = format!("soft_labels[{index}]");
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(pairs) if pairs.is_empty() => Ok(Vec::new()),
            Value::Array(pairs) => {
                let pairs = pairs.iter().map(|value| pair(&field, value)).collect::<Result<Vec<_>>>()?;
                let mut ids: Vec<u32> = pairs.iter().map(|(id, _)| *id).collect();
                ids.sort_unstable();
                if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(place.error(format!("{field} has id {} twice; each id may stand once", twice[0])));
                }
                distribution(place, &field, pairs.iter().map(|(id, p)| (*id, p)))
            }
            other => Err(place.error(format!("{field} is {}; it must be null or a list of pairs", kind(other)))),
        }
    };
    values.iter().enumerate().map(list).collect()
}

/// Checks probabilities and makes their sum 1.
fn distribution<'v>(
    place: RowPlace<'_>,
    field: &str,
    pairs: impl Iterator<Item = (u32, &'v Value)>,
) -> Result<Distribution> {
    let mut numbers = Vec::new();
    for (id, value) in pairs {
        match value.as_f64().filter(|p| *p >= 0.0) {
            Some(p) => numbers.push((id, p)),
            None => {
                return Err(
                    place.error(format!("{field} has probability {}; it must be a number from 0 to 1", kind(value)))
                );
            }
        }
    }
    let sum: f64 = numbers.iter().map(|(_, p)| p).sum();
    if (sum - 1.0).abs() > SUM_BOUND {
        return Err(place.error(format!("the probabilities of {field} add up to {sum}; they must add up to 1")));
    }
    Ok(numbers.into_iter().filter(|(_, p)| *p > 0.0).map(|(id, p)| (id, (p / sum) as f32)).collect())
}
