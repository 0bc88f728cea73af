//! Which weight follows which update rule, with which rate and decay.
//!
//! # Order of events, for each weight
//! 1. The first item of `optimizer.groups` whose globs match its name takes it; frozen ones end here.
//! 2. The group's keys are written over `optimizer.params`.
//! 3. `optimizer.no_decay` takes its decay away.
//! 4. Under Muon, what is no hidden matrix follows AdamW.
//!
//! # Invariants
//! - The schedule is that of `optimizer.params.lr`; a group with another rate follows it in proportion, or has a schedule of
//!   its own where that is DeepSpeed's and writes rates ([`GroupRate`]).
//! - Nothing here depends on values or ranks: the same model and run file give the same groups.

use super::RunPlan;
use crate::config::{ConfigError, GroupConfig, OptimizerConfig, OptimizerRule, RatedRule, RunConfig, groups_per_item};
use data::glob_matches;
use models::param::{LABELS, POSITIONS, VOCAB};
use models::{Model, ParamSpec};
use ops::ParamId;
use optim::schedule::Schedule;
use optim::{AVERAGE, Moments, Optimizer, Step};
use std::collections::HashMap;
use std::sync::Arc;

/// Weights that are updated alike.
pub struct ParamGroup {
    /// The update rule.
    pub rule: Arc<dyn Optimizer>,
    /// How its rate follows from the run's.
    pub rate: GroupRate,
    /// 0 where nothing decays.
    pub weight_decay: f64,
    /// Outside `optimizer.no_decay`: penalties fall on it too.
    pub decays: bool,
}

/// How the rate of a group follows from the run's.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupRate {
    /// This many times the scheduled rate of `optimizer.params.lr`.
    Share(f64),
    /// A schedule of its own.
    Own(Schedule),
}

impl ParamGroup {
    /// A step of this group, from that of the weights outside `optimizer.groups`. `scheduled`: updates that schedules have
    /// counted before it; the optimizer may have begun anew since.
    pub fn step(&self, at: &Step, scheduled: u64) -> Step {
        let at = Step { weight_decay: self.weight_decay, ..*at };
        match &self.rate {
            GroupRate::Share(share) => Step { lr: at.lr * share, ..at },
            GroupRate::Own(schedule) => Step { lr: schedule.lr(scheduled), betas: schedule.betas(scheduled), ..at },
        }
    }
}

/// An item of `optimizer.groups`, whether it takes weights or not.
struct Item {
    frozen: bool,
    /// Its place among all that lists of a schedule have an item for.
    place: usize,
    /// Its own rate.
    lr: f64,
    rate: GroupRate,
}

/// The groups of a model's weights.
pub struct ParamGroups {
    groups: Vec<ParamGroup>,
    /// Of each group: its place among all that the run file can name, and its own rate.
    places: Vec<(usize, f64)>,
    /// By parameter: its group; none where it is frozen or a computed table.
    assigned: Vec<Option<usize>>,
    /// Of each item of `optimizer.groups`.
    items: Vec<Item>,
    /// The format of moments.
    pub moments: Moments,
    name: &'static str,
}

impl ParamGroups {
    /// The groups of a run file. `own`: the rule of the program, for the type `custom`.
    ///
    /// # Errors
    /// There is no optimizer, a glob matches no weight, no weight is left to train, or settings contradict each other.
    pub fn resolve(config: &RunConfig, model: &Model, own: Option<Arc<dyn Optimizer>>) -> Result<Self, ConfigError> {
        let optimizer = config.optimizer.as_ref().ok_or_else(|| {
            config.error("optimizer is missing; training needs one, such as \"optimizer\": { \"type\": \"AdamW\" }")
        })?;
        check_own(config, &optimizer.rule, own.is_some())?;
        check_globs(config, optimizer, model)?;
        let main = optimizer.rule.rated(true).rule.or_else(|| own.clone()).expect("check_own found one");
        check_averages(config, main.as_ref())?;
        check_moments(config, optimizer, main.as_ref())?;
        let resolve = Resolve { config, optimizer, own, rules: rules(config, optimizer)? };
        let items = resolve.items();
        let (mut groups, mut found, mut assigned) = (Vec::new(), HashMap::new(), Vec::new());
        let mut places = Vec::new();
        for spec in &model.params {
            let Some(key) = resolve.key(spec) else {
                assigned.push(None);
                continue;
            };
            let at = *found.entry(key).or_insert(groups.len());
            if at == groups.len() {
                let (group, lr) = resolve.group(key)?;
                groups.push(group);
                places.push((resolve.place(key), lr));
            }
            assigned.push(Some(at));
        }
        if groups.is_empty() {
            return Err(config.error_of(
                &["optimizer.groups"],
                "optimizer.groups freezes every weight; at least one must be trained",
            ));
        }
        Ok(Self { groups, places, assigned, items, moments: optimizer.moments, name: main.name() })
    }

