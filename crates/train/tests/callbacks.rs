//! Callbacks hear of every stage of a run in order, may ask for evaluation, checkpoint, stop and lines of metrics, change
//! nothing else, and go on where they were after a resume.

mod common;

use common::{set, small, weights};
use generate::Evaluation;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use train::metrics::MetricsFile;
use train::run::Stop;
use train::{Callback, Control, Engine, Event, Outcome, Run, RunConfig, StepReport};

/// What was told, by whom it was made.
type Told = Arc<Mutex<Vec<String>>>;

/// Writes down every moment, and does at it what it is told to.
struct Scribe<F> {
    told: Told,
    /// Told of each moment with the steps done.
    then: F,
    /// Steps seen, which a resume must give back.
    seen: u64,
}

impl<F: FnMut(&str, u64, &mut Control) + Send> Scribe<F> {
    fn write(&mut self, moment: &str, detail: &str, engine: &Engine, control: &mut Control) {
        let step = engine.global_steps();
        self.told.lock().unwrap().push(format!("{step} {moment}{detail}"));
        (self.then)(moment, step, control);
    }
}

impl<F: FnMut(&str, u64, &mut Control) + Send> Callback for Scribe<F> {
    fn on_init_end(&mut self, engine: &Engine, control: &mut Control) {
        let seen = format!(" seen {}", self.seen);
        self.write("init_end", &seen, engine, control);
    }
    fn on_train_begin(&mut self, engine: &Engine, control: &mut Control) {
        self.write("train_begin", "", engine, control);
    }
    fn on_train_end(&mut self, engine: &Engine, control: &mut Control) {
        self.write("train_end", "", engine, control);
    }
    fn on_epoch_begin(&mut self, engine: &Engine, epoch: u64, control: &mut Control) {
        self.write("epoch_begin", &format!(" {epoch}"), engine, control);
    }
    fn on_epoch_end(&mut self, engine: &Engine, epoch: u64, control: &mut Control) {
        self.write("epoch_end", &format!(" {epoch}"), engine, control);
    }
    fn on_step_begin(&mut self, engine: &Engine, control: &mut Control) {
        self.write("step_begin", "", engine, control);
    }
    fn on_substep_end(&mut self, engine: &Engine, control: &mut Control) {
        self.write("substep_end", "", engine, control);
    }
    fn on_pre_optimizer_step(&mut self, engine: &Engine, grad_norm: f64, control: &mut Control) {
        assert!(grad_norm > 0.0);
        self.write("pre_optimizer_step", "", engine, control);
    }
    fn on_optimizer_step(&mut self, engine: &Engine, control: &mut Control) {
        assert!(engine.was_step_applied());
        self.write("optimizer_step", "", engine, control);
    }
    fn on_step_end(&mut self, engine: &Engine, report: &StepReport, control: &mut Control) {
        assert_eq!(engine.get_global_grad_norm(), Some(report.grad_norm));
        self.seen += 1;
        self.write("step_end", "", engine, control);
    }
    fn on_prediction_step(&mut self, engine: &Engine, done: u64, total: u64, control: &mut Control) {
        if done == 0 || done == total - 1 {
            self.write("prediction_step", &format!(" {done}"), engine, control);
        }
    }
    fn on_evaluate(&mut self, engine: &Engine, evaluation: &Evaluation, control: &mut Control) {
        self.write("evaluate", &format!(" of {}", evaluation.tokens), engine, control);
    }
    fn on_predict(&mut self, engine: &Engine, text: &str, control: &mut Control) {
        assert!(text.starts_with("AB"));
        self.write("predict", "", engine, control);
    }
    fn on_save(&mut self, engine: &Engine, checkpoint: &Path, control: &mut Control) {
        let name = checkpoint.file_name().unwrap().to_string_lossy().into_owned();
        self.write("save", &format!(" {name}"), engine, control);
    }
    fn on_log(&mut self, engine: &Engine, line: &Value, control: &mut Control) {
        let what = ["loss", "eval_loss"].into_iter().find(|key| line.get(key).is_some()).unwrap_or("own");
        self.write("log", &format!(" {what}"), engine, control);
    }
    fn name(&self) -> &'static str {
        "scribe"
    }
    fn state(&self) -> Value {
        json!(self.seen)
    }
    fn restore(&mut self, state: &Value) {
        self.seen = state.as_u64().expect("steps seen");
    }
}

