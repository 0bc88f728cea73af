//! Rules of model, data, optimizer, schedule and curriculum.

use super::{Fault, File, fault};
use crate::config::check::shown;
use crate::config::keys::{alternatives, join};
use serde_json::Value;

impl File<'_> {
    /// A model from one place, and a length in one unit.
    pub(super) fn lengths(&self) -> Result<(), Fault> {
        self.at_most_one_of(["model.path", "model.preset", "model.config"])?;
        self.at_most_one_of(["run.steps", "run.epochs", "run.tokens"])
    }

    fn at_most_one_of(&self, group: [&str; 3]) -> Result<(), Fault> {
        let found: Vec<_> = group.into_iter().filter_map(|path| Some((path, self.given(path)?))).collect();
        let [(first, a), (second, b), ..] = found[..] else { return Ok(()) };
        let [one, two, three] = group;
        let (a, b) = (shown(a), shown(b));
        fault(second, format!("{first} is {a} and {second} is {b}; keep one of {one}, {two} and {three}"))
    }

    /// A model from somewhere.
    pub(super) fn model(&self) -> Result<(), Fault> {
        let is_empty = ["path", "preset", "config"].iter().all(|name| self.given(&join("model", name)).is_none());
        match self.given("model") {
            Some(_) if is_empty => fault("model", "model is empty; it must hold one of path, preset and config".into()),
            _ => Ok(()),
        }
    }

    /// Lists of sources name at least one each, and each source has a path.
    pub(super) fn sources(&self) -> Result<(), Fault> {
        self.sources_at("data.train")?;
        self.sources_at("data.validation")
    }

    fn sources_at(&self, path: &str) -> Result<(), Fault> {
        let Some(Value::Array(sources)) = self.given(path) else { return Ok(()) };
        if sources.is_empty() {
            return fault(path, format!("{path} is []; it must name at least one source"));
        }
        match sources.iter().position(|source| source.is_object() && !source["path"].is_string()) {
            Some(i) => fault(path, format!("{path}[{i}].path is missing; it must be a path or a glob")),
            None => Ok(()),
        }
    }

    /// What the data section cannot be without.
    pub(super) fn data(&self) -> Result<(), Fault> {
        if self.given("data").is_some() && self.given("data.train").is_none() {
            return fault("data", "data.train is missing; it must be a path, a glob or a list of sources".into());
        }
        self.validation_sets()?;
        if self.given("run.load_best_at_end") == Some(&Value::Bool(true)) && self.given("run.keep_best").is_none() {
            let path = "run.load_best_at_end";
            let message = "is true and there is no best checkpoint; give run.keep_best, such as { \"count\": 1 }";
            return fault(path, format!("{path} {message}"));
        }
        Ok(())
    }

    /// `split` stands alone; the names of sets are short, none a key of a source; `run.eval_set` is one of them.
    fn validation_sets(&self) -> Result<(), Fault> {
        let at = |name: &str| join("data.validation", name);
        let section = self.given("data.validation").and_then(Value::as_object);
        let sets = section.into_iter().flatten().filter(|(name, value)| *name != "split" && !value.is_null());
        let sets: Vec<&str> = sets.map(|(name, _)| name.as_str()).collect();
        let has_split = self.given("data.validation.split").is_some();
        if section.is_some() && !has_split && sets.is_empty() {
            let message = "data.validation.split is missing; write { \"split\": 0.1 }, a path or a list of sources";
            return fault("data.validation", message.into());
        }
        for name in &sets {
            let path = at(name);
            if ["path", "format", "weight", "text_field"].contains(name) {
                let message = "cannot be the name of a set; a source of its own stands in a list, [{ \"path\": ... }]";
                return fault(&path, format!("{path} {message}"));
            }
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(is_plain) {
                let message = format!("{path} is a set called {name:?}; its name must be letters, digits, _ and -");
                return fault(&path, message);
            }
            if has_split {
                let message = "stands beside data.validation.split; a split has no name: leave one of them out";
                return fault(&path, format!("{path} {message}"));
            }
            if self.given(&path).is_some_and(Value::is_object) && self.given(&join(&path, "path")).is_none() {
                let path = join(&path, "path");
                return fault(&path, format!("{path} is missing; it must be a path or a glob"));
            }
            self.sources_at(&path)?;
        }
        match self.given("run.eval_set").and_then(Value::as_str) {
            Some(_) if sets.is_empty() => {
                fault("run.eval_set", "run.eval_set is given and data.validation has no sets by name; remove it".into())
            }
            Some(chosen) if !sets.contains(&chosen) => {
                let known = alternatives(sets.iter().map(|name| format!("{name:?}")));
                let message = format!("run.eval_set is {chosen:?}; it must be a set of data.validation: {known}");
                fault("run.eval_set", message)
            }
            _ => Ok(()),
        }
    }

    /// The rules of `optimizer.params`, and of what groups of weights say in their place.
    pub(super) fn optimizer(&self) -> Result<(), Fault> {
        let params = self.given("optimizer.params");
        self.nesterov("optimizer.params", &[params])?;
        let groups = self.given("optimizer.groups").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (i, group) in groups.iter().enumerate() {
            let path = format!("optimizer.groups[{i}]");
            if group["match"].as_array().is_none_or(Vec::is_empty) {
                let path = join(&path, "match");
                let message =
                    format!("{path} is missing; it must be a list of globs of weight names, such as [\"*bias\"]");
                return fault(&path, message);
            }
            if !group["fp32_optimizer_states"].is_null() {
                let path = join(&path, "fp32_optimizer_states");
                return fault(&path, format!("{path} is given; it holds for all weights: set it in optimizer.params"));
            }
            self.nesterov(&path, &[Some(group), params])?;
        }
        Ok(())
    }

    /// PyTorch's rule: looking ahead along the momentum needs one, undamped. `said`: the settings at `path` and, where they
    /// are silent, those behind them.
    fn nesterov(&self, path: &str, said: &[Option<&Value>]) -> Result<(), Fault> {
        let value = |name: &str| said.iter().flatten().map(|params| &params[name]).find(|value| !value.is_null());
        let number = |name: &str| value(name).and_then(Value::as_f64).unwrap_or(0.0);
        let is_sgd = self.given("optimizer.type").is_some_and(|name| name == "SGD");
        if !is_sgd || value("nesterov") != Some(&Value::Bool(true)) {
            return Ok(());
        }
        let at = |name: &str| join(path, name);
        if number("momentum") == 0.0 {
            let (nesterov, momentum) = (at("nesterov"), at("momentum"));
            return fault(&nesterov, format!("{nesterov} is true, but {momentum} is 0; it must be above 0"));
        }
        let dampening = number("dampening");
        if dampening != 0.0 {
            let nesterov = at("nesterov");
            let message = format!("{nesterov} is true, but {} is {dampening}; it must be 0", at("dampening"));
            return fault(&nesterov, message);
        }
        Ok(())
    }

    /// Settings of a schedule that have no default.
    pub(super) fn scheduler(&self) -> Result<(), Fault> {
        let needed = match self.given("scheduler.type").and_then(Value::as_str) {
            Some("OneCycle") => &["cycle_min_lr", "cycle_max_lr"][..],
            Some("warmup_stable_decay") => &["num_decay_steps"],
            Some("cosine_with_min_lr") => {
                let (low, rate) = ("scheduler.params.min_lr", "scheduler.params.min_lr_rate");
                return match (self.given(low), self.given(rate)) {
                    (None, None) => fault(low, format!("{low} is missing; one of it and {rate} must be given")),
                    (Some(a), Some(b)) => fault(rate, format!("{low} is {a} and {rate} is {b}; keep one of them")),
                    _ => Ok(()),
                };
            }
            _ => &[],
        };
        for name in needed {
            let path = join("scheduler.params", name);
            if self.given(&path).is_none() {
                let kind = if name.ends_with("lr") { "a number" } else { "a whole number" };
                return fault(&path, format!("{path} is missing; it must be {kind} of at least 0"));
            }
        }
        Ok(())
    }

    /// A list of a schedule has an item for each group of weights.
    pub(super) fn rates_of_groups(&self) -> Result<(), Fault> {
        let items = self.given("optimizer.groups").and_then(Value::as_array).map_or(0, Vec::len) + 1;
        let is_muon = self.given("optimizer.type").is_some_and(|name| name == "Muon");
        let groups = if is_muon { 2 * items } else { items };
        let params = self.given("scheduler.params").and_then(Value::as_object);
        for (name, value) in params.into_iter().flatten() {
            let Some(length) = value.as_array().map(Vec::len).filter(|length| *length != groups) else { continue };
            let path = join("scheduler.params", name);
            let each = if is_muon { ", in each of them hidden matrices first" } else { "" };
            return fault(
                &path,
                format!(
                    "{path} has {length} items; it must be a number or have {groups}, one for each of optimizer.groups and \
                     then one for the other weights{each}"
                ),
            );
        }
        Ok(())
    }

    /// What a curriculum needs when it is on.
    pub(super) fn curriculum(&self) -> Result<(), Fault> {
        let at = |name: &str| join("curriculum_learning", name);
        if self.given(&at("enabled")) != Some(&Value::Bool(true)) {
            return Ok(());
        }
        let number = |path: &str| self.given(path).and_then(Value::as_u64);
        let path = at("schedule_type");
        let (min, max) = (at("min_difficulty"), at("max_difficulty"));
        let kinds = "\"fixed_linear\", \"fixed_root\" or \"fixed_discrete\"";
        let settings: &[&str] = match self.given(&path).and_then(Value::as_str) {
            Some("fixed_linear") => &["total_curriculum_step", "difficulty_step"],
            Some("fixed_root") => &["total_curriculum_step", "difficulty_step", "root_degree"],
            Some("fixed_discrete") => &["difficulty", "max_step"],
            Some(other) => {
                let message = format!("{path} is {other:?}, which is not supported yet; it must be {kinds}");
                return fault(&path, message);
            }
            None => return fault(&path, format!("{path} is missing; it must be {kinds}")),
        };
        let settings = settings.iter().map(|name| join(&at("schedule_config"), name));
        for needed in [min.clone(), max.clone()].into_iter().chain(settings) {
            if self.given(&needed).is_none() {
                return fault(&needed, format!("{needed} is missing; the curriculum needs it"));
            }
        }
        if let (Some(low), Some(high)) = (number(&min), number(&max))
            && low > high
        {
            return fault(&max, format!("{max} is {high}; it must be at least {low}, the min_difficulty"));
        }
        let step = at("schedule_config.difficulty_step");
        if let (Some(low), Some(step_size)) = (number(&min), number(&step))
            && low < step_size
        {
            let why = "lengths are rounded down to multiples of it";
            return fault(&min, format!("{min} is {low}; it must be at least {step_size}, the difficulty_step: {why}"));
        }
        let count = |name: &str| self.given(&at(name)).and_then(Value::as_array).map_or(0, Vec::len);
        let (lengths, last_steps) = (count("schedule_config.difficulty"), count("schedule_config.max_step"));
        let is_uneven = last_steps == 0 || lengths != last_steps + 1;
        if self.given(&path).is_some_and(|kind| kind == "fixed_discrete") && is_uneven {
            let path = at("schedule_config.difficulty");
            let message = format!(
                "{path} has {lengths} items and max_step {last_steps}; it must have one more than max_step, which names at least one"
            );
            return fault(&path, message);
        }
        Ok(())
    }

    /// Features that cannot be without one of their keys.
    pub(super) fn needed(&self) -> Result<(), Fault> {
        let sampling = "data_efficiency.data_sampling";
        let heads = "compression_training.head_pruning.shared_parameters";
        for (section, key) in [(format!("{sampling}.dynamic_batching"), "max_tokens"), (heads.to_owned(), "num_heads")]
        {
            let (switch, path) = (format!("{section}.enabled"), format!("{section}.{key}"));
            if self.is_active(&switch) && self.value(&path).is_null() {
                return Err(Fault { message: format!("{path} is missing; {switch} needs it"), path });
            }
        }
        let rates = "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule.enabled";
        self.refuse(self.is_active(rates), rates, ", which DeepSpeed does not have; it must be false")
    }
}
