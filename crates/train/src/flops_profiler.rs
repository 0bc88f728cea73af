//! `flops_profiler`: one optimizer step measured module by module, with parameters, work and time of each.
//!
//! Modules are those of the weights' names, as in PyTorch: `transformer.h.0.attn.c_attn.weight` belongs to `c_attn` inside
//! `attn` inside `0`. An op that reads several modules' weights at once is one row, `q_proj|k_proj|v_proj`. An op without
//! weights stands in brackets in the module that the ops around it share: `(attention)` in `attn`.
//!
//! FLOPs are counted by the ops themselves ([`ops::Cost`]): two for each multiply-accumulate of a product, and those of
//! norms, activations and sums. Of attention the pairs that the causal mask leaves are counted; DeepSpeed counts all.
//! Backward is taken as twice the forward, plus `recompute_fwd_factor`, as DeepSpeed does. Its times are all micro-batches
//! of the step, where DeepSpeed measures the first forward.
//!
//! Not here: what takes the times ([`crate::Breakdown`]); kernels by shape (`bessemer bench --profile`).

use crate::breakdown::OpTimes;
use crate::config::RunConfig;
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::event::{Event, Observer, StepMetrics};
use data::Sample;
use models::Model;
use ops::ParamId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The `flops_profiler` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct FlopsProfilerConfig {
    /// Whether a step is profiled.
    pub enabled: bool,
    /// Share of the forward that backward runs again.
    pub recompute_fwd_factor: f64,
    /// Optimizer step, from 1; 0 is the first too.
    pub profile_step: u64,
    /// Depth of the modules shown; -1: all.
    pub module_depth: i64,
    /// Largest modules of each depth that are listed.
    pub top_modules: usize,
    /// Whether every module has a row.
    pub detailed: bool,
    /// Where the report goes; none: the log.
    pub output_file: Option<PathBuf>,
}

impl FlopsProfilerConfig {
    /// The step that is profiled, from 1.
    pub fn step(&self) -> Option<u64> {
        self.enabled.then_some(self.profile_step.max(1))
    }

    fn depth(&self) -> usize {
        usize::try_from(self.module_depth).unwrap_or(usize::MAX)
    }
}

/// Refuses a report that cannot be written. Writes nothing.
pub(crate) fn check(config: &RunConfig) -> Result<()> {
    let file = config.flops_profiler.output_file.as_ref().filter(|_| config.flops_profiler.enabled);
    match file.filter(|file| file.is_dir()) {
        Some(folder) => {
            let message = format!("{} is a folder; it must be the path of a file", folder.display());
            Err(config.error_at("flops_profiler.output_file", message).into())
        }
        None => Ok(()),
    }
}

/// After the profiled step: writes the report to its file or to the log. `samples`: those of the step.
pub(crate) fn report(engine: &Engine, metrics: &StepMetrics, samples: &[Sample], observer: &mut dyn Observer) {
    let config = &engine.config.flops_profiler;
    let Some(clock) = engine.clock.as_ref().filter(|_| config.step() == Some(metrics.step)) else { return };
    let micro_batches = samples.len().div_ceil(engine.plan.batch.micro_batch_size as usize);
    let tree = Module::of(&engine.model, &clock.take_ops());
    let text =
        [summary(config, metrics, &tree, samples.len(), micro_batches), largest(config, &tree), table(config, &tree)]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<String>>()
            .join("\n\n");
    let written = config.output_file.as_ref().map(|path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, format!("{text}\n"))).map_or_else(
            |error| Err(TrainError::io(path, "write the profile")(error)),
            |()| Ok(format!("the profile of step {} is in {}", metrics.step, path.display())),
        )
    });
    match written {
        Some(Ok(notice)) => observer.on(Event::Notice(&notice)),
        Some(Err(error)) => {
            // Not worth a run: the log takes it.
            observer.on(Event::Notice(&error.to_string()));
            observer.on(Event::Report { name: "flops_profiler", text: &text });
        }
        None => observer.on(Event::Report { name: "flops_profiler", text: &text }),
    }
}

/// A module with all below it added up.
#[derive(Clone, Debug, Default, PartialEq)]
struct Module {
    name: String,
    parameters: u64,
    /// Multiply-accumulates of products, forward.
    macs: u64,
    /// Forward.
    flops: u64,
    /// Seconds.
    forward: f64,
    /// Seconds.
    backward: f64,
    children: Vec<Module>,
}

/// The names from the model down to a module.
type Path = Vec<String>;

impl Module {
    /// The tree of a model after a step whose ops were watched.
    fn of(model: &Model, ops: &[OpTimes]) -> Self {
        let (mut root, places) = (Self { name: "total".to_owned(), ..Self::default() }, Places::of(model, ops));
        for (op, path) in ops.iter().zip(&places.ops) {
            let module = root.at(path);
            module.flops += op.flops;
            module.macs += if PRODUCTS.contains(&op.op) { op.flops / 2 } else { 0 };
            module.forward += op.forward;
            module.backward += op.backward;
        }
        for (_, spec) in model.iter().filter(|(_, spec)| !spec.is_table()) {
            let own = module_of(&spec.name);
            root.at(places.joined.get(&own).unwrap_or(&own)).parameters += spec.elements() as u64;
        }
        root.add_up();
        root
    }