/// [`small`] on 40 rows of text, a tenth of which validates: an epoch of 36 samples.
fn config(folder: &Path, keys: &[(&str, Value)]) -> Value {
    let text: String = (0..40 * 32).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    std::fs::write(folder.join("text.txt"), text).unwrap();
    let mut config = small(&folder.join("run"));
    set(&mut config, "data.train", json!(folder.join("text.txt")));
    set(&mut config, "data.validation", json!({ "split": 0.1 }));
    set(&mut config, "run.checkpoint_async", json!(false));
    for (key, value) in keys {
        set(&mut config, key, value.clone());
    }
    config
}

/// Runs with a scribe; what was told and how it ended. `signal_at`: a signal comes during that step.
fn run(
    config: &Value,
    resume: bool,
    signal_at: Option<u64>,
    then: impl FnMut(&str, u64, &mut Control) + Send + 'static,
) -> (Vec<String>, Vec<String>, Outcome) {
    let (told, stop, mut notices) = (Told::default(), Stop::default(), Vec::new());
    let flag = stop.clone();
    let mut watch = |event: Event<'_>| match event {
        Event::Step(metrics) if Some(metrics.step) == signal_at => {
            flag.0.store(15, std::sync::atomic::Ordering::Relaxed);
        }
        Event::Notice(text) => notices.push(text.to_owned()),
        _ => {}
    };
    let config = RunConfig::from_value(config.clone(), "test").unwrap_or_else(|error| panic!("{error}"));
    let mut run = Run::prepare(config, resume, &mut watch).unwrap_or_else(|error| panic!("{error}"));
    run.add_callback(Scribe { told: told.clone(), then, seen: 0 });
    let outcome = run.execute(&mut watch, &stop).unwrap_or_else(|error| panic!("{error}"));
    let told = told.lock().unwrap().clone();
    (told, notices, outcome)
}

#[test]
fn every_moment_of_a_run_is_told_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [
        ("run.steps", json!(6)),
        ("run.eval_every", json!(3)),
        ("run.checkpoint_every", json!(3)),
        ("run.sample_every", json!(3)),
        ("run.sample_prompt", json!("AB")),
        ("run.sample_tokens", json!(2)),
        ("train_micro_batch_size_per_gpu", json!(4)),
    ];
    let (told, _, _) = run(&config(folder.path(), &keys), false, None, |_, _, _| {});
    let step = |done: u64, next: &[&str]| {
        let during = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step"];
        let during = during.map(|moment| format!("{done} {moment}"));
        let after = ["step_end", "log loss"].into_iter().chain(next.iter().copied());
        let after: Vec<String> = after.map(|moment| format!("{} {moment}", done + 1)).collect();
        during.into_iter().chain(after).collect::<Vec<_>>()
    };
    let evaluation = |rows: &'static str, tokens: &'static str| ["prediction_step 0", rows, "log eval_loss", tokens];
    let [first, last, log, tokens] = evaluation("prediction_step 3", "evaluate of 127");
    // An epoch has 36 rows: the fifth step ends the first one.
    let want = [
        ["0 init_end seen 0", "0 train_begin", "0 epoch_begin 0"].map(str::to_owned).to_vec(),
        step(0, &[]),
        step(1, &[]),
        step(2, &[first, last, log, tokens, "save step-00000003", "predict"]),
        step(3, &[]),
        step(4, &["epoch_end 0", "epoch_begin 1"]),
        step(5, &[first, last, log, tokens, "save step-00000006", "predict", "epoch_end 1", "train_end"]),
    ];
    assert_eq!(told, want.concat());
}

#[test]
fn a_run_with_a_callback_that_asks_for_nothing_is_the_run_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        self::config(&folder, &[("train_micro_batch_size_per_gpu", json!(2))])
    };
    run(&config("told"), false, None, |_, _, _| {});
    common::run(&config("alone"), false, None);
    let weights = |name: &str| self::weights(&folder.path().join(name).join("run"));
    assert!(weights("told") == weights("alone"), "the weights differ");
}

