//! The command line: global flags and the list of commands. Parsing opens nothing.

use clap::{ArgAction, Parser, Subcommand};

use crate::commands;
use crate::output::Format;

/// One messaging API over many brokers.
#[derive(Debug, Parser)]
#[command(
    name = "trunkline",
    version,
    about = "One messaging API over Kafka, RabbitMQ, Redis, SQS, Pub/Sub, NATS and an embedded broker",
    after_help = "Start here:\n  trunkline init --example\n  trunkline produce order-events:order-created '{\"orderId\":\"123\",\"amount\":99.99}'\n  trunkline consume order-events:order-created\n\n`trunkline help exit-codes` lists what a script can rely on.",
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 120
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The data directory, `sqlite:DIR` or `postgres://…` [default: the nearest `.trunkline` upward]
    #[arg(long, visible_alias = "url", global = true, value_name = "URL", env = "TRUNKLINE_URL", hide_env_values = true)]
    pub data: Option<String>,
    /// The product's tag [default: of the nearest trunkline.yaml, else the only one there is]
    #[arg(long, global = true, value_name = "TAG")]
    pub product: Option<String>,
    /// The env's slug [default: of the nearest trunkline.yaml, else the only one there is]
    #[arg(long, global = true, value_name = "SLUG")]
    pub env: Option<String>,
    /// `table` for people, `json` for programs: one document, or one object a line where the output is a stream
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
    /// Says which store is used; more of it logs more (-vv info, -vvv debug, -vvvv trace)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// No colours; NO_COLOR does the same
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Demo(commands::demo::Args),
    Init(commands::init::Args),
    Apply(commands::apply::Args),
    Products(commands::products::Args),
    Brokers(commands::brokers::Args),
    Topics(commands::topics::Args),
    Groups(commands::groups::Args),
    Caches(commands::caches::Args),
    Sessions(commands::sessions::Args),
    Jobs(commands::jobs::Args),
    Secrets(commands::secrets::Args),
    Keys(commands::keys::Args),
    Audit(commands::audit::Args),
    Produce(commands::produce::Args),
    Dispatch(commands::dispatch::Args),
    Schedules(commands::schedules::Args),
    Consume(commands::consume::Args),
    Run(commands::run::Args),
    Dashboard(commands::dashboard::Args),
    Messages(commands::messages::Args),
    Events(commands::events::Args),
    Dead(commands::dead::Args),
    Replay(commands::replay::Args),
    Stats(commands::stats::Args),
    Store(commands::store::Args),
    Doctor(commands::doctor::Args),
    Completions(commands::completions::Args),
    Help(commands::help::Args),
}

#[cfg(test)]
mod tests {
    use clap::{Command as Parsed, CommandFactory};

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        fn walk(command: &Parsed, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| walk(sub, &path));
            } else {
                let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(example.contains("trunkline "), "{path} shows no example");
            }
        }
        Cli::command().get_subcommands().for_each(|command| walk(command, "trunkline"));
    }
}
