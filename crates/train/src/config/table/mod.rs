//! The rows: every key of DeepSpeed's `ds_config` and of ours, each file sorted by path.
//!
//! One row is `path, kind, default as JSON, status, meaning`; [`super::keys`] says what the words mean. In a path `[]`
//! stands for each item of a list and `*` for each name that the user chooses.
//! Source of DeepSpeed's part: its configuration code, version 0.19.
//!
//! To add a key: one row here and, once it is honoured, its field in [`super::RunConfig`]; a test holds the two
//! together.

mod later;
mod ours;
mod parallel;
mod training;
pub(super) mod types;
pub(super) mod types_later;

use super::keys::Kind::{self, Any, Int, List, Names, Number, OneOf, Section, Text};
use super::keys::{Key, Status};
use std::ops::Bound::{Excluded, Included, Unbounded};

/// The rows of one table. In braces, rustfmt leaves each on its line.
macro_rules! keys {
    ($($path:literal, $kind:expr, $default:literal, $status:expr, $meaning:literal;)*) => {
        &[$(Key { path: $path, kind: $kind, default: $default, status: $status, meaning: $meaning }),*]
    };
}
use keys;

/// Every key whose place does not depend on the optimizer's or the schedule's type.
pub(super) static TABLES: [&[Key]; 4] = [ours::KEYS, training::KEYS, parallel::KEYS, later::KEYS];

const NOT_YET: Status = Status::NotYet { except: &[] };

const ANY_INT: Kind = Int { min: i64::MIN, max: i64::MAX };
const COUNT: Kind = Int { min: 0, max: i64::MAX };
const POSITIVE: Kind = Int { min: 1, max: i64::MAX };
const AUTO_COUNT: Kind = OneOf(&[COUNT, Names(&["auto"])]);
const ANY_NUMBER: Kind = Number(Unbounded, Unbounded);
const NOT_NEGATIVE: Kind = Number(Included(0.0), Unbounded);
const ABOVE_ZERO: Kind = Number(Excluded(0.0), Unbounded);
const SHARE: Kind = Number(Included(0.0), Included(1.0));
const BELOW_ONE: Kind = Number(Included(0.0), Excluded(1.0));
const TEXTS: Kind = List(&Text);
const SECTION: Kind = Section(None);
/// A section that may hold keys of any name beside the known ones.
const OPEN: Kind = Section(Some(&Any));
/// A section of sections whose names the user chooses.
const SECTIONS: Kind = Section(Some(&SECTION));
const FLOAT: Kind = Names(&["fp32", "float32", "float", "bf16", "bfloat16", "fp16", "float16", "half"]);
const HALF: Kind = Names(&["bf16", "bfloat16", "fp16", "float16", "half"]);
const DTYPE: Kind = Names(&["fp32", "float32", "float", "bf16", "bfloat16", "fp16", "float16", "half", "int8"]);
