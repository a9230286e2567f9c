//! `trunkline sessions erase`: makes what was kept of somebody's messages unreadable, for good.

use trunkline::{Code, Error, Result};

use super::sessions;
use crate::context::Ctx;
use crate::output;

/// Destroys the key that somebody's payloads, headers and contexts are stored with, and ends their sessions
///
/// What was recorded is still found by its id, as erased. Not reached: the broker's own log, messages without a session, keys of
/// messages, errors that a handler wrote, and backups.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions erase user u-42 --yes")]
pub struct Args {
    /// The definition's tag
    tag: String,
    /// Who: the value of the selector's field
    identifier: String,
    /// Says that you mean it: nothing brings it back
    #[arg(long)]
    yes: bool,
}

/// Erases.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let sessions = sessions(ctx).await?;
    if !args.yes {
        return Err(Error::new(Code::InUse, "an erasure cannot be undone")
            .next(format!("say that you mean it: trunkline sessions erase {} {} --yes", args.tag, args.identifier)));
    }
    let erased = sessions.erase(&args.tag, &args.identifier).await?;
    let count = usize::try_from(erased.sessions).unwrap_or(usize::MAX);
    let text =
        if erased.erased { format!("erased; {} ended", output::plural(count, "session")) } else { "there is nobody to erase".into() };
    ctx.done(&erased, text)
}
