//! `bessemer watch`: a dashboard of a run in its output folder.
//!
//! It reads `run.json`, `metrics.jsonl` and `log.jsonl` and touches nothing: it can be opened, closed and opened again by
//! anybody who can read the folder, while the run goes on or years later.

mod figures;
mod screen;

use crate::failure::Failure;
use figures::Watched;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGTERM};
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Watch a run: loss curve, speed, memory, recent log
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer watch runs/shakespeare
  bessemer watch runs/shakespeare --once

q, Esc or Ctrl-C closes the dashboard; the run does not notice. Where standard output is no terminal, the figures of the
moment are printed instead, as with --once.")]
pub(crate) struct Args {
    /// The output folder of a run that is going on, stopped or done
    output: PathBuf,
    /// Print the figures of the moment and exit
    #[arg(long)]
    once: bool,
}

/// Time between two looks at the files.
const PERIOD: Duration = Duration::from_millis(500);

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let mut watched = Watched::open(&args.output)?;
    if args.once || !stdout().is_terminal() {
        return Ok(write!(stdout().lock(), "{}", watched.figures.summary())?);
    }
    let quit = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&quit)).map_err(Failure::running)?;
    }
    let mut terminal = ratatui::try_init().map_err(terminal_failed)?;
    let shown = show(&mut terminal, &mut watched, &quit);
    ratatui::restore();
    shown
}

/// Draws the dashboard until somebody closes it.
fn show(terminal: &mut DefaultTerminal, watched: &mut Watched, quit: &AtomicBool) -> Result<(), Failure> {
    while !quit.load(Ordering::Relaxed) {
        watched.refresh()?;
        terminal.draw(|frame| screen::draw(frame, &watched.figures)).map_err(terminal_failed)?;
        if event::poll(PERIOD).map_err(terminal_failed)? && closes(&event::read().map_err(terminal_failed)?) {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a key closes the dashboard. A new size is an event too: the next turn draws for it.
fn closes(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn terminal_failed(error: std::io::Error) -> Failure {
    Failure::running(format!("the terminal cannot be drawn on: {error}; --once prints the figures of the moment"))
}
