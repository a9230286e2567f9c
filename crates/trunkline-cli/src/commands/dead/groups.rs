//! `trunkline dead groups`: what the dead died of, most first.

use trunkline::Result;

use crate::commands::dead::filter::Filter;
use crate::context::Ctx;
use crate::output::{self, Table};

/// Groups dead letters by error, with counts, first and last time
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dead groups
  trunkline dead groups --event order-events:order-created --from 24h")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
}

/// Lists the groups.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let groups = ctx.env().await?.dead_groups(&args.filter.build()?).await?;
    ctx.show(&groups, || {
        let mut table = Table::new(["count", "error", "reason", "group", "event", "first", "last"]).or("no dead letters");
        for group in &groups {
            table.row([
                output::count(group.count),
                group.error.clone(),
                group.reason.clone(),
                group.group.clone(),
                group.event.to_string(),
                output::time(group.first_at),
                output::time(group.last_at),
            ]);
        }
        table
    })
}
