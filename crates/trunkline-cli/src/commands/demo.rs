//! `trunkline demo`: shows the whole of it in a few seconds, and proves it.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use trunkline::config::ProviderKind;
use trunkline::{Error, Result};

use crate::context::Ctx;
use crate::demo::check::Check;
use crate::demo::stage::Server;
use crate::demo::{self, Play};
use crate::{exit, output};

/// Sends real webhooks through two groups, with failures, and checks that nothing was lost or out of order
///
/// Everything happens in a temporary directory, which stays, so that every other command can be tried on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline demo
  trunkline demo --keep ./demo-data --rounds 50
  trunkline demo --input deliveries.ndjson --output json
  trunkline demo --broker staging
  trunkline demo --broker @redis.json")]
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
    /// Plays on a server instead of the embedded broker: that of an env of this workspace (its slug, or BROKER/ENV where several
    /// brokers have it), or of a file: @FILE with {\"type\": \"REDIS\", \"config\": {…}}. It makes topics under a name of its own there
    #[arg(long, value_name = "ENV")]
    broker: Option<String>,
}

/// A server as it is given in full.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    #[serde(rename = "type")]
    kind: ProviderKind,
    #[serde(default)]
    config: Value,
}

/// The server that `--broker` names.
async fn server(given: &str, ctx: &Ctx) -> Result<Server> {
    const NEXT: &str = "write {\"type\": \"REDIS\", \"config\": {…}} into it";
    if let Some(path) = given.strip_prefix('@') {
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::input("broker", format!("{path} cannot be read: {error}")).next(NEXT))?;
        // What serde says may quote the file, and the file may hold a password: only the place is told.
        let Given { kind, config } = serde_json::from_str(&text)
            .map_err(|error| Error::input("broker", format!("{path} is no server, from line {} on", error.line())).next(NEXT))?;
        return Ok(Server { kind, config });
    }
    let (product, catalog) = (ctx.product().await?, ctx.catalog().await?);
    let brokers = catalog.list_brokers(&product)?;
    let (tag, slug) = match given.split_once('/') {
        Some((tag, slug)) => (tag.to_owned(), slug),
        None => {
            let having: Vec<_> = brokers.iter().filter(|broker| broker.envs.iter().any(|env| env.slug == given)).collect();
            match having.as_slice() {
                [one] => (one.tag.clone(), given),
                [] => {
                    let known: Vec<_> =
                        brokers.iter().flat_map(|broker| broker.envs.iter().map(|env| format!("{}/{}", broker.tag, env.slug))).collect();
                    return Err(Error::input("broker", format!("no broker of product '{product}' has an env '{given}'"))
                        .detail("known", known)
                        .next("`trunkline brokers list` shows them; or name a file: @redis.json"));
                }
                several => {
                    let known: Vec<_> = several.iter().map(|broker| format!("{}/{given}", broker.tag)).collect();
                    return Err(Error::input("broker", format!("several brokers have an env '{given}'"))
                        .detail("known", known)
                        .next("name one as BROKER/ENV"));
                }
            }
        }
    };
    let (kind, config) = catalog.env_config(&product, slug, &tag)?;
    Ok(Server { kind, config })
}

/// Plays it; a promise that was not kept is an error.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let dir = args.keep.clone().or_else(|| ctx.data_flag().map(|data| data.strip_prefix("sqlite:").unwrap_or(data).into()));
    let server = match &args.broker {
        Some(given) => server(given, ctx).await?,
        None => Server::embedded(),
    };
    let play = Play { input: args.input.as_deref(), rounds: args.rounds as usize, dir: dir.as_deref(), server: &server };
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