#[test]
fn what_a_callback_asks_for_is_done_after_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[("run.checkpoint_every", json!(0))]);
    let (told, notices, outcome) = run(&config, false, None, |moment, step, control| match (moment, step) {
        ("step_end", 2) => control.evaluate(),
        ("evaluate", 2) => control.save(),
        ("step_end", 4) => {
            control.log(Map::from_iter([("rows".to_owned(), json!(32)), ("step".to_owned(), json!(99))]))
        }
        ("step_end", 7) => control.stop(),
        _ => {}
    });
    assert_eq!(outcome, Outcome::Finished);
    let at = |moment: &str| {
        let told = told.iter().filter(|told| told.contains(moment));
        told.map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(at("evaluate"), ["2 evaluate of 127", "7 evaluate of 127"]);
    assert_eq!(at("save"), ["2 save step-00000002", "7 save step-00000007"]);
    assert_eq!(at("train_end"), ["7 train_end"]);
    assert!(notices.iter().any(|notice| notice == "step 7: the run ends here, as a callback has asked"), "{notices:?}");
    assert!(folder.path().join("run/model/model.safetensors").exists());
    let lines = MetricsFile::read_all(&folder.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(
        lines.iter().filter(|line| line.get("rows").is_some()).collect::<Vec<_>>(),
        [&json!({ "step": 4, "rows": 32 })]
    );
    // Resumed, it goes on to its length.
    let (told, _, _) = run(&config, true, None, |_, _, _| {});
    assert_eq!(told[0], "7 init_end seen 7");
    assert_eq!(told.last().map(String::as_str), Some("12 train_end"));
}

#[test]
fn after_a_signal_a_callback_goes_on_from_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[]);
    let (told, _, outcome) = run(&config, false, Some(7), |_, _, _| {});
    assert_eq!(outcome, Outcome::Interrupted { signal: 15 });
    assert_eq!(told.last().map(String::as_str), Some("7 train_end"));
    let (told, _, _) = run(&config, true, None, |_, _, _| {});
    assert_eq!(told[..3], ["7 init_end seen 7", "7 train_begin", "7 epoch_begin 1"]);
}

#[test]
fn an_evaluation_that_was_asked_for_when_a_signal_came_is_made_on_resume_and_the_run_is_the_undisturbed_one() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        // Every evaluation that is no better halves the rate.
        let plateau =
            json!({ "type": "reduce_lr_on_plateau", "params": { "factor": 0.5, "patience": 0, "threshold": 10.0 } });
        config(&folder, &[("scheduler", plateau), ("run.eval_every", json!(5))])
    };
    let asks = |moment: &str, step: u64, control: &mut Control| {
        if moment == "step_end" && step.is_multiple_of(3) {
            control.evaluate();
        }
    };
    let (whole, broken) = (place("whole"), place("broken"));
    run(&whole, false, None, asks);
    run(&broken, false, Some(6), asks);
    let (told, _, _) = run(&broken, true, None, asks);
    assert_eq!(told[3..7], ["6 prediction_step 0", "6 prediction_step 3", "6 log eval_loss", "6 evaluate of 127"]);
    let lines = |name: &str| {
        let lines = MetricsFile::read_all(&folder.path().join(name).join("run/metrics.jsonl")).unwrap();
        let figures = ["step", "loss", "lr", "eval_loss"];
        lines.into_iter().map(|line| figures.map(|key| line[key].clone())).collect::<Vec<_>>()
    };
    assert_eq!(lines("broken"), lines("whole"));
    let rates: Vec<f64> = lines("whole").iter().filter_map(|line| line[2].as_f64()).collect();
    // The first evaluation is the best; four more come before the last step.
    assert_eq!(rates[11], rates[0] / 16.0);
}

/// Evaluates by itself at every step.
struct Evaluates(Vec<f64>, Told);

impl Callback for Evaluates {
    fn on_step_end(&mut self, engine: &Engine, _: &StepReport, _: &mut Control) {
        let rows = [data::Sample {
            input_ids: vec![97, 98, 99],
            targets: vec![98, 99, 100],
            positions: vec![0, 1, 2],
            document_starts: vec![0],
            ..data::Sample::default()
        }];
        self.0.push(engine.eval_batch(&rows).expect("a loss").loss);
        assert_eq!(engine.take_requests(), Control::default());
        self.1.lock().unwrap().push(format!("{} losses", self.0.len()));
    }
}

#[test]
fn a_callback_may_evaluate_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let told = Told::default();
    let config = RunConfig::from_value(config(folder.path(), &[]), "test").unwrap();
    let mut run = Run::prepare(config, false, &mut train::Silent).unwrap();
    run.add_callback(Evaluates(Vec::new(), told.clone()));
    run.execute(&mut train::Silent, &Stop::default()).unwrap();
    assert_eq!(told.lock().unwrap().last().map(String::as_str), Some("12 losses"));
}
