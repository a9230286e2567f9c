//! `trunkline help`: the help of a command, and the pages that belong to none.

use clap::CommandFactory;
use trunkline::{Error, Result};

use crate::args::Cli;
use crate::context::Ctx;
use crate::{exit, output};

const EXEC: &str = "\
`trunkline consume EVENT --exec CMD` runs CMD in a shell for every message. The payload is its standard input.

Environment:
  TRUNKLINE_ID             the message's id
  TRUNKLINE_EVENT          brokerTag:topicTag
  TRUNKLINE_GROUP          the consumer group
  TRUNKLINE_ATTEMPT        recorded failures + 1
  TRUNKLINE_KEY            the key, if the message has one
  TRUNKLINE_PRODUCED_AT    milliseconds since 1970
  TRUNKLINE_HEADERS        all headers as a JSON object
  TRUNKLINE_HEADER_<NAME>  one header; the name in capitals, anything but letters and digits as _

Exit code of CMD:
   0  done: the message is acked
  65  bury: it is dead-lettered now, with the last line of stderr as the reason
  75  later: it comes again after --later, not counted as a failure
  any other, or a signal: a failed attempt, with the last line of stderr as the error";

/// Prints the help of a command, or a page: exit-codes, exec
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  trunkline help exit-codes\n  trunkline help topics create")]
pub struct Args {
    /// A command with its subcommand, `exit-codes` or `exec`
    topic: Vec<String>,
}

/// Prints it.
pub async fn run(args: Args, _ctx: &Ctx) -> Result<()> {
    match args.topic.first().map(String::as_str) {
        Some("exit-codes") => return output::line(exit::HELP),
        Some("exec") => return output::line(EXEC),
        _ => {}
    }
    let mut root = Cli::command();
    root.build();
    let mut command = &mut root;
    for name in &args.topic {
        command = command.find_subcommand_mut(name).ok_or_else(|| {
            Error::input("topic", format!("there is no command or page '{}'", args.topic.join(" "))).next("see `trunkline help`")
        })?;
    }
    output::line(command.render_long_help().ansi().to_string().trim_end())
}