    /// Settles the schedules of groups that have their own, now that the run is `plan.steps` long.
    pub fn settle(&mut self, config: &RunConfig, plan: &RunPlan) {
        let Some(scheduler) = config.scheduler.as_ref().filter(|scheduler| scheduler.writes_rates()) else { return };
        let rate = |place: usize, lr: f64| {
            let schedule = scheduler.schedule(place, lr, plan.steps);
            if schedule == plan.schedule { GroupRate::Share(1.0) } else { GroupRate::Own(schedule) }
        };
        for (group, (place, lr)) in self.groups.iter_mut().zip(&self.places) {
            group.rate = rate(*place, *lr);
        }
        for item in self.items.iter_mut().filter(|item| !item.frozen) {
            item.rate = rate(item.place, item.lr);
        }
    }

    /// The group of a parameter; none where it is not trained.
    pub fn of(&self, id: ParamId) -> Option<&ParamGroup> {
        self.assigned[id.index()].map(|at| &self.groups[at])
    }

    /// The rates of the update after `applied_steps`: `lr`, that of weights in no item of `optimizer.groups`, then that of each
    /// item, 0 where it is frozen.
    pub fn rates(&self, lr: f64, applied_steps: u64) -> Vec<f64> {
        let items = self.items.iter().map(|item| match &item.rate {
            _ if item.frozen => 0.0,
            GroupRate::Share(share) => lr * share,
            GroupRate::Own(schedule) => schedule.lr(applied_steps),
        });
        std::iter::once(lr).chain(items).collect()
    }

    /// The name of the rule, by which checkpoints are told apart.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// What tells one group from another: the item of `optimizer.groups`, whether it decays, whether it is a hidden matrix.
type GroupKey = (Option<usize>, bool, bool);

struct Resolve<'a> {
    config: &'a RunConfig,
    optimizer: &'a OptimizerConfig,
    own: Option<Arc<dyn Optimizer>>,
    /// Of each item of `optimizer.groups`.
    rules: Vec<OptimizerRule>,
}

impl Resolve<'_> {
    fn items(&self) -> Vec<Item> {
        let item = |(index, (item, rule)): (usize, (&GroupConfig, &OptimizerRule))| Item {
            frozen: item.frozen,
            place: index * groups_per_item(&self.optimizer.rule),
            lr: rule.lr(),
            rate: self.share(rule.lr()),
        };
        self.optimizer.groups.iter().zip(&self.rules).enumerate().map(item).collect()
    }

    /// Of the scheduled rate of `optimizer.params.lr`.
    fn share(&self, lr: f64) -> GroupRate {
        let base = self.optimizer.rule.lr();
        GroupRate::Share(if lr == base { 1.0 } else { lr / base })
    }

    fn key(&self, spec: &ParamSpec) -> Option<GroupKey> {
        let matches = |group: &GroupConfig| group.globs.iter().any(|glob| glob_matches(glob, &spec.name));
        let item = self.optimizer.groups.iter().position(matches);
        let is_frozen = item.is_some_and(|item| self.optimizer.groups[item].frozen);
        let decays = !self.optimizer.no_decay.iter().any(|glob| glob_matches(glob, &spec.name));
        (!is_frozen && !spec.is_table()).then(|| (item, decays, is_hidden_matrix(spec)))
    }

    /// The place of a group among all that lists of a schedule have an item for.
    fn place(&self, (item, _, is_hidden_matrix): GroupKey) -> usize {
        let per_item = groups_per_item(&self.optimizer.rule);
        let within = if is_hidden_matrix { 0 } else { per_item - 1 };
        item.unwrap_or(self.optimizer.groups.len()) * per_item + within
    }

    /// The group and its own rate.
    fn group(&self, (item, decays, is_hidden_matrix): GroupKey) -> Result<(ParamGroup, f64), ConfigError> {
        let rule = item.map_or(&self.optimizer.rule, |item| &self.rules[item]);
        let (base, RatedRule { lr, weight_decay, rule }) = (self.optimizer.rule.lr(), rule.rated(is_hidden_matrix));
        let has_share = self.config.scheduler.as_ref().is_none_or(|scheduler| !scheduler.writes_rates());
        if has_share && base == 0.0 && lr != 0.0 {
            return Err(self.config.error_of(&["optimizer.params.lr"], format!(
                "optimizer.params.lr is 0 and some weights have the rate {lr}; rates of groups follow the schedule of \
                 optimizer.params.lr in proportion, so it must be above 0"
            )));
        }
        let rate = self.share(lr);
        let rule = rule.or_else(|| self.own.clone()).expect("check_own found one");
        let weight_decay = if decays { weight_decay } else { 0.0 };
        Ok((ParamGroup { rule, rate, weight_decay, decays }, lr))
    }
}

