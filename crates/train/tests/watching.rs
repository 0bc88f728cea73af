//! What a run tells of itself when asked: norms, times, memory, its configuration, a profile.

mod common;

use common::{run, set, small};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::tempdir;
use train::metrics::MetricsFile;
use train::plan::report::PlanReport;
use train::run::Stop;
use train::{Event, Run, RunConfig};

/// Lines of steps.
fn steps(output: &Path) -> Vec<Value> {
    let lines = MetricsFile::read_all(&output.join("metrics.jsonl")).unwrap();
    lines.into_iter().filter(|line| line.get("loss").is_some()).collect()
}

/// The reports of a run by name, and its notices.
fn reports(config: &Value) -> (Vec<(String, String)>, Vec<String>) {
    let (mut reports, mut notices) = (Vec::new(), Vec::new());
    let mut watch = |event: Event<'_>| match event {
        Event::Report { name, text } => reports.push((name.to_owned(), text.to_owned())),
        Event::Notice(text) => notices.push(text.to_owned()),
        _ => {}
    };
    let config = RunConfig::from_value(config.clone(), "test").unwrap();
    Run::prepare(config, false, &mut watch).unwrap().execute(&mut watch, &Stop::default()).unwrap();
    (reports, notices)
}

#[test]
fn norms_of_blocks_come_at_their_steps_and_their_squares_add_up_to_the_norm_of_the_gradient() {
    let dir = tempdir().unwrap();
    let mut config = small(dir.path());
    set(&mut config, "run.norms_every", json!(3));
    set(&mut config, "train_micro_batch_size_per_gpu", json!(2));
    run(&config, false, None);
    for line in steps(dir.path()) {
        let is_due = line["step"].as_u64().unwrap() % 3 == 0;
        assert_eq!(line.get("norms").is_some(), is_due, "{line}");
        let Some(norms) = line["norms"].as_object() else { continue };
        let blocks: Vec<&str> = norms.keys().map(String::as_str).collect();
        // The head's matrix is the embedding's; its own are those of the last norm.
        assert_eq!(blocks, ["transformer.wte", "transformer.h.0", "transformer.h.1", "lm_head"]);
        let squares: f64 = norms.values().map(|pair| pair[0].as_f64().unwrap().powi(2)).sum();
        let whole = line["grad_norm"].as_f64().unwrap();
        assert!((squares.sqrt() - whole).abs() <= 1e-12 * whole, "{} {whole}", squares.sqrt());
    }
}

#[test]
fn the_weight_norm_is_that_of_the_weights_before_the_update() {
    let dir = tempdir().unwrap();
    let mut config = small(dir.path());
    set(&mut config, "run.norms_every", json!(1));
    // No update at all: the final model holds the weights of every step.
    set(&mut config, "optimizer.params", json!({ "lr": 0.0, "weight_decay": 0.0 }));
    run(&config, false, None);
    let file = fs::read(dir.path().join("model/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let squares = |prefixes: &[&str]| -> f64 {
        let of = tensors.iter().filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let values = of.flat_map(|(_, tensor)| bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()));
        values.map(|x| f64::from(x).powi(2)).sum()
    };
    let line = &steps(dir.path())[11];
    for (block, prefixes) in [
        ("transformer.wte", &["transformer.wte.", "transformer.wpe."][..]),
        ("transformer.h.0", &["transformer.h.0."]),
        ("lm_head", &["transformer.ln_f."]),
    ] {
        let (want, got) = (squares(prefixes).sqrt(), line["norms"][block][1].as_f64().unwrap());
        assert!(want > 0.0 && (got - want).abs() <= 1e-6 * want, "{block}: {got}, in the file {want}");
    }
}

#[test]
fn the_parts_of_a_step_are_timed_and_make_up_nearly_all_of_it() {
    let dir = tempdir().unwrap();
    let mut config = small(dir.path());
    set(&mut config, "wall_clock_breakdown", json!(true));
    set(&mut config, "run.steps", json!(30));
    set(&mut config, "run.recompute", json!(true));
    run(&config, false, None);
    let lines = steps(dir.path());
    let mut largest_share = 0.0f64;
    for line in &lines {
        let parts = line["breakdown_seconds"].as_object().unwrap();
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["data", "forward", "backward", "step"]);
        let parts: f64 = parts.values().map(|part| part.as_f64().unwrap()).sum();
        let whole = line["step_seconds"].as_f64().unwrap();
        assert!(parts <= whole, "{line}");
        largest_share = largest_share.max(parts / whole);
    }
    // The best of many, here and below: the machine may be busy with other tests.
    assert!(largest_share > 0.9, "{largest_share}");
    let fastest = |part: &str| {
        let times = lines.iter().map(|line| line["breakdown_seconds"][part].as_f64().unwrap());
        times.fold(f64::INFINITY, f64::min)
    };
    // Under recompute backward is one more forward and the two products of each product's gradients.
    assert!(fastest("backward") > fastest("forward"), "{} {}", fastest("backward"), fastest("forward"));
}

