//! `trunkline messages query`: a page of messages, and how sure its total is.

use trunkline::history::{Page, Query};
use trunkline::message::Millis;
use trunkline::{Error, Result};

use crate::commands::messages::filter::Filter;
use crate::context::Ctx;
use crate::output::{self, Table};
use crate::{record, values};

/// Finds messages by what they were and what became of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline messages query --event order-events:order-created --from 10m
  trunkline messages query --status dead --group billing
  trunkline messages query --key 123 --order asc
  trunkline messages query --text 'jane@example.com' --limit 5")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
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
    /// The newest or the oldest first
    #[arg(long, value_enum, default_value = "desc")]
    order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    Desc,
    Asc,
}

/// Prints a page.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        return Err(Error::input("from", "`--from` must lie before `--to`"));
    }
    let env = ctx.env().await?;
    let query = Query {
        from: args.from,
        to: args.to,
        page: args.page,
        limit: Some(args.limit as usize),
        cursor: args.cursor,
        ascending: args.order == Order::Asc,
        ..args.filter.query(env.product_tag(), env.slug())
    };
    let page = env.messages(query).await?;
    if ctx.is_json() {
        return output::json(&page);
    }
    let mut table = Table::new(record::HEADINGS).or("no message matches");
    page.messages.iter().for_each(|message| table.row(record::row(message)));
    table.print()?;
    output::note(summary(&page));
    for gap in &page.gaps {
        output::note(format!("something is missing: {}", serde_json::to_string(gap).unwrap_or_default()));
    }
    Ok(())
}

/// What the page does not show: how many there are, how much was looked at, where it goes on.
fn summary(page: &Page) -> String {
    let total = output::count(page.total);
    let mut text = if page.total_is_exact { format!("{total} in all") } else { format!("{total} or more in all") };
    text.push_str(&format!("; scanned {} of {}", output::count(page.scanned), output::count(page.of)));
    if page.has_more {
        text.push_str("; the next page: ");
        text.push_str(&page.cursor.as_ref().map_or_else(|| format!("--page {}", page.page + 1), |cursor| format!("--cursor {cursor}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_marked() {
        let mut page = Page {
            messages: Vec::new(),
            total: 1_200,
            total_is_exact: true,
            page: 1,
            has_more: false,
            cursor: None,
            scanned: 1_200,
            of: 5_000,
            gaps: Vec::new(),
        };
        assert_eq!(summary(&page), "1,200 in all; scanned 1,200 of 5,000");
        (page.total_is_exact, page.has_more, page.cursor) = (false, true, Some("abc".into()));
        assert_eq!(summary(&page), "1,200 or more in all; scanned 1,200 of 5,000; the next page: --cursor abc");
    }
}
