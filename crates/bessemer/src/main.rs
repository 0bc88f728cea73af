//! The program: words on the command line to calls of the library.
#![forbid(unsafe_code)]

mod cmd;
mod failure;
mod ui;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use failure::Failure;
use std::process::ExitCode;

/// Trains, evaluates and runs large language models, from DeepSpeed's configuration and Hugging Face's files.
#[derive(Parser)]
#[command(name = "bessemer", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bessemer train examples/shakespeare.json
  bessemer train ds_config.json --model gpt2/ --data corpus.txt
  bessemer generate runs/shakespeare --prompt ROMEO:
  bessemer plan examples/shakespeare.json
  bessemer watch runs/shakespeare

Exit status: 0 done, 2 the request was wrong and nothing was changed, 1 it failed while running,
128 + signal after SIGINT or SIGTERM once a checkpoint is written.";

/// What works with every command.
#[derive(Args, Clone, Copy)]
pub(crate) struct Global {
    /// Print results and errors only
    #[arg(long, global = true)]
    quiet: bool,
    /// How logs on standard error look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
}

/// How logs look.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people: a progress bar on a terminal, else lines
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Subcommand)]
enum Command {
    Train(cmd::train::Args),
    Watch(cmd::watch::Args),
    Plan(cmd::plan::Args),
    Eval(cmd::eval::Args),
    Score(cmd::score::Args),
    Generate(cmd::generate::Args),
    Export(cmd::export::Args),
    Bench(cmd::bench::Args),
    Tune(cmd::tune::Args),
    Info(cmd::info::Args),
    Completions(cmd::completions::Args),
    Man(cmd::completions::ManArgs),
}

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let done = match command {
        Command::Train(args) => cmd::train::run(args, global),
        Command::Watch(args) => cmd::watch::run(args),
        Command::Plan(args) => cmd::plan::run(args),
        Command::Eval(args) => cmd::eval::run(args, global),
        Command::Score(args) => cmd::score::run(args),
        Command::Generate(args) => cmd::generate::run(args, global),
        Command::Export(args) => cmd::export::run(args, global),
        Command::Bench(args) => cmd::bench::run(args, global),
        Command::Tune(args) => cmd::tune::run(args, global),
        Command::Info(args) => cmd::info::run(args),
        Command::Completions(args) => cmd::completions::run(args, Cli::command()),
        Command::Man(_) => cmd::completions::man(Cli::command()),
    };
    done.map_or_else(|failure: Failure| failure.report(global.log_format), |()| ExitCode::SUCCESS)
}
