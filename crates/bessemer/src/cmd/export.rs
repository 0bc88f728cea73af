//! `bessemer export`.

use crate::Global;
use crate::cmd::model::Precision;
use crate::failure::Failure;
use crate::ui::Ui;
use serde_json::json;
use std::path::PathBuf;

/// Make a Hugging Face folder from a checkpoint
#[derive(clap::Args)]
#[command(after_help = "Example:
  bessemer export runs/shakespeare/checkpoints/step-00000500 shakespeare-500/")]
pub(crate) struct Args {
    /// A checkpoint, or the output folder of a run (its newest checkpoint)
    checkpoint: PathBuf,
    /// The folder to make
    out: PathBuf,
    /// The format of the weights; by default the one that was trained in
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    train::pretrained::export(&args.checkpoint, &args.out, args.precision.map(Precision::dtype))
        .map_err(Failure::before)?;
    let folder = args.out.display().to_string();
    Ui::new(global).line(&format!("the model is in {folder}"), || json!({"event": "exported", "path": folder}));
    Ok(())
}
