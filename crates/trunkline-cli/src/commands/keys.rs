//! `trunkline keys`: access keys, and what each may be used for.

use serde_json::json;
use trunkline::Result;
use trunkline::access::{ACCESS_KEY_ENV, Role};
use trunkline::keys::AccessKey;
use trunkline::message::Millis;

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Creates, lists and revokes access keys
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Creates a key and prints it, this once; from the first one on, only keys open the workspace
    #[command(after_help = CREATE)]
    Create {
        /// What it may be used for: viewer-without-payloads, viewer, operator, producer, consumer, admin
        #[arg(long)]
        role: Role,
        /// What to call it
        #[arg(long)]
        name: Option<String>,
        /// Until when it holds: RFC 3339, or how long from now (90d) [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = values::future)]
        expires: Option<Millis>,
    },
    /// Lists the keys, never their texts
    #[command(after_help = "Example:\n  trunkline keys list")]
    List,
    /// Revokes a key; running programs lose it within a second
    #[command(after_help = "Examples:\n  trunkline keys revoke 5f0c2b7d91aa4e10\n  trunkline keys revoke 5f0c2b7d91aa4e10 --force")]
    Revoke {
        /// Its id: the middle of its text
        id: String,
        /// Also the last admin's key; when no key is left, the workspace is open to everybody
        #[arg(long)]
        force: bool,
    },
}

const CREATE: &str = "\
Examples:
  export TRUNKLINE_ACCESS_KEY=$(trunkline keys create --role admin)
  trunkline keys create --role producer --name checkout --expires 90d

Programs and this command take the key from TRUNKLINE_ACCESS_KEY. The first key must be an admin's.";

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let trunkline = ctx.trunkline().await?;
    match args.verb {
        Verb::Create { role, name, expires } => {
            let made = trunkline.keys().create(role, expires, name.as_deref()).await?;
            if ctx.is_json() {
                let mut shown = json!(made.key);
                shown["key"] = made.text.expose().into();
                return output::json(&shown);
            }
            output::line(made.text.expose())?;
            output::note(format!("this is shown once; programs take it from {ACCESS_KEY_ENV}"));
            Ok(())
        }
        Verb::List => {
            let keys = trunkline.keys().list().await?;
            ctx.show(&keys, || table(&keys))
        }
        Verb::Revoke { id, force } => {
            let key = trunkline.keys().revoke(&id, force).await?;
            ctx.done(&key, format!("revoked {} ({})", key.id, key.role))
        }
    }
}

fn table(keys: &[AccessKey]) -> Table {
    let empty = "no access key: everybody who can read the data directory opens this workspace; `trunkline keys create --role admin` makes the first";
    let mut table = Table::new(["id", "role", "name", "state", "created", "expires"]).or(empty);
    for key in keys {
        table.row([
            key.id.clone(),
            key.role.to_string(),
            key.name.as_deref().map(output::plain).unwrap_or_default(),
            key.state.to_owned(),
            output::time(key.created_at),
            key.expires_at.map_or_else(|| "never".to_owned(), output::time),
        ]);
    }
    table
}
