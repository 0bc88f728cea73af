//! What a checkpoint every 10 steps costs the step of GPT-2 124M.
//!
//! `cargo run --release -p bessemer-train --example checkpoint_cost -- [beside|between] [OUTPUT] [STEPS] [ROWS] [LENGTH]`
//!
//! `beside`: written while training goes on; `between`: training waits. A checkpoint is due after every 20th step, so that
//! ten steps without one and ten with one alternate: what else the machine does falls on both alike. Prints the time from
//! the end of a step to the end of the next, saving counted, over the ten steps before each checkpoint and the ten after
//! it. The last checkpoint and the export are not counted.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use train::run::Stop;
use train::{Event, Run, RunConfig};

const PERIOD: usize = 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| args.get(place).map_or(default, |arg| arg.parse().expect("a number"));
    let is_async = args.first().is_none_or(|mode| mode == "beside");
    let output = args.get(1).map_or_else(|| std::env::temp_dir().join("checkpoint_cost"), PathBuf::from);
    let ends = ends_of_steps(&output, (number(2, 31), number(3, 4), number(4, 256)), is_async);
    let _ = std::fs::remove_dir_all(&output);
    let seconds = |from: usize, to: usize| (ends[to - 1] - ends[from - 1]).as_secs_f64();
    let (mut with, mut without, mut pairs) = (0.0, 0.0, 0);
    for start in (2 * PERIOD..=ends.len().saturating_sub(PERIOD)).step_by(2 * PERIOD) {
        let pair = (seconds(start, start + PERIOD), seconds(start - PERIOD, start));
        let first = seconds(start, start + 1) - pair.1 / PERIOD as f64;
        println!(
            "{:.3} s with, {:.3} s without, ratio {:.4}; first step +{first:.3} s",
            pair.0,
            pair.1,
            pair.0 / pair.1
        );
        (with, without, pairs) = (with + pair.0, without + pair.1, pairs + 1);
    }
    println!("ratio {:.4} over {pairs} pairs of {PERIOD} steps", with / without);
}

fn ends_of_steps(output: &Path, (steps, rows, length): (usize, usize, usize), is_async: bool) -> Vec<Instant> {
    let _ = std::fs::remove_dir_all(output);
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tinyshakespeare.txt");
    let config = json!({
        "model": { "preset": "gpt2-124m" },
        "data": { "train": text, "tokenizer": "byte", "sequence_length": length },
        "run": { "output": output, "steps": steps, "checkpoint_every": 2 * PERIOD, "checkpoint_async": is_async,
                 "keep_checkpoints": 2 },
        "train_batch_size": rows,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-4 } },
        "bf16": { "enabled": true },
    });
    let config = RunConfig::from_value(config, "checkpoint_cost").expect("a run file");
    let (mut ends, stop) = (Vec::new(), Stop::default());
    let mut watch = |event: Event<'_>| match event {
        Event::Step(_) => ends.push(Instant::now()),
        Event::Saved { path } => eprintln!("{} is there at step {}", path.display(), ends.len()),
        _ => {}
    };
    Run::prepare(config, false, &mut watch).and_then(|run| run.execute(&mut watch, &stop)).expect("a run");
    ends
}
