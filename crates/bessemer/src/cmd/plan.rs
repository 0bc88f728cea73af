//! `bessemer plan`.

use crate::cmd::numbers::at_least_one;
use crate::cmd::train::ConfigArgs;
use crate::failure::Failure;
use std::io::{Write, stdout};
use train::plan::report::PlanReport;

/// Show every derived number of a run before anything is allocated
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer plan examples/shakespeare.json
  bessemer plan ds_config.json --ranks 8 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Ranks over all axes; those that no other axis takes are data-parallel
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    ranks: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let config = args.config.load()?;
    let report = PlanReport::of(&config, args.ranks).map_err(Failure::before)?;
    print(&report, args.json)
}

pub(crate) fn print(report: &PlanReport, json: bool) -> Result<(), Failure> {
    let mut out = stdout().lock();
    if json {
        let text = serde_json::to_string_pretty(report).map_err(Failure::running)?;
        return Ok(writeln!(out, "{text}")?);
    }
    for line in report.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
