//! `trunkline dead discard`: gone for good.

use serde_json::json;
use trunkline::{Error, Result};

use crate::ask::{Otherwise, ask};
use crate::commands::dead::filter::Filter;
use crate::context::Ctx;
use crate::output;

/// Removes dead letters for good
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dead discard --id 01a2b3c4-0000-7000-8000-000000000000
  trunkline dead discard --event order-events:order-created --to 30d --yes")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// All dead letters of the env; needed where no filter is given
    #[arg(long)]
    all: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

/// Asks, then removes them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    if args.filter.is_empty() && !args.all {
        return Err(Error::input("id", "which dead letters?").next("name them with `--id` or a filter, or say `--all`"));
    }
    let filter = args.filter.build()?;
    let env = ctx.env().await?;
    let (_, matched) = env.dead_letters(&filter, 1, 1).await?;
    let sure = args.yes || matched == 0 || ask(&format!("Discard {} for good?", super::letters(matched)), Otherwise::Refuse)?;
    if !sure {
        return ctx.done(&json!({ "matched": matched, "discarded": 0 }), "nothing was discarded");
    }
    let discarded = env.discard_dead_letters(&filter).await?;
    ctx.done(&json!({ "matched": matched, "discarded": discarded }), format!("discarded {}", super::letters(discarded)))?;
    if discarded == 0 && !ctx.is_json() {
        output::note("nothing matched; `trunkline dead list` shows what there is");
    }
    Ok(())
}