/// The rule of each item of `optimizer.groups`.
fn rules(config: &RunConfig, optimizer: &OptimizerConfig) -> Result<Vec<OptimizerRule>, ConfigError> {
    let rule = |(i, group): (usize, &GroupConfig)| {
        let rule = optimizer.rule.with(&group.overrides);
        rule.map_err(|e| config.error(format!("optimizer.groups[{i}]: {e}")))
    };
    optimizer.groups.iter().enumerate().map(rule).collect()
}

/// A matrix between hidden layers: what Muon is for. Its authors and DeepSpeed leave out embeddings and head by name; here
/// the axes of a weight say it as well, whatever its name.
fn is_hidden_matrix(spec: &ParamSpec) -> bool {
    let is_table =
        spec.dims.iter().flat_map(|dim| &dim.parts).any(|(axis, _)| [VOCAB, POSITIONS, LABELS].contains(axis));
    spec.dims.len() == 2 && !is_table && !spec.name.contains("embed") && !spec.name.contains("lm_head")
}

fn check_own(config: &RunConfig, rule: &OptimizerRule, is_given: bool) -> Result<(), ConfigError> {
    match (matches!(rule, OptimizerRule::Custom(_)), is_given) {
        (true, false) => Err(config.error_of(
            &["optimizer.type"],
            "optimizer.type is \"custom\"; its rule must come from a program, through Engine::with_optimizer",
        )),
        (false, true) => Err(config.error_of(
            &["optimizer.type"],
            "optimizer.type is not \"custom\" and the program gives a rule of its own; write { \"type\": \"custom\" }",
        )),
        _ => Ok(()),
    }
}

fn check_globs(config: &RunConfig, optimizer: &OptimizerConfig, model: &Model) -> Result<(), ConfigError> {
    let groups = optimizer.groups.iter().enumerate();
    let groups = groups.map(|(i, group)| (format!("optimizer.groups[{i}].match"), &group.globs));
    for (path, globs) in std::iter::once(("optimizer.no_decay".to_owned(), &optimizer.no_decay)).chain(groups) {
        for glob in globs {
            let mut names = model.params.iter().filter(|spec| !spec.is_table()).map(|spec| &spec.name);
            if !names.any(|name| glob_matches(glob, name)) {
                let rule = "it must match the name of at least one weight, such as \"*bias\"";
                return Err(config.error_of(&[&path], format!("{path} has {glob:?}, which matches no weight; {rule}")));
            }
        }
    }
    Ok(())
}

/// A rule that averages weights itself goes with neither another average nor a schedule.
fn check_averages(config: &RunConfig, main: &dyn Optimizer) -> Result<(), ConfigError> {
    let (name, averages) = (main.name(), main.states([1].into()).iter().any(|state| state.name == AVERAGE));
    if let Some(decay) = config.run.ema_decay.filter(|_| averages) {
        let message = format!("run.ema_decay is {decay}, but {name} averages the weights itself; remove run.ema_decay");
        return Err(config.error_of(&["run.ema_decay", "optimizer.type"], message));
    }
    if averages && config.scheduler.is_some() {
        return Err(config.error_of(
            &["scheduler", "scheduler.type", "optimizer.type"],
            format!(
                "scheduler is given, but {name} takes the place of a schedule; remove scheduler and warm up by \
             optimizer.params.warmup_steps"
            ),
        ));
    }
    Ok(())
}