#[test]
fn memory_by_kind_is_what_the_plan_says() {
    let dir = tempdir().unwrap();
    let mut config = small(dir.path());
    set(&mut config, "memory_breakdown", json!(true));
    run(&config, false, None);
    let plan = PlanReport::of(&RunConfig::from_value(config, "test").unwrap(), 1).unwrap().memory_per_rank;
    let held = &steps(dir.path())[11]["memory_bytes"];
    for kind in ["weights", "gradients", "optimizer", "activations"] {
        let (held, planned) = (held[kind].as_f64().unwrap(), plan[kind] as f64);
        assert!((held - planned).abs() <= 0.05 * planned, "{kind}: {held}, planned {planned}");
    }
}

#[test]
fn nothing_of_it_is_told_unasked() {
    let dir = tempdir().unwrap();
    let config = small(dir.path());
    assert_eq!(reports(&config).0, []);
    for line in steps(dir.path()) {
        for key in ["norms", "breakdown_seconds", "memory_bytes"] {
            assert!(line.get(key).is_none(), "{line}");
        }
    }
}

#[test]
fn the_state_is_every_key_with_its_final_value_and_origin() {
    let dir = tempdir().unwrap();
    let mut config = small(dir.path());
    set(&mut config, "dump_state", json!(true));
    let (reports, _) = reports(&config);
    let [(name, text)] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(name, "state");
    for line in [
        "dump_state = true (file)",
        "train_batch_size = 8 (file)",
        "gradient_accumulation_steps = 1 (derived)",
        "optimizer.params.lr = 0.01 (file)",
        "gradient_clipping = 1.0 (default)",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

/// A run of two micro-batches a step that profiles its third step.
fn profiled(output: &Path, more: Value) -> Value {
    let mut config = small(output);
    set(&mut config, "train_micro_batch_size_per_gpu", json!(4));
    set(&mut config, "flops_profiler", json!({ "enabled": true, "profile_step": 3 }));
    for (key, value) in more.as_object().unwrap() {
        set(&mut config, &format!("flops_profiler.{key}"), value.clone());
    }
    config
}

/// A row of the table of modules, by its name and cells.
fn row<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let row = text.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")) && line.contains('%'));
    row.unwrap_or_else(|| panic!("{name} in\n{text}")).trim_start()[name.len()..]
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

#[test]
fn a_profile_has_parameters_work_and_time_of_every_module() {
    let dir = tempdir().unwrap();
    let (reports, notices) = reports(&profiled(dir.path(), json!({})));
    let [(name, text)] = &reports[..] else { panic!("{reports:?} {notices:?}") };
    assert_eq!(name, "flops_profiler");
    assert!(text.starts_with("profile of step 3: 8 rows in 2 micro-batches\n"), "{text}");
    // 256 tokens: D = 32, 3D wide, a product of 2 x 256 x 32 x 96.
    assert_eq!(row(text, "c_attn")[..3], ["3.2 k", "786.4 k", "1.6 M"], "{text}");
    // 4 pairs-FLOPs x D x (32 rows of causal pairs: 33 x 16 a row).
    assert_eq!(row(text, "(attention)")[..3], ["-", "270.3 k", "540.7 k"], "{text}");
    assert_eq!(row(text, "wte|wpe")[..2], ["9.2 k", "-"], "{text}");
    assert_eq!(row(text, "lm_head")[..3], ["-", "2.1 M", "4.2 M"], "{text}");
    assert_eq!(row(text, "total")[0], "34.7 k", "{text}");
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("module ")).collect();
    let names: Vec<&str> =
        table[1..19].iter().map(|line| line.split("  ").find(|part| !part.is_empty()).unwrap()).collect();
    let block = ["ln_1", "attn", "c_attn", "(attention)", "c_proj", "ln_2", "mlp", "c_fc", "(gelu)", "c_proj"];
    assert_eq!(names[..5], ["total", "transformer", "wte|wpe", "(dropout)", "h"], "{text}");
    assert_eq!(names[5..16], ["0"].iter().chain(&block).copied().collect::<Vec<_>>(), "{text}");
    // All lines of the table end at one column.
    assert!(table.iter().all(|line| line.trim_end().chars().count() == table[0].chars().count()), "{text}");
}

#[test]
fn a_profile_goes_as_deep_as_asked_and_to_the_file_asked_for() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("profiles/third.txt");
    let more = json!({ "module_depth": 1, "output_file": file, "top_modules": 3, "recompute_fwd_factor": 1.0 });
    let (reports, notices) = reports(&profiled(&dir.path().join("run"), more));
    assert_eq!(reports, []);
    assert!(notices.contains(&format!("the profile of step 3 is in {}", file.display())), "{notices:?}");
    let text = fs::read_to_string(&file).unwrap();
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("module ")).skip(1).collect();
    let names: Vec<&str> = table.iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["total", "transformer", "lm_head"]);
    assert!(text.contains(", 4 x forward\n"), "{text}");
    assert!(text.contains("\ndepth 1 ") && !text.contains("\ndepth 0") && !text.contains("\ndepth 2"), "{text}");
}

