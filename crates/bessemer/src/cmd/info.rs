//! `bessemer info`.

use crate::failure::Failure;
use serde_json::json;
use std::io::{Write, stdout};
use tensor::Isa;

/// Show version, processor features, devices, and what each enables
#[derive(clap::Args)]
#[command(after_help = "Example:
  bessemer info --json")]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Per instruction set: its name, whether this machine has it, what it is used for.
fn instruction_sets() -> Vec<(&'static str, bool, &'static str)> {
    let uses = [
        "every kernel",
        "products and row kernels, 8 lanes",
        "products and row kernels, 16 lanes",
        "bf16 products at twice the f32 rate",
    ];
    let found: Vec<String> = Isa::all().iter().map(Isa::to_string).collect();
    let has = |name: &str| found.iter().any(|isa| isa == name);
    Isa::NAMES.into_iter().zip(uses).map(|(name, used_for)| (name, has(name), used_for)).collect()
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let (version, cores) = (env!("CARGO_PKG_VERSION"), train::system::num_cores());
    let sets = instruction_sets();
    let mut out = stdout().lock();
    if args.json {
        let sets: Vec<_> = (sets.iter())
            .map(|(name, found, used_for)| json!({"name": name, "found": found, "enables": used_for}))
            .collect();
        let devices = json!([{"name": "cpu", "cores": cores, "isa": Isa::detect().to_string()}]);
        let info = json!({"version": version, "devices": devices, "cpu_features": sets, "libraries": []});
        return Ok(writeln!(out, "{info:#}")?);
    }
    writeln!(out, "bessemer {version}")?;
    writeln!(out, "device cpu: {cores} cores, kernels for {}", Isa::detect())?;
    for (name, found, used_for) in sets {
        writeln!(out, "  {name:<12} {:<7} {used_for}", if found { "found" } else { "missing" })?;
    }
    Ok(writeln!(out, "libraries: none needed")?)
}
