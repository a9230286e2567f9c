//! `trunkline replay`: a recorded message produced anew.

use trunkline::replay::Replay;
use trunkline::{MessageId, Result};

use crate::context::Ctx;
use crate::payload;

/// Produces a recorded message anew: same payload and headers, a new id
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline replay 01a2b3c4-0000-7000-8000-000000000000
  trunkline replay 01a2b3c4-0000-7000-8000-000000000000 --group billing
  trunkline replay 01a2b3c4-0000-7000-8000-000000000000 --force --payload @order.json")]
pub struct Args {
    /// The message's id
    id: MessageId,
    /// Also if it was replayed before, or is still pending or retrying
    #[arg(long)]
    force: bool,
    /// Only to this consumer group
    #[arg(long)]
    group: Option<String>,
    /// This payload instead of the recorded one: JSON, @FILE, or `-` for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    payload: Option<String>,
}

/// Replays it.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let payload = args.payload.as_deref().map(payload::given).transpose()?;
    let replayed = ctx.env().await?.replay(args.id, Replay { force: args.force, group: args.group, payload }).await?;
    ctx.done(&replayed, format!("{} (replays {})", replayed.process_id, replayed.replay_of))
}
