//! What checkpoints cost the step: GPT-2 124M trained with none, with one every 10 steps written beside training, and with
//! one that training waits for.
//!
//! `cargo run --release -p bessemer-train --example checkpoint_cost [OUTPUT] [STEPS] [MICRO_BATCH] [LENGTH]`
//!
//! Prints the time between the ends of steps, whatever lies between: over whole periods of 10 steps that begin with the
//! checkpoint, the first 10 steps left out, and so are the last checkpoint and the export.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use train::run::Stop;
use train::{Event, Run, RunConfig};

const PERIOD: usize = 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| args.get(place).map_or(default, |arg| arg.parse().expect("a number"));
    let output = args.first().map_or_else(|| std::env::temp_dir().join("checkpoint_cost"), PathBuf::from);
    let (steps, rows, length) = (number(1, 2 * PERIOD + 2), number(2, 4), number(3, 256));
    let mut none = f64::NAN;
    for (name, every, is_async) in [("none", 0, true), ("beside", PERIOD, true), ("between", PERIOD, false)] {
        let seconds = mean_step(&output, (steps, rows, length), every, is_async);
        if every == 0 {
            none = seconds;
        }
        println!("{name:<8} {:8.1} ms a step, {:.3} of none", 1e3 * seconds, seconds / none);
    }
}

/// Seconds from step to step, over whole periods.
fn mean_step(output: &Path, (steps, rows, length): (usize, usize, usize), every: usize, is_async: bool) -> f64 {
    let _ = std::fs::remove_dir_all(output);
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tinyshakespeare.txt");
    let config = json!({
        "model": { "preset": "gpt2-124m" },
        "data": { "train": text, "tokenizer": "byte", "sequence_length": length },
        "run": { "output": output, "steps": steps, "checkpoint_every": every, "checkpoint_async": is_async,
                 "keep_checkpoints": 2 },
        "train_batch_size": rows,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-4 } },
        "bf16": { "enabled": true },
    });
    let config = RunConfig::from_value(config, "checkpoint_cost").expect("a run file");
    let (mut ends, stop) = (Vec::new(), Stop::default());
    let mut watch = |event: Event<'_>| match event {
        Event::Step(_) => ends.push(Instant::now()),
        Event::Saved { path } => eprintln!("{} after step {}", path.display(), ends.len()),
        _ => {}
    };
    Run::prepare(config, false, &mut watch).and_then(|run| run.execute(&mut watch, &stop)).expect("a run");
    let _ = std::fs::remove_dir_all(output);
    let periods = (ends.len() - PERIOD) / PERIOD;
    let (first, last) = (ends[PERIOD - 1], ends[PERIOD - 1 + periods * PERIOD]);
    (last - first).as_secs_f64() / (periods * PERIOD) as f64
}
