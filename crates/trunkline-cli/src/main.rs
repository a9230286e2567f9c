//! The `trunkline` command: parses, opens what is needed, runs one command, and turns its result into an exit code.

#![expect(unreachable_pub, reason = "a binary has no outside; `pub` says what a module offers the others")]

mod args;
mod ask;
mod children;
mod commands;
mod context;
mod demo;
mod exit;
mod output;
mod payload;
mod record;
mod session;
mod signals;
mod values;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use trunkline::{Error, Result};

use args::{Cli, Command};
use context::Ctx;
use output::Format;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let format = cli.global.output;
    let done = async {
        let ctx = Ctx::new(cli.global)?;
        let done = run(cli.command, &ctx).await;
        ctx.close().await;
        done
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(error) if output::is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(format, &error);
            ExitCode::from(exit::of(&error))
        }
    }
}

async fn run(command: Command, ctx: &Ctx) -> Result<()> {
    match command {
        Command::Init(args) => commands::init::run(args, ctx).await,
        Command::Apply(args) => commands::apply::run(args, ctx).await,
        Command::Products(args) => commands::products::run(args, ctx).await,
        Command::Brokers(args) => commands::brokers::run(args, ctx).await,
        Command::Topics(args) => commands::topics::run(args, ctx).await,
        Command::Groups(args) => commands::groups::run(args, ctx).await,
        Command::Caches(args) => commands::caches::run(args, ctx).await,
        Command::Sessions(args) => commands::sessions::run(args, ctx).await,
        Command::Jobs(args) => commands::jobs::run(args, ctx).await,
        Command::Secrets(args) => commands::secrets::run(args, ctx).await,
        Command::Keys(args) => commands::keys::run(args, ctx).await,
        Command::Audit(args) => commands::audit::run(args, ctx).await,
        Command::Produce(args) => commands::produce::run(args, ctx).await,
        Command::Dispatch(args) => commands::dispatch::run(args, ctx).await,
        Command::Schedules(args) => commands::schedules::run(args, ctx).await,
        Command::Consume(args) => commands::consume::run(args, ctx).await,
        Command::Run(args) => commands::run::run(args, ctx).await,
        Command::Demo(args) => commands::demo::run(args, ctx).await,
        Command::Dashboard(args) => commands::dashboard::run(args, ctx).await,
        Command::Messages(args) => commands::messages::run(args, ctx).await,
        Command::Events(args) => commands::events::run(args, ctx).await,
        Command::Dead(args) => commands::dead::run(args, ctx).await,
        Command::Replay(args) => commands::replay::run(args, ctx).await,
        Command::Store(args) => commands::store::run(args, ctx).await,
        Command::Stats(args) => commands::stats::run(args, ctx).await,
        Command::Doctor(args) => commands::doctor::run(args, ctx).await,
        Command::Completions(args) => commands::completions::run(args, ctx).await,
        Command::Help(args) => commands::help::run(args, ctx).await,
    }
}

/// A command line that does not parse, or that asked for help.
fn refused(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let json = std::env::args().any(|arg| arg == "--output=json") || {
        let args: Vec<String> = std::env::args().collect();
        args.windows(2).any(|pair| pair == ["--output", "json"])
    };
    let text = error.render();
    if json {
        let text = text.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let error = Error::input("arguments", message).next("see `trunkline --help`, or --help after the command");
        output::error(Format::Json, &error);
    } else if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::note(text.ansi().to_string());
    } else {
        let text = text.to_string();
        let rest = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let red = anstyle::AnsiColor::Red.on_default().bold();
        output::note(format!("{red}error[{}]{red:#}: {rest}", trunkline::Code::InputInvalid));
    }
    ExitCode::from(exit::USAGE)
}
