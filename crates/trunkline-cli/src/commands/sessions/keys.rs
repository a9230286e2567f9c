//! `trunkline sessions keys`: the keys that sign the workspace's tokens.

use serde_json::json;
use trunkline::Result;
use trunkline::store::SessionKeyUse;

use super::sessions;
use crate::context::Ctx;
use crate::output::{self, Table};

/// Lists the keys that sign tokens, or rotates them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the keys: the one that signs, and those that verify until their tokens are over
    #[command(after_help = "Example:\n  trunkline sessions keys list")]
    List,
    /// Signs with a new key from now on; tokens of the old one stay valid until their time is over
    #[command(after_help = "Example:\n  trunkline sessions keys rotate")]
    Rotate,
}

/// Lists or rotates.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::List => list(ctx).await,
        Verb::Rotate => {
            let id = sessions(ctx).await?.rotate_keys().await?;
            ctx.done(&json!({ "keyId": id }), format!("tokens are signed with key {id} from now on"))
        }
    }
}

async fn list(ctx: &Ctx) -> Result<()> {
    let mut keys = ctx.trunkline().await?.store().session_keys().await?;
    keys.retain(|key| key.purpose == SessionKeyUse::Sign);
    let shown: Vec<_> = keys
        .iter()
        .map(|key| json!({ "keyId": key.id, "signs": key.verify_until.is_none(), "createdAt": key.created_at, "verifyUntil": key.verify_until }))
        .collect();
    ctx.show(&shown, || {
        let mut table = Table::new(["key", "signs", "created", "verifies until"]).or("no key yet; the first session makes one");
        for key in &keys {
            let until = key.verify_until.map(output::time).unwrap_or_default();
            table.row([key.id.clone(), key.verify_until.is_none().to_string(), output::time(key.created_at), until]);
        }
        table
    })
}