    fn at(&mut self, path: &[String]) -> &mut Self {
        let Some((name, rest)) = path.split_first() else { return self };
        let place = self.children.iter().position(|child| child.name == *name).unwrap_or_else(|| {
            self.children.push(Self { name: name.clone(), ..Self::default() });
            self.children.len() - 1
        });
        self.children[place].at(rest)
    }

    fn add_up(&mut self) {
        for child in &mut self.children {
            child.add_up();
            self.parameters += child.parameters;
            self.macs += child.macs;
            self.flops += child.flops;
            self.forward += child.forward;
            self.backward += child.backward;
        }
    }

    fn seconds(&self) -> f64 {
        self.forward + self.backward
    }

    /// Calls `visit` with each module and the names from this one down to it, no more than `deepest`.
    fn walk<'a>(&'a self, path: &mut Path, deepest: usize, visit: &mut impl FnMut(&Path, &'a Self)) {
        visit(path, self);
        let shown = if path.len() < deepest { &self.children[..] } else { &[] };
        for child in shown {
            path.push(child.name.clone());
            child.walk(path, deepest, visit);
            path.pop();
        }
    }
}

/// Ops whose FLOPs are multiply-accumulates.
const PRODUCTS: [&str; 3] = ["linear", "attention", "head"];

/// Where ops stand in the tree.
struct Places {
    /// One for each op.
    ops: Vec<Path>,
    /// Modules that are one row with others.
    joined: BTreeMap<Path, Path>,
}

impl Places {
    fn of(model: &Model, ops: &[OpTimes]) -> Self {
        let mut joined = BTreeMap::new();
        let read: Vec<Option<Path>> = ops.iter().map(|op| place_by_weights(model, op, &mut joined)).collect();
        let place = |(index, op): (usize, &OpTimes)| {
            if let Some(path) = &read[index] {
                return path.clone();
            }
            let in_block = |other: usize| read[other].as_ref().filter(|_| ops[other].block == op.block);
            let block: Path = names(&model.blocks[op.block].name);
            let before = (0..index).rev().find_map(in_block).unwrap_or(&block);
            let after = (index + 1..ops.len()).find_map(in_block).unwrap_or(&block);
            let mut path = common(before, after);
            if !op.is_free {
                path.push(format!("({})", op.op));
            }
            path
        };
        Self { ops: ops.iter().enumerate().map(place).collect(), joined }
    }
}

/// The module of an op that reads weights: theirs, or that of the block where another one declared them (a tied head).
fn place_by_weights(model: &Model, op: &OpTimes, joined: &mut BTreeMap<Path, Path>) -> Option<Path> {
    let spec = |id: ParamId| &model.params[id.index()];
    let read: Vec<ParamId> = op.weights.iter().copied().filter(|id| !spec(*id).is_table()).collect();
    let is_own = |id: &ParamId| model.blocks.iter().position(|block| block.params.contains(id)) == Some(op.block);
    let mut modules: Vec<Path> = read.iter().filter(|id| is_own(id)).map(|id| module_of(&spec(*id).name)).collect();
    modules.dedup();
    match &modules[..] {
        [] if read.is_empty() => None,
        [] => Some(names(&model.blocks[op.block].name)),
        [one] => Some(one.clone()),
        [first, others @ ..] => {
            let mut path = others.iter().fold(first.clone(), |path, other| common(&path, other));
            let labels: Vec<String> = modules.iter().map(|module| module[path.len()..].join(".")).collect();
            path.push(labels.join("|"));
            joined.extend(modules.iter().map(|module| (module.clone(), path.clone())));
            Some(path)
        }
    }
}

/// A weight's name without its last part.
fn module_of(weight: &str) -> Path {
    weight.rsplit_once('.').map_or_else(Path::new, |(module, _)| names(module))
}

fn names(path: &str) -> Path {
    path.split('.').map(str::to_owned).collect()
}

/// The names that two paths begin with.
fn common(a: &Path, b: &Path) -> Path {
    a.iter().zip(b).take_while(|(a, b)| a == b).map(|(name, _)| name.clone()).collect()
}

