//! `bessemer completions` and `bessemer man`.

use crate::failure::Failure;
use clap_complete::Shell;
use std::io::stdout;

/// Print a shell's completion script
#[derive(clap::Args)]
#[command(after_help = "Example:
  bessemer completions bash > /etc/bash_completion.d/bessemer")]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: Args, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "bessemer", &mut script);
    Ok(std::io::Write::write_all(&mut stdout(), &script)?)
}

/// Print the manual page
#[derive(clap::Args)]
#[command(after_help = "Example:
  bessemer man > /usr/local/share/man/man1/bessemer.1")]
pub(crate) struct ManArgs {}

pub(crate) fn man(command: clap::Command) -> Result<(), Failure> {
    Ok(clap_mangen::Man::new(command).render(&mut stdout())?)
}
