//! `trunkline messages tail`: messages as they come into the history.

use std::collections::HashMap;
use std::time::Duration;

use trunkline::history::{Query, Record};
use trunkline::message::{Millis, now_ms};
use trunkline::{Env, MessageId, Result};

use crate::commands::messages::filter::Filter;
use crate::context::Ctx;
use crate::output;
use crate::record;

/// How often the history is asked.
const LOOK: Duration = Duration::from_millis(250);
/// A message may come into the history this long after it was produced: recorders gather, and clocks differ.
const LATE: Millis = 5_000;
/// The size of a page.
const PAGE: usize = 500;

/// Follows new messages until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline messages tail --event order-events:order-created
  trunkline messages tail --header region=eu --output json | jq .payload")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Ends after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
}

/// Prints messages produced from now on, each once.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let stop = ctx.stop().drains();
    let env = ctx.env().await?;
    let query = args.filter.query(env.product_tag(), env.slug());
    let mut seen = Seen::since(now_ms());
    let mut left = args.max.unwrap_or(u64::MAX);
    if !ctx.is_json() {
        output::note("following; Ctrl-C ends");
    }
    loop {
        for message in seen.fresh(&env, &query).await? {
            if ctx.is_json() {
                output::json_line(&message)?
            } else {
                output::line(line(&message))?
            }
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

fn line(message: &Record) -> String {
    let [id, produced, event, key, ..] = record::row(message);
    [produced, id, event, output::plain(&key), format!("{} bytes", message.size)].join("  ")
}

/// What was printed, as far back as something may still come late.
struct Seen {
    since: Millis,
    ids: HashMap<MessageId, Millis>,
}

impl Seen {
    fn since(since: Millis) -> Self {
        Seen { since, ids: HashMap::new() }
    }

    /// Messages that were not seen before, the oldest first.
    async fn fresh(&mut self, env: &Env, query: &Query) -> Result<Vec<Record>> {
        let from = self.since.max(now_ms().saturating_sub(LATE));
        let mut query = Query { from: Some(from), limit: Some(PAGE), ascending: true, ..query.clone() };
        let mut fresh = Vec::new();
        loop {
            let page = env.messages(query.clone()).await?;
            fresh.extend(page.messages.into_iter().filter(|message| self.is_new(message.process_id, message.produced_at.0)));
            match page.cursor.filter(|_| page.has_more) {
                Some(cursor) => query.cursor = Some(cursor),
                None => break,
            }
        }
        self.ids.retain(|_, at| *at >= from);
        Ok(fresh)
    }

    fn is_new(&mut self, id: MessageId, at: Millis) -> bool {
        self.ids.insert(id, at).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_new_once() {
        let mut seen = Seen::since(0);
        let id = MessageId::now();
        assert!(seen.is_new(id, 1) && !seen.is_new(id, 1));
        assert!(seen.is_new(MessageId::now(), 1));
    }
}