fn summary(
    config: &FlopsProfilerConfig,
    metrics: &StepMetrics,
    model: &Module,
    rows: usize,
    micro_batches: usize,
) -> String {
    let times = metrics.breakdown_seconds.unwrap_or_default();
    let passes = 3.0 + config.recompute_fwd_factor;
    let (forward, all) = (model.flops as f64, passes * model.flops as f64);
    let rate = |flops: f64, seconds: f64| format!("{:>10}FLOP/s", si(flops / seconds));
    let ms = |seconds: f64| format!("{:>10.3} ms", 1e3 * seconds);
    let amount = |number: f64, unit: &str| format!("{:>10}{unit}", si(number));
    let rows_shown = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
    let micro_batches = match micro_batches {
        1 => "1 micro-batch".to_owned(),
        count => format!("{count} micro-batches"),
    };
    let mut lines = vec![format!("profile of step {}: {rows_shown} in {micro_batches}", metrics.step)];
    let mut line = |name: &str, value: String| lines.push(format!("{name:<30}{value}").trim_end().to_owned());
    line("parameters", amount(model.parameters as f64, ""));
    line("forward", amount(model.macs as f64, "MAC"));
    line("forward", amount(forward, "FLOP"));
    line("forward and backward", format!("{}, {passes} x forward", amount(all, "FLOP")));
    line("data", ms(times.data));
    line("forward", format!("{} {}", ms(times.forward), rate(forward, times.forward)));
    line("backward", format!("{} {}", ms(times.backward), rate(all - forward, times.backward)));
    line("norm, clipping, update", ms(times.step));
    let speed = rows as f64 / metrics.step_seconds;
    line("step", format!("{} {}, {speed:.2} rows/s", ms(metrics.step_seconds), rate(all, metrics.step_seconds)));
    lines.push(
        "The gradient of the head is made in its forward, where the logits are, and its time stands there.".into(),
    );
    lines.join("\n")
}

/// The largest modules of each depth by parameters, multiply-accumulates and time.
fn largest(config: &FlopsProfilerConfig, model: &Module) -> String {
    if config.top_modules == 0 || config.depth() == 0 {
        return String::new();
    }
    let mut depths: Vec<Vec<(String, &Module)>> = Vec::new();
    model.walk(&mut Vec::new(), config.depth(), &mut |path, module| {
        depths.resize(depths.len().max(path.len() + 1), Vec::new());
        depths[path.len()].push((if path.is_empty() { module.name.clone() } else { path.join(".") }, module));
    });
    let top = |modules: &[(String, &Module)], of: &dyn Fn(&Module) -> f64| {
        let mut sorted: Vec<&(String, &Module)> = modules.iter().filter(|(_, module)| of(module) > 0.0).collect();
        sorted.sort_by(|(_, a), (_, b)| of(b).total_cmp(&of(a)));
        let share = |module| 100.0 * of(module) / of(model);
        let shown =
            sorted.iter().take(config.top_modules).map(|(path, module)| format!("{path} {:.1} %", share(module)));
        shown.collect::<Vec<String>>().join(", ")
    };
    let mut rows = vec![["largest modules", "by parameters", "by MACs", "by time"].map(str::to_owned)];
    // The largest module of depth 0 is all there is.
    rows.extend(depths.iter().enumerate().skip(1).map(|(depth, modules)| {
        [
            format!("depth {depth}"),
            top(modules, &|module| module.parameters as f64),
            top(modules, &|module| module.macs as f64),
            top(modules, &|module| module.seconds()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |[depth, parameters, macs, time]: &[String; 4]| {
        let [first, second, third] = widths;
        format!("{depth:<first$}  {parameters:<second$}  {macs:<third$}  {time}").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<String>>().join("\n")
}

/// A row for every module down to the depth asked for.
fn table(config: &FlopsProfilerConfig, model: &Module) -> String {
    if !config.detailed {
        return String::new();
    }
    let mut rows: Vec<(String, &Module)> = Vec::new();
    model.walk(&mut Vec::new(), config.depth(), &mut |path, module| {
        rows.push((format!("{}{}", "  ".repeat(path.len()), module.name), module));
    });
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("module".len());
    let (whole, passes) = (model.seconds().max(f64::MIN_POSITIVE), 3.0 + config.recompute_fwd_factor);
    let mut lines = vec![format!(
        "{:<width$}  {:>10}  {:>8}  {:>8}  {:>10}  {:>11}  {:>7}  {:>8}",
        "module", "parameters", "MACs", "FLOPs", "forward ms", "backward ms", "share", "FLOP/s"
    )];
    for (name, module) in rows {
        let [parameters, macs, flops] = [module.parameters, module.macs, module.flops]
            .map(|number| if number == 0 { "-".into() } else { si(number as f64) });
        let rate = match module.flops {
            0 => "-".into(),
            flops => si(passes * flops as f64 / module.seconds().max(f64::MIN_POSITIVE)),
        };
        let (forward, backward, share) =
            (1e3 * module.forward, 1e3 * module.backward, 100.0 * module.seconds() / whole);
        lines.push(format!(
            "{name:<width$}  {parameters:>10}  {macs:>8}  {flops:>8}  {forward:>10.3}  {backward:>11.3}  {share:>5.1} %  {rate:>8}",
        ));
    }
    lines.join("\n")
}

/// Four digits and the prefix of a thousand: `124.4 M`. A unit may follow at once.
fn si(number: f64) -> String {
    let (mut number, mut prefix) = (number, 0);
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    while number >= 999.95 && prefix + 1 < PREFIXES.len() {
        (number, prefix) = (number / 1e3, prefix + 1);
    }
    if prefix == 0 && number.fract() == 0.0 {
        format!("{number} ")
    } else {
        format!("{number:.1} {}", PREFIXES[prefix])
    }
}
