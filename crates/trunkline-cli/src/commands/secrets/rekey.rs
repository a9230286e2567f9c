//! `trunkline secrets rekey`: another master key.

use trunkline::Result;
use trunkline::secret::{MASTER_KEY_ENV, MasterKey, NewMasterKey};

use super::value;
use crate::context::Ctx;
use crate::output;

/// Seals everything anew with another master key, made now unless one is given
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline secrets rekey
  trunkline secrets rekey --from-file new-master-key.txt

The old key is the one of the data directory, or of TRUNKLINE_MASTER_KEY. A key is 32 bytes as base64 or hex:
`openssl rand -base64 32` makes one. Keep a copy of the new one apart from backups of the data directory.")]
pub(super) struct Args {
    #[command(flatten)]
    key: value::Args,
}

/// Does it.
pub(super) async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let new = if args.key.is_given() {
        NewMasterKey::Given(MasterKey::parse(args.key.read()?.expose()).map_err(|error| error.context("the new master key"))?)
    } else {
        NewMasterKey::Random
    };
    let done = ctx.trunkline().await?.secrets().rekey(new).await?;
    let counts = format!("{} and {}", output::plural(done.secrets, "secret"), output::plural(done.brokers, "broker"));
    ctx.done(&done, format!("sealed {counts} anew with the master key {}", done.key_id))?;
    if !ctx.is_json() {
        output::note(if done.restart {
            format!("next: start every process anew with the new key in {MASTER_KEY_ENV}")
        } else {
            "next: keep a copy of master.key apart from backups of the data directory".into()
        });
    }
    Ok(())
}
