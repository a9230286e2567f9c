//! `trunkline completions`: the script that makes a shell complete this command.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use trunkline::Result;

use crate::args::Cli;
use crate::context::Ctx;
use crate::output;

/// Prints a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline completions bash > ~/.local/share/bash-completion/completions/trunkline")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints it.
pub async fn run(args: Args, _ctx: &Ctx) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "trunkline", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
