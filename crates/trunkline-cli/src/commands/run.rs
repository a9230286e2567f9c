//! `trunkline run`: the background work alone, for hosts where no consumer is always up.

use serde_json::json;
use trunkline::Result;

use crate::context::Ctx;
use crate::output;

/// Does the background work until it is stopped: due messages, delayed publishes, retention, jobs
///
/// Every open process does this work beside its own; `run` is for hosts where none is always up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline run --data /var/lib/trunkline")]
pub struct Args {}

/// Waits for the end; the open instance does the rest.
pub async fn run(_args: Args, ctx: &Ctx) -> Result<()> {
    let stop = ctx.stop().drains();
    let location = ctx.trunkline().await?.store().location();
    if ctx.is_json() {
        output::json_line(&json!({ "state": "running", "data": location }))?;
    } else {
        output::note(format!("running on {location}; Ctrl-C stops"));
    }
    stop.cancelled().await;
    Ok(())
}
