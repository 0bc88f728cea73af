//! `bessemer tune`.

use crate::Global;
use crate::cmd::numbers::at_least_one;
use crate::cmd::train::{ConfigArgs, stop_on_signals};
use crate::failure::Failure;
use crate::ui::Ui;
use clap::Subcommand;
use serde_json::json;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use train::TrainError;
use train::config::RunConfig;
use train::tune::Tuned;
use train::tune::batch::{self, BatchOptions, BatchSizes};
use train::tune::lr::{self, LrOptions, LrSweep};

/// Find settings by short trials on a run file, which leave nothing behind
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer tune lr run.json
  bessemer tune batch run.json --memory 16")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Lr(LrArgs),
    Batch(BatchArgs),
}

/// Sweep the learning rate until training breaks, and suggest one
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer tune lr examples/shakespeare.json
  bessemer tune lr run.json --min 1e-6 --max 0.1 --steps 200 --set train_batch_size=64
  bessemer tune lr run.json --output plots/ --json

Each step of one training run takes a higher rate: from --min to --max by the same factor, or as the run file says where
its scheduler.type is LRRangeTest. The suggested rate is where the smoothed loss falls most steeply, at most a tenth of
where it diverges. The table goes to standard output, lr.json, lr.svg and lr.png into --output.")]
struct LrArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The first rate [default: 1e-7]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    min: Option<f64>,
    /// The last rate, if training bears it [default: 1]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    max: Option<f64>,
    /// Optimizer steps
    #[arg(long, default_value_t = 120, value_name = "N", value_parser = at_least_ten)]
    steps: u64,
    /// Folder of the plots and the table [default: run.output with -lr behind it]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Find the largest micro-batch that fits and the fastest, for the batch size of the run
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer tune batch run.json
  bessemer tune batch run.json --memory 16 --steps 5 --json

What fits is predicted as `bessemer plan` does and then held against what a step takes. train_batch_size stays as it is.")]
struct BatchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Memory that the run may take, in GiB; by default the machine's
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    memory: Option<u64>,
    /// Steps measured of each size; one before them is not
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    steps: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// For clap: a learning rate.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.ok_or_else(|| "it must be a number above 0".to_owned())
}

/// For clap: a memory size.
fn gibibytes(text: &str) -> Result<u64, String> {
    let size = text.parse().ok().filter(|size: &f64| *size > 0.0 && *size < 1e9);
    size.map(|size| (size * (1u64 << 30) as f64) as u64).ok_or_else(|| "it must be a number above 0, in GiB".to_owned())
}

/// For clap: the steps of a sweep.
fn at_least_ten(text: &str) -> Result<u64, String> {
    let steps = text.parse().ok().filter(|steps| (10..=1_000_000).contains(steps));
    steps.ok_or_else(|| "it must be a whole number from 10 to 1000000".to_owned())
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    match args.what {
        What::Lr(args) => lr(&args, global),
        What::Batch(args) => batch(&args, global),
    }
}

fn lr(args: &LrArgs, global: Global) -> Result<(), Failure> {
    let config = args.config.load()?;
    let options = options(args, &config)?;
    let name = Path::new(config.name()).file_stem().map_or(String::new(), |stem| stem.to_string_lossy().into_owned());
    let folder = args.output.clone().unwrap_or_else(|| {
        let mut folder = config.run.output.clone().into_os_string();
        folder.push("-lr");
        folder.into()
    });
    check_folder(&folder)?;
    let mut ui = Ui::new(global).log_every(options.steps.div_ceil(10));
    let stop = stop_on_signals().map_err(Failure::running)?;
    let sweep = done(lr::sweep(config, &options, &mut ui, &stop), &mut ui)?;
    write_results(&folder, &name, &sweep)?;
    ui.note(&format!("lr.json, lr.svg and lr.png are in {}", folder.display()));
    drop(ui);
    if args.json { Ok(writeln!(stdout().lock(), "{}", json!(sweep))?) } else { print_sweep(&sweep) }
}

/// The rates of a sweep, if the run file does not bring its own.
fn options(args: &LrArgs, config: &RunConfig) -> Result<LrOptions, Failure> {
    if lr::has_own_rates(config) && (args.min.is_some() || args.max.is_some()) {
        let message = "scheduler.type is LRRangeTest, which brings its own rates; leave --min and --max out";
        return Err(Failure::request(config.error(message)));
    }
    let (min, max) = (args.min.unwrap_or(1e-7), args.max.unwrap_or(1.0));
    if min >= max {
        return Err(Failure::request(format!("--min is {min:e} and --max is {max:e}; --min must be below --max")));
    }
    Ok(LrOptions { min, max, steps: args.steps })
}

