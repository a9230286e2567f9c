//! `trunkline dashboard`: the first screen, on one page.

use std::time::Duration;

use trunkline::dashboard::{Attention, Dashboard, DashboardQuery};
use trunkline::message::Millis;
use trunkline::{Event, Result};

use crate::commands::{messages, stats};
use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Shows all at a glance: what needs attention, figures, brokers, members, failures
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trunkline dashboard\n  trunkline dashboard --event order-events:order-created --from 6h --bucket 10m --output json"
)]
pub struct Args {
    /// Of this event: brokerTag:topicTag
    #[arg(long, conflicts_with = "broker")]
    event: Option<Event>,
    /// Of this broker
    #[arg(long, value_name = "TAG")]
    broker: Option<String>,
    /// Since: RFC 3339, or how long ago (10m) [default: 24 h before --to]; whole minutes count
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Millis>,
    /// Until: RFC 3339, or how long ago (10m) [default: now]
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Millis>,
    /// The width of a bucket of the series, in whole minutes [default: a sixtieth of the span]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    bucket: Option<Duration>,
}

/// Shows it.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let (of, topic) = args.event.as_ref().map(|event| (event.broker().to_owned(), event.topic().to_owned())).unzip();
    let query = DashboardQuery { broker: args.broker.or(of), topic, from: args.from, to: args.to, bucket: args.bucket };
    let board = ctx.env().await?.dashboard(query).await?;
    if ctx.is_json() { output::json(&board) } else { print(board) }
}

fn print(mut board: Dashboard) -> Result<()> {
    attention(&board.attention).print()?;
    output::line("")?;
    // Shown as `stats` shows them, with their topics.
    board.stats.topics = std::mem::take(&mut board.topics);
    stats::print(&board.stats, stats::By::Topic)?;
    output::line("")?;
    let mut brokers = Table::new(["broker", "type", "topics", "reachable"]).or("no broker in this env");
    for broker in &board.brokers {
        let reachable = if broker.reachable { "yes" } else { "NO" };
        brokers.row([broker.tag.clone(), broker.kind.to_string(), broker.topics.to_string(), reachable.to_owned()]);
    }
    brokers.print()?;
    output::line("")?;
    messages::members_table(&[board.consumers, board.producers].concat(), "no live producer or consumer".into()).print()?;
    output::line("")?;
    let mut failures = Table::new(["died of", "event", "group", "count", "last"]).or("no dead letter");
    for of in &board.failures {
        let cells = [output::plain(&of.error), of.event.to_string(), of.group.clone(), output::count(of.count), output::time(of.last_at)];
        failures.row(cells);
    }
    failures.print()
}

fn attention(all: &[Attention]) -> Table {
    let mut table = Table::new(["", "event", "what", "next"]).or("nothing needs attention");
    for one in all {
        let severity = serde_json::to_value(one.severity).map(|word| output::cell(&word)).unwrap_or_default();
        table.row([severity, one.event.clone().unwrap_or_default(), output::plain(&one.message), output::plain(&one.next)]);
    }
    table
}