#[test]
fn a_profile_without_details_is_its_summary_and_the_largest_modules() {
    let dir = tempdir().unwrap();
    let (reports, _) = reports(&profiled(dir.path(), json!({ "detailed": false })));
    let text = &reports[0].1;
    assert!(text.contains("\nlargest modules ") && !text.contains("\nmodule "), "{text}");
}

#[test]
fn a_step_that_the_run_does_not_make_is_not_profiled_and_said_so() {
    let dir = tempdir().unwrap();
    let (reports, notices) = reports(&profiled(dir.path(), json!({ "profile_step": 500 })));
    assert_eq!(reports, []);
    let want = "flops_profiler.profile_step is 500, and this run makes steps 1 to 12";
    assert!(notices.iter().any(|notice| notice == want), "{notices:?}");
}

#[test]
fn a_profile_that_is_to_be_written_over_a_folder_is_refused() {
    let dir = tempdir().unwrap();
    let config = profiled(&dir.path().join("run"), json!({ "output_file": dir.path() }));
    let error = common::try_run(&config, false, None).err().unwrap().to_string();
    let want = format!(
        "test: flops_profiler.output_file: {} is a folder; it must be the path of a file",
        dir.path().display()
    );
    assert_eq!(error, want);
    assert!(!dir.path().join("run").exists());
}

/// The events of a run's log, but for their times.
fn log(output: &Path) -> Vec<Value> {
    let lines = MetricsFile::read_all(&output.join("log.jsonl")).unwrap();
    let untimed = |mut line: Value| {
        assert!(line.as_object_mut().unwrap().remove("time").unwrap().as_f64().unwrap() > 1.76e9);
        line
    };
    lines.into_iter().map(untimed).collect()
}

#[test]
fn the_log_tells_how_a_run_went_and_ended_and_goes_on_with_it() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("run");
    let mut config = small(&output);
    set(&mut config, "run.steps", json!(6));
    run(&config, false, Some(5));
    let checkpoint = |step: u64| output.join(format!("checkpoints/step-0000000{step}"));
    let want = [
        json!({"step": 0, "event": "started", "steps": 6, "done_steps": 0}),
        json!({"step": 5, "event": "saved", "path": checkpoint(5)}),
        json!({"step": 5, "event": "interrupted", "signal": 15}),
    ];
    assert_eq!(log(&output), want);
    run(&config, true, None);
    let all = log(&output);
    assert_eq!(all[..3], want);
    assert_eq!(
        all[3..],
        [
            json!({"step": 5, "event": "started", "steps": 6, "done_steps": 5}),
            json!({"step": 6, "event": "saved", "path": checkpoint(6)}),
            json!({"step": 6, "event": "exported", "path": output.join("model")}),
            json!({"step": 6, "event": "finished"}),
        ]
    );
}

#[test]
fn the_log_ends_with_the_error_that_stopped_a_run() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("run");
    let mut config = small(&output);
    // Weights that no loss can come of.
    set(&mut config, "optimizer.params", json!({ "lr": 1e30 }));
    set(&mut config, "gradient_clipping", json!(0.0));
    let error = common::try_run(&config, false, None).err().unwrap().to_string();
    assert_eq!(log(&output).last().unwrap()["message"], error);
    assert_eq!(log(&output).last().unwrap()["event"], "error");
}
