//! `bessemer bench`.

use crate::Global;
use crate::cmd::model::Precision;
use crate::cmd::numbers::{at_least_one, threads};
use crate::failure::Failure;
use crate::ui::Ui;
use serde_json::{Value, json};
use std::io::{Write, stdout};
use tensor::profile::Times;
use train::bench::{BenchOptions, Measured, bench};

/// Train on random tokens without dropout and measure
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer bench gpt2-124m --precision bf16 --batch 4 --length 256
  bessemer bench run.json --json")]
pub(crate) struct Args {
    /// A run file, or a preset such as gpt2-124m
    #[arg(default_value = "gpt2-124m", value_name = "RUN")]
    run: String,
    /// The format to compute in; by default the run file's, else f32
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Rows of a step
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch: u64,
    /// Tokens of a row
    #[arg(long, default_value_t = 256, value_parser = at_least_one)]
    length: u64,
    /// Steps that are measured; one before them is not
    #[arg(long, default_value_t = 6, value_parser = at_least_one)]
    steps: u64,
    /// Threads; 0 = all cores
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = threads)]
    threads: usize,
    /// The highest instruction set: portable, avx2, avx512, avx512_bf16
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Keep only what flows between blocks and compute the rest again
    #[arg(long)]
    recompute: bool,
    /// Show where the time goes, kernel by kernel
    #[arg(long)]
    profile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    let options = BenchOptions {
        run: &args.run,
        bf16: args.precision.map(|precision| precision == Precision::Bf16),
        batch: args.batch,
        length: args.length,
        steps: args.steps,
        threads: args.threads,
        isa: args.isa.as_deref(),
        recompute: args.recompute,
        profile: args.profile,
    };
    let ui = Ui::new(global);
    let measured = bench(&options, &mut |step, seconds| {
        let note = if step == 0 { " (not counted)" } else { "" };
        ui.line(
            &format!("step {step}/{}  {}{note}", args.steps, shown_seconds(seconds)),
            || json!({"event": "step", "step": step, "step_seconds": seconds}),
        );
    });
    let measured = measured.map_err(Failure::before)?;
    let mut out = stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", json(&measured))?);
    }
    if args.profile {
        print_kernels(&measured, args.steps)?;
    }
    let memory = measured.peak_memory_bytes as f64 / (1u64 << 20) as f64;
    let (work, share) = (measured.flops_per_second / 1e9, measured.share_of_peak * 100.0);
    writeln!(out, "tokens per second  {:.1}", measured.tokens_per_second)?;
    writeln!(out, "step               {}", shown_seconds(measured.step_seconds))?;
    writeln!(out, "work               {work:.1} GFLOP/s, {share:.0} % of peak")?;
    Ok(writeln!(out, "peak memory        {memory:.1} MiB")?)
}

fn shown_seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.3} ms", 1e3 * seconds) } else { format!("{seconds:.3} s") }
}

fn json(measured: &Measured) -> Value {
    let kernel = |(name, times): &(String, Times)| json!({"kernel": name, "calls": times.calls, "seconds": times.seconds, "flops": times.flops});
    json!({
        "tokens_per_second": measured.tokens_per_second,
        "step_seconds": measured.step_seconds,
        "flops_per_second": measured.flops_per_second,
        "share_of_peak": measured.share_of_peak,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "precision": measured.precision,
        "kernels": measured.kernels.iter().map(kernel).collect::<Vec<_>>(),
    })
}

/// One line a kernel: time of a step, share of the step, and where FLOPs are counted the rate and its share of the peak.
fn print_kernels(measured: &Measured, steps: u64) -> Result<(), Failure> {
    let mut out = stdout().lock();
    let step = |times: &Times| times.seconds / steps as f64;
    writeln!(
        out,
        "{:<48} {:>7} {:>10} {:>7} {:>10} {:>6}",
        "kernel", "calls", "ms a step", "share", "GFLOP/s", "peak"
    )?;
    for (name, times) in &measured.kernels {
        let (calls, share) = (times.calls / steps, 100.0 * step(times) / measured.step_seconds);
        write!(out, "{name:<48} {calls:>7} {:>10.3} {share:>6.1}%", 1e3 * step(times))?;
        if times.flops > 0 {
            let rate = times.flops as f64 / times.seconds;
            write!(out, " {:>10.1} {:>5.0}%", rate / 1e9, 100.0 * rate / measured.peak_flops_per_second)?;
        }
        writeln!(out)?;
    }
    let other = measured.step_seconds - measured.kernels.iter().map(|(_, times)| step(times)).sum::<f64>();
    let (ms, share) = (1e3 * other, 100.0 * other / measured.step_seconds);
    Ok(writeln!(out, "{:<48} {:>7} {ms:>10.3} {share:>6.1}%", "tape, allocation, scheduling", "")?)
}
