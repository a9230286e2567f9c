//! `trunkline demo`: shows the whole of it in a few seconds, and proves it.

use std::path::PathBuf;

use trunkline::{Error, Result};

use crate::context::Ctx;
use crate::demo::check::Check;
use crate::demo::{self, Play};
use crate::{exit, output};

/// Sends real webhooks through two groups, with failures, and checks that nothing was lost or out of order
///
/// Everything happens in a temporary directory, which stays, so that every other command can be tried on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline demo
  trunkline demo --keep ./demo-data --rounds 50
  trunkline demo --input deliveries.ndjson --output json")]
pub struct Args {
    /// Webhook deliveries of your own, one `{\"event\": \"push\", \"payload\": {…}}` a line [default: 60 built-in ones]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// How often the input is produced
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Keeps the data in this directory, which must be empty or not there [default: --data, else a temporary one]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Plays it; a promise that was not kept is an error.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let dir = args.keep.clone().or_else(|| ctx.data_flag().map(|data| data.strip_prefix("sqlite:").unwrap_or(data).into()));
    let play = Play { input: args.input.as_deref(), rounds: args.rounds as usize, dir: dir.as_deref() };
    let summary = demo::play(&play, ctx).await?;
    if ctx.is_json() {
        output::json(&summary)?
    } else {
        summary.print()?
    }
    kept(&summary.checks, &summary.data)
}

/// An error if a promise was not kept.
fn kept(checks: &[Check], data: &str) -> Result<()> {
    let broken: Vec<&str> = checks.iter().filter(|check| !check.kept).map(|check| check.promise).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Error::store(format!("not kept: {}", broken.join("; ")))
        .reason(exit::DEMO_REASON)
        .next(format!("this is a bug: please report it, with the directory {data}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_has_an_exit_code_of_its_own() {
        let check = |promise, kept| Check { promise, kept, seen: String::new(), faults: Vec::new() };
        assert!(kept(&[check("nothing lost", true)], "data").is_ok());
        let error = kept(&[check("nothing lost", true), check("in order", false)], "data").expect_err("one is broken");
        assert_eq!((exit::of(&error), error.message()), (exit::DEMO, "not kept: in order"));
    }
}
