//! `bessemer bench`.

use crate::Global;
use crate::cmd::model::Precision;
use crate::cmd::numbers::{at_least_one, threads};
use crate::failure::Failure;
use crate::ui::Ui;
use serde_json::{Value, json};
use std::io::{Write, stdout};
use train::bench::{BenchOptions, Profile, bench, bench_generation};

/// Train on random tokens without dropout, or generate, and measure
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer bench gpt2-124m --precision bf16 --batch 4 --length 256
  bessemer bench gpt2-124m --precision bf16 --generate
  bessemer bench run.json --profile")]
pub(crate) struct Args {
    /// A run file, or a preset such as gpt2-124m
    #[arg(default_value = "gpt2-124m", value_name = "RUN")]
    run: String,
    /// The format to compute in; by default the run file's, else f32
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Rows of a step; by default the run file's, else 4
    #[arg(long, value_parser = at_least_one)]
    batch: Option<u64>,
    /// Tokens of a row; by default the run file's, else 256
    #[arg(long, value_parser = at_least_one)]
    length: Option<u64>,
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
    /// Generate one row greedily instead of training
    #[arg(long, conflicts_with_all = ["batch", "steps", "recompute"])]
    generate: bool,
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
    if args.generate { generate(&args, &options) } else { train(&args, &options, global) }
}

fn train(args: &Args, options: &BenchOptions<'_>, global: Global) -> Result<(), Failure> {
    let ui = Ui::new(global);
    let measured = bench(options, &mut |step, seconds| {
        let note = if step == 0 { " (not counted)" } else { "" };
        ui.line(
            &format!("step {step}/{}  {}{note}", args.steps, shown_seconds(seconds)),
            || json!({"event": "step", "step": step, "step_seconds": seconds}),
        );
    });
    let measured = measured.map_err(Failure::before)?;
    if args.json {
        return print_json(&json!(measured));
    }
    if args.profile {
        print_kernels(&measured.profile, "step", Some(measured.peak_flops_per_second))?;
    }
    let mut out = stdout().lock();
    let (work, share) = (measured.flops_per_second / 1e9, measured.share_of_peak * 100.0);
    writeln!(out, "tokens per second  {:.1}", measured.tokens_per_second)?;
    writeln!(out, "step               {}", shown_seconds(measured.step_seconds))?;
    writeln!(out, "work               {work:.1} GFLOP/s, {share:.0} % of peak")?;
    Ok(writeln!(out, "peak memory        {}", shown_bytes(measured.peak_memory_bytes))?)
}

fn generate(args: &Args, options: &BenchOptions<'_>) -> Result<(), Failure> {
    let measured = bench_generation(options).map_err(Failure::before)?;
    if args.json {
        return print_json(&json!(measured));
    }
    if args.profile {
        print_kernels(&measured.profile, "token", None)?;
    }
    let mut out = stdout().lock();
    let (bandwidth, share) = (measured.memory_bytes_per_second / 1e9, measured.share_of_peak * 100.0);
    writeln!(out, "tokens per second  {:.1}", measured.tokens_per_second)?;
    writeln!(out, "weights            {}", shown_bytes(measured.weight_bytes))?;
    writeln!(out, "memory             {bandwidth:.1} GB/s, of which weights are read at {share:.0} %")?;
    Ok(writeln!(out, "peak memory        {}", shown_bytes(measured.peak_memory_bytes))?)
}

fn print_json(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(stdout().lock(), "{value}")?)
}

fn shown_bytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64)
}

fn shown_seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.3} ms", 1e3 * seconds) } else { format!("{seconds:.3} s") }
}

/// One line a kernel: time of a step, share of the step, and where FLOPs are counted the rate and its share of the peak.
fn print_kernels(profile: &Profile, step: &str, peak_flops_per_second: Option<f64>) -> Result<(), Failure> {
    let mut out = stdout().lock();
    let line = |seconds: f64| {
        format!("{:>10.3} {:>6.1}%", 1e3 * seconds / profile.steps as f64, 100.0 * seconds / profile.seconds)
    };
    let ms = format!("ms a {step}");
    writeln!(out, "{:<48} {:>7} {ms:>10} {:>7} {:>10} {:>6}", "kernel", "calls", "share", "GFLOP/s", "peak")?;
    for (name, times) in &profile.kernels {
        write!(out, "{name:<48} {:>7} {}", times.calls / profile.steps, line(times.seconds))?;
        if let Some(peak) = peak_flops_per_second.filter(|_| times.flops > 0) {
            let rate = times.flops as f64 / times.seconds;
            write!(out, " {:>10.1} {:>5.0}%", rate / 1e9, 100.0 * rate / peak)?;
        }
        writeln!(out)?;
    }
    Ok(writeln!(out, "{:<48} {:>7} {}", "tape, allocation, scheduling", "", line(profile.overhead_seconds()))?)
}
