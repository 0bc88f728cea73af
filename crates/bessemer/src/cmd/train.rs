//! `bessemer train`.

use crate::cmd::numbers::at_least_one;
use crate::failure::Failure;
use crate::ui::Ui;
use crate::{Global, cmd};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use train::config::{Overrides, RunConfig};
use train::plan::report::PlanReport;
use train::ranks::Ended;
use train::run::Stop;
use train::{Outcome, Run};

/// Train a model as a run file says
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer train examples/shakespeare.json
  bessemer train run.json --resume
  bessemer train run.json --set run.steps=100 --set optimizer.params.lr=3e-4
  bessemer train ds_config.json --model gpt2/ --data corpus.txt

Ctrl-C (or SIGTERM) finishes the step and saves a checkpoint, which --resume goes on from; once more ends at once.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Data-parallel ranks: threads of this process
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    ranks: u64,
    /// Go on from the newest checkpoint in run.output; start fresh if there is none
    #[arg(long)]
    resume: bool,
    /// Check everything, print the plan, train nothing; only the token cache is filled
    #[arg(long)]
    dry_run: bool,
}

/// What names a run: used by `train` and `plan`.
#[derive(clap::Args)]
pub(crate) struct ConfigArgs {
    /// A run file, or a DeepSpeed config when --model and --data are given
    run: PathBuf,
    /// Folder of the model, or a preset such as gpt2-124m; overrides the run file
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// Training data: a path or a glob; overrides the run file
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Set a key of the run file; may be given several times
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    pub(crate) fn load(&self) -> Result<RunConfig, Failure> {
        let overrides = Overrides { set: &self.set, model: self.model.as_deref(), data: self.data.as_deref() };
        RunConfig::load(&self.run, &overrides).map_err(Failure::request)
    }
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    let mut config = args.config.load()?;
    config.ranks = args.ranks;
    let mut ui = Ui::new(global).log_every(config.log_every());
    if args.dry_run {
        let report = PlanReport::of(&config, args.ranks).map_err(Failure::before)?;
        // Data, weights and output folder are looked at as well; the run is then dropped.
        if args.ranks > 1 {
            train::ranks::check(config, args.resume, &mut ui).map_err(Failure::before)?;
        } else {
            Run::prepare(config, args.resume, &mut ui).map_err(Failure::before)?;
        }
        return cmd::plan::print(&report, false);
    }
    let outcome = if args.ranks > 1 {
        let stop = stop_on_signals().map_err(Failure::running)?;
        let (watcher, outcome) = train::ranks::run(config, args.resume, ui, &stop);
        // A rank that is still busy has the watcher: there is nobody to tell any more.
        ui = watcher.unwrap_or_else(|| Ui::new(global));
        match outcome {
            Ok(outcome) => outcome,
            Err(Ended::Before(error)) => return Err(Failure::before(error)),
            Err(Ended::During(error)) => return Err(Failure::during(error)),
        }
    } else {
        let run = Run::prepare(config, args.resume, &mut ui).map_err(Failure::before)?;
        let stop = stop_on_signals().map_err(Failure::running)?;
        run.execute(&mut ui, &stop).map_err(Failure::during)?
    };
    match outcome {
        Outcome::Finished => Ok(()),
        Outcome::Interrupted { signal } => {
            ui.interrupted(signal);
            Err(Failure::Signal(signal))
        }
    }
}

/// The first SIGINT or SIGTERM asks the run to stop after its step, the second ends the process: checkpoints are complete
/// or absent at any moment. Until this is called a signal ends the process as usual, as nothing has been written.
pub(crate) fn stop_on_signals() -> std::io::Result<Stop> {
    let (stop, asked) = (Stop::default(), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        // Actions run in the order they were registered: the first signal finds `asked` false and then sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
        flag::register(signal, asked.clone())?;
        flag::register_usize(signal, stop.0.clone(), signal as usize)?;
    }
    Ok(stop)
}
