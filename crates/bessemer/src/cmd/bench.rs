//! `bessemer bench`.

use crate::Global;
use crate::cmd::model::Precision;
use crate::failure::Failure;
use serde_json::json;
use std::io::{Write, stdout};
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
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Tokens of a row
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    length: u64,
    /// Steps that are measured; one before them is not
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Threads; 0 = all cores
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// The highest instruction set: portable, avx2, avx512, avx512_bf16
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Keep only what flows between blocks and compute the rest again
    #[arg(long)]
    recompute: bool,
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
    };
    let measured = bench(&options, &mut |step, seconds| {
        if !global.quiet {
            eprintln!("step {step}: {seconds:.3} s");
        }
    });
    let Measured { tokens_per_second, step_seconds, flops_per_second, share_of_peak, peak_memory_bytes, precision } =
        measured.map_err(Failure::before)?;
    let mut out = stdout().lock();
    if args.json {
        let line = json!({"tokens_per_second": tokens_per_second, "step_seconds": step_seconds,
            "flops_per_second": flops_per_second, "share_of_peak": share_of_peak,
            "peak_memory_bytes": peak_memory_bytes, "precision": precision});
        return Ok(writeln!(out, "{line}")?);
    }
    writeln!(out, "tokens per second  {tokens_per_second:.1}")?;
    writeln!(out, "step               {step_seconds:.3} s")?;
    writeln!(out, "work               {:.1} GFLOP/s, {:.0} % of peak", flops_per_second / 1e9, share_of_peak * 100.0)?;
    Ok(writeln!(out, "peak memory        {:.2} GiB", peak_memory_bytes as f64 / (1u64 << 30) as f64)?)
}
