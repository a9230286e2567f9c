//! `trunkline sessions revoke|revoke-all`: ends sessions before their time.

use trunkline::Result;
use trunkline::sessions::{Revoke as Which, Revoked};

use super::sessions;
use crate::context::Ctx;
use crate::output;

/// Ends one session, or all of one identifier; running processes refuse their tokens within a second
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline sessions revoke user --session 0199a2b3-0000-7000-8000-000000000000
  trunkline sessions revoke user --identifier u-42")]
pub struct Revoke {
    /// The definition's tag
    tag: String,
    /// The session of this id
    #[arg(long, value_name = "ID", conflicts_with = "identifier", required_unless_present = "identifier")]
    session: Option<String>,
    /// All sessions of this identifier
    #[arg(long, value_name = "VALUE")]
    identifier: Option<String>,
}

/// Ends all sessions of a definition
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions revoke-all user")]
pub struct RevokeAll {
    /// The definition's tag
    tag: String,
}

/// Ends one, or those of one identifier.
pub async fn one(args: Revoke, ctx: &Ctx) -> Result<()> {
    let which = match (args.session, args.identifier) {
        (Some(id), _) => Which::Session(id),
        (None, identifier) => Which::Identifier(identifier.unwrap_or_default()),
    };
    done(sessions(ctx).await?.revoke(&args.tag, which).await?, ctx)
}

/// Ends all.
pub async fn all(args: RevokeAll, ctx: &Ctx) -> Result<()> {
    done(sessions(ctx).await?.revoke_all(&args.tag).await?, ctx)
}

fn done(revoked: Revoked, ctx: &Ctx) -> Result<()> {
    let count = usize::try_from(revoked.revoked).unwrap_or(usize::MAX);
    ctx.done(&revoked, format!("revoked {}", output::plural(count, "session")))
}
