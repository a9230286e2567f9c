//! `trunkline events`: messages with the fewer filters of `BrokersService`.

use trunkline::Result;
use trunkline::events::EventsQuery;
use trunkline::history::{Category, Status};
use trunkline::message::Millis;

use crate::commands::{messages, stats};
use crate::context::Ctx;
use crate::output::{self, Table};
use crate::{record, values};

/// Events: list by status, category, topic and time; show one; figures
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    /// Shows an event: its life line, headers and payload
    #[command(after_help = "Example:\n  trunkline events show 01a2b3c4-0000-7000-8000-000000000000")]
    Show(messages::ShowArgs),
    /// Shows figures of events: produced, delivered, failed, waiting, latencies
    #[command(after_help = "Example:\n  trunkline events stats --event order-events:order-created --from 1h")]
    Stats(stats::Args),
}

/// Lists events, newest first
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trunkline events list --status dead\n  trunkline events list --broker order-events --category replay --from 1d"
)]
struct ListArgs {
    /// Of this broker
    #[arg(long, value_name = "TAG")]
    broker: Option<String>,
    /// Of this topic, by its short tag
    #[arg(long, value_name = "TAG", requires = "broker")]
    topic: Option<String>,
    /// Where they stand: pending, delivered, retrying, dead, failed
    #[arg(long, value_parser = values::word::<Status>)]
    status: Option<Status>,
    /// What happened to them last: produce, consume, dead_letter, replay
    #[arg(long, value_parser = values::word::<Category>)]
    category: Option<Category>,
    /// Produced at or after: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Millis>,
    /// Produced before: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Millis>,
    /// Which page, from 1
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "cursor")]
    page: Option<u64>,
    /// How many a page, up to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Goes on where the last page ended, with the same filters
    #[arg(long)]
    cursor: Option<String>,
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::List(args) => list(args, ctx).await,
        Verb::Show(args) => messages::show(args, ctx).await,
        Verb::Stats(args) => stats::run(args, ctx).await,
    }
}

async fn list(args: ListArgs, ctx: &Ctx) -> Result<()> {
    let ListArgs { broker, topic, status, category, from, to, page, limit, cursor } = args;
    let query = EventsQuery { broker, topic, status, category, from, to, page, limit: Some(limit as usize), cursor };
    let page = ctx.env().await?.events(query).await?;
    ctx.show(&page, || {
        let mut table = Table::new(record::HEADINGS).or("no event matches");
        page.events.iter().for_each(|event| table.row(record::row(event)));
        table
    })?;
    if !ctx.is_json() {
        let more = if page.total_is_exact { "" } else { " or more" };
        let next = page.cursor.as_ref().map(|cursor| format!("; the next page: --cursor {cursor}")).unwrap_or_default();
        output::note(format!("{}{more} in all{next}", output::count(page.total)));
    }
    Ok(())
}
