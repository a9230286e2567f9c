//! `trunkline run`: the background work alone, for hosts where no consumer is always up.

use std::time::Duration;

use serde_json::json;
use trunkline::Result;

use crate::context::Ctx;
use crate::output;

/// Does the background work until it is stopped: due messages, delayed publishes, schedules, retention, jobs
///
/// Every open process does this work beside its own; `run` is for hosts where none is always up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline run --data /var/lib/trunkline")]
pub struct Args {}

/// How often it is looked for topics that are new.
const LOOK: Duration = Duration::from_secs(60);

/// Looks after every lot that lies on a broker, and waits for the end; the open instance does the rest.
pub async fn run(_args: Args, ctx: &Ctx) -> Result<()> {
    let stop = ctx.stop().drains();
    let location = ctx.trunkline().await?.store().location();
    if ctx.is_json() {
        output::json_line(&json!({ "state": "running", "data": location }))?;
    } else {
        output::note(format!("running on {location}; Ctrl-C stops"));
    }
    let trunkline = ctx.trunkline().await?;
    loop {
        // Topics may come and go meanwhile.
        for (address, error) in trunkline.attend().await {
            output::note(format!("what waits on the broker for {address} cannot be looked after: {error}"));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