fn check_moments(config: &RunConfig, optimizer: &OptimizerConfig, main: &dyn Optimizer) -> Result<(), ConfigError> {
    let has_moments = main.states([1].into()).iter().any(|state| state.is_moment);
    if optimizer.moments == Moments::F32 || has_moments {
        return Ok(());
    }
    let moments = serde_json::json!(optimizer.moments);
    let message =
        format!("optimizer.moments is {moments}, but {} keeps none by element; it must be \"f32\"", main.name());
    Err(config.error_of(&["optimizer.moments", "optimizer.type"], message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_source::ModelOrigin;
    use serde_json::{Value, json};

    fn groups(optimizer: Value, more: Value) -> Result<(Model, ParamGroups), ConfigError> {
        let mut file = json!({
            "model": { "config": { "model_type": "gpt2", "vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 2,
                                   "n_head": 2 } },
            "train_batch_size": 1,
            "optimizer": optimizer,
        });
        for (key, value) in more.as_object().expect("an object") {
            file[key] = value.clone();
        }
        let config = RunConfig::from_value(file, "r.json")?;
        let source = config.model.as_ref().and_then(|model| model.source()).expect("a model");
        let model = ModelOrigin::open(&config, source).and_then(|mut origin| origin.build(None, 8)).expect("a model");
        ParamGroups::resolve(&config, &model, None).map(|groups| (model, groups))
    }

    /// Rule, share of the rate and decay of the weight with this name.
    fn of(name: &str, (model, groups): &(Model, ParamGroups)) -> Option<(&'static str, f64, f64)> {
        let (id, _) = model.iter().find(|(_, spec)| spec.name.ends_with(name)).expect("a weight of this name");
        let group = groups.of(id)?;
        let GroupRate::Share(share) = group.rate else { panic!("{name} has a schedule of its own") };
        Some((group.rule.name(), share, group.weight_decay))
    }

    fn refusal(optimizer: Value, more: Value) -> String {
        groups(optimizer, more).err().expect("a refusal").to_string()
    }

    #[test]
    fn a_weight_belongs_to_the_first_group_that_matches_it_and_keeps_what_the_group_does_not_say() {
        let optimizer = json!({
            "type": "AdamW", "params": { "lr": 0.01, "weight_decay": 0.1 }, "no_decay": ["*bias"],
            "groups": [
                { "match": ["*wte*", "*wpe*"], "frozen": true },
                { "match": ["*h.0.*"], "lr": 0.001 },
                { "match": ["*h.*attn*"], "weight_decay": 0.5, "betas": [0.8, 0.9] },
            ],
        });
        let groups = groups(optimizer, json!({})).unwrap();
        assert_eq!(of("wte.weight", &groups), None);
        assert_eq!(of("h.0.attn.c_attn.weight", &groups), Some(("AdamW", 0.1, 0.1)));
        assert_eq!(of("h.0.attn.c_attn.bias", &groups), Some(("AdamW", 0.1, 0.0)));
        assert_eq!(of("h.1.attn.c_attn.weight", &groups), Some(("AdamW", 1.0, 0.5)));
        assert_eq!(of("h.1.mlp.c_fc.weight", &groups), Some(("AdamW", 1.0, 0.1)));
    }

    #[test]
    fn muon_takes_hidden_matrices_and_its_adamw_the_rest_each_with_its_rate() {
        let params = json!({ "lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1 });
        let groups = groups(json!({ "type": "muon", "params": params }), json!({})).unwrap();
        assert_eq!(groups.1.name(), "Muon");
        for (name, want) in [
            ("h.0.attn.c_attn.weight", ("Muon", 2.0, 0.1)),
            ("h.1.mlp.c_proj.weight", ("Muon", 2.0, 0.1)),
            ("h.1.mlp.c_proj.bias", ("AdamW", 1.0, 0.1)),
            ("wte.weight", ("AdamW", 1.0, 0.1)),
            ("wpe.weight", ("AdamW", 1.0, 0.1)),
            ("ln_f.weight", ("AdamW", 1.0, 0.1)),
        ] {
            assert_eq!(of(name, &groups), Some(want), "{name}");
        }
    }

    /// The rates of two weights at the tenth update of a run with this scheduler.
    fn rates(optimizer: Value, scheduler: Value, names: [&str; 2]) -> [f64; 2] {
        let more = json!({ "scheduler": scheduler, "run": { "steps": 100 } });
        let (model, mut groups) = groups(optimizer.clone(), more.clone()).unwrap();
        let file = json!({ "train_batch_size": 1, "optimizer": optimizer, "scheduler": more["scheduler"], "run": more["run"] });
        let config = RunConfig::from_value(file, "r.json").unwrap();
        let plan = RunPlan::resolve(&config, 8, 0).unwrap();
        groups.settle(&config, &plan);
        let at = Step { step: 10, lr: plan.schedule.lr(9), weight_decay: 0.0, grad_scale: 1.0, betas: None };
        names.map(|name| {
            let (id, _) = model.iter().find(|(_, spec)| spec.name.ends_with(name)).expect("a weight of this name");
            groups.of(id).expect("a group").step(&at, 9).lr
        })
    }

    #[test]
    fn a_schedule_that_writes_rates_gives_one_to_all_groups_a_list_to_each_and_null_leaves_their_own() {
        let two = json!({ "type": "AdamW", "params": { "lr": 0.5 }, "groups": [{ "match": ["*wte*"], "lr": 0.25 }] });
        let names = ["wte.weight", "wpe.weight"];
        for (params, want) in [
            (json!({ "warmup_num_steps": 2 }), [0.25, 0.5]),
            (json!({ "warmup_num_steps": 2, "warmup_max_lr": 0.125 }), [0.125, 0.125]),
            (json!({ "warmup_num_steps": 2, "warmup_max_lr": [0.75, 1.0] }), [0.75, 1.0]),
            // Eight of sixteen steps: half way up from each minimum.
            (
                json!({ "warmup_num_steps": 16, "warmup_type": "linear", "warmup_min_lr": [0.125, 0.25] }),
                [0.1875, 0.375],
            ),
        ] {
            let scheduler = json!({ "type": "WarmupLR", "params": params });
            assert_eq!(rates(two.clone(), scheduler.clone(), names), want, "{scheduler}");
        }
        // What multiplies keeps the proportion.
        let cosine = rates(two, json!({ "type": "WarmupCosineLR", "params": { "warmup_num_steps": 2 } }), names);
        assert_eq!(cosine[0], cosine[1] / 2.0);
        let muon = json!({ "type": "Muon", "params": { "lr": 0.5, "muon_lr": 0.25 } });
        let names = ["h.0.mlp.c_fc.weight", "ln_f.weight"];
        let list = json!({ "type": "LRRangeTest", "params": { "lr_range_test_min_lr": [0.75, 1.0],
                                                              "lr_range_test_step_rate": 0.0 } });
        assert_eq!(rates(muon.clone(), list, names), [0.75, 1.0]);
        let one = json!({ "type": "WarmupDecayLR", "params": { "warmup_num_steps": 9, "warmup_max_lr": 1.0 } });
        assert_eq!(rates(muon, one, names), [1.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        let group = |group: Value| json!({ "type": "AdamW", "groups": [group] });
        for (optimizer, more, want) in [
            (
                group(json!({ "match": ["*bias", "*nothing*"] })),
                json!({}),
                "optimizer.groups[0].match has \"*nothing*\", which matches no weight; it must match the name of at least one \
              weight, such as \"*bias\"",
            ),
            (
                group(json!({ "frozen": true })),
                json!({}),
                "optimizer.groups[0].match is missing; it must be a list of globs of weight names, such as [\"*bias\"]",
            ),
            (
                group(json!({ "match": ["*"], "frozen": true })),
                json!({}),
                "optimizer.groups freezes every weight; at least one must be trained",
            ),
            (
                group(json!({ "match": ["*"], "weight_deca": 0.9 })),
                json!({}),
                "optimizer.groups[0].weight_deca is not a known key; the nearest one is optimizer.params.weight_decay",
            ),
            (
                group(json!({ "match": ["*"], "lr": -1 })),
                json!({}),
                "optimizer.groups[0].lr is -1; it must be a number of at least 0",
            ),
            (
                json!({ "type": "AdamW", "params": { "lr": 0 }, "groups": [{ "match": ["*bias"], "lr": 1.0 }] }),
                json!({}),
                "optimizer.params.lr is 0 and some weights have the rate 1; rates of groups follow the schedule of \
              optimizer.params.lr in proportion, so it must be above 0",
            ),
            (
                json!({ "type": "SGD", "moments": "int8" }),
                json!({}),
                "optimizer.moments is \"int8\", but SGD keeps none by element; it must be \"f32\"",
            ),
            (
                json!({ "type": "custom" }),
                json!({}),
                "optimizer.type is \"custom\"; its rule must come from a program, through Engine::with_optimizer",
            ),
            (
                json!({ "type": "AdamWScheduleFree" }),
                json!({ "run": { "ema_decay": 0.9 } }),
                "run.ema_decay is 0.9, but AdamWScheduleFree averages the weights itself; remove run.ema_decay",
            ),
            (
                json!({ "type": "AdamWScheduleFree" }),
                json!({ "scheduler": { "type": "constant" } }),
                "scheduler is given, but AdamWScheduleFree takes the place of a schedule; remove scheduler and warm up by \
              optimizer.params.warmup_steps",
            ),
        ] {
            assert_eq!(refusal(optimizer, more), format!("r.json: {want}"));
        }
    }
}
