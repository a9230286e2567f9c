//! `trunkline dead list`: the newest first.

use serde_json::json;
use trunkline::Result;

use crate::commands::dead::filter::Filter;
use crate::commands::dead::view;
use crate::context::Ctx;
use crate::output::{self, Table};

/// Lists dead letters, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dead list
  trunkline dead list --event order-events:order-created --group billing --from 1h")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Which page, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    page: u32,
    /// How many a page
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// Lists them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let filter = args.filter.build()?;
    let env = ctx.env().await?;
    let (page, limit) = (args.page as usize, args.limit as usize);
    let (entries, total) = env.dead_letters(&filter, page, limit).await?;
    let has_more = ((page * limit) as u64) < total;
    if ctx.is_json() {
        let groups = env.dead_groups(&filter).await?;
        let dead: Vec<_> = entries.iter().map(|entry| view::json_of(entry, false)).collect();
        return output::json(&json!({ "deadLetters": dead, "groups": groups, "total": total, "page": page, "hasMore": has_more }));
    }
    let mut table = Table::new(view::HEADINGS).or("no dead letters");
    entries.iter().for_each(|entry| table.row(view::row(entry)));
    table.print()?;
    if total > 0 {
        let next = if has_more { format!("; the next page: --page {}", page + 1) } else { String::new() };
        output::note(format!("{} of {} dead letters{next}", entries.len(), output::count(total)));
    }
    Ok(())
}
