//! What several keys say together: rules that no single row of the table can hold.
//!
//! A rule looks at keys that are right each by itself. What must be said by the file itself it reads from what was given
//! ([`File::given`]), anything else from final values, defaults filled in ([`File::value`]). A feature that is switched off
//! is not looked at.
//!
//! | file | rules of |
//! | --- | --- |
//! | [`training`] | model, data, optimizer, schedule, curriculum |
//! | [`precision`] | fp16, bf16, amp and the dtypes beside them |
//! | [`ranks`] | what ranks share and how they talk, offload, pipelines, elasticity |
//!
//! Source of DeepSpeed's part: version 0.19, its configuration classes and the assertions of its engine. Left out: what
//! concerns calls of a program rather than keys.

mod precision;
mod ranks;
mod training;

pub(crate) use ranks::tensor_ranks;

use super::check::{Fault, shown};
use super::keys::join;
use super::resolve;
use serde_json::{Map, Value};

/// Checks a configuration: `given` is what was said, `filled` the same with defaults.
pub(super) fn check<'a>(given: &'a Map<String, Value>, filled: &'a Map<String, Value>) -> Result<(), Fault> {
    let file = File { given, filled };
    // Every rule, in the order in which the faults of a file are told.
    let rules: [Rule<'a>; 21] = [
        File::lengths,
        File::model,
        File::sources,
        File::data,
        File::loss_scale,
        File::optimizer,
        File::scheduler,
        File::rates_of_groups,
        File::curriculum,
        File::buckets,
        File::precision,
        File::half_masters,
        File::gradients,
        File::accumulation,
        File::offload,
        File::zenflow,
        File::axes,
        File::exchange,
        File::tensor_parallel,
        File::needed,
        File::elasticity,
    ];
    rules.iter().try_for_each(|rule| rule(&file))
}

/// A check of a file.
type Rule<'a> = fn(&File<'a>) -> Result<(), Fault>;

struct File<'a> {
    given: &'a Map<String, Value>,
    filled: &'a Map<String, Value>,
}

/// The fault of what stands, or is missing, at `path`.
fn fault(path: &str, message: String) -> Result<(), Fault> {
    Err(Fault { path: path.to_owned(), message })
}

impl<'a> File<'a> {
    /// What was said at `path`; null says nothing.
    fn given(&self, path: &str) -> Option<&'a Value> {
        resolve::at(self.given, path).filter(|value| !value.is_null())
    }

    /// The final value at `path`.
    fn value(&self, path: &str) -> &'a Value {
        resolve::at(self.filled, path).unwrap_or(&Value::Null)
    }

    fn is_on(&self, path: &str) -> bool {
        self.value(path) == &Value::Bool(true)
    }

    /// Whether a switch is on, and no section around it is switched off.
    fn is_active(&self, switch: &str) -> bool {
        let is_off = |end: usize| self.value(&join(&switch[..end], "enabled")) == &Value::Bool(false);
        self.is_on(switch) && !switch.match_indices('.').any(|(end, _)| is_off(end))
    }

    fn says(&self, path: &str, word: &str) -> bool {
        self.value(path) == word
    }

    /// A number; 0 where there is none.
    fn number(&self, path: &str) -> f64 {
        self.value(path).as_f64().unwrap_or(0.0)
    }

    fn stage(&self) -> u64 {
        self.number("zero_optimization.stage") as u64
    }

    /// Refuses what is at `path` if `is_wrong`: `path is value`, then `why`.
    fn refuse(&self, is_wrong: bool, path: &str, why: &str) -> Result<(), Fault> {
        if is_wrong { fault(path, format!("{path} is {}{why}", shown(self.value(path)))) } else { Ok(()) }
    }
}