/// Refuses a folder that cannot become one, before the work.
fn check_folder(folder: &Path) -> Result<(), Failure> {
    match folder.ancestors().find(|path| path.exists()) {
        Some(file) if !file.is_dir() => Err(Failure::request(format!(
            "--output is {}, and {} is a file; it must be a folder",
            folder.display(),
            file.display()
        ))),
        _ => Ok(()),
    }
}

fn write_results(folder: &Path, name: &str, sweep: &LrSweep) -> Result<(), Failure> {
    let plot = sweep.plot(name);
    let table = serde_json::to_string_pretty(sweep).map_err(Failure::running)? + "\n";
    std::fs::create_dir_all(folder).map_err(|e| Failure::running(format!("{}: {e}", folder.display())))?;
    for (file, bytes) in [("lr.json", table.into_bytes()), ("lr.svg", plot.svg().into_bytes()), ("lr.png", plot.png())]
    {
        let path = folder.join(file);
        std::fs::write(&path, bytes).map_err(|e| Failure::running(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

fn print_sweep(sweep: &LrSweep) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{:>10} {:>10} {:>10}", "lr", "loss", "smoothed")?;
    for point in &sweep.points {
        writeln!(out, "{:>10.2e} {:>10.4} {:>10.4}", point.lr, point.loss, point.smoothed)?;
    }
    writeln!(out)?;
    let shown = |rate: Option<f64>, none: &str| rate.map_or(none.to_owned(), |rate| format!("{rate:.2e}"));
    writeln!(out, "steepest at   {}", shown(sweep.steepest_lr, "- (the loss did not fall)"))?;
    writeln!(out, "lowest at     {}", shown(sweep.lowest_lr, "-"))?;
    writeln!(out, "diverges at   {}", shown(sweep.diverges_lr, "- (not up to the last rate; raise --max)"))?;
    Ok(writeln!(
        out,
        "suggested lr  {}",
        shown(sweep.suggested_lr, "- (lower --min, raise --max, or take more --steps)")
    )?)
}

fn batch(args: &BatchArgs, global: Global) -> Result<(), Failure> {
    let config = args.config.load()?;
    let mut ui = Ui::new(global);
    let stop = stop_on_signals().map_err(Failure::running)?;
    let options = BatchOptions { memory: args.memory, steps: args.steps };
    let sizes = done(batch::find(config, &options, &mut ui, &stop), &mut ui)?;
    drop(ui);
    if args.json { Ok(writeln!(stdout().lock(), "{}", json!(sizes))?) } else { print_sizes(&sizes) }
}

fn print_sizes(sizes: &BatchSizes) -> Result<(), Failure> {
    let mut out = stdout().lock();
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64);
    writeln!(out, "{:>11} {:>14} {:>14} {:>12}", "micro-batch", "planned", "measured", "tokens/s")?;
    for size in &sizes.sizes {
        let [planned, measured] = [size.predicted_bytes, size.measured_bytes].map(mebibytes);
        let fits = if size.fits { "" } else { "  does not fit" };
        writeln!(out, "{:>11} {planned:>14} {measured:>14} {:>12.1}{fits}", size.micro_batch, size.tokens_per_second)?;
    }
    let limit = match (sizes.is_limited_by_memory, sizes.memory_limit) {
        (true, Some(limit)) => format!("limited by {} of memory", mebibytes(limit)),
        _ => format!("limited by train_batch_size {}", sizes.train_batch_size),
    };
    writeln!(out, "\nlargest micro-batch that fits: {} ({limit})", sizes.largest_micro_batch)?;
    let suggested = sizes.suggested;
    writeln!(
        out,
        "suggested: \"train_batch_size\": {}, \"train_micro_batch_size_per_gpu\": {}, \"gradient_accumulation_steps\": {}",
        suggested.train_batch_size, suggested.train_micro_batch_size_per_gpu, suggested.gradient_accumulation_steps
    )?;
    Ok(())
}

/// What a trial found, unless it was wrong or a signal came.
fn done<T>(tuned: Result<Tuned<T>, TrainError>, ui: &mut Ui) -> Result<T, Failure> {
    match tuned.map_err(Failure::before)? {
        Tuned::Done(found) => Ok(found),
        Tuned::Interrupted { signal } => {
            ui.trial_interrupted(signal);
            Err(Failure::Signal(signal))
        }
    }
}
